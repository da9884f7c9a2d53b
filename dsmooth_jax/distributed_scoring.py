"""A store of scores that several processes fill: each its own shards, one manifest.

Process i of n scores every n-th of the missing shards, from the i-th on, and leaves the
checksum of each beside it. The first process enters them into the manifest, when all
are done or when the store is taken up again; nothing but the files passes between
them, so a process that is killed loses two shards at most. Alone, a process enters each
shard as it is written, and how long it took.
"""

import concurrent.futures
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from dsmooth_jax import distributed
from dsmooth_jax.data import read_ahead
from dsmooth_jax.scoring import ScoresFn, score
from dsmooth_jax.storage.shards import MANIFEST, S, Shards, StoreError
from dsmooth_jax.storage.timing import enter_seconds, forget_seconds
from dsmooth_jax.types import Scores

_FILES = re.compile(
    r"(manifest\.json|(labels|ids|(scores|tables)-\d+)\.npy(\.sha256)?)(\.part)?"
)


def take_up(path: pathlib.Path, create: Callable[[], S]) -> S:
    """Begins a store or takes it up, in every process.

    Args:
      path: of the store, on a file system that all processes share.
      create: calls `create` of a store; all processes pass equal arguments.

    Returns:
      The store with all shards that are whole.
    """
    if distributed.is_first() and not _collect(create()).checksums:
        forget_seconds(create())
    distributed.check_shared(path / MANIFEST)
    return create()


def remove(path: pathlib.Path) -> None:
    """Deletes a store, finished, damaged or begun; nothing where there is none.

    Raises:
      StoreError: there is something else.
    """
    if not path.exists():
        return
    strange = [f.name for f in path.iterdir() if not _FILES.fullmatch(f.name)]
    if strange:
        raise StoreError(
            f"{path} is not to be overwritten: it holds {sorted(strange)[0]!r}, which "
            "is no part of a store; move that away, or give another --out"
        )
    (path / MANIFEST).unlink(missing_ok=True)  # killed here, nothing seems whole
    shutil.rmtree(path)


def fill(
    scores: Shards, images: Any, score_fn: Callable[[np.ndarray], np.ndarray]
) -> Iterator[int]:
    """Scores what is missing, this process its share of it.

    Args:
      scores: the store, from `take_up`.
      images: [N, H, W, C], an array, or `data.StoredImages`.
      score_fn: images of a shard [n, H, W, C] -> scores [n, P, K].

    Yields:
      For each shard, once it is written, the images in it.
    """
    index, count = distributed.share()
    mine = scores.missing[index::count]
    parts = read_ahead(images, [scores.span(shard) for shard in mine])

    def keep(shard: int, found: np.ndarray, seconds: float) -> int:
        nonlocal scores
        checksum = scores.write(shard, found)
        if count == 1:
            enter_seconds(scores, shard, seconds, is_first=shard == mine[0])
            scores = scores.enter({shard: checksum})
        else:
            _beside(scores, shard).write_text(checksum)
        return len(found)

    # A shard is written while the next one is scored.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing: list[concurrent.futures.Future[int]] = []
        for shard, part in zip(mine, parts, strict=True):
            began = time.monotonic()
            found = score_fn(part)
            seconds = time.monotonic() - began
            writing.append(pool.submit(keep, shard, found, seconds))
            if len(writing) > 1:
                yield writing.pop(0).result()
        for last in writing:
            yield last.result()
    distributed.barrier("store filled")
    if distributed.is_first():
        _collect(scores)


def score_together(scores_fn: ScoresFn, images: Any, *, batch_size: int = 32) -> Scores:
    """Scores images as `scoring.score`, each process a part; all get all scores.

    Args:
      scores_fn: as of `scoring.score`.
      images: [N, H, W, C], an array, or `data.StoredImages`.
      batch_size: as of `scoring.score`.

    Returns:
      NumPy float32 [N, P, K], the same in every process.
    """
    return compute_together(
        lambda part: score(scores_fn, part, batch_size=batch_size), images
    )


def compute_together(
    compute: Callable[[np.ndarray], np.ndarray], images: Any
) -> np.ndarray:
    """An array of each image, each process of a part; all get all.

    Args:
      compute: images [n, H, W, C] -> [n, ...], of every image by itself.
      images: [N, H, W, C], an array, or `data.StoredImages`.

    Returns:
      [N, ...], the same in every process.
    """
    index, count = distributed.share()
    size = -(-len(images) // count)
    mine = images[index * size : (index + 1) * size]
    # Parts must be of one size to be put together.
    found = compute(np.pad(mine, [(0, size - len(mine))] + [(0, 0)] * 3))
    if count > 1:
        found = multihost_utils.process_allgather(found, tiled=True)
    return found[: len(images)]


def _collect(scores: Shards) -> Shards:
    """Enters the shards that lie beside the manifest."""
    beside = {shard: _beside(scores, shard) for shard in range(scores.num_shards)}
    found = {s: path.read_text() for s, path in beside.items() if path.exists()}
    # A kill may cut the checksum short: that shard is scored again.
    whole = {s: checksum for s, checksum in found.items() if len(checksum) == 64}
    if whole:
        scores = scores.enter(whole)
    for shard in found:
        beside[shard].unlink()
    return scores


def _beside(scores: Shards, shard: int) -> pathlib.Path:
    path = scores.shard_path(shard)
    return path.with_name(f"{path.name}.sha256")
