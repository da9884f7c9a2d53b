"""`Dataset`: labelled images in a fixed order, each with an id.

What goes into records and pages (names, ids) is made plain text here, or refused.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, Integer, Shaped, UInt8

from dsmooth_jax.data.decoding import check_axes
from dsmooth_jax.data.images import StoredImages
from dsmooth_jax.wording import counted, one_line

_MOST_NAMES = 5  # of classes in one line


def plain(value: str | bytes) -> str:
    """Text that every file and terminal takes; what is not UTF-8 is escaped."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_texts(name: str, values: Shaped[np.ndarray, "..."]) -> np.ndarray:
    """Names as they are read from a file, as a str array of the same shape.

    Args:
      name: What the error calls them.
      values: str, bytes or integers, [n].

    Raises:
      ValueError: they are something else, or no list.
    """
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise ValueError(
            f"{name} have shape {values.shape} and dtype {values.dtype}; they must be "
            "a list of texts, for example np.array(['cat', 'dog'])"
        )
    items = values.astype(str) if values.dtype.kind in "iu" else values
    return np.array([plain(item) for item in items.tolist()], np.str_)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in a fixed order; the arrays are read-only.

    Attributes:
      name: Which data set, as given to `load`.
      split: Which part of it: "train", "validation" or "test".
      images: Pixels, 0..255, uint8 [N, H, W, C]: an array, or `StoredImages`, which are
        decoded when indexed. ``images[:]`` is an array in either case.
      labels: Classes, in 0..num_classes-1, int64 [N].
      ids: One distinct name per image that says where it came from, str [N].
      num_classes: K, at least 2.
      class_names: A name for each class, K distinct ones; empty where none are known.

    Raises:
      TypeError: an array has another dtype, a class name is no text.
      ValueError: shapes or lengths disagree, channels come first, a label is out of
        range, an id or a class name occurs twice.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "N H W C"] | StoredImages
    labels: Int64[np.ndarray, " N"]
    ids: Shaped[np.ndarray, " N"]
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, kind, ndim in (("images", "u1", 4), ("labels", "i8", 1)):
            array = getattr(self, field)
            if array.dtype != np.dtype(kind):
                raise TypeError(f"{field}.dtype={array.dtype} must be {np.dtype(kind)}")
            if array.ndim != ndim:
                raise ValueError(f"{field}.shape={array.shape} must have {ndim} axes")
        check_axes("images", self.images.shape)
        if self.ids.dtype.kind != "U":
            raise TypeError(f"ids.dtype={self.ids.dtype} must be a NumPy str dtype")
        if not self.images.shape[:1] == self.labels.shape == self.ids.shape:
            raise ValueError(
                f"images, labels and ids have shapes {self.images.shape}, "
                f"{self.labels.shape}, {self.ids.shape}: the first axes must agree"
            )
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes} must be at least 2")
        is_bad = (self.labels < 0) | (self.labels >= self.num_classes)
        if is_bad.any():
            worst = int(np.argmax(is_bad))
            raise ValueError(
                f"the label {self.labels[worst]} of {str(self.ids[worst])!r} must be "
                f"in 0..{self.num_classes - 1}: {int(is_bad.sum())} such in "
                f"{self.name!r}, split {self.split!r}"
            )
        object.__setattr__(self, "class_names", self._plain_class_names())
        for kind, texts in (("id", self.ids), ("class name", self.class_names)):
            names, counts = np.unique(np.array(texts, np.str_), return_counts=True)
            if (counts > 1).any():
                twice = str(names[np.argmax(counts)])
                raise ValueError(
                    f"the {kind} {twice!r} occurs {counts.max()} times, not once"
                )
        for field in ("images", "labels", "ids"):
            if isinstance(getattr(self, field), np.ndarray):
                # A read-only view: the caller's own array stays as it is.
                view = getattr(self, field).view()
                view.flags.writeable = False
                object.__setattr__(self, field, view)

    def _plain_class_names(self) -> tuple[str, ...]:
        names = self.class_names
        if isinstance(names, str) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"class_names={names!r} must be a text for each class")
        if len(names) not in (0, self.num_classes):
            raise ValueError(
                f"{len(names)} class_names do not name num_classes={self.num_classes} "
                "classes"
            )
        return tuple(map(plain, names))

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        """How it was understood, in a line: images, their shape, empty classes."""
        height, width, channels = self.image_shape
        kind = {1: " (grey)", 3: " (RGB)"}.get(channels, "")
        text = (
            f"{one_line(self.name)}, {self.split}: {counted(len(self), 'image')} of "
            f"height {height}, width {width}, {counted(channels, 'channel')}{kind}, "
            f"{self.num_classes:,} classes"
        )
        missing = np.setdiff1d(np.arange(self.num_classes), self.labels).tolist()
        if not missing:
            return text
        names = [
            repr(self.class_names[k]) if self.class_names else str(k)
            for k in missing[:_MOST_NAMES]
        ]
        if len(missing) > _MOST_NAMES:
            names.append(f"and {len(missing) - _MOST_NAMES:,} more")
        return f"{text}; no image of {', '.join(names)}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of ids, labels and images in order, not of the names.

        Of images that are not in memory only `StoredImages.sample` is read.
        """
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update("\0".join(self.ids.tolist()).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        images = self.images
        pixels = images if isinstance(images, np.ndarray) else images.sample()
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def take(
        self, indices: Integer[np.ndarray, " M"] | Sequence[int] | range
    ) -> "Dataset":
        """The images at `indices`, in that order.

        Args:
          indices: Distinct integers in 0..N-1, [M].

        Raises:
          TypeError: `indices` are not integers (a mask: pass `np.flatnonzero(mask)`).
          ValueError: an index is out of range or repeated.
        """
        chosen = np.asarray(indices) if len(indices) else np.empty(0, np.int64)
        if chosen.dtype.kind not in "iu":
            raise TypeError(f"indices.dtype={chosen.dtype} must be an integer dtype")
        is_bad = (chosen < 0) | (chosen >= len(self))
        if is_bad.any():
            raise ValueError(
                f"the index {chosen[is_bad][0]} must be in 0..{len(self) - 1}, "
                f"{self.name!r} split {self.split!r} has {counted(len(self), 'image')}"
            )
        images = self.images
        return replace(
            self,
            images=images[chosen]
            if isinstance(images, np.ndarray)
            else images.take(chosen),
            labels=self.labels[chosen],
            ids=self.ids[chosen],
        )
