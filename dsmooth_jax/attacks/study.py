"""What an attacker knows of images before it writes a pixel.

A certificate says which placements of the patch are open, and how near each class is to
winning there. Of 1,000 classes only the nearest few are kept: no others are tried.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dsmooth_jax.types import PerImage, PerImageFlag, PlacementRows

_RIVALS = 3
"""Of each kind of placement: more of them would leave fewer places tried."""

_MOST_ENTRIES = 2**22
"""Of a table over placements, or pairs of masks, and all classes, held at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What an attacker can know of N images before it writes a pixel.

    Attributes:
      prediction: int64 [N], of the clean images.
      is_certified: bool [N], by the classifier's own `certify`.
      row: int64 [H - height + 1, W - width + 1], for each upper left corner of the
        patch which kind of placement, 0..L-1, it is.
      is_open: bool [N, L], False where the certificate rules this placement out.
      rival: int64 [N, L, R], the few other classes that are nearest to winning there,
        the nearest first.
      promise: float32 [N, L, R], how near; of all K classes it would be much to hold.
      num_classes: K.
      known: (image [B], row [B]) -> what the margin is given besides, arrays [B, ...].
    """

    prediction: PerImage
    is_certified: PerImageFlag
    row: PlacementRows
    is_open: np.ndarray
    rival: np.ndarray
    promise: np.ndarray
    num_classes: int
    known: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def spans(num_images: int, num_entries: int) -> list[slice]:
    """Slices of images, of so many entries each, that are few enough to hold."""
    size = max(1, _MOST_ENTRIES // num_entries)
    return [slice(i, i + size) for i in range(0, max(num_images, 1), size)]


def nearest_rivals(promise: np.ndarray, own: PerImage) -> tuple[np.ndarray, np.ndarray]:
    """[n, L, K] -> the other classes of largest promise, and it; of equals the smaller.

    int64 and float32 [n, L, R].
    """
    num_classes = promise.shape[2]
    is_own = np.arange(num_classes) == own[:, None, None]
    others = np.where(is_own, -np.inf, promise).astype(np.float32)
    order = np.argsort(-others, axis=2, kind="stable")
    rival = order[..., : min(_RIVALS, num_classes - 1)]
    return rival, np.take_along_axis(others, rival, axis=2)
