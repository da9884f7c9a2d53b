"""Masks over pixels: windows to hide, and which of them cover each patch.

Smoothing keeps a small window of the image and hides the rest. A mask does the reverse:
it hides a window and keeps the rest. A set of masks is good for a patch if every
placement lies wholly inside at least one of them; `covering` enumerates which, and
refuses a set that leaves a placement uncovered. `double_masking` turns the classes seen
under all pairs of masks into certificates.

Source: Xiang, Mahloujifar & Mittal, "PatchCleanser", USENIX Security 2022
(arXiv:2108.09135), section 3.3, for the sizes of `covering_masks`. What covers what is
enumerated here, whatever the sizes are.
"""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dsmooth_jax.checks import check_count, check_image_size
from dsmooth_jax.threat import Patch, check_patch, merge_equal_rows
from dsmooth_jax.types import Covering, HideMasks, ImageSize, PlacementRows


@dataclasses.dataclass(frozen=True)
class Masks:
    """Windows of pixels to hide, at the starts of a grid; the last is flush.

    Along each axis the windows start at 0, stride, 2 stride, ..., and at the last start
    that fits, whether or not it is on the grid. Numbers are row-major.

    Attributes:
      height: hidden rows, pixels, >= 1.
      width: hidden columns, pixels, >= 1; as height where not given.
      stride: distance of two starts, pixels, >= 1: one number for both axes, or
        (vertical, horizontal).
    """

    height: int
    width: int | None = None
    _: dataclasses.KW_ONLY
    stride: int | tuple[int, int]

    def __post_init__(self) -> None:
        width = self.height if self.width is None else self.width
        one = self.stride
        stride = tuple(one) if isinstance(one, tuple | list) else (one, one)
        if len(stride) != 2:
            raise ValueError(
                f"Masks: stride={one!r} must be one number, or (vertical, horizontal)"
            )
        for name, value in (
            ("height", self.height),
            ("width", width),
            *(("stride", value) for value in stride),
        ):
            check_count(f"Masks: {name}", value)
        object.__setattr__(self, "height", int(self.height))
        object.__setattr__(self, "width", int(width))
        object.__setattr__(self, "stride", tuple(map(operator.index, stride)))

    def __str__(self) -> str:
        vertical, horizontal = self.strides
        step = vertical if vertical == horizontal else f"{vertical}x{horizontal}"
        return f"Masks({self.height}x{self.width}, stride {step})"

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a hidden window, pixels."""
        width = self.width
        return self.height, self.height if width is None else width

    @property
    def strides(self) -> tuple[int, int]:
        """(vertical, horizontal) distance of two starts, pixels."""
        one = self.stride
        return one if isinstance(one, tuple) else (one, one)

    def starts(self, image_size: ImageSize) -> tuple[list[int], list[int]]:
        """Lists the first hidden row of each row of masks, and likewise the columns.

        Args:
          image_size: (H, W), pixels.

        Returns:
          (rows, columns), both increasing; mask ``r * len(columns) + s`` starts at
          (rows[r], columns[s]).

        Raises:
          ValueError: a mask does not fit into the image.

        >>> Masks(3, stride=2).starts((6, 5))
        ([0, 2, 3], [0, 2])
        """
        size = check_image_size(image_size)
        found = []
        for axis in (0, 1):
            name, extent = ("height", "width")[axis], self.shape[axis]
            if extent > size[axis]:
                raise ValueError(
                    f"{self}: {name}={extent} must be in 1..{size[axis]}, the image "
                    f"{name}"
                )
            last = size[axis] - extent
            found.append([*range(0, last, self.strides[axis]), last])
        return found[0], found[1]

    def num_masks(self, image_size: ImageSize) -> int:
        """Returns M, the number of masks of an image of this (H, W)."""
        rows, columns = self.starts(image_size)
        return len(rows) * len(columns)

    def hide_masks(self, image_size: ImageSize) -> HideMasks:
        """Enumerates which pixels each mask hides.

        Args:
          image_size: (H, W), pixels.

        Returns:
          bool [M, H, W], True where mask m hides the pixel.

        Raises:
          ValueError: a mask does not fit into the image, or two masks together hide all
            of it.

        >>> Masks(1, 2, stride=1).hide_masks((1, 5)).astype(int)[:, 0]
        array([[1, 1, 0, 0, 0],
               [0, 1, 1, 0, 0],
               [0, 0, 1, 1, 0],
               [0, 0, 0, 1, 1]])
        """
        rows, columns = (
            _bands(starts, extent, length)
            for starts, extent, length in zip(
                self.starts(image_size), self.shape, image_size, strict=True
            )
        )
        hidden = rows[:, None, :, None] & columns[None, :, None, :]
        hidden = hidden.reshape(-1, *image_size)
        shown = np.logical_not(hidden).reshape(len(hidden), -1).astype(np.float32)
        blind = np.argwhere(shown @ shown.T == 0)
        if len(blind):
            i, j = map(int, blind[0])
            raise ValueError(
                f"{self}: masks {i} and {j} together hide all of an image of "
                f"{image_size[0]}x{image_size[1]}, and nothing worth having would be "
                "certified; use smaller masks"
            )
        return hidden


def covering_masks(patch: Patch, image_size: ImageSize, *, per_axis: int = 6) -> Masks:
    """The smallest masks that cover a patch with at most so many along each axis.

    More masks are smaller, hide less and cost more: M (M + 1) / 2 passes an image, for
    M = per_axis^2.

    Args:
      patch: the patch, pixels.
      image_size: (H, W), pixels.
      per_axis: masks along each axis, >= 1; fewer where fewer are as small.

    Returns:
      The masks. Several patch sizes may be certified with them, see `covering`.

    Raises:
      TypeError, ValueError: the patch does not fit into the image, per_axis is no
        integer >= 1, or two masks together hide all of the image.

    >>> covering_masks(Patch(5, 5), (32, 32))
    Masks(height=9, width=9, stride=(5, 5))
    """
    check_count("per_axis", per_axis)
    size = check_patch(patch, image_size)
    # k starts, a stride s apart, reach k s placements along an axis; a mask that holds
    # s of them in a row is s - 1 pixels longer than the patch.
    vertical, horizontal = (
        -(-(length - extent + 1) // per_axis)
        for length, extent in zip(size, (patch.height, patch.width), strict=True)
    )
    masks = Masks(
        patch.height + vertical - 1,
        patch.width + horizontal - 1,
        stride=(vertical, horizontal),
    )
    masks.hide_masks(size)  # refuses what would hide all
    return masks


def covering(masks: Masks, patch: Patch, image_size: ImageSize) -> Covering:
    """Enumerates, for every placement of a patch, which masks cover it wholly.

    Args:
      masks: the masks.
      patch: the patch, in pixels of the image that the attacker sees.
      image_size: (H, W) of that image, pixels, *before* any resizing.

    Returns:
      bool [L, M]: row l is True at each mask that hides all of the patch, for one or
      more of the placements; equal rows are merged and nothing else is dropped. As
      `certify_double_masking` takes it.

    Raises:
      TypeError, ValueError: arguments that are none, a mask or patch that does not fit
        into the image, and a placement that no mask covers.

    Guarantee:
      Every placement of the patch wholly inside the image is among the rows. A mask
      that covers it covers also what a smaller patch, or any shape inside the
      rectangle, can change there.

    >>> covering(Masks(1, 3, stride=2), Patch(1, 2), (1, 7)).astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 1]])
    """
    return covered_placements(masks, patch, image_size)[0]


def covered_placements(
    masks: Masks, patch: Patch, image_size: ImageSize
) -> tuple[Covering, PlacementRows]:
    """As `covering`, and which row of it each placement is.

    Returns:
      (covering, row): bool [L, M], as `covering` returns it; and int64
      [H - height + 1, W - width + 1], the row that belongs to the placement with this
      upper left corner. Arguments and errors as of `covering`.
    """
    if not isinstance(masks, Masks):
        raise TypeError(f"masks={masks!r} must be ds.Masks, or of ds.covering_masks")
    size = check_patch(patch, image_size)
    extents = (patch.height, patch.width)
    # A product of two axes, like masks and patch: [D, R] and [D', S], all enumerated.
    rows, columns = (
        np.all(sliding_window_view(_bands(*axis), extent, axis=1), axis=-1).T
        for axis, extent in zip(
            zip(masks.starts(size), masks.shape, size, strict=True),
            extents,
            strict=True,
        )
    )
    covers = rows[:, None, :, None] & columns[None, :, None, :]
    covers = covers.reshape(len(rows) * len(columns), -1)
    is_bare = ~covers.any(axis=1)
    if is_bare.any():
        corner = divmod(int(is_bare.argmax()), len(columns))
        raise ValueError(
            f"{masks} covers no patch of {patch} at (row, column) {corner}, and at "
            f"{int(is_bare.sum()) - 1} more placements in {size[0]}x{size[1]}: nothing "
            "can be certified; use covering_masks, or a patch no larger than theirs"
        )
    merged, row_of = merge_equal_rows(covers)
    return merged, row_of.reshape(len(rows), len(columns))


def masks_to_json(masks: Masks) -> dict[str, Any]:
    """Returns the masks as a plain dict, for checkpoints and stores."""
    height, width = masks.shape
    return {"height": height, "width": width, "stride": list(masks.strides)}


def masks_from_json(record: Mapping[str, Any]) -> Masks:
    """Returns the masks that `masks_to_json` wrote down."""
    names = {"height", "width", "stride"}
    if set(record) != names:
        raise ValueError(f"masks take {sorted(names)}, not {sorted(record)}")
    return Masks(record["height"], record["width"], stride=tuple(record["stride"]))


def _bands(starts: list[int], extent: int, length: int) -> np.ndarray:
    """Bool [n, length], True on the pixels hidden from each start on."""
    offset = np.arange(length) - np.array(starts)[:, None]
    return (offset >= 0) & (offset < extent)
