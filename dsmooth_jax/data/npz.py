"""Labelled images in npz files of one's own, plain or encoded as JPEG, PNG, ..."""

import pathlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dsmooth_jax.data.dataset import plain_texts
from dsmooth_jax.data.decoding import check_axes
from dsmooth_jax.data.files import Source, in_memory
from dsmooth_jax.data.images import Content

_FIELDS = ("labels", "class_names", "ids", "images", "jpeg", "offsets")


def open_npz(folder: pathlib.Path, name: str, part: str, *, train: str) -> Source:
    """Opens FOLDER/NAME_PART.npz.

    A file holds "labels", integers [N], and the images: as "images", uint8
    [N, H, W, C], or [N, H, W] of grey ones; or encoded as files are (JPEG, PNG, ...),
    one after the other, as "jpeg", uint8 [bytes], with "offsets", integers [N + 1],
    that say where each begins and ends. "ids" [N] and "class_names" [K], texts or
    integers, may be there too. Without class names, K is one more than the largest
    label of the training images. Pickled objects are never loaded.

    Args:
      folder: Where the files are.
      name: Of the data set.
      part: Which file, for example "test".
      train: The part that training images come from; its labels say what K is.

    Raises:
      FileNotFoundError: a file is missing.
      OSError: a file cannot be opened.
      ValueError: a file is damaged, or holds something else; it is named, and the
        field.
    """
    path, train_path = (folder / f"{name}_{p}.npz" for p in (part, train))
    fields = _read(path, _FIELDS)
    known = fields if part == train else _read(train_path, ("labels", "class_names"))
    class_names = _class_names(train_path, known)
    if part != train and _class_names(path, fields) not in ((), class_names):
        raise ValueError(
            f"class_names in {path} are not those in {train_path}: a label would be "
            "another class there"
        )
    labels = _labels(path, fields)
    num_classes = len(class_names) or _count_classes(
        train_path, _labels(train_path, known)
    )
    ids = np.array([f"{name}_{part}_{row:05d}" for row in range(len(labels))])
    if "ids" in fields:
        ids = _names(path, "ids", fields)
    if ids.shape != labels.shape:
        raise ValueError(
            f"{path} has {len(labels)} labels but ids of shape {ids.shape}: one each"
        )
    content = _content(path, fields, labels)
    return Source(labels, ids, num_classes, class_names, content)


@dataclass(frozen=True, eq=False)
class _Encoded:
    stream: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " ends"]

    def __call__(self, row: int) -> bytes:
        return self.stream[self.offsets[row] : self.offsets[row + 1]].tobytes()


def _read(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the named fields that are there."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: training and test images are a file each"
        )
    fields, what = {}, ""
    with path.open("rb") as file:  # what cannot be opened is not therefore damaged
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError(
                    f"it holds one array of shape {archive.shape}, as np.save writes "
                    "it; np.savez(FILE, images=..., labels=...) is meant"
                )
            for field in (n for n in names if n in archive.files):
                what = f" (its field {field!r})"
                fields[field] = archive[field]
                if not isinstance(fields[field], np.ndarray):
                    raise ValueError("it is no array")
        except OSError:
            raise
        # Zip, zlib, header and pickle each have errors of their own.
        except Exception as error:
            why = str(error) or type(error).__name__
            if "allow_pickle" in why:  # NumPy takes all that it does not know for such
                why = "it holds Python objects, which are not loaded; save an array"
                why += " of numbers or texts"
                if not what:
                    why = "it is no file of np.savez; make it by np.savez(FILE, "
                    why += "images=..., labels=...)"
            raise ValueError(
                f"{path} cannot be read as an npz file{what}: {why}"
            ) from error
        missing = {"labels"} - set(archive.files)
        if {"images", "jpeg"} <= set(names) and "images" not in archive.files:
            missing |= {"jpeg", "offsets"} - set(archive.files)
        if missing:
            raise ValueError(
                f"{path} holds {', '.join(sorted(archive.files)) or 'nothing'}: it "
                "must hold 'labels' and either 'images', or 'jpeg' and 'offsets'"
            )
    return fields


def _labels(
    path: pathlib.Path, fields: dict[str, np.ndarray]
) -> Int64[np.ndarray, " N"]:
    labels = fields["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(
            f"labels in {path} have shape {labels.shape} and dtype {labels.dtype}: "
            "they must be integers, one for each image"
        )
    if labels.max() > np.iinfo(np.int64).max:  # of uint64, which would turn negative
        raise ValueError(
            f"labels in {path} go up to {labels.max()}: number the classes"
        )
    return labels.astype(np.int64)


def _class_names(path: pathlib.Path, fields: dict[str, np.ndarray]) -> tuple[str, ...]:
    if "class_names" not in fields:
        return ()
    return tuple(_names(path, "class_names", fields).tolist())


def _names(
    path: pathlib.Path, field: str, fields: dict[str, np.ndarray]
) -> Shaped[np.ndarray, " n"]:
    """Texts of a field, none of them twice."""
    names = plain_texts(f"{field} in {path}", fields[field])
    distinct, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{field} in {path} have {str(distinct[np.argmax(counts)])!r} "
            f"{counts.max()} times: they must differ"
        )
    return names


def _count_classes(path: pathlib.Path, labels: Int64[np.ndarray, " N"]) -> int:
    """One more than the largest label, which few labels must not make absurd."""
    used, most = np.unique(labels), int(labels.max()) + 1
    if used[0] < 0 or most < 2:
        raise ValueError(
            f"labels in {path} are {used[0]}..{used[-1]}: number two or more classes "
            "from 0, or name them all in 'class_names'"
        )
    if most > 2 * len(used):
        raise ValueError(
            f"labels in {path} go up to {most - 1}, but only {len(used)} of "
            f"0..{most - 1} occur: number the classes from 0, or name them all in "
            "'class_names'"
        )
    return most


def _content(
    path: pathlib.Path, fields: dict[str, np.ndarray], labels: Int64[np.ndarray, " N"]
) -> Content:
    if "images" in fields:
        images = fields["images"]
        if images.dtype != np.uint8:
            raise TypeError(
                f"images in {path} have dtype {images.dtype}; they must be uint8, "
                "0..255: convert them, choosing which values are black and white"
            )
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"{path} has {len(labels)} labels but images of shape "
                f"{fields['images'].shape}: they must be [{len(labels)}, H, W, C]"
            )
        check_axes(f"images in {path}", images.shape)
        return in_memory(images)
    offsets, stream = fields["offsets"], fields["jpeg"]
    if stream.dtype != np.uint8 or stream.ndim != 1 or offsets.dtype.kind not in "iu":
        raise ValueError(
            f"{path} has 'jpeg' of dtype {stream.dtype}, shape {stream.shape}, and "
            f"'offsets' of dtype {offsets.dtype}: they must be the bytes of the files "
            "one after the other, uint8 [bytes], and integers"
        )
    offsets = offsets.astype(np.int64)
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
