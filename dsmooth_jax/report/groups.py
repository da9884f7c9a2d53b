"""Images of a store in groups that fit into memory, worked on side by side."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import threadpoolctl

from dsmooth_jax.storage.score_store import ScoreStore

# Shards are small, and each touched set is enumerated once for a group.
_GROUP_BYTES = 2**26
_GROUP_IMAGES = 1000

Group = TypeVar("Group")
Found = TypeVar("Found")


def side_by_side(
    function: Callable[[Group], Found], groups: Iterable[Group]
) -> Iterator[Found]:
    """Maps groups in their order, as many at once as there are cores, four at most.

    NumPy lets go of Python's lock while it computes; its matrix products then take one
    thread each, which do not wait for one another. No more groups are read than are
    worked on.
    """
    workers = min(4, os.cpu_count() or 1)
    one_thread = threadpoolctl.threadpool_limits(1, "blas")
    with one_thread, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        begun: collections.deque[concurrent.futures.Future[Found]]
        begun = collections.deque()
        for group in groups:
            if len(begun) == workers:
                yield begun.popleft().result()
            begun.append(pool.submit(function, group))
        while begun:
            yield begun.popleft().result()


def groups_of(store: ScoreStore) -> Iterator[tuple[slice, np.ndarray]]:
    """Joins consecutive shards; an empty store is one group of no image."""
    num_ablations = store.ablation.num_ablations(store.image_size)
    empty = np.empty((0, num_ablations, store.num_classes), np.float32)
    held, start, stop = [empty], 0, 0
    for span, scores in store:
        held.append(scores)
        stop = span.stop
        is_full = sum(part.nbytes for part in held) >= _GROUP_BYTES
        if is_full or stop - start >= _GROUP_IMAGES:
            yield slice(start, stop), np.concatenate(held)
            held, start = [], stop
    if start < stop or not stop:
        yield slice(start, stop), np.concatenate(held)
