"""Bad input is refused where it enters: by name and value, and with the remedy.

Each row of `CALLS` is one call, the error it must raise and words of its message; each
row of `COMMANDS` one command line, likewise. A new public function needs a row.
"""

import dataclasses
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import models
from dsmooth_jax.ablation import thinned
from dsmooth_jax.commands import cli
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.losses import LossConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent

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


def calls():
    # Ablations and patches: integers >= 1, checked where they are made.
    for cls, names in (
        (ds.Columns, ["width", "stride"]),
        (ds.Rows, ["height", "stride"]),
        (ds.Blocks, ["height", "width", "stride"]),
        (ds.MultiColumns, ["width", "keep"]),
        (ds.MultiBlocks, ["size", "keep"]),
        (ds.Patch, ["height", "width"]),
    ):
        good = dict.fromkeys(names, 1)
        for name in names:
            for value, error, words in (
                (0, ValueError, [">= 1"]),
                (-2, ValueError, [">= 1"]),
                (2.0, TypeError, ["integer"]),
                ("2", TypeError, ["integer"]),
                (True, TypeError, ["integer", "bool"]),
            ):
                arguments = good | {name: value}
                yield (
                    f"{cls.__name__}: {name}={value!r}",
                    lambda cls=cls, arguments=arguments: cls(**arguments),
                    error,
                    [cls.__name__, f"{name}={value!r}", *words],
                )

    # Ablations meet an image.
    for ablation, size, words in (
        (ds.Columns(7), SIZE, ["width=7", "1..6", "image width"]),
        (ds.Rows(5), SIZE, ["height=5", "1..4", "image height"]),
        (ds.Blocks(5, 1), SIZE, ["height=5", "1..4", "image height"]),
        (ds.Blocks(1, 7), SIZE, ["width=7", "1..6", "image width"]),
        (ds.MultiColumns(4, 1), SIZE, ["width=4", "divide", "width", "6"]),
        (ds.MultiColumns(2, 4), SIZE, ["keep=4", "1..3", "windows"]),
        (ds.MultiColumns(1, 14), (4, 28), ["keep=14", "40,116,600", "MAX_ABLATIONS"]),
        (ds.MultiBlocks(3, 1), SIZE, ["size=3", "divide", "height", "4"]),
        (ds.MultiBlocks(4, 1), SIZE, ["size=4", "divide", "width", "6"]),
        (ds.MultiBlocks(2, 7), SIZE, ["keep=7", "1..6", "windows"]),
    ):
        kind = type(ablation)
        for method in ("windows", "starts", "window_shape", "keep_masks"):
            if hasattr(kind, method):
                owner = kind if method in vars(kind) else ds.Ablation
                yield (
                    f"{owner.__name__}.{method}: {ablation} on {size}",
                    lambda a=ablation, s=size, m=method: getattr(a, m)(s),
                    ValueError,
                    words,
                )
    for size, error in (
        ((4, 6, 1), ValueError),
        ((4,), ValueError),
        ((0, 6), ValueError),
        (6, TypeError),
        ((4.0, 6.0), TypeError),
    ):
        words = ["image_size", repr(size), "(H, W)"]
        for name, call in (
            ("Ablation.num_ablations", COLUMNS.num_ablations),
            ("Ablation.keep_masks", COLUMNS.keep_masks),
            ("touched", lambda s: ds.touched(COLUMNS, ds.Patch(1, 1), s)),
            ("largest_certified_patch", lambda s: ds.largest_certified_patch(
                VOTES, COLUMNS, s)),
            ("square_of_percent", lambda s: ds.square_of_percent(2, s)),
            ("rectangles_of_area", lambda s: ds.rectangles_of_area(4, s)),
            ("touched_by_any", lambda s: ds.touched_by_any(
                COLUMNS, (ds.Patch(1, 1),), s)),
            ("vulnerability_map", lambda s: ds.vulnerability_map(
                VOTES, COLUMNS, ds.Patch(1, 1), s)),
        ):  # fmt: skip
            yield f"{name}: size {size}", lambda c=call, s=size: c(s), error, words

    # The attacker.
    for name in ("touched", "placements", "max_touched"):
        function = getattr(ds, name)
        rows = [
            (
                "Columns",
                ds.Patch(1, 1),
                TypeError,
                ["ablation='Columns'", "ds.Columns"],
            ),
            (COLUMNS, (5, 5), TypeError, ["patch=(5, 5)", "ds.Patch(5, 5)"]),
            (COLUMNS, ds.Patch(5, 1), ValueError, ["patch 5x1", "image", "4x6"]),
            (COLUMNS, ds.Patch(1, 7), ValueError, ["patch 1x7", "image", "4x6"]),
            (ds.Columns(7), ds.Patch(1, 1), ValueError, ["width=7", "1..6"]),
        ]
        for ablation, patch, error, words in rows:
            yield (
                f"{name}: {ablation}, {patch}",
                lambda f=function, a=ablation, p=patch: f(a, p, SIZE),
                error,
                words,
            )
    yield (
        "touched: too large to hold",
        lambda: ds.touched(ds.Blocks(1), ds.Patch(1, 1), (300, 300)),
        ValueError,
        ["8,100,000,000", "larger stride"],
    )

    # Scores and thresholds.
    bad_scores = [
        ("integers", LEVELS, TypeError, ["scores", "int16", "floating"]),
        ("one image", SCORES[0], ValueError, ["scores", "(6, 3)", "[N, P, K]"]),
        ("one class", SCORES[:, :, :1], ValueError, ["(2, 6, 1)", "K >= 2"]),
        ("NaN", at(SCORES, np.nan), ValueError, ["scores[1, 2, 0] = nan", "softmax"]),
        ("infinite", at(SCORES, np.inf), ValueError, ["[1, 2, 0] = inf", "[0, 1]"]),
        ("logits", at(SCORES, -0.5), ValueError, ["[1, 2, 0] = -0.5", "not logits"]),
        ("above 1", at(SCORES, 1.5), ValueError, ["[1, 2, 0] = 1.5", "[0, 1]"]),
    ]
    for what, scores, error, words in bad_scores:
        for name, call in (
            ("threshold_votes", lambda s: ds.threshold_votes(s, 0.5)),
            ("top_one_votes", ds.top_one_votes),
            ("graded_votes", lambda s: ds.graded_votes(s, 2)),
            ("uncertain_votes", lambda s: ds.uncertain_votes(s, 0, strength=2)),
            ("base_accuracy", lambda s: ds.base_accuracy(s, LABELS)),
            ("choose_threshold", lambda s: ds.choose_threshold(s, LABELS, TOUCHED)),
            ("choose_strength", lambda s: ds.choose_strength(s, LABELS, TOUCHED)),
            ("save_scores", lambda s: save(scores=s)),
            ("SmoothedClassifier.vote", SMOOTHED.vote),
        ):
            yield f"{name}: scores {what}", lambda c=call, s=scores: c(s), error, words
    for value, error, words in (
        (0, ValueError, ["(0, 1]"]),
        (-0.1, ValueError, ["(0, 1]"]),
        (1.01, ValueError, ["(0, 1]"]),
        (float("nan"), ValueError, ["(0, 1]"]),
        (1e-60, ValueError, ["(0, 1]"]),
        ("low", TypeError, ["number"]),
        (None, TypeError, ["number"]),
    ):
        for name, call in (
            ("threshold_votes", lambda t: ds.threshold_votes(SCORES, t)),
            ("SmoothedClassifier", lambda t: ds.SmoothedClassifier(
                uniform, COLUMNS, threshold=t)),
        ):  # fmt: skip
            yield (
                f"{name}: threshold {value}",
                lambda c=call, v=value: c(v),
                error,
                [f"threshold={value!r}", *words],
            )
    for value, error in (
        (0.5, ValueError),
        (-1, ValueError),
        (101, ValueError),
        (float("nan"), ValueError),
        ("high", TypeError),
    ):
        for name, call in (
            ("graded_votes", lambda s: ds.graded_votes(SCORES, s)),
            ("uncertain_votes", lambda s: ds.uncertain_votes(SCORES, 0, strength=s)),
            ("SmoothedClassifier", lambda s: ds.SmoothedClassifier(
                uniform, COLUMNS, strength=s)),
        ):  # fmt: skip
            yield (
                f"{name}: strength {value}",
                lambda c=call, v=value: c(v),
                error,
                [
                    f"strength={value!r}",
                    "[1, 100]" if error is ValueError else "number",
                ],
            )
    for what, tolerance, settings, words in (
        ("of no voting", 0, {}, ["threshold=None", "strength=None", "exactly one"]),
        (
            "of two votings",
            0,
            {"threshold": 0.3, "strength": 2},
            ["threshold=0.3", "strength=2", "exactly one"],
        ),
        ("tolerance below 0", -0.1, {"threshold": 0.3}, ["tolerance=-0.1", "[0, 1)"]),
        ("tolerance 1", 1, {"threshold": 0.3}, ["tolerance=1", "[0, 1)"]),
        ("threshold 0", 0, {"threshold": 0}, ["threshold=0", "(0, 1]"]),
        ("two levels", 0.02, {"strength": 1}, ["tolerance=0.02", "below 0.01"]),
    ):
        yield (
            f"uncertain_votes: {what}",
            lambda t=tolerance, s=settings: ds.uncertain_votes(SCORES, t, **s),
            ValueError,
            words,
        )
    for value, words in (([], ["strengths", "at least one"]), ([2, 0], ["[1, 100]"])):
        yield (
            f"choose_strength: {value}",
            lambda v=value: ds.choose_strength(SCORES, LABELS, TOUCHED, strengths=v),
            ValueError,
            words,
        )
    yield (
        "sweep: labels of other images",
        lambda: ds.sweep(SCORES, LABELS[1:], {"a": TOUCHED}, thresholds=(0.3,)),
        ValueError,
        ["labels have shape"],
    )
    yield (
        "sweep: strength out of range",
        lambda: ds.sweep(SCORES, LABELS, {"a": TOUCHED}, strengths=(0,)),
        ValueError,
        ["strength=0", "[1, 100]"],
    )
    yield (
        "choose_strength: no image",
        lambda: ds.choose_strength(SCORES[:0], LABELS[:0], TOUCHED),
        ValueError,
        ["no image", "at least one"],
    )
    for value, words in (([], ["thresholds", "at least one"]), ([0.5, 0], ["(0, 1]"])):
        yield (
            f"choose_threshold: {value}",
            lambda v=value: ds.choose_threshold(SCORES, LABELS, TOUCHED, thresholds=v),
            ValueError,
            words,
        )
    yield (
        "choose_threshold: no image",
        lambda: ds.choose_threshold(SCORES[:0], LABELS[:0], TOUCHED),
        ValueError,
        ["no image", "at least one"],
    )

    # Votes, touched sets, rules.
    for what, votes, limit, error, words in (
        ("scores", SCORES, None, TypeError, ["float32", "threshold_votes"]),
        ("of one image", VOTES[0], None, ValueError, ["(6, 3)", "[N, P, K]"]),
        ("of one class", VOTES[..., :1], None, ValueError, ["(2, 6, 1)", "K >= 2"]),
        ("with limit", VOTES, 2, ValueError, ["limit=2", "bool"]),
        ("levels, no limit", LEVELS, None, ValueError, ["int16", "limit="]),
        ("levels, limit 0", LEVELS, 0, ValueError, ["limit=0", "1.."]),
        ("levels, limit 1.5", LEVELS, 1.5, TypeError, ["limit=1.5", "integer"]),
        ("levels, huge", np.full((1, 6, 2), 2**62), 1, ValueError, ["2^62"]),
    ):
        yield (
            f"certify: votes {what}",
            lambda v=votes, n=limit: ds.certify(v, TOUCHED, limit=n),
            error,
            words,
        )
        for name, call in (
            ("certify_several", lambda v, n: ds.certify_several(
                v, TOUCHED, 2, limit=n)),
            ("vulnerability_map", lambda v, n: ds.vulnerability_map(
                v, COLUMNS, ds.Patch(1, 1), SIZE, limit=n)),
            ("runner_up", lambda v, n: ds.runner_up(v, limit=n)),
        ):  # fmt: skip
            yield (
                f"{name}: votes {what}",
                lambda c=call, v=votes, n=limit: c(v, n),
                error,
                words,
            )
        yield (
            f"largest_certified_patch: votes {what}",
            lambda v=votes, n=limit: ds.largest_certified_patch(
                v, COLUMNS, SIZE, limit=n
            ),
            error,
            words,
        )
    yield (
        "largest_certified_patch: votes of another ablation",
        lambda: ds.largest_certified_patch(VOTES, ds.Columns(2, stride=2), SIZE),
        ValueError,
        ["6 ablations", "stride=2", "3"],
    )
    for touched, error, words in (
        (TOUCHED.astype(int), TypeError, ["touched", "int64", "bool"]),
        (TOUCHED[0], ValueError, ["touched", "(6,)", "[L, 6]"]),
        (TOUCHED[:, :5], ValueError, ["touched", "(6, 5)", "[L, 6]"]),
        (TOUCHED[:0], ValueError, ["touched", "L", ">= 1"]),
    ):
        what = f"touched {touched.dtype}{list(touched.shape)}"
        yield f"certify: {what}", lambda t=touched: ds.certify(VOTES, t), error, words
        for name, call in (
            ("choose_threshold", lambda t: ds.choose_threshold(SCORES, LABELS, t)),
            ("choose_strength", lambda t: ds.choose_strength(SCORES, LABELS, t)),
            ("certify_several", lambda t: ds.certify_several(VOTES, t, 2)),
        ):
            yield f"{name}: {what}", lambda c=call, t=touched: c(t), error, words
    for number in (0, -1):
        yield (
            f"certify_several: {number} patches",
            lambda n=number: ds.certify_several(VOTES, TOUCHED, n),
            ValueError,
            [f"num_patches={number}", ">= 1"],
        )
    for name, argument, call, values, remedy in (
        (
            "square_of_percent",
            "percent",
            lambda v: ds.square_of_percent(v, SIZE),
            (0, -2, 100.5, float("nan")),
            "(0, 100]",
        ),
        (
            "rectangles_of_area",
            "area",
            lambda v: ds.rectangles_of_area(v, SIZE),
            (0, -4),
            ">= 1",
        ),
    ):
        for value in values:
            yield (
                f"{name}: {value}",
                lambda c=call, v=value: c(v),
                ValueError,
                [f"{argument}={value!r}", remedy],
            )
    for patches, error, words in (
        ((), ValueError, ["patches=()", "at least one"]),
        ((ds.Patch(1, 1), ds.Patch(5, 1)), ValueError, ["patch 5x1", "4x6"]),
        (((5, 5),), TypeError, ["patch=(5, 5)", "ds.Patch(5, 5)"]),
    ):
        yield (
            f"touched_by_any: {len(patches)} of {words[0]}",
            lambda p=patches: ds.touched_by_any(COLUMNS, p, SIZE),
            error,
            words,
        )
    for patch, error, words in (
        (ds.Patch(1, 7), ValueError, ["patch 1x7", "4x6"]),
        ((5, 5), TypeError, ["patch=(5, 5)", "ds.Patch(5, 5)"]),
    ):
        yield (
            f"vulnerability_map: {words[0]}",
            lambda p=patch: ds.vulnerability_map(VOTES, COLUMNS, p, SIZE),
            error,
            words,
        )
    words = ["rule='best'", "placement", "margin"]
    for name, call in (
        ("certify", lambda: ds.certify(VOTES, TOUCHED, rule="best")),
        ("largest_certified_patch", lambda: ds.largest_certified_patch(
            VOTES, COLUMNS, SIZE, rule="best")),
        ("choose_threshold", lambda: ds.choose_threshold(
            SCORES, LABELS, TOUCHED, rule="best")),
        ("choose_strength", lambda: ds.choose_strength(
            SCORES, LABELS, TOUCHED, rule="best")),
        ("SmoothedClassifier.certify", lambda: SMOOTHED.certify(
            IMAGES, ds.Patch(1, 1), rule="best")),
    ):  # fmt: skip
        yield f"{name}: no such rule", call, ValueError, words
    for uncertain, error, words in (
        (LEVELS, TypeError, ["uncertain", "int16", "bool"]),
        (VOTES[:1], ValueError, ["uncertain", "(1, 6, 3)", "(2, 6, 3)"]),
    ):
        yield (
            f"certify: uncertain {uncertain.dtype}{uncertain.shape}",
            lambda u=uncertain: ds.certify(VOTES, TOUCHED, uncertain=u),
            error,
            words,
        )

    # Ranks and alarms.
    three = np.ones((2, 6, 3), bool)
    for what, options, error, words in (
        ("three votes", {"one_vote": True}, ValueError, ["gives 3 votes", "top_one"]),
        ("floats", {"classes": [[0.5], [1.0]]}, TypeError, ["classes", "float64"]),
        ("labels", {"classes": [0, 1]}, ValueError, ["(2,)", "labels[:, None]"]),
        ("class 3", {"classes": [[3], [0]]}, ValueError, ["classes", "3", "0..2"]),
        ("class -1", {"classes": [[-1], [0]]}, ValueError, ["classes", "-1", "0..2"]),
        ("limit", {"limit": 3}, ValueError, ["limit=3", "bool"]),
    ):
        yield (
            f"worst_rank: {what}",
            lambda o=options: ds.worst_rank(three, TOUCHED, **o),
            error,
            words,
        )
    yield (
        "worst_rank: one vote of levels",
        lambda: ds.worst_rank(LEVELS, TOUCHED, limit=100, one_vote=True),
        ValueError,
        ["one_vote=True", "leave it out"],
    )
    alarmed = ds.certify_with_alarm(VOTES, TOUCHED, alarm_margin=1)
    for margin, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        for name, call in (
            ("certify_with_alarm", lambda m: ds.certify_with_alarm(
                VOTES, TOUCHED, alarm_margin=m)),
            ("AlarmCertificate.at", alarmed.at),
        ):  # fmt: skip
            words = [f"alarm_margin={margin}"]
            yield f"{name}: {margin}", lambda c=call, m=margin: c(m), error, words
    for margins, rate, error, words in (
        (alarmed.margin, 1, ValueError, ["rate=1", "[0, 1)"]),
        (alarmed.margin[:0], 0.1, ValueError, ["margins", "(0,)", "N >= 1"]),
        ([0.5], 0.1, TypeError, ["margins", "float64", "integers"]),
    ):
        yield (
            f"choose_alarm_margin: {words}",
            lambda m=margins, r=rate: ds.choose_alarm_margin(m, r),
            error,
            words,
        )

    # Labels.
    for labels, error, words in (
        (LABELS.astype(float), TypeError, ["labels", "float64", "integers"]),
        (LABELS > 1, TypeError, ["labels", "bool", "integers"]),
        (LABELS[:1], ValueError, ["labels", "(1,)", "[2]"]),
        (np.eye(2, dtype=int), ValueError, ["labels", "(2, 2)", "[2]"]),
        (np.array([0, 3]), ValueError, ["labels[1] = 3", "0..2"]),
        (np.array([-1, 0]), ValueError, ["labels[0] = -1", "0..2"]),
    ):
        for name, call in (
            ("evaluate", lambda x: ds.evaluate(CERTIFICATE, x)),
            ("evaluate_alarm", lambda x: ds.evaluate_alarm(alarmed, x)),
            ("base_accuracy", lambda x: ds.base_accuracy(SCORES, x)),
            ("choose_threshold", lambda x: ds.choose_threshold(SCORES, x, TOUCHED)),
            ("choose_strength", lambda x: ds.choose_strength(SCORES, x, TOUCHED)),
            ("save_scores", lambda x: save(labels=x)),
        ):
            what = f"{name}: labels {labels.tolist()}"
            yield what, lambda c=call, x=labels: c(x), error, words

    # Images.
    takes_images = [
        ("ablate", lambda x: ds.ablate(x, COLUMNS)),
        ("crop", lambda x: ds.crop(x, COLUMNS)),
        ("random_ablate", lambda x: ds.random_ablate(KEY, x, COLUMNS)),
        ("score", lambda x: ds.score(uniform, x)),
        ("SmoothedClassifier.score", SMOOTHED.score),
        ("SmoothedClassifier.predict", SMOOTHED.predict),
        ("SmoothedClassifier.certify", lambda x: SMOOTHED.certify(x, ds.Patch(1, 1))),
    ]
    for what, images, error, words in (
        ("a list", IMAGES.tolist(), TypeError, ["list", "array"]),
        ("int32", IMAGES.astype(np.int32), TypeError, ["int32", "uint8", "[0, 1]"]),
        ("bool", IMAGES > 0, TypeError, ["bool", "uint8", "[0, 1]"]),
        ("one image", IMAGES[0], ValueError, ["(4, 6, 1)", "images[None]"]),
        (
            "no channel",
            IMAGES[:, :, :, :0],
            ValueError,
            ["(2, 4, 6, 0)", "[N, H, W, C]"],
        ),
        ("0..255", IMAGES + 200, ValueError, ["[0, 0, 0, 0] = 200", "divide", "uint8"]),
        ("below 0", IMAGES - 0.5, ValueError, ["[0, 0, 0, 0] = -0.5", "[0, 1]"]),
        ("NaN", NAN_IMAGES, ValueError, ["[0, 0, 3, 0] = nan", "[0, 1]"]),
    ):
        for name, call in takes_images:
            what_row = f"{name}: images {what}"
            yield what_row, lambda c=call, x=images: c(x), error, ["images", *words]
    for name, call in takes_images[4:]:
        yield (
            f"{name}: images of another size",
            lambda c=call: c(np.zeros((1, 5, 6, 1))),
            ValueError,
            ["images", "(5, 6, 1)", "(4, 6, 1)"],
        )

    # Functions of images and an ablation.
    for name, call in (
        ("ablate", lambda a: ds.ablate(IMAGES, a)),
        ("crop", lambda a: ds.crop(IMAGES, a)),
        ("random_ablate", lambda a: ds.random_ablate(KEY, IMAGES, a)),
    ):
        words = ["width=7", "1..6"]
        yield f"{name}: width", lambda c=call: c(ds.Columns(7)), ValueError, words
    yield (
        "crop: several windows",
        lambda: ds.crop(IMAGES, ds.MultiColumns(2, 2)),
        TypeError,
        ["MultiColumns(width=2, keep=2)", "several windows", "Columns, Rows or Blocks"],
    )
    for name, call in (
        ("ablate", lambda a: ds.ablate(IMAGES, a)),
        ("crop", lambda a: ds.crop(IMAGES, a)),
        ("random_ablate", lambda a: ds.random_ablate(KEY, IMAGES, a)),
        ("masked_scores", lambda a: ds.masked_scores(uniform, a)),
        ("cropped_scores", lambda a: ds.cropped_scores(uniform, a)),
        ("one_pass_scores", lambda a: ds.one_pass_scores(uniform, a)),
        ("check_locality", lambda a: ds.check_locality(uniform, a, (*SIZE, 1))),
        (
            "largest_certified_patch",
            lambda a: ds.largest_certified_patch(VOTES, a, SIZE),
        ),
        (
            "touched_by_any",
            lambda a: ds.touched_by_any(a, (ds.Patch(1, 1),), SIZE),
        ),
        (
            "vulnerability_map",
            lambda a: ds.vulnerability_map(VOTES, a, ds.Patch(1, 1), SIZE),
        ),
        ("save_scores", lambda a: save(ablation=a)),
        ("SmoothedClassifier", lambda a: ds.SmoothedClassifier(uniform, a)),
    ):
        words = ["ablation='Columns(4)'"]
        yield f"{name}: text", lambda c=call: c("Columns(4)"), TypeError, words

    # Base classifiers and the settings that only run faster.
    for name, argument, call in (
        ("masked_scores", "chunk_size", lambda n: ds.masked_scores(
            uniform, COLUMNS, chunk_size=n)),
        ("cropped_scores", "chunk_size", lambda n: ds.cropped_scores(
            uniform, COLUMNS, chunk_size=n)),
        ("check_locality", "batch_size", lambda n: ds.check_locality(
            uniform, COLUMNS, (*SIZE, 1), batch_size=n)),
        ("score", "batch_size", lambda n: ds.score(uniform, IMAGES, batch_size=n)),
        ("SmoothedClassifier.predict", "batch_size", lambda n: SMOOTHED.predict(
            IMAGES, batch_size=n)),
    ):  # fmt: skip
        for value, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError)):
            yield (
                f"{name}: {argument}={value}",
                lambda c=call, v=value: c(v),
                error,
                [f"{argument}={value}", ">= 1" if error is ValueError else "integer"],
            )
    yield (
        "score: scores of another shape",
        lambda: ds.score(lambda x: x[..., 0, 0], IMAGES, batch_size=4),
        ValueError,
        ["scores_fn", "(4, 4)", "[B, P, K]"],
    )
    yield (
        "masked_scores: logits of another shape",
        lambda: ds.score(
            ds.masked_scores(lambda x: x.mean((0, 1, 2)), COLUMNS), IMAGES
        ),
        ValueError,
        ["logits_fn", "(2,)", "K]"],
    )
    yield (
        "one_pass_scores: logits of another ablation",
        lambda: ds.score(ds.one_pass_scores(uniform, ds.Rows(1)), IMAGES, batch_size=4),
        ValueError,
        ["logits_fn", "(4, 6, 3)", "[4, 4, K]", "Rows(height=1"],
    )
    yield (
        "cropped_scores: several windows",
        lambda: ds.cropped_scores(uniform, ds.MultiColumns(2, 2)),
        TypeError,
        ["MultiColumns(width=2, keep=2)", "several windows", "Columns, Rows or Blocks"],
    )
    for what, scores_fn, ablations, words in (
        ("no such ablation", uniform, [0, 6], ["ablations=[0, 6]", "0..5"]),
        ("none", uniform, [], ["ablations=[]", "0..5"]),
        (
            "of another ablation",
            lambda x: uniform(x)[:, 1:],
            None,
            ["(4, 5, 3)", "6, K"],
        ),
        ("a leak", leaky, None, ["ablation 0", "depends on", "Columns(width=2"]),
        ("of other images", mixing, None, ["image 0", "depend on", "other images"]),
    ):
        yield (
            f"check_locality: {what}",
            lambda f=scores_fn, a=ablations: ds.check_locality(
                f, COLUMNS, (*SIZE, 1), ablations=a, batch_size=4
            ),
            ValueError,
            words,
        )
    yield (
        "SmoothedClassifier.score: scores of another ablation",
        lambda: ds.SmoothedClassifier(uniform, ds.Rows(1)).score(IMAGES),
        ValueError,
        ["6 ablations", "Rows(height=1", "4"],
    )
    yield (
        "SmoothedClassifier: no function",
        lambda: ds.SmoothedClassifier("resnet18", COLUMNS),
        TypeError,
        ["scores_fn='resnet18'", "function"],
    )
    yield (
        "SmoothedClassifier: no such voting",
        lambda: ds.SmoothedClassifier(uniform, COLUMNS, voting="majority"),
        ValueError,
        ["voting='majority'", "threshold", "top_one"],
    )
    for patch, error, words in (
        (ds.Patch(5, 1), ValueError, ["patch 5x1", "4x6"]),
        ((2, 2), TypeError, ["patch=(2, 2)", "Patch"]),
    ):
        yield (
            f"SmoothedClassifier.certify: patch {patch}",
            lambda p=patch: SMOOTHED.certify(IMAGES, p),
            error,
            words,
        )
    for name, call in (
        ("masked_scores", lambda: ds.masked_scores("resnet18", COLUMNS)),
        ("cropped_scores", lambda: ds.cropped_scores("resnet18", COLUMNS)),
        ("one_pass_scores", lambda: ds.one_pass_scores("resnet18", COLUMNS)),
        ("score", lambda: ds.score("resnet18", IMAGES)),
    ):
        words = ["'resnet18'", "function"]
        yield f"{name}: no function", call, TypeError, words

    # What is asked of scores.
    asked = {"votings": ("threshold",), "voting": "threshold", "threshold": 0.3}
    asked |= {
        "attacks": ds.attacks_on(COLUMNS, SIZE, [ds.Patch(1, 1)]),
        "strength": 5.0,
    }
    for name, call, error, words in (
        (
            "attacks_on: patch",
            lambda: ds.attacks_on(COLUMNS, SIZE, [ds.Patch(5, 1)]),
            ValueError,
            ["patch 5x1", "4x6"],
        ),
        (
            "Request: threshold",
            lambda: ds.Request(**asked | {"threshold": 1.5}),
            ValueError,
            ["threshold=1.5", "(0, 1]"],
        ),
        (
            "Request: two of a name",
            lambda: ds.Request(**asked | {"attacks": 2 * asked["attacks"]}),
            ValueError,
            ["1x1", "names"],
        ),
        (
            "Request.cast: voting",
            lambda: ds.Request(**asked).cast(SCORES, "majority"),
            ValueError,
            ["voting='majority'", "graded"],
        ),
        (
            "request_of: strength",
            lambda: ds.request_of(ds.Origin(), asked["attacks"], strength=0.5),
            ValueError,
            ["strength=0.5"],
        ),
        (
            "analyze: other ablations",
            lambda: ds.analyze(
                save(folder() / "s"),
                ds.Request(
                    **asked
                    | {"attacks": ds.attacks_on(ds.Rows(1), SIZE, [ds.Patch(1, 1)])}
                ),
            ),
            ValueError,
            ["touched", "[L, 6]"],
        ),
        (
            "write_report: a file in the way",
            lambda: ds.write_report(
                ds.analyze(
                    save(folder() / "s"), ds.Request(**asked, has_figures=False)
                ),
                folder(x_y="") / "x.y",
            ),
            FileExistsError,
            ["x.y"],
        ),
        (
            "cast_votes: voting",
            lambda: ds.cast_votes(SCORES, "majority"),
            ValueError,
            ["voting='majority'", "graded"],
        ),
        (
            "choose_voting: no image",
            lambda: ds.choose_voting(SCORES[:0], LABELS[:0], TOUCHED),
            ValueError,
            ["no image"],
        ),
        (
            "ablation_from_json: kind",
            lambda: ds.ablation_from_json({"kind": "Rings"}),
            ValueError,
            ["kind='Rings'", "Columns"],
        ),
        (
            "worst_placement: patch",
            lambda: ds.worst_placement(VOTES, COLUMNS, ds.Patch(5, 1), SIZE),
            ValueError,
            ["patch 5x1", "4x6"],
        ),
        (
            "certified_rectangles: sizes",
            lambda: ds.certified_rectangles(VOTES, COLUMNS, SIZE, [2, 1], [1]),
            ValueError,
            ["heights=(2, 1)"],
        ),
    ):
        yield name, call, error, words

    # Stores and checkpoints.
    yield (
        "save_scores: scores of another ablation",
        lambda: save(ablation=ds.Columns(2, stride=2)),
        ValueError,
        ["6 ablations", "stride=2", "3"],
    )
    yield (
        "save_scores: image_shape without channels",
        lambda: save(folder() / "scores", image_shape=SIZE),
        ValueError,
        ["image_shape=(4, 6)", "(H, W, C)"],
    )
    for what, images, error, words in (
        ("other images", IMAGES[:1], ValueError, ["(1, 4, 6, 1)", "(2, 4, 6, 1)"]),
        ("of integers", IMAGES.astype(int), TypeError, ["int64", "uint8"]),
        ("out of range", IMAGES + 2, ValueError, ["[0, 1]"]),
    ):
        yield (
            f"save_thumbnails: {what}",
            lambda images=images: ds.save_thumbnails(save(folder() / "s"), images),
            error,
            words,
        )
    for what, path, words in (
        ("nothing there", lambda: folder() / "scores", ["no store", "manifest.json"]),
        ("a file", lambda: folder(scores="") / "scores", ["scores", "no store"]),
        ("no JSON", lambda: folder(manifest_json="{"), ["manifest.json", "damaged"]),
        ("a list", lambda: folder(manifest_json="[]"), ["manifest.json"]),
        ("newer", lambda: folder(manifest_json='{"format": 99}'), ["99"]),
    ):
        yield (
            f"open_scores: {what}",
            lambda p=path: ds.open_scores(p()),
            ds.StoreError,
            words,
        )
    yield (
        "ScoreStore.read: no such shard",
        lambda: save(folder() / "scores").read(1),
        ds.StoreError,
        ["scores-00001.npy", "missing"],
    )
    yield (
        "load_smoothed: nothing there",
        lambda: ds.load_smoothed(folder()),
        ds.CheckpointError,
        ["no checkpoint", "train"],
    )

    # What the scripts hand on.
    for text in ("", "5", "5x", "x5", "0x5", "5x0", "-1x2", "2x2,", "2.0x2", "2x2x2"):
        bad = text.split(",")[-1]
        words = ["--patches", repr(bad), "HEIGHTxWIDTH", "--patches=2x2,5x5"]
        yield (
            f"cli: {text!r}",
            lambda t=text: cli.parse_patches(t, (8, 8)),
            ValueError,
            words,
        )
    for change, error, words in (
        ({"name": "adam"}, ValueError, ["optimizer.name='adam'", "adamw", "sgd"]),
        ({"schedule": "step"}, ValueError, ["optimizer.schedule='step'", "cosine"]),
        ({"learning_rate": 0}, ValueError, ["optimizer.learning_rate=0", "> 0"]),
        ({"learning_rate": "1"}, TypeError, ["optimizer.learning_rate='1'", "number"]),
        ({"weight_decay": -1}, ValueError, ["optimizer.weight_decay=-1", ">= 0"]),
        ({"adam_learning_rate": 0}, ValueError, ["optimizer.adam_learning_rate=0"]),
        ({"momentum": 1}, ValueError, ["optimizer.momentum=1", "< 1"]),
        ({"newton_schulz_steps": 0}, ValueError, ["newton_schulz_steps=0", ">= 1"]),
        ({"warmup_epochs": -1}, ValueError, ["optimizer.warmup_epochs=-1", ">= 0"]),
        ({"boundaries": (3, 2)}, ValueError, ["optimizer.boundaries=(3, 2)"]),
    ):
        yield (
            f"training: {change}",
            lambda c=change: optimizers.OptimizerConfig(**c),
            error,
            words,
        )
    yield (
        "training: warm-up longer than the run",
        lambda: optimizers.make_optimizer(
            optimizers.OptimizerConfig(warmup_epochs=3), num_epochs=3, steps_per_epoch=5
        ),
        ValueError,
        ["optimizer.warmup_epochs=3", "epochs, 3"],
    )
    yield (
        "training: shift",
        lambda: AugmentConfig(shift=-1),
        ValueError,
        ["augment.shift=-1", ">= 0"],
    )
    yield (
        "training: shift that is no whole pixel",
        lambda: AugmentConfig(shift=1.5),
        TypeError,
        ["augment.shift=1.5", "integer"],
    )
    yield (
        "training: every second ablation of several windows",
        lambda: thinned(ds.MultiColumns(2, 2), 2),
        TypeError,
        ["every=2", "MultiColumns(width=2, keep=2)", "use every=1"],
    )
    for change, error, words in (
        ({"cutout": -1}, ValueError, ["augment.cutout=-1", ">= 0"]),
        ({"cutout": 2.5}, TypeError, ["augment.cutout=2.5", "integer"]),
        ({"color": 1.0}, ValueError, ["augment.color=1.0", "< 1"]),
    ):
        yield f"augment: {change}", lambda c=change: AugmentConfig(**c), error, words
    for change, error, words in (
        ({"name": "hinge"}, ValueError, ["loss.name='hinge'", "certified_margin"]),
        ({"label_smoothing": 1}, ValueError, ["loss.label_smoothing=1", "< 1"]),
        ({"every": 0}, ValueError, ["loss.every=0", ">= 1"]),
        ({"temperature": 0}, ValueError, ["loss.temperature=0", "> 0"]),
        ({"target": None}, TypeError, ["loss.target=None", "number"]),
        ({"cross_entropy": -1}, ValueError, ["loss.cross_entropy=-1", ">= 0"]),
        ({"patch": (0, 5)}, ValueError, ["0"]),
    ):
        yield f"losses: {change}", lambda c=change: LossConfig(**c), error, words
    model = models.small_cnn(image_shape=(*SIZE, 1), num_classes=3)
    yield (
        "load_weights: no file",
        lambda: ds.load_weights("/nowhere/weights.pth", model),
        FileNotFoundError,
        ["/nowhere/weights.pth", "is no file"],
    )
    yield (
        "save_weights: another format",
        lambda: ds.save_weights("/nowhere/weights", {}, format="onnx"),
        ValueError,
        ["format='onnx'", "safetensors"],
    )
    yield (
        "models: no such model",
        lambda: models.build(
            {"name": "vgg"}, ablation=COLUMNS, image_shape=(4, 6, 1), num_classes=3
        ),
        ValueError,
        ["name='vgg'", "resnet18", "small_cnn"],
    )


def calls_of_masking():
    levels = np.zeros((1, 6, 2), np.int16)
    out = np.eye(6, dtype=bool)
    table = np.zeros((1, 2, 2), np.int16)
    image = np.zeros((1, 6, 6, 1), np.float32)
    masks = ds.Masks(2, stride=2)
    masked = ds.MaskedClassifier(lambda x: x[:, 0, 0], masks, image_shape=(6, 6, 1))
    for value, error in ((0, ValueError), (2.0, TypeError)):
        yield (
            f"Masks: {value}",
            lambda v=value: ds.Masks(v, stride=1),
            error,
            ["height"],
        )
    for name in ("hide_masks", "num_masks", "starts"):
        yield (
            f"Masks.{name}: larger than the image",
            lambda n=name: getattr(ds.Masks(7, stride=1), n)((6, 6)),
            ValueError,
            ["height=7", "1..6"],
        )
    for name, call in (
        ("covering_masks", lambda p: ds.covering_masks(p, (6, 6))),
        ("covering", lambda p: ds.covering(masks, p, (6, 6))),
        ("design_masks", lambda p: ds.design_masks(COLUMNS, p, SIZE)),
        ("merged_masks", lambda p: ds.merged_masks(COLUMNS, p, SIZE)),
    ):
        large = ds.Patch(7, 7)
        yield f"{name}: too large", lambda c=call, p=large: c(p), ValueError, ["7x7"]
    floats = levels.astype(float)
    for name, call in (
        ("mask_table", ds.mask_table),
        ("certify_masked", lambda x, m: ds.certify_masked(x, m, out)),
    ):
        yield (
            f"{name}: levels of floats",
            lambda c=call: c(floats, out),
            TypeError,
            ["float64"],
        )
    for name, call in (
        ("ablation_masks", lambda: ds.ablation_masks(out.astype(int))),
        ("covering_touched", lambda: ds.covering_touched(out.astype(int), out)),
    ):
        yield f"{name}: integers", call, TypeError, ["int64", "bool"]
    for name, call in (
        ("double_masking_predict", lambda: ds.double_masking_predict(table[0])),
        (
            "certify_double_masking",
            lambda: ds.certify_double_masking(table[0], np.ones((1, 2), bool)),
        ),
    ):
        yield f"{name}: one image", call, ValueError, ["(2, 2)", "[N, M, M]"]
    for name, call in (("log_levels", ds.log_levels), ("log_doubts", ds.log_doubts)):
        yield (
            f"{name}: logits",
            lambda c=call: c(at(SCORES, 3.0)),
            ValueError,
            ["[1, 2, 0]", "[0, 1]", "softmax"],
        )
    yield (
        "MaskedClassifier: masks of another kind",
        lambda: ds.MaskedClassifier(lambda x: x, COLUMNS),
        TypeError,
        ["masks=", "ds.Masks"],
    )
    other = image[:, :5]
    for name, call in (
        ("label", lambda: masked.label(other)),
        ("predict", lambda: masked.predict(other)),
        ("certify", lambda: masked.certify(other, ds.Patch(1, 1))),
    ):
        words = ["(5, 6, 1)", "(6, 6, 1)"]
        yield f"MaskedClassifier.{name}: another shape", call, ValueError, words
    yield (
        "mask_labels: fill",
        lambda: ds.mask_labels(lambda x: x[:, 0, 0], masks, image, fill=2.0),
        ValueError,
        ["fill=2.0", "[0, 1]"],
    )
    yield (
        "open_labels: nothing there",
        lambda: ds.open_labels("/nowhere/labels"),
        ds.StoreError,
        ["/nowhere/labels"],
    )


CALLS = [*calls(), *calls_of_masking()]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [row[1:] for row in CALLS],
    ids=[row[0] for row in CALLS],
)
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert raised.type is error
    for word in words:
        assert word in message
    assert "\n" not in message


def test_every_public_function_has_a_row():
    # Protects the table from functions that it does not know.
    filled_by_us = {"Accuracy", "Certificate", "Evaluation", "ScoreStore", "Ablation"}
    filled_by_us |= {"AlarmCertificate", "AlarmEvaluation"}
    filled_by_us |= {"Analysis", "Attack", "ChosenVoting", "Origin"}
    filled_by_us |= {"MaskedCertificate", "LabelStore"}
    # Arithmetic on a number that `missing` gave; lookups.
    unchecked = {"ScoreStore.span", "Request.setting"}
    unchecked |= {"Analysis.is_right", "Analysis.squares"}
    unchecked |= {"Analysis.is_hit", "Analysis.way_against"}
    unchecked |= {"ScoreStore.check", "LabelStore.check"}  # what they read themselves
    constants = {"GRADES"}
    wanted = set()
    for name in set(ds.__all__) - constants:
        value = getattr(ds, name)
        if inspect.isclass(value):
            for key, member in vars(value).items():
                is_abstract = getattr(member, "__isabstractmethod__", False)
                if (
                    inspect.isfunction(member)
                    and not key.startswith("_")
                    and not is_abstract
                ):
                    wanted |= {f"{name}.{key}"} if takes_arguments(member) else set()
            if not dataclasses.is_dataclass(value):
                continue
        wanted.add(name)
    rows = {row[0].partition(":")[0] for row in CALLS}
    missing = sorted(wanted - filled_by_us - unchecked - rows)
    assert not missing, " ".join(missing)


def takes_arguments(method):
    return len(inspect.signature(method).parameters) > 1


TRAIN = ["train.py", "--config=configs/mnist5k_smoke.py", "--workdir={tmp}/new"]
SCORED = ["certify.py", "--scores={scores}", "--out={tmp}/out"]
TRAINED = ["certify.py", "--workdir={trained}", "--out={tmp}/out"]
DEMO = "--workdir=runs/demo"
COMMANDS = {
    "train, no flag": (["train.py"], ["--config", "--workdir", "configs/mnist5k"]),
    "train, no workdir": (TRAIN[:2], ["--workdir"]),
    "train, no config": ([TRAIN[0], TRAIN[2]], ["--config", "configs/mnist5k"]),
    "train, unknown flag": ([*TRAIN, "--epochs=3"], ["epochs", "help"]),
    "train, no flag but a word": ([*TRAIN, "fast"], ["'fast'", "--help"]),
    "train, config typo": (
        [*TRAIN, "--config.train.epoch=3"],
        ["--config.train.epoch:", "nearest is --config.train.epochs"],
    ),
    "train, config value": ([*TRAIN, "--config.train.epochs=many"], ["epochs", "many"]),
    "train, config missing": (
        ["train.py", "--config=configs/mnist.py", TRAIN[2]],
        ["configs/mnist.py"],
    ),
    "train, no such optimizer": (
        [*TRAIN, "--config.train.optimizer.name=adam"],
        ["optimizer.name='adam'", "adamw"],
    ),
    "train, no learning rate": (
        [*TRAIN, "--config.train.optimizer.learning_rate=0"],
        ["optimizer.learning_rate=0", "> 0"],
    ),
    "train, no batch": ([*TRAIN, "--config.train.batch_size=0"], ["batch_size=0", "1"]),
    "train, no epochs": ([*TRAIN, "--config.train.epochs=0"], ["train.epochs=0"]),
    "train, validated never": (
        [*TRAIN, "--config.validation.every_epochs=0"],
        ["every_epochs=0"],
    ),
    "train, window too wide": (
        [*TRAIN, "--config.ablation.width=40"],
        ["width=40", "1..28"],
    ),
    "train, no such ablation": (
        [*TRAIN, "--config.ablation.kind=Bands"],
        ["kind='Bands'", "Columns"],
    ),
    "train, no such model": (
        [*TRAIN, "--config.model.name=vgg"],
        ["'vgg'", "small_cnn"],
    ),
    "train, no such data": ([*TRAIN, "--config.data.name=mnist6k"], ["mnist6k"]),
    "train, no such precision": (
        [*TRAIN, "--config.train.precision=float16"],
        ["train.precision='float16'", "bfloat16"],
    ),
    "train, parts of no batch": (
        [*TRAIN, "--config.train.num_accumulated=0"],
        ["train.num_accumulated=0", ">= 1"],
    ),
    "train, saved never": ([*TRAIN, "--save_every=0"], ["--save_every=0", ">= 1"]),
    "train, half a coordinator": (
        [*TRAIN, "--coordinator=10.0.0.1:8476"],
        ["--num_processes=None", "given together"],
    ),
    "train, no such cluster": (
        [*TRAIN, "--distributed=slurm"],
        ["--distributed=slurm", "must be auto"],
    ),
    "certify, no such process": (
        [*TRAINED, "--coordinator=a:1", "--num_processes=2", "--process_id=2"],
        ["--process_id=2", "0..1"],
    ),
    "certify, no flag": (["certify.py"], ["--workdir", "--scores", DEMO]),
    "certify, both": ([*SCORED, DEMO], ["either", "--workdir", "--scores"]),
    "certify, compare one": (["certify.py", "--compare={scores}"], ["two or more"]),
    "certify, compare nothing": (
        ["certify.py", "--compare={scores},{tmp}/typo"],
        ["typo", "no scores", "certify.py --workdir"],
    ),
    "certify, unknown flag": ([*SCORED, "--patch=2x2"], ["patch", "help"]),
    "certify, no flag but a word": ([*SCORED, "5x5"], ["'5x5'", "--help"]),
    "certify, no workdir there": (
        ["certify.py", "--workdir={tmp}/typo"],
        ["typo", "no checkpoint", "train"],
    ),
    "certify, no scores there": (
        ["certify.py", "--scores={tmp}/typo"],
        ["typo", "no store"],
    ),
    "certify, malformed patches": ([*SCORED, "--patches=5"], ["'5'", "HEIGHTxWIDTH"]),
    "certify, patch too large": ([*SCORED, "--patches=5x5"], ["patch 5x5", "4x6"]),
    "certify, no such voting": (
        [*SCORED, "--patches=2x2", "--voting=majority"],
        ["voting", "majority", "threshold", "top_one"],
    ),
    "certify, threshold too high": (
        [*SCORED, "--patches=2x2", "--threshold=1.5"],
        ["threshold=1.5", "(0, 1]"],
    ),
    "certify, threshold 0": (
        [*SCORED, "--patches=2x2", "--threshold=0"],
        ["threshold=0", "(0, 1]"],
    ),
    "certify, threshold text": ([*SCORED, "--threshold=low"], ["threshold", "low"]),
    "certify, top 0": ([*SCORED, "--top_k=0"], ["--top_k=0", "--top_k=3,5"]),
    "certify, alarms in votes": (
        [*SCORED, "--patches=2x2", "--alarms=5"],
        ["--alarms=5", "--alarms=1%,5%"],
    ),
    "certify, alarms with nothing to choose on": (
        [*SCORED, "--patches=2x2", "--alarms=5%"],
        ["--alarms", "validation/scores", "--split=validation"],
    ),
    "certify, alarms chosen on what is not there": (
        [*SCORED, "--patches=2x2", "--alarms=5%", "--validation_scores={tmp}/typo"],
        ["typo", "--validation_scores"],
    ),
    "certify, workdir, alarms with nothing to choose on": (
        [*TRAINED, "--alarms=5%"],
        ["--alarms", "validation/scores", "--split=validation"],
    ),
    "certify, workdir, patch too large": (
        [*TRAINED, "--patches=2x2,29x1"],
        ["patch 29x1", "28x28"],
    ),
    "certify, workdir, too many images": (
        [*TRAINED, "--num_images=1001"],
        ["--num_images=1001", "1..1000"],
    ),
    "certify, workdir, no such split": (
        [*TRAINED, "--split=eval"],
        ["split='eval'", "validation"],
    ),
    "certify, workdir, no such voting": (
        [*TRAINED, "--voting=majority"],
        ["voting", "majority", "top_one"],
    ),
    "certify, workdir, threshold too high": (
        [*TRAINED, "--threshold=1.5"],
        ["threshold=1.5", "(0, 1]"],
    ),
    "certify, workdir, no batch": (
        [*TRAINED, "--batch_size=0"],
        ["batch_size=0", ">= 1"],
    ),
}

# Each command in a process of its own, forked where imports are done and data are read
# already: as `python train.py ...` would run, in a fraction of the time.
DRIVER = """
import json, os, runpy, signal, sys, tempfile, traceback
import absl.app, jax, ml_collections.config_flags, numpy, tqdm
import dsmooth_jax.data, dsmooth_jax.report.write

dsmooth_jax.data.load("mnist5k", "test")  # read here, it is in memory there

def run(arguments):
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

results = {}
for name, arguments in json.load(sys.stdin).items():
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            signal.alarm(10)  # what is refused is refused at once
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = run(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        results[name] = status, out.read().decode(), err.read().decode()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def finished(scratch, smoke_run):
    """(exit status, stdout, stderr) of each command."""
    save(scratch / "scores")
    places = {"tmp": scratch, "scores": scratch / "scores", "trained": smoke_run}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(
            {
                name: [argument.format(**places) for argument in arguments]
                for name, (arguments, _) in COMMANDS.items()
            }
            | {
                f"{name} --help": [name, "--help"]
                for name in ("train.py", "certify.py")
            }
        ),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_line_gets_one_line_with_the_remedy(finished, name):
    # Protects users of the scripts: a status that scripts see, and never a traceback.
    status, _, error = finished[name]
    assert "Traceback" not in error, error
    assert status > 0, f"status {status}; negative: killed, it was not refused at once"
    for word in COMMANDS[name][1]:
        assert word in error
    lines = error.strip().splitlines()
    if lines[-1:] == ["Pass --helpshort or --helpfull to see help on flags."]:
        lines.pop()  # absl adds this to its own errors
    assert len(lines) == 1, error


def test_a_wrong_command_line_leaves_nothing_behind(finished, scratch):
    # Protects folders: what was refused before any work has not begun a run there.
    assert sorted(path.name for path in scratch.iterdir()) == ["scores"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", ["python train.py --config=configs/", "--workdir", "killed"]),
        ("certify.py", ["python certify.py --workdir", "--patches", "HEIGHTxWIDTH"]),
    ],
)
def test_help_explains(finished, script, words):
    # Protects --help, the first thing a new user types: purpose, examples, own flags.
    _, text, error = finished[f"{script} --help"]
    assert "Traceback" not in error
    for word in words:
        assert word in text
