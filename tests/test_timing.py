"""Seconds an image: of shards whose time is known, and of no others."""

import itertools
import json
import types

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import distributed, distributed_scoring
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.storage.timing import (
    enter_seconds,
    seconds_path,
    seconds_per_image,
)

LABELS = np.arange(10) % 3


def create(path):
    return ScoreStore.create(
        path,
        ablation=ds.Columns(2),
        image_shape=(4, 4, 1),
        num_classes=3,
        labels=LABELS,
        ids=LABELS.astype(str),
        made_by={},
        shard_size=4,
    )


def test_seconds_are_a_mean_of_what_is_not_compiled(tmp_path):
    # Protects the number: images weigh alike, compiling does not count, and where one
    # shard is silent nothing is said.
    store = create(tmp_path / "scores")
    assert seconds_per_image(store) is None
    enter_seconds(store, 0, 100.0, is_first=True)
    enter_seconds(store, 1, 2.0, is_first=False)
    assert seconds_per_image(store) is None
    enter_seconds(store, 2, 4.0, is_first=False)
    assert seconds_per_image(store) == (2.0 + 4.0) / (4 + 2)
    for shard in (1, 2):  # each the first of its process
        enter_seconds(store, shard, 5.0, is_first=True)
    assert seconds_per_image(store) == (100.0 + 5.0 + 5.0) / 10


@pytest.fixture
def score(monkeypatch, tmp_path):
    """Scores what is missing, by a clock that goes a second with each look at it."""
    ticks = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(distributed_scoring, "time", clock)
    path, images = tmp_path / "scores", np.zeros((10, 4, 4, 1), np.uint8)

    def run(most=3):
        scored = []

        def compute(part):
            if len(scored) == most:
                raise KeyboardInterrupt
            scored.append(len(part))
            return np.full((len(part), 4, 3), 0.25, np.float32)

        store = distributed_scoring.take_up(path, lambda: create(path))
        list(distributed_scoring.fill(store, images, compute))
        return store

    return run


def test_a_killed_scoring_that_goes_on_knows_all_its_seconds(score):
    # Protects resuming: each shard keeps its own time, and the first of each process is
    # the one that is left out.
    with pytest.raises(KeyboardInterrupt):
        score(most=2)
    store = score()
    known = json.loads(seconds_path(store).read_text())
    assert [known[shard]["seconds"] for shard in "012"] == [1.0, 1.0, 1.0]
    assert [known[shard]["is_first"] for shard in "012"] == [True, False, True]
    assert seconds_per_image(store) == 1 / 4


def test_several_processes_say_nothing(score, monkeypatch):
    # Protects readers: processes may share a machine; what was noted of a store goes
    # with it.
    store = score()
    assert seconds_per_image(store) == 2 / 6
    distributed_scoring.remove(store.path)
    monkeypatch.setattr(distributed, "share", lambda: (0, 2))
    store = score()
    assert not seconds_path(store).exists()
    assert seconds_per_image(store) is None
