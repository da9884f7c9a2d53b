"""Ablations: which small part of an image the base classifier may see.

An ablation is a value, for example ``Columns(4)``. For an image size it *enumerates*
what each of its P ablations keeps. Every kind is described in one way, as `Windows`: a
grid of windows (row bands x column bands), and for each ablation the windows it keeps.
Whatever needs [P, H, W] masks asks for `keep_masks`; whatever can do without (touched
sets, crops, masking on the device) works on the far smaller bands.

Source: Levine & Feizi 2020 (arXiv:2002.10733), sections 3 and 4.
"""

import abc
import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsmooth_jax.checks import check_image_size
from dsmooth_jax.types import (
    Choices,
    ColumnMasks,
    ImageSize,
    KeepMasks,
    RowMasks,
    Starts,
)

MAX_ABLATIONS = 100_000
"""The most ablations that `MultiColumns` and `MultiBlocks` agree to enumerate."""


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The windows of an image and the choice of them that each ablation keeps.

    Window ``r * S + s`` is the product of row band r and column band s.

    Attributes:
      rows: bool [R, H], True where row band r keeps an image row.
      columns: bool [S, W], True where column band s keeps an image column.
      choices: int64 [P, k], the windows that ablation p keeps (all of them visible).
    """

    rows: RowMasks
    columns: ColumnMasks
    choices: Choices

    @property
    def is_single(self) -> bool:
        """Whether ablation p keeps window p and nothing else."""
        return self.choices.shape[1] == 1


class Ablation(abc.ABC):
    """What all ablations share: masks derived from the windows each kind enumerates."""

    @abc.abstractmethod
    def windows(self, image_size: ImageSize) -> Windows:
        """Enumerates the windows of an image and each ablation's choice of them.

        Args:
          image_size: (H, W), pixels. A longer shape (H, W, C) is refused.

        Returns:
          The windows; none is repeated, and there are P choices of them.

        Raises:
          ValueError: a window does not fit into (for the multi kinds: does not divide)
            the image.
        """

    def num_ablations(self, image_size: ImageSize) -> int:
        """Returns P, the number of ablations of an image of this (H, W)."""
        return len(self.windows(image_size).choices)

    def keep_masks(self, image_size: ImageSize) -> KeepMasks:
        """Enumerates which pixels each ablation keeps.

        Args:
          image_size: (H, W), pixels.

        Returns:
          bool [P, H, W], True where ablation p shows the pixel.

        Raises:
          ValueError: the window does not fit the image.

        >>> Columns(2).keep_masks((1, 3)).astype(int)[:, 0]
        array([[1, 1, 0],
               [0, 1, 1],
               [1, 0, 1]])
        """
        windows = self.windows(image_size)
        band_r, band_s = np.divmod(windows.choices, len(windows.columns))  # [P, k]
        masks = np.zeros((len(windows.choices), *image_size), bool)
        for r, s in zip(band_r.T, band_s.T, strict=True):
            masks |= windows.rows[r][:, :, None] & windows.columns[s][:, None, :]
        return masks


@dataclasses.dataclass(frozen=True)
class Columns(Ablation):
    """Keeps ``width`` adjacent columns, wrapping around the image's edge.

    Ablation p starts at column ``range(0, W, stride)[p]``.

    Attributes:
      width: kept columns, pixels (the paper's s), >= 1.
      stride: distance of two starts, pixels, >= 1.
    """

    width: int
    _: dataclasses.KW_ONLY
    stride: int = 1

    def __post_init__(self) -> None:
        _set_integers(self)

    def window_shape(self, image_size: ImageSize) -> tuple[int, int]:
        """Returns (h, w), the pixels that each ablation keeps."""
        _check_fits("width", self.width, "width", image_size)
        return image_size[0], self.width

    def starts(self, image_size: ImageSize) -> Starts:
        """Returns int64 [P, 2], the first kept (row, column) of each ablation."""
        _check_fits("width", self.width, "width", image_size)
        return _grid_starts(range(1), range(0, image_size[1], self.stride))

    def windows(self, image_size: ImageSize) -> Windows:  # noqa: D102
        return _windows_at(self, image_size)


@dataclasses.dataclass(frozen=True)
class Rows(Ablation):
    """Keeps ``height`` adjacent rows, wrapping around the image's edge.

    Ablation p starts at row ``range(0, H, stride)[p]``.

    Attributes:
      height: kept rows, pixels (the paper's s), >= 1.
      stride: distance of two starts, pixels, >= 1.
    """

    height: int
    _: dataclasses.KW_ONLY
    stride: int = 1

    def __post_init__(self) -> None:
        _set_integers(self)

    def window_shape(self, image_size: ImageSize) -> tuple[int, int]:
        """Returns (h, w), the pixels that each ablation keeps."""
        _check_fits("height", self.height, "height", image_size)
        return self.height, image_size[1]

    def starts(self, image_size: ImageSize) -> Starts:
        """Returns int64 [P, 2], the first kept (row, column) of each ablation."""
        _check_fits("height", self.height, "height", image_size)
        return _grid_starts(range(0, image_size[0], self.stride), range(1))

    def windows(self, image_size: ImageSize) -> Windows:  # noqa: D102
        return _windows_at(self, image_size)


@dataclasses.dataclass(frozen=True)
class Blocks(Ablation):
    """Keeps a ``height`` x ``width`` block, wrapping around both edges.

    Starts are ``range(0, H, stride)`` x ``range(0, W, stride)``, row-major.

    Attributes:
      height: kept rows, pixels (the paper's s), >= 1.
      width: kept columns, pixels, >= 1; the height where it is not given.
      stride: distance of two starts along each axis, pixels, >= 1.
    """

    height: int
    width: int = None  # type: ignore[assignment]  # an int once constructed
    _: dataclasses.KW_ONLY
    stride: int = 1

    def __post_init__(self) -> None:
        if self.width is None:
            object.__setattr__(self, "width", self.height)
        _set_integers(self)

    def window_shape(self, image_size: ImageSize) -> tuple[int, int]:
        """Returns (h, w), the pixels that each ablation keeps."""
        _check_fits("height", self.height, "height", image_size)
        _check_fits("width", self.width, "width", image_size)
        return self.height, self.width

    def starts(self, image_size: ImageSize) -> Starts:
        """Returns int64 [P, 2], the first kept (row, column) of each ablation."""
        self.window_shape(image_size)
        height, width = image_size
        return _grid_starts(range(0, height, self.stride), range(0, width, self.stride))

    def windows(self, image_size: ImageSize) -> Windows:  # noqa: D102
        return _windows_at(self, image_size)


@dataclasses.dataclass(frozen=True)
class MultiColumns(Ablation):
    """Keeps ``keep`` of the disjoint, aligned bands of ``width`` columns.

    All C(B, keep) choices come in lexicographic order; nothing wraps.

    Attributes:
      width: columns of a band, pixels, >= 1; must divide the image width.
      keep: bands that an ablation keeps, 1..B.
    """

    width: int
    keep: int

    def __post_init__(self) -> None:
        _set_integers(self)

    def windows(self, image_size: ImageSize) -> Windows:  # noqa: D102
        columns = _aligned_bands("width", self.width, "width", image_size)
        rows = np.ones((1, image_size[0]), bool)
        return Windows(rows, columns, _all_choices(len(columns), self.keep))


@dataclasses.dataclass(frozen=True)
class MultiBlocks(Ablation):
    """Keeps ``keep`` of the disjoint, aligned ``size`` x ``size`` blocks.

    Blocks are numbered row-major, all C(B, keep) choices come in lexicographic order;
    nothing wraps.

    Attributes:
      size: side of a block, pixels, >= 1; must divide the image height and width.
      keep: blocks that an ablation keeps, 1..B.
    """

    size: int
    keep: int

    def __post_init__(self) -> None:
        _set_integers(self)

    def windows(self, image_size: ImageSize) -> Windows:  # noqa: D102
        rows = _aligned_bands("size", self.size, "height", image_size)
        columns = _aligned_bands("size", self.size, "width", image_size)
        choices = _all_choices(len(rows) * len(columns), self.keep)
        return Windows(rows, columns, choices)


SingleWindow = Columns | Rows | Blocks
"""The ablations whose p-th member keeps one window, which can be cropped out."""

_KINDS = (Columns, Rows, Blocks, MultiColumns, MultiBlocks)


def thinned(ablation: Ablation, every: int) -> Ablation:
    """Every so many-th of the ablations, along each axis that they cut.

    Raises TypeError for one that keeps several windows, unless `every` is 1.

    >>> thinned(Columns(4), 2)
    Columns(width=4, stride=2)
    """
    if isinstance(ablation, SingleWindow):
        return dataclasses.replace(ablation, stride=every * ablation.stride)
    if every != 1:
        raise TypeError(f"every={every}: {ablation!r} has no stride; use every=1")
    return ablation


def ablation_to_json(ablation: Ablation) -> dict[str, Any]:
    """Returns the ablation as a plain dict, for checkpoints and stores.

    >>> ablation_to_json(Columns(4))
    {'kind': 'Columns', 'width': 4, 'stride': 1}
    """
    return {"kind": type(ablation).__name__, **dataclasses.asdict(ablation)}  # type: ignore[call-overload]


def ablation_from_json(record: Mapping[str, Any]) -> Ablation:
    """Returns the ablation that `ablation_to_json` wrote down.

    Args:
      record: "kind", the name of the class, and what the class takes.

    Returns:
      The ablation.

    Raises:
      ValueError: an unknown kind, arguments that it does not take, or lacks.
    """
    arguments, kinds = dict(record), {cls.__name__: cls for cls in _KINDS}
    if (kind := arguments.pop("kind", None)) not in kinds:
        raise ValueError(f"ablation kind={kind!r} is unknown, not in {list(kinds)}")
    fields = {f.name: f.default for f in dataclasses.fields(kinds[kind])}
    needed = sorted(key for key in fields if fields[key] is dataclasses.MISSING)
    if not set(needed) <= set(arguments) <= set(fields):
        takes = f"{kind} takes {sorted(fields)}, and needs {needed}"
        raise ValueError(f"{takes}; given are {sorted(arguments)}")
    return kinds[kind](**arguments)


def check_ablation(ablation: Any) -> None:
    """Raises TypeError unless it is an ablation."""
    if not isinstance(ablation, Ablation):
        raise TypeError(
            f"ablation={ablation!r} must be an ablation, for example ds.Columns(4)"
        )


def check_num_ablations(
    name: str, found: int, ablation: Ablation, image_size: ImageSize
) -> None:
    """Raises ValueError unless an array of this name has the ablation's P."""
    num_ablations = ablation.num_ablations(image_size)
    if found != num_ablations:
        raise ValueError(
            f"{name} have {found} ablations; {ablation} has {num_ablations} on "
            f"an image of {tuple(image_size)}"
        )


def check_single_window(ablation: Any) -> None:
    """Raises TypeError unless each ablation keeps one window, which can be cut out."""
    check_ablation(ablation)
    if not isinstance(ablation, SingleWindow):
        raise TypeError(
            f"ablation={ablation!r} keeps several windows, which cannot be cropped out "
            "as one; use ablate (masked_scores), or Columns, Rows or Blocks"
        )


def _set_integers(value: Ablation) -> None:
    """Turns every field into a Python int (so values hash and print alike)."""
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        given = getattr(value, field.name)
        where = f"{type(value).__name__}: {field.name}={given!r}"
        try:
            number = operator.index(given)
        except TypeError:
            raise TypeError(f"{where} must be an integer") from None
        if isinstance(given, bool | np.bool_):
            raise TypeError(f"{where} must be an integer, not a bool")
        if number < 1:
            raise ValueError(f"{where} must be >= 1")
        object.__setattr__(value, field.name, number)


def _check_fits(name: str, value: int, axis: str, image_size: ImageSize) -> None:
    limit = check_image_size(image_size)[0 if axis == "height" else 1]
    if value > limit:
        raise ValueError(f"{name}={value} must be in 1..{limit}, the image {axis}")


def _grid_starts(row_starts: range, column_starts: range) -> Starts:
    pairs = itertools.product(row_starts, column_starts)
    return np.array(list(pairs), np.int64).reshape(-1, 2)


def _windows_at(ablation: SingleWindow, image_size: ImageSize) -> Windows:
    """Windows of an ablation that keeps one window at each of its starts."""
    starts, (h, w) = ablation.starts(image_size), ablation.window_shape(image_size)
    rows = _wrapped_bands(np.unique(starts[:, 0]), h, image_size[0])
    columns = _wrapped_bands(np.unique(starts[:, 1]), w, image_size[1])
    return Windows(rows, columns, np.arange(len(starts))[:, None])


def _wrapped_bands(starts: np.ndarray, extent: int, length: int) -> np.ndarray:
    """[n] starts -> bool [n, length], True on ``extent`` positions from each start."""
    bands = np.zeros((len(starts), length), bool)
    kept = (starts[:, None] + np.arange(extent)) % length
    np.put_along_axis(bands, kept, True, axis=1)
    return bands


def _aligned_bands(name: str, value: int, axis: str, size: ImageSize) -> np.ndarray:
    _check_fits(name, value, axis, size)
    length = size[0 if axis == "height" else 1]
    if length % value:
        raise ValueError(f"{name}={value} must divide the image {axis}, {length}")
    return _wrapped_bands(np.arange(0, length, value), value, length)


def _all_choices(num_windows: int, keep: int) -> Choices:
    if keep > num_windows:
        raise ValueError(f"keep={keep} must be in 1..{num_windows}, the windows there")
    total = math.comb(num_windows, keep)
    if total > MAX_ABLATIONS:
        raise ValueError(
            f"keep={keep} of {num_windows} windows makes {total:,} ablations, more "
            f"than MAX_ABLATIONS={MAX_ABLATIONS:,}; keep fewer, or use larger windows"
        )
    pairs = itertools.combinations(range(num_windows), keep)
    flat = np.fromiter(itertools.chain.from_iterable(pairs), np.int64, total * keep)
    return flat.reshape(total, keep)
