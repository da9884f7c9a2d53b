"""Training batches from any step on: a loop over arrays, grain over images on disk."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from dsmooth_jax.data.dataset import Dataset
from dsmooth_jax.data.images import StoredImages, num_threads
from dsmooth_jax.data.sampling import batch_indices, stream_indices

Batch = tuple[UInt8[np.ndarray, "B H W C"], Int64[np.ndarray, " B"]]

_BATCHES_AHEAD = 4


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    start: int,
    stop: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1 of the order `batch_indices`.

    Which images those are depends on nothing but the arguments, so a run resumes by
    asking for the steps that are left. Images on disk are decoded by threads ahead of
    time, in the same order.

    Args:
      dataset: The training images.
      batch_size: B, of all processes together.
      seed: Of the order, at least 0.
      start: The first step, from 0.
      stop: One more than the last step.
      share: (index, count) of this process: it gets every count-th part of a batch, B /
        count images, which must be whole.

    Yields:
      (images uint8 [B / count, H, W, C], labels int64 [B / count]).

    Raises:
      ValueError: B is not divisible by count; an image cannot be decoded.
    """
    index, count = share
    if batch_size % count:
        raise ValueError(
            f"batch_size={batch_size} must be divisible by {count}, the processes"
        )
    size = batch_size // count
    part = slice(index * size, (index + 1) * size)
    if isinstance(dataset.images, StoredImages):
        steps = _Stream(dataset, batch_size, seed, start, stop, part)
        yield from _with_grain(steps, size)
        return
    for step in range(start, stop):
        rows = batch_indices(len(dataset), batch_size, seed=seed, step=step)[part]
        yield dataset.images[rows], dataset.labels[rows]


class _Stream:
    """One image after the other of the steps start..stop-1, by position, for grain."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        part: slice,
    ):
        self.dataset, self.seed, self.start, self.stop = dataset, seed, start, stop
        self.batch_size, self.part = batch_size, part

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.part.stop - self.part.start)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        step, place = divmod(index, self.part.stop - self.part.start)
        position = (self.start + step) * self.batch_size + self.part.start + place
        (row,) = stream_indices(
            np.array([position]), len(self.dataset), seed=self.seed
        ).tolist()
        images: Any = self.dataset.images
        return images.read(row), self.dataset.labels[row]


def _with_grain(stream: _Stream, batch_size: int) -> Iterator[Batch]:
    import grain  # slow to import: only when used

    options = grain.ReadOptions(
        num_threads=num_threads(), prefetch_buffer_size=_BATCHES_AHEAD * batch_size
    )
    dataset = grain.MapDataset.source(stream).to_iter_dataset(options)
    yield from dataset.batch(batch_size)
