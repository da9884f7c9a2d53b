"""Where labelled images come from; and folders of one's own, one for each class."""

import os
import pathlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped

from dsmooth_jax.data.dataset import plain
from dsmooth_jax.data.images import Content


@dataclass(frozen=True, eq=False)
class Source:
    """The training or the test images of a data set, not yet decoded.

    Attributes:
      labels: Classes, int64 [N]; not yet checked.
      ids: One name per image that says where it came from, plain text, str [N].
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


def open_folder(folder: pathlib.Path, part: str, *, train: str) -> Source:
    """Opens FOLDER/PART, which holds a folder for each class with its images in it.

    The classes are the folders of the training part, in alphabetical order. An id is
    the path below FOLDER/PART, with what is not UTF-8 escaped. Names that begin with a
    dot are passed over.

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
    classes = _folders(folder / train)
    if len(classes) < 2:
        raise ValueError(
            f"{folder / train} must hold a folder for each of at least 2 classes, it "
            f"holds {', '.join(classes) or 'none'}"
        )
    labels: list[int] = []
    files: list[str] = []
    for name in _folders(folder / part):
        if name not in classes:
            raise ValueError(
                f"{folder / part / name} is a class that {folder / train} does not "
                f"have; its classes are {', '.join(classes[:5])}, ..."
            )
        found = _files(folder / part / name)
        files += [f"{name}/{file}" for file in found]
        labels += [classes.index(name)] * len(found)
    if not files:
        raise ValueError(f"{folder / part} holds no image in any of its folders")
    return Source(
        labels=np.array(labels, np.int64),
        ids=np.array([plain(file) for file in files]),
        num_classes=len(classes),
        class_names=tuple(map(plain, classes)),
        content=_Files(folder / part, tuple(files)),
    )


# The ways to get one image.


@dataclass(frozen=True, eq=False)
class _Rows:
    images: Shaped[np.ndarray, "N H W C"]

    def __call__(self, row: int) -> np.ndarray:
        return self.images[row]


@dataclass(frozen=True, eq=False)
class _Files:
    folder: pathlib.Path
    names: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        return (self.folder / self.names[row]).read_bytes()


def in_memory(images: Shaped[np.ndarray, "N H W C"]) -> Content:
    """Images that are in memory already."""
    return _Rows(images)


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        there = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(there, key=lambda entry: entry.name)


def _folders(folder: pathlib.Path) -> list[str]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_dir():
            raise ValueError(
                f"{entry.path} must be a folder, of the images of one class; remove it"
            )
    return [entry.name for entry in entries]


def _files(folder: pathlib.Path) -> list[str]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_file():
            what = "a folder" if entry.is_dir() else "no file, or leads to none"
            raise ValueError(
                f"{entry.path} is {what}; a class's folder holds image files and "
                "nothing else: move or remove it"
            )
    return [entry.name for entry in entries]
