"""Rows of bad input: what they are made of, and how each is tried.

A row is (what, call, error, words): a call, the error it must raise, and words of its
message. test_refused_*.py hold them, each for what it is called after.
"""

import pathlib
import tempfile

import jax
import numpy as np
import pytest

import dsmooth_jax as ds

SIZE = (4, 6)
IMAGES = np.zeros((2, *SIZE, 1), np.float32)
NAN_IMAGES = np.where(np.arange(6)[:, None] == 3, np.nan, IMAGES)
SCORES = np.full((2, 6, 3), 0.25, np.float32)
VOTES = SCORES > 0.5
LEVELS = VOTES.astype(np.int16)
TOUCHED = np.eye(6, dtype=bool)
LABELS = np.array([0, 2])
COLUMNS = ds.Columns(2)
CERTIFICATE = ds.certify(VOTES, TOUCHED)
KEY = jax.random.key(0)


def uniform(images):
    """A base classifier of Columns(2) on images of SIZE."""
    return jax.numpy.full((len(images), 6, 3), 1 / 3)


def leaky(images):
    """Breaks the contract: each score depends on the whole image."""
    return uniform(images) * images.mean((1, 2, 3), keepdims=True)[:, :, :, 0]


def mixing(images):
    """Breaks the contract: each score depends on the whole batch."""
    return uniform(images) * images.mean()


SMOOTHED = ds.SmoothedClassifier(uniform, COLUMNS, image_shape=(*SIZE, 1))


def save(path="/nowhere", scores=SCORES, **changes):
    arguments = {"ablation": COLUMNS, "image_shape": (*SIZE, 1), "labels": LABELS}
    return ds.save_scores(path, scores, **arguments | changes)


def at(scores, value):
    """The scores with one bad value, at [1, 2, 0]."""
    changed = np.array(scores, np.float64)
    changed[1, 2, 0] = value
    return changed


def folder(**contents):
    """A folder that holds these files, name (with _ for .) and text."""
    path = pathlib.Path(tempfile.mkdtemp())
    for name, text in contents.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


def each(rows):
    """Parametrizes a test over rows, named by what they are."""
    rows = list(rows)
    names = [row[0] for row in rows]
    return pytest.mark.parametrize(
        ("call", "error", "words"), [row[1:] for row in rows], ids=names
    )


def check_refused(call, error, words):
    """An error of ours, that names argument and value, in one line."""
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert raised.type is error
    for word in words:
        assert word in message
    assert "\n" not in message
