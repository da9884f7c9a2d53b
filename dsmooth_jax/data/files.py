"""Labelled images in files of one's own: npz files, and a folder for each class."""

import os
import pathlib
import zipfile
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dsmooth_jax.data.images import Content


@dataclass(frozen=True, eq=False)
class Source:
    """The training or the test images of a data set, not yet decoded.

    Attributes:
      labels: Classes, int64 [N]; not yet checked.
      ids: One name per image that says where it came from, str [N].
      num_classes: K.
      class_names: A name for each class, K of them; empty where none are known.
      content: row in 0..N-1 -> what is stored there.
      channels: C where the source is known to have it for every image, else None.
    """

    labels: Int64[np.ndarray, " N"]
    ids: Shaped[np.ndarray, " N"]
    num_classes: int
    class_names: tuple[str, ...]
    content: Content
    channels: int | None = None


def open_npz(folder: pathlib.Path, name: str, part: str, *, train: str) -> Source:
    """Opens FOLDER/NAME_PART.npz.

    A file holds "labels", integers [N], and the images: as "images", uint8
    [N, H, W, C], or [N, H, W] of grey ones; or encoded as files are (JPEG, PNG, ...),
    one after the other, as "jpeg", uint8 [bytes], with "offsets", integers [N + 1],
    that say where each begins and ends. "ids", str [N], and "class_names", str [K],
    may be there too. Without class names, K is one more than the largest label of
    the training images.

    Args:
      folder: Where the files are.
      name: Of the data set.
      part: Which file, for example "test".
      train: The part that training images come from; its labels say what K is.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or holds something else.
    """
    path = folder / f"{name}_{part}.npz"
    labels, class_names = _npz_labels(folder / f"{name}_{train}.npz")
    num_classes = len(class_names) or int(labels.max()) + 1
    if part != train:
        labels, _ = _npz_labels(path)
    fields = _load_npz(path, {"images", "jpeg", "offsets", "ids"})
    ids = fields.get("ids")
    if ids is None:
        ids = np.array([f"{name}_{part}_{row:05d}" for row in range(len(labels))])
    if ids.shape != labels.shape:
        raise ValueError(
            f"{path} has {len(labels)} labels but ids of shape {ids.shape}: one each"
        )
    content = _npz_content(path, fields, labels)
    return Source(labels, ids.astype(str), num_classes, class_names, content)


def open_folder(folder: pathlib.Path, part: str, *, train: str) -> Source:
    """Opens FOLDER/PART, which holds a folder for each class with its images in it.

    The classes are the folders of the training part, in alphabetical order. An id is
    the path below FOLDER/PART. Names that begin with a dot are passed over.

    Args:
      folder: Of the data set.
      part: Which part, for example "test".
      train: The part that training images come from.

    Raises:
      FileNotFoundError: there is no such part.
      ValueError: no class, a class that the training part does not have, or what is
        no file where images should be; it is named.
    """
    for name in (train, part):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{folder} has no folder {name!r}: put the images of each class in "
                f"{folder / name / 'CLASS'}, or name another part by data.test_split"
            )
    class_names = tuple(_classes(folder / train))
    if len(class_names) < 2:
        raise ValueError(
            f"{folder / train} must hold a folder for each of at least 2 classes, it "
            f"holds {', '.join(class_names) or 'none'}"
        )
    labels, ids = [], []
    for class_name in _classes(folder / part):
        if class_name not in class_names:
            raise ValueError(
                f"{folder / part / class_name} is a class that {folder / train} does "
                f"not have; its classes are {', '.join(class_names[:5])}, ..."
            )
        files = _names(folder / part / class_name)
        ids += [f"{class_name}/{file}" for file in files]
        labels += [class_names.index(class_name)] * len(files)
    if not ids:
        raise ValueError(f"{folder / part} holds no image in any of its folders")
    return Source(
        labels=np.array(labels, np.int64),
        ids=np.array(ids),
        num_classes=len(class_names),
        class_names=class_names,
        content=_Files(folder / part, tuple(ids)),
    )


# The ways to get one image.


@dataclass(frozen=True, eq=False)
class _Rows:
    images: Shaped[np.ndarray, "N H W C"]

    def __call__(self, row: int) -> np.ndarray:
        return self.images[row]


@dataclass(frozen=True, eq=False)
class _Encoded:
    stream: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " ends"]

    def __call__(self, row: int) -> bytes:
        return self.stream[self.offsets[row] : self.offsets[row + 1]].tobytes()


@dataclass(frozen=True, eq=False)
class _Files:
    folder: pathlib.Path
    names: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        return (self.folder / self.names[row]).read_bytes()


def in_memory(images: Shaped[np.ndarray, "N H W C"]) -> Content:
    """Images that are in memory already."""
    return _Rows(images)


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _classes(folder: pathlib.Path) -> list[str]:
    names = _names(folder)
    for name in names:
        if not (folder / name).is_dir():
            raise ValueError(
                f"{folder / name} must be a folder, of the images of one class"
            )
    return names


def _npz_labels(
    path: pathlib.Path,
) -> tuple[Int64[np.ndarray, " N"], tuple[str, ...]]:
    """Labels and class names of a file."""
    fields = _load_npz(path, {"labels", "class_names"})
    if "labels" not in fields:
        raise ValueError(f"{_holds(path)}: 'labels' is missing")
    labels = fields["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(
            f"labels in {path} have shape {labels.shape} and dtype {labels.dtype}: "
            "they must be integers, one for each image"
        )
    return labels.astype(np.int64), tuple(fields.get("class_names", ()))


def _npz_content(
    path: pathlib.Path, fields: dict[str, np.ndarray], labels: Int64[np.ndarray, " N"]
) -> Content:
    if "images" in fields:
        images = fields["images"]
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"{path} has {len(labels)} labels but images of shape "
                f"{fields['images'].shape}: they must be [{len(labels)}, H, W, C]"
            )
        return _Rows(images)
    if not {"jpeg", "offsets"} <= fields.keys():
        raise ValueError(
            f"{_holds(path)}: it must hold 'labels' and either 'images', or 'jpeg' and "
            "'offsets'"
        )
    offsets, stream = fields["offsets"].astype(np.int64), fields["jpeg"]
    if (
        offsets.shape != (len(labels) + 1,)
        or (np.diff(offsets) < 0).any()
        or (offsets[0], offsets[-1]) != (0, stream.size)
    ):
        raise ValueError(
            f"offsets of shape {offsets.shape} in {path} must rise from 0 to "
            f"{stream.size}, the bytes in 'jpeg', in {len(labels)} steps, the labels"
        )
    return _Encoded(stream, offsets)


def _holds(path: pathlib.Path) -> str:
    with np.load(path, allow_pickle=False) as file:
        return f"{path} holds {', '.join(sorted(file.files))}"


def _load_npz(path: pathlib.Path, names: set[str]) -> dict[str, np.ndarray]:
    """Those of the named fields that are there."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: training and test images are a file each"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in names}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an npz file: {error}") from error
