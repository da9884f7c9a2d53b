"""Checks of arguments that many functions take: the error names value and remedy."""

import importlib.util
import math
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from dsmooth_jax.types import ImageSize


def check_count(name: str, value: Any) -> None:
    """Raises unless the value is an integer >= 1."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r} must be an integer")
    if value < 1:
        raise ValueError(f"{name}={value} must be >= 1")


def check_image_size(image_size: ImageSize) -> ImageSize:
    """Returns (H, W) as Python ints, or raises the error that says what is wrong."""
    try:
        size = tuple(operator.index(x) for x in image_size)
    except TypeError:
        raise TypeError(
            f"image_size={image_size!r} must be two integers, (H, W)"
        ) from None
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"image_size={image_size!r} must be (H, W), both >= 1; "
            "of images [N, H, W, C] pass images.shape[1:3]"
        )
    return size


def is_floating(dtype: np.dtype) -> bool:
    """Whether it is a floating type of NumPy or of JAX: bfloat16, float8_e4m3fn, ..."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return not np.issubdtype(dtype, np.complexfloating)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {choices}")


def check_range(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raises unless the value is a finite number in the range that the bounds leave."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be finite")
    if least is not None and not value >= least:
        raise ValueError(f"{name}={value} must be >= {least}")
    if above is not None and not value > above:
        raise ValueError(f"{name}={value} must be > {above}")
    if below is not None and not value < below:
        raise ValueError(f"{name}={value} must be < {below}")
    if most is not None and not value <= most:
        raise ValueError(f"{name}={value} must be <= {most}")


def check_pair(name: str, value: Any) -> tuple[int, int]:
    """Returns (height, width) as a tuple, or raises the error that says what is wrong.

    >>> check_pair("patch", [5, 8])
    (5, 8)
    """
    is_pair = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_pair or len(value) != 2:
        raise ValueError(
            f"{name}={value!r} must be (height, width) in pixels, for example (5, 5)"
        )
    for extent in value:
        is_number = isinstance(extent, int | np.integer) and not isinstance(
            extent, bool
        )
        if not is_number:
            raise TypeError(f"{name}={value!r} must be two integers, in pixels")
        if extent < 1:
            raise ValueError(f"{name}={value!r} must be (height, width), both >= 1")
    return int(value[0]), int(value[1])


def user_path(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """A path that a user gave, with ``~`` for the home folder as in a shell.

    Args:
      name: of the flag or argument, for errors.
      value: the path. What this function returned it returns again.

    Raises:
      ValueError: it is empty, or it is in the home folder of a user that there is not.
    """
    given = os.fspath(value)
    if not given:
        raise ValueError(f"{name} is empty; give a path, or leave it out")
    # By text: a Path of ./~ is one of ~.
    expanded = os.path.expanduser(given)
    if expanded == given and given.startswith("~"):
        raise ValueError(
            f"{name}={given}: there is no such home folder; write ./{given} for a "
            "folder of this name"
        )
    path = pathlib.Path(expanded)
    return path.absolute() if str(path).startswith("~") else path


def check_installed(*names: str) -> None:
    """Raises ModuleNotFoundError for a library that will be wanted and is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
