"""Which images: parts of a data set, and the training order as a function.

Pure functions of numbers: the same seed and step give the same images for ever, so a
run that resumes needs no state but its step.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer


def stratified_split(
    labels: Integer[np.ndarray, " N"], sizes: Sequence[int], seed: int
) -> tuple[Int64[np.ndarray, " _"], ...]:
    """Disjoint random parts, each with the classes in the proportions of the whole.

    Each class is shuffled and spread evenly over a line; the parts are cut from that
    line one after the other. With equal classes and sizes that are multiples of the
    number of classes every part has equal classes; otherwise a count is within two
    of proportional.

    Args:
      labels: Classes, [N].
      sizes: Images in each part; their sum is at most N.
      seed: 0..2**32-1.

    Returns:
      For each size the chosen indices in 0..N-1, ascending, int64 [size].

    Raises:
      ValueError: a size is negative, or they add up to more than N.
    """
    if min(sizes, default=0) < 0 or sum(sizes) > len(labels):
        raise ValueError(
            f"sizes={tuple(sizes)} must be at least 0 and add up to at most "
            f"{len(labels)}, the number of images"
        )
    # RandomState, not default_rng: NumPy promises never to change its stream, and
    # which images are held out must not depend on the NumPy version.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    _, classes, counts = np.unique(
        labels[shuffled], return_inverse=True, return_counts=True
    )
    by_class = np.argsort(classes, kind="stable")
    rank = np.empty(len(labels), np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank[by_class] = np.arange(len(labels)) - starts
    line = shuffled[np.lexsort((classes, (rank + 0.5) / counts[classes]))]
    ends = np.cumsum([0, *sizes])
    return tuple(
        np.sort(line[start:end].astype(np.int64))
        for start, end in itertools.pairwise(ends)
    )


def batch_indices(
    num_examples: int, batch_size: int, *, seed: int, step: int
) -> Int64[np.ndarray, " batch_size"]:
    """Which images are in the training batch of one step.

    One seeded permutation per epoch, laid end to end without limit; the batch of
    step t is the entries t * batch_size up to (t + 1) * batch_size of that stream.
    Batches straddle epochs, no image is dropped, and resuming at a step needs
    nothing but its number.

    Args:
      num_examples: N, images in the training split, at least 1.
      batch_size: B, at least 1; may exceed N.
      seed: At least 0.
      step: t, from 0.

    Returns:
      Indices in 0..N-1, int64 [B].

    Raises:
      ValueError: an argument is below its least value.
    """
    least_values = {"num_examples": 1, "batch_size": 1, "seed": 0, "step": 0}
    values = (num_examples, batch_size, seed, step)
    for (argument, least), value in zip(least_values.items(), values, strict=True):
        if value < least:
            raise ValueError(f"{argument}={value} must be at least {least}")
    start = step * batch_size
    positions = np.arange(start, start + batch_size, dtype=np.int64)
    return stream_indices(positions, num_examples, seed=seed)


def stream_indices(
    positions: Int64[np.ndarray, " M"], num_examples: int, *, seed: int
) -> Int64[np.ndarray, " M"]:
    """Which images are at some positions of the endless stream of epochs.

    Args:
      positions: From 0, ascending, int64 [M].
      num_examples: N, at least 1.
      seed: At least 0.

    Returns:
      Indices in 0..N-1, int64 [M].
    """
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        is_here = epochs == epoch
        order = _epoch_permutation(num_examples, seed, int(epoch))
        indices[is_here] = order[offsets[is_here]]
    return indices


@functools.lru_cache(maxsize=2)
def _epoch_permutation(
    num_examples: int, seed: int, epoch: int
) -> Int64[np.ndarray, " num_examples"]:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    order.flags.writeable = False  # the cache hands out the same array again
    return order
