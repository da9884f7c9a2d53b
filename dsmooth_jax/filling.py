"""A store of scores that several processes fill: each its own shards, one manifest.

Process i of n scores every n-th of the missing shards, from the i-th on, and leaves the
checksum of each beside it. The first process enters them into the manifest, when all
are done or when the store is taken up again; nothing but the files passes between them,
so a process that is killed loses a shard at most. Alone, a process enters each shard as
it is written.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dsmooth_jax import distributed
from dsmooth_jax.data import read_ahead
from dsmooth_jax.store import ScoreStore, enter_shards, write_scores


def take_up(create: Callable[[], ScoreStore]) -> ScoreStore:
    """Begins a store or takes it up, in every process.

    Args:
      create: calls `store.create_store`; all processes pass equal arguments.

    Returns:
      The store with all shards that are whole.
    """
    if distributed.is_first():
        _collect(create())
    distributed.barrier("store begun")
    return create()


def fill(
    scores: ScoreStore, images: Any, score: Callable[[np.ndarray], np.ndarray]
) -> Iterator[int]:
    """Scores what is missing, this process its share of it.

    Args:
      scores: the store, from `take_up`.
      images: [N, H, W, C], an array, or `data.StoredImages`.
      score: images of a shard [n, H, W, C] -> scores [n, P, K].

    Yields:
      For each shard, once it is written, the images in it.
    """
    index, count = distributed.share()
    mine = scores.missing[index::count]
    parts = read_ahead(images, [scores.span(shard) for shard in mine])
    for shard, part in zip(mine, parts, strict=True):
        checksum = write_scores(scores, shard, score(part))
        if count == 1:
            scores = enter_shards(scores, {shard: checksum})
        else:
            _beside(scores, shard).write_text(checksum)
        yield len(part)
    distributed.barrier("store filled")
    if distributed.is_first():
        _collect(scores)


def _collect(scores: ScoreStore) -> ScoreStore:
    """Enters the shards that lie beside the manifest."""
    beside = {shard: _beside(scores, shard) for shard in range(scores.num_shards)}
    found = {s: path.read_text() for s, path in beside.items() if path.exists()}
    # A kill may cut the checksum short: that shard is scored again.
    whole = {s: checksum for s, checksum in found.items() if len(checksum) == 64}
    if whole:
        scores = enter_shards(scores, whole)
    for shard in found:
        beside[shard].unlink()
    return scores


def _beside(scores: ScoreStore, shard: int) -> pathlib.Path:
    return scores.path / f"scores-{shard:05d}.npy.sha256"
