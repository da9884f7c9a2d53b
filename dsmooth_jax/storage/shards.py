"""Arrays on disk, a shard of images at a time, with what made them.

What `score_store` (scores of ablations) and `label_store` (classes under masks) share:
a folder of plain files, a manifest with checksums, and writing that a kill cannot
spoil.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.checks import user_path
from dsmooth_jax.evaluation import check_labels
from dsmooth_jax.storage.files import PathLike, sha256, write_whole
from dsmooth_jax.storage.provenance import Origin, describe_difference
from dsmooth_jax.types import ImageShape, ImageSize

FORMAT = 1
MANIFEST = "manifest.json"
_SHARD_BYTES = 2**24
"""Aimed at where no shard size is asked for, with 32 to 128 images in a shard.

So little is lost when a slow scoring is killed, and a query holds little in memory."""


S = TypeVar("S", bound="Shards")  # beartype knows no Self here


class StoreError(ValueError):
    """A store that is missing, unfinished, damaged, or made under other settings."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Shards:
    """An array for each of N images on disk, read a shard at a time.

    Attributes:
      path: the folder.
      image_shape: (H, W, C).
      num_classes: K.
      labels: int64 [N].
      ids: str [N].
      made_by: plain JSON: model, data, device, precision, versions, ...; `origin` has
        what a report reads of it.
      shard_size: images in each shard but the last.
      checksums: sha256 of each finished shard's file, by its number.
    """

    KIND: ClassVar[str]
    """What the arrays are called, in messages and in the names of their files."""

    path: pathlib.Path
    image_shape: ImageShape
    num_classes: int
    labels: np.ndarray
    ids: np.ndarray
    made_by: dict[str, Any]
    shard_size: int
    checksums: dict[int, str]

    # What a kind of store says of its own.

    def view(self) -> dict[str, Any]:
        """What each array is of, as entries of the manifest."""
        raise NotImplementedError

    @classmethod
    def read_view(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that `view` wrote into a manifest."""
        raise NotImplementedError

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """The shape of one image's array."""
        raise NotImplementedError

    def check(self, arrays: ArrayLike) -> np.ndarray:
        """Returns the arrays of some images, or raises what is wrong with them."""
        raise NotImplementedError

    # What all have.

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> ImageSize:
        """(H, W), pixels."""
        return self.image_shape[:2]

    @property
    def origin(self) -> Origin:
        """What `made_by` says, by name."""
        return Origin.from_json(self.made_by)

    @property
    def num_shards(self) -> int:
        """Shards when finished."""
        return -(-len(self) // self.shard_size)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not there (yet, or any more)."""
        return [
            shard
            for shard in range(self.num_shards)
            if shard not in self.checksums or not self.shard_path(shard).exists()
        ]

    def shard_path(self, shard: int) -> pathlib.Path:
        """Where a shard is, or will be."""
        return self.path / f"{self.KIND}-{shard:05d}.npy"

    def span(self, shard: int) -> slice:
        """The images of a shard."""
        start = shard * self.shard_size
        return slice(start, min(start + self.shard_size, len(self)))

    def read(self, shard: int) -> np.ndarray:
        """Reads one shard, after checking its checksum.

        Args:
          shard: its number, in 0..num_shards - 1.

        Returns:
          [n, ...], the arrays of the images ``span(shard)``.

        Raises:
          StoreError: it is missing, or is not what was written.
        """
        return _read_npy(self.shard_path(shard), self.checksums.get(shard))

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads shard by shard: (which images, their arrays)."""
        for shard in range(self.num_shards):
            yield self.span(shard), self.read(shard)

    def read_all(self) -> np.ndarray:
        """Reads all arrays into memory, [N, ...]."""
        empty = np.empty((0, *self.entry_shape), self.dtype)
        return np.concatenate([empty, *(part for _, part in self)])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the arrays on disk."""
        raise NotImplementedError

    def write(self, shard: int, arrays: ArrayLike) -> str:
        """Writes the file of a shard, not the manifest.

        Args:
          shard: its number.
          arrays: of the images ``span(shard)``.

        Returns:
          The file's checksum, for `enter`.

        Raises:
          TypeError, ValueError: they are not the arrays of this shard.
        """
        span = self.span(shard)
        expected = (span.stop - span.start, *self.entry_shape)
        checked = self.check(arrays)
        if checked.shape != expected or not 0 <= shard < self.num_shards:
            raise ValueError(
                f"{self.KIND} of shard {shard} have shape {checked.shape}; it must be "
                f"{expected}, of shard 0..{self.num_shards - 1}"
            )
        content = npy(np.ascontiguousarray(checked))
        write_whole(self.shard_path(shard), content)
        return sha256(content)

    def enter(self: S, checksums: Mapping[int, str]) -> S:
        """Enters shards that are written into the manifest; returns the store."""
        grown = dataclasses.replace(self, checksums={**self.checksums, **checksums})
        grown.write_manifest()
        return grown

    def put(self: S, shard: int, arrays: ArrayLike) -> S:
        """Writes and enters one shard; returns the store that has it. One writer."""
        return self.enter({shard: self.write(shard, arrays)})

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds, but for its own checksum."""
        return {
            "format": FORMAT,
            "num_images": len(self),
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            **self.view(),
            "labels": sha256(npy(self.labels)),
            "ids": sha256(npy(self.ids)),
            "made_by": self.made_by,
            "shard_size": self.shard_size,
            "checksums": {str(k): v for k, v in sorted(self.checksums.items())},
        }

    def write_manifest(self) -> None:
        """Replaces manifest.json in one step."""
        manifest = self.manifest()
        manifest["checksum"] = sha256(json.dumps(manifest).encode())
        text = json.dumps(manifest, indent=2)
        write_whole(self.path / MANIFEST, text.encode())

    @classmethod
    def open(cls: type[S], path: PathLike) -> S:
        """Opens a store, finished or not.

        Raises:
          StoreError: there is none of this kind, or its manifest is damaged.
        """
        path = user_path("path", path)
        manifest = read_manifest(path)
        if kind(manifest) != cls.KIND:
            raise StoreError(f"{path} holds {kind(manifest)}, not {cls.KIND}")
        return cls(
            path=path,
            image_shape=tuple(manifest["image_shape"]),
            num_classes=manifest["num_classes"],
            labels=_read_npy(path / "labels.npy", manifest["labels"]),
            ids=_read_npy(path / "ids.npy", manifest["ids"]),
            made_by=manifest["made_by"],
            shard_size=manifest["shard_size"],
            checksums={int(k): v for k, v in manifest["checksums"].items()},
            **cls.read_view(manifest),
        )

    @classmethod
    def open_finished(cls: type[S], path: PathLike) -> S:
        """Opens a finished store; StoreError also where shards are missing."""
        store = cls.open(path)
        if store.missing:
            first = store.shard_path(store.missing[0]).name
            raise StoreError(
                f"{path} is unfinished, {len(store.missing)} of {store.num_shards} "
                f"shards are missing, the first is {first}; run the command that made "
                "it again, it goes on where it was"
            )
        return store

    @classmethod
    def create(
        cls: type[S],
        path: PathLike,
        *,
        image_shape: ImageShape,
        num_classes: int,
        labels: ArrayLike,
        ids: ArrayLike,
        made_by: Mapping[str, Any],
        shard_size: int | None = None,
        **view: Any,
    ) -> S:
        """Begins a store, or takes up one that was begun under the same settings.

        Raises:
          StoreError: the folder holds a store made under other settings (the difference
            is named), or something else.
        """
        path = user_path("path", path)
        ids = np.asarray(ids).astype(str)
        labels = check_labels(labels, len(ids), num_classes).astype(np.int64)
        wanted = cls(
            path=path,
            image_shape=tuple(int(extent) for extent in image_shape),
            num_classes=int(num_classes),
            labels=labels,
            ids=ids,
            made_by=_plain_json(made_by),
            shard_size=1,
            checksums={},
            **view,
        )
        if shard_size is None:
            per_image = np.prod(wanted.entry_shape) * wanted.dtype.itemsize
            shard_size = min(max(32, int(_SHARD_BYTES // per_image)), 128)
        if shard_size < 1:
            raise ValueError(f"shard_size={shard_size!r} must be >= 1, in images")
        wanted = dataclasses.replace(wanted, shard_size=shard_size)
        if is_store(path):
            found = cls.open(path)
            begun = dataclasses.replace(found, checksums={})
            if difference := describe_difference(begun.manifest(), wanted.manifest()):
                raise StoreError(
                    f"{path} holds {cls.KIND} made under other settings "
                    f"({difference}); give another --out, or --overwrite to lose them "
                    "and score anew"
                )
            return found
        if path.exists():
            # Only what a writer leaves that was killed before its manifest was there.
            own = {"labels.npy", "ids.npy", "labels.npy.part", "ids.npy.part"}
            own.add(f"{MANIFEST}.part")
            if not path.is_dir() or {file.name for file in path.iterdir()} - own:
                raise StoreError(f"{path} holds something else; name a new folder")
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / "labels.npy", npy(labels))
        write_whole(path / "ids.npy", npy(ids))
        wanted.write_manifest()
        return wanted


def is_store(path: PathLike) -> bool:
    """Whether a folder holds a store, of any kind, finished or not."""
    return (user_path("path", path) / MANIFEST).exists()


def is_tables(path: PathLike) -> bool:
    """Whether a folder holds a store of tables, finished or not."""
    return is_store(path) and kind(read_manifest(pathlib.Path(path))) == "tables"


def kind(manifest: Mapping[str, Any]) -> str:
    """What a manifest's arrays are: "scores" or "tables"."""
    return "tables" if "masks" in manifest else "scores"


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Reads and checks a manifest.

    Raises:
      StoreError: it is not there, of another format, or damaged.
    """
    manifest_path = path / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{path} is no store of scores, it has no {MANIFEST}"
        ) from None
    except ValueError as error:  # not JSON, or not even text
        raise StoreError(f"{manifest_path} is damaged: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise StoreError(
            f"{manifest_path} has format {found!r}, this version reads {FORMAT}; "
            "update dsmooth_jax, or make the scores again"
        )
    if manifest.pop("checksum", None) != sha256(json.dumps(manifest).encode()):
        raise StoreError(
            f"{manifest_path} is not what was written: its checksum differs"
        )
    return manifest


def npy(array: np.ndarray) -> bytes:
    """An array as the content of a file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _plain_json(made_by: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(made_by, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"made_by={made_by!r} must be plain JSON: {error}") from None


def _read_npy(path: pathlib.Path, checksum: str | None) -> np.ndarray:
    """Reads an array file, after checking that it is what was written."""
    if checksum is None or not path.exists():
        raise StoreError(f"{path} is missing; run the command that made it again")
    content = path.read_bytes()
    if sha256(content) != checksum:
        raise StoreError(
            f"{path} is not what was written, its checksum differs; delete it and run "
            "the command that made it again"
        )
    return np.load(io.BytesIO(content), allow_pickle=False)
