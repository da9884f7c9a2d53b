"""The attacker: a patch, and which ablations each of its placements touches.

Touched sets are *enumerated*, never computed from a formula: published closed forms are
wrong where windows wrap around and the stride does not divide the image. The
enumeration runs along each axis on its own (a patch is a product of a row interval and
a column interval, and so is a window), which keeps it exact and small.

Source: Levine & Feizi 2020 (arXiv:2002.10733), sections 3 and 4, which bound the number
of touched ablations; the sets themselves are this library's.
"""

import dataclasses
import operator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from dsmooth_jax.ablation import (
    Ablation,
    Windows,
    check_ablation,
)
from dsmooth_jax.checks import check_image_size
from dsmooth_jax.types import ImageSize, PlacementRows, Touched

MAX_TOUCHED_ENTRIES = 2**32
"""The most entries, L x P, that `touched` and `placements` agree to hold (4 GiB)."""

_BLOCK_ENTRIES = 2**24  # entries enumerated at a time in `max_touched`


@dataclasses.dataclass(frozen=True)
class Patch:
    """A rectangle of pixels that the attacker places anywhere inside the image.

    Attributes:
      height: pixels, >= 1 (the paper's m, with width).
      width: pixels, >= 1.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            given = getattr(self, name)
            where = f"Patch: {name}={given!r}"
            if isinstance(given, bool | np.bool_):
                raise TypeError(f"{where} must be an integer, not a bool")
            try:
                number = operator.index(given)
            except TypeError:
                raise TypeError(f"{where} must be an integer, in pixels") from None
            if number < 1:
                raise ValueError(f"{where} must be >= 1")
            object.__setattr__(self, name, number)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def check_patch(patch: Any, image_size: ImageSize) -> ImageSize:
    """Returns (H, W) as Python ints, or raises for a patch that does not fit."""
    size = check_image_size(image_size)
    if not isinstance(patch, Patch):
        raise TypeError(f"patch={patch!r} must be a Patch, e.g. ds.Patch(5, 5)")
    if patch.height > size[0] or patch.width > size[1]:
        raise ValueError(
            f"patch {patch} must fit into the image, {size[0]}x{size[1]} pixels"
        )
    return size


def touched(ablation: Ablation, patch: Patch, image_size: ImageSize) -> Touched:
    """Enumerates every distinct set of ablations that one placement touches.

    Args:
      ablation: the ablation.
      patch: the patch, in pixels of the image that the attacker sees.
      image_size: (H, W) of that image, pixels, *before* any resizing.

    Returns:
      bool [L, P]: row l is True at each ablation whose kept window meets the patch, for
      one or more of the placements; equal rows are merged and nothing else is dropped.
      Rows come in the order of their first placement (row-major).

    Raises:
      ValueError: the patch or a window exceeds the image, or the result would exceed
        `MAX_TOUCHED_ENTRIES`.

    Guarantee:
      Every placement of the patch wholly inside the image is among the rows, and so is
      a superset of what a smaller patch, or any shape inside the rectangle, touches.

    >>> from dsmooth_jax.ablation import Columns
    >>> touched(Columns(2), Patch(1, 1), (3, 3)).astype(int)
    array([[1, 0, 1],
           [1, 1, 0],
           [0, 1, 1]])
    """
    return placements(ablation, patch, image_size)[0]


def placements(
    ablation: Ablation, patch: Patch, image_size: ImageSize
) -> tuple[Touched, PlacementRows]:
    """As `touched`, and which row of it each placement is: for maps of the image.

    Args:
      ablation: the ablation.
      patch: the patch, pixels.
      image_size: (H, W), pixels.

    Returns:
      (touched, row): bool [L, P], as `touched` returns it; and int64
      [H - height + 1, W - width + 1], the row of touched that belongs to the placement
      with this upper left corner.

    Raises:
      ValueError: as `touched`.
    """
    windows, (row_hits, row_of), (column_hits, column_of) = _axis_hits(
        ablation, patch, image_size
    )
    num_sets = len(row_hits) * len(column_hits)
    entries = num_sets * len(windows.choices)
    if entries > MAX_TOUCHED_ENTRIES:
        raise ValueError(
            f"{ablation} with patch {patch} on {image_size} has up to {num_sets:,} "
            f"touched sets of {len(windows.choices):,} ablations, {entries:,} entries, "
            f"more than {MAX_TOUCHED_ENTRIES:,}; use a larger stride"
        )
    sets = _touched_sets(windows, row_hits, column_hits)  # [L', P], may repeat
    sets, set_of = merge_equal_rows(sets)
    set_of = set_of.reshape(len(row_hits), len(column_hits))
    return sets, set_of[row_of[:, None], column_of[None, :]]


def max_touched(ablation: Ablation, patch: Patch, image_size: ImageSize) -> int:
    """Counts the most ablations that one placement touches (the paper's Delta).

    Enumerated over every placement inside the image, in blocks of bounded memory.

    Args:
      ablation: the ablation.
      patch: the patch, pixels.
      image_size: (H, W), pixels.

    Returns:
      The count, in 0..P.

    Raises:
      ValueError: the patch or a window exceeds the image.

    >>> from dsmooth_jax.ablation import Columns
    >>> max_touched(Columns(19, stride=10), Patch(32, 32), (224, 224))
    6
    """
    windows, (row_hits, _), (column_hits, _) = _axis_hits(ablation, patch, image_size)
    if windows.is_single:  # |rows x columns| = |rows| |columns|, for each placement
        counts = row_hits.sum(axis=1)[:, None] * column_hits.sum(axis=1)[None, :]
        return int(counts.max())
    most = 0
    block = max(1, _BLOCK_ENTRIES // windows.choices.size)
    for hits in row_hits:
        for start in range(0, len(column_hits), block):
            sets = _touched_sets(
                windows, hits[None], column_hits[start : start + block]
            )
            most = max(most, int(sets.sum(axis=1).max()))
    return most


def _axis_hits(
    ablation: Ablation, patch: Patch, image_size: ImageSize
) -> tuple[Windows, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The windows, and for rows and for columns: (distinct hits [D', n], index [D])."""
    check_ablation(ablation)
    windows = ablation.windows(check_patch(patch, image_size))
    return (
        windows,
        merge_equal_rows(_hits(windows.rows, patch.height)),
        merge_equal_rows(_hits(windows.columns, patch.width)),
    )


def _hits(bands: np.ndarray, extent: int) -> np.ndarray:
    """Bool [n, length] bands -> bool [D, n]: the interval at d meets the band."""
    return np.any(sliding_window_view(bands, extent, axis=1), axis=-1).T


def merge_equal_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bool [M, n] -> distinct rows [M', n] as they appear, and index int64 [M]."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1])))[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return rows[first[order]], np.argsort(order)[inverse].astype(np.int64)


def _touched_sets(
    windows: Windows, row_hits: np.ndarray, column_hits: np.ndarray
) -> np.ndarray:
    """Bool [Dh, R], [Dw, S] -> [Dh * Dw, P]: ablations with a window that is hit."""
    hit = row_hits[:, None, :, None] & column_hits[None, :, None, :]  # [Dh, Dw, R, S]
    hit = hit.reshape(len(row_hits) * len(column_hits), -1)
    if windows.is_single:
        return hit
    sets = np.zeros((len(hit), len(windows.choices)), bool)
    for choice in windows.choices.T:  # one kept window at a time: no [L, P, k]
        sets |= hit[:, choice]
    return sets


def check_touched(touched: ArrayLike, num_ablations: int) -> np.ndarray:
    """Returns touched sets as an array, or raises the error that says what is wrong."""
    sets = np.asarray(touched)
    if sets.dtype != np.bool_:
        raise TypeError(
            f"touched has dtype {sets.dtype}; it must be bool, from touched()"
        )
    if sets.ndim != 2 or sets.shape[1] != num_ablations:
        raise ValueError(
            f"touched has shape {sets.shape}; it must be [L, {num_ablations}], a "
            "column for each ablation of the votes"
        )
    if not len(sets):
        raise ValueError(
            "touched has no row; L must be >= 1 (no row would prove nothing)"
        )
    return sets
