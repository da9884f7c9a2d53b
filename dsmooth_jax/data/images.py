"""Images on disk that behave as one array: decoded, and resized, when indexed."""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dsmooth_jax.data.decoding import decode

_SAMPLE = 64
"""Images that tell one set of large images from another."""

_PER_TASK = 16
"""Images that a thread decodes at a time."""

Content = Callable[[int], bytes | np.ndarray]
"""row -> the image as it is stored: a whole JPEG, PNG, ... file, or pixels."""


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images [N, H, W, C] that are decoded when indexed, by several threads.

    ``images[rows]`` with a slice or integers [M] is a new uint8 array [M, H, W, C];
    ``images[:]`` is all of them, in memory.

    Attributes:
      content: What is stored in each row of the source.
      rows: Which rows of the source these images are, int64 [N].
      ids: What errors call them, str [N].
      size: (H, W) to which they are resized, pixels, as by `decode`; None: as they are.
      channels: 1 or 3 to convert to grey or to RGB; None: as they are.
      shape: (N, H, W, C), of which every image must be; taken from the first image.

    Raises:
      ValueError: an image cannot be decoded, or has another shape than the first; it is
        named. When indexed, too.
      TypeError: pixels that are not 8-bit.
    """

    content: Content
    rows: Int64[np.ndarray, " N"]
    ids: Shaped[np.ndarray, " N"]
    size: tuple[int, int] | None = None
    channels: int | None = None
    shape: tuple[int, int, int, int] = field(init=False)

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __post_init__(self) -> None:
        first = self._decode(0).shape if len(self.rows) else (0, 0, 0)
        object.__setattr__(self, "shape", (len(self.rows), *first))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "M H W C"]:
        places = np.arange(len(self))[index]
        images = np.empty((len(places), *self.shape[1:]), np.uint8)

        def fill(start: int) -> None:
            for target in range(start, min(start + _PER_TASK, len(places))):
                images[target] = self.read(int(places[target]))

        # Decoders and resizers let go of Python's lock: threads are enough.
        with concurrent.futures.ThreadPoolExecutor(num_threads()) as pool:
            for _ in pool.map(fill, range(0, len(places), _PER_TASK)):
                pass
        return images

    def read(self, place: int) -> UInt8[np.ndarray, "H W C"]:
        """Decodes one image, in this thread."""
        image = self._decode(place)
        if image.shape != self.shape[1:]:
            raise ValueError(
                f"the image {str(self.ids[place])!r} has shape {image.shape}, but "
                f"{str(self.ids[0])!r} has {self.shape[1:]}: they must agree; "
                "data.size=(height, width) resizes them all (the patch is then "
                "measured in resized pixels), data.channels=3 makes them all RGB"
            )
        return image

    def take(self, places: Int64[np.ndarray, " M"]) -> "StoredImages":
        """The images at some places, still on disk."""
        return replace(self, rows=self.rows[places], ids=self.ids[places])

    def sample(self) -> UInt8[np.ndarray, "M H W C"]:
        """Decodes a few images, spread evenly: they tell this set from another."""
        count = min(_SAMPLE, len(self))
        return self[np.arange(count) * len(self) // max(count, 1)]

    def _decode(self, place: int) -> np.ndarray:
        name = str(self.ids[place])
        stored = self.content(int(self.rows[place]))
        return decode(stored, name, size=self.size, channels=self.channels)


def num_threads() -> int:
    """Threads that decode images: as many as there are cores."""
    return os.cpu_count() or 1


def read_ahead(images: Any, spans: Iterable[slice]) -> Iterator[np.ndarray]:
    """Yields images[span] for each span; the next one is read meanwhile.

    Args:
      images: `StoredImages`, or an array, [N, H, W, C].
      spans: Which images are wanted together.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = None
        for span in spans:
            following = pool.submit(images.__getitem__, span)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
