"""Scores on disk, with what made them: the one costly thing, computed once.

A store is a folder of plain files that any tool opens:

    manifest.json       what made the scores, their shape, and a checksum of each shard
    labels.npy          int64 [N]
    ids.npy             str [N]
    scores-00000.npy    float32 [n, P, K], images 0..n-1; then the next shard

A shard is written beside its place, synced, renamed, and then entered into the
manifest, itself replaced in one step. So a writer that is killed leaves whole shards
only, and the same command goes on with the first one that is missing.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.ablation import (
    Ablation,
    ablation_from_json,
    ablation_to_json,
    check_ablation,
    check_num_ablations,
)
from dsmooth_jax.evaluation import check_labels
from dsmooth_jax.storage.files import PathLike, sha256, write_whole
from dsmooth_jax.storage.provenance import Origin, describe_difference
from dsmooth_jax.types import ImageShape, ImageSize
from dsmooth_jax.voting import check_scores

FORMAT = 1
MANIFEST = "manifest.json"
_SHARD_BYTES = 2**24
"""Aimed at where no shard size is asked for, with 32 to 128 images in a shard.

So little is lost when a slow scoring is killed, and a query holds little in memory."""


class StoreError(ValueError):
    """A store that is missing, unfinished, damaged, or made under other settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreStore:
    """Scores [N, P, K] on disk, read a shard at a time.

    Attributes:
      path: the folder.
      ablation: what the P ablations keep.
      image_shape: (H, W, C).
      num_classes: K.
      labels: int64 [N].
      ids: str [N].
      made_by: plain JSON: model, data, device, precision, versions, ...; `origin` has
        what a report reads of it.
      shard_size: images in each shard but the last.
      checksums: sha256 of each finished shard's file, by its number.
    """

    path: pathlib.Path
    ablation: Ablation
    image_shape: ImageShape
    num_classes: int
    labels: np.ndarray
    ids: np.ndarray
    made_by: dict[str, Any]
    shard_size: int
    checksums: dict[int, str]

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
            if shard not in self.checksums
            or not (self.path / _shard_name(shard)).exists()
        ]

    def span(self, shard: int) -> slice:
        """The images of a shard."""
        start = shard * self.shard_size
        return slice(start, min(start + self.shard_size, len(self)))

    def read(self, shard: int) -> np.ndarray:
        """Reads one shard, after checking its checksum.

        Args:
          shard: its number, in 0..num_shards - 1.

        Returns:
          float32 [n, P, K], the scores of the images ``span(shard)``.

        Raises:
          StoreError: it is missing, or is not what was written.
        """
        return _read_npy(self.path / _shard_name(shard), self.checksums.get(shard))

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads shard by shard: (which images, their scores)."""
        for shard in range(self.num_shards):
            yield self.span(shard), self.read(shard)

    def read_all(self) -> np.ndarray:
        """Reads all scores, float32 [N, P, K], into memory."""
        num_ablations = self.ablation.num_ablations(self.image_size)
        scores = np.empty((len(self), num_ablations, self.num_classes), np.float32)
        for span, part in self:
            scores[span] = part
        return scores


def is_store(path: PathLike) -> bool:
    """Whether a folder holds scores, finished or not."""
    return pathlib.Path(path, MANIFEST).exists()


def open_scores(path: PathLike) -> ScoreStore:
    """Opens a finished store.

    Args:
      path: the folder that certify.py or `save_scores` wrote.

    Returns:
      The store. Scores are read, and their checksums verified, when asked for.

    Raises:
      StoreError: there is no store, it is unfinished, or its manifest is damaged.
    """
    store = _open(pathlib.Path(path))
    if store.missing:
        raise StoreError(
            f"{path} is unfinished, {len(store.missing)} of {store.num_shards} shards "
            f"are missing, the first is {_shard_name(store.missing[0])}; run the "
            "command that made it again, it goes on where it was"
        )
    return store


def save_scores(
    path: PathLike,
    scores: ArrayLike,
    *,
    ablation: Ablation,
    image_shape: ImageShape,
    labels: ArrayLike,
    ids: ArrayLike | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> ScoreStore:
    """Writes scores computed by any framework into a new store.

    Args:
      path: a folder that does not exist yet.
      scores: floating [N, P, K], softmax scores in [0, 1]; stored as float32.
      ablation: what the P ablations keep, in `keep_masks` order.
      image_shape: (H, W, C).
      labels: integers [N], 0..K-1.
      ids: str [N]; 0, 1, 2, ... where not given.
      made_by: plain JSON that says where the scores come from.

    Returns:
      The finished store, as `open_scores` would.

    Raises:
      TypeError, ValueError: arrays that do not fit each other or the ablation.
      StoreError: the folder holds another store.
    """
    checked = check_scores(scores)
    check_ablation(ablation)
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape={image_shape!r} must be (H, W, C), all >= 1")
    check_num_ablations("scores", checked.shape[1], ablation, image_shape[:2])
    if is_store(path):
        raise StoreError(
            f"{path} holds scores already, finished or not; write elsewhere, or "
            "delete it"
        )
    labels = check_labels(labels, len(checked), checked.shape[2])
    ids = np.arange(len(checked)).astype(str) if ids is None else np.asarray(ids)
    if ids.shape != labels.shape:
        raise ValueError(f"ids have shape {ids.shape}; it must be [{len(checked)}]")
    store = create_store(
        path,
        ablation=ablation,
        image_shape=image_shape,
        num_classes=checked.shape[2],
        labels=labels,
        ids=ids,
        made_by=made_by or {},
    )
    for shard in store.missing:
        store = write_shard(store, shard, checked[store.span(shard)])
    return store


def create_store(
    path: PathLike,
    *,
    ablation: Ablation,
    image_shape: ImageShape,
    num_classes: int,
    labels: ArrayLike,
    ids: ArrayLike,
    made_by: Mapping[str, Any],
    shard_size: int | None = None,
) -> ScoreStore:
    """Begins a store, or takes up one that was begun under the same settings.

    Raises:
      StoreError: the folder holds a store made under other settings (the difference is
        named), or something else.
    """
    path = pathlib.Path(path)
    if shard_size is None:
        per_image = 4 * num_classes * ablation.num_ablations(image_shape[:2])
        shard_size = min(max(32, _SHARD_BYTES // per_image), 128)
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size!r} must be >= 1, in images")
    ids = np.asarray(ids).astype(str)
    labels = check_labels(labels, len(ids), num_classes).astype(np.int64)
    wanted = ScoreStore(
        path=path,
        ablation=ablation,
        image_shape=tuple(int(extent) for extent in image_shape),
        num_classes=int(num_classes),
        labels=labels,
        ids=ids,
        made_by=_plain_json(made_by),
        shard_size=shard_size,
        checksums={},
    )
    if is_store(path):
        found = _open(path)
        begun = dataclasses.replace(found, checksums={})
        if difference := describe_difference(_manifest(begun), _manifest(wanted)):
            raise StoreError(
                f"{path} holds scores made under other settings ({difference}); give "
                "another --out, or --overwrite to lose them and score anew"
            )
        return found
    if path.exists():
        # Only what a writer leaves that was killed before its manifest was there.
        own = {"labels.npy", "ids.npy", "labels.npy.part", "ids.npy.part"}
        own.add(f"{MANIFEST}.part")
        if not path.is_dir() or {file.name for file in path.iterdir()} - own:
            raise StoreError(f"{path} holds something else; name a new folder")
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / "labels.npy", _npy(labels))
    write_whole(path / "ids.npy", _npy(ids))
    _write_manifest(wanted)
    return wanted


def write_shard(store: ScoreStore, shard: int, scores: np.ndarray) -> ScoreStore:
    """Writes one shard and returns the store that has it. One writer at a time.

    Raises:
      TypeError, ValueError: scores are not softmax scores [n, P, K] of this shard.
    """
    return enter_shards(store, {shard: write_scores(store, shard, scores)})


def enter_shards(store: ScoreStore, checksums: Mapping[int, str]) -> ScoreStore:
    """Enters shards that are written into the manifest; returns the store with them."""
    grown = dataclasses.replace(store, checksums={**store.checksums, **checksums})
    _write_manifest(grown)
    return grown


def write_scores(store: ScoreStore, shard: int, scores: np.ndarray) -> str:
    """Writes the file of a shard, not the manifest; returns its checksum."""
    span = store.span(shard)
    num_ablations = store.ablation.num_ablations(store.image_size)
    expected = (span.stop - span.start, num_ablations, store.num_classes)
    checked = check_scores(scores)
    if checked.shape != expected or not 0 <= shard < store.num_shards:
        raise ValueError(
            f"scores of shard {shard} have shape {checked.shape}; it must be {expected}"
            f", of shard 0..{store.num_shards - 1}"
        )
    content = _npy(np.ascontiguousarray(checked))
    write_whole(store.path / _shard_name(shard), content)
    return sha256(content)


def _open(path: pathlib.Path) -> ScoreStore:
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
    labels = _read_npy(path / "labels.npy", manifest["labels"])
    ids = _read_npy(path / "ids.npy", manifest["ids"])
    return ScoreStore(
        path=path,
        ablation=ablation_from_json(manifest["ablation"]),
        image_shape=tuple(manifest["image_shape"]),
        num_classes=manifest["num_classes"],
        labels=labels,
        ids=ids,
        made_by=manifest["made_by"],
        shard_size=manifest["shard_size"],
        checksums={int(k): v for k, v in manifest["checksums"].items()},
    )


def _manifest(store: ScoreStore) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "num_images": len(store),
        "image_shape": list(store.image_shape),
        "num_classes": store.num_classes,
        "ablation": ablation_to_json(store.ablation),
        "labels": sha256(_npy(store.labels)),
        "ids": sha256(_npy(store.ids)),
        "made_by": store.made_by,
        "shard_size": store.shard_size,
        "checksums": {str(k): v for k, v in sorted(store.checksums.items())},
    }


def _plain_json(made_by: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(made_by, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"made_by={made_by!r} must be plain JSON: {error}") from None


def _shard_name(shard: int) -> str:
    return f"scores-{shard:05d}.npy"


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


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


def _write_manifest(store: ScoreStore) -> None:
    manifest = _manifest(store)
    manifest["checksum"] = sha256(json.dumps(manifest).encode())
    write_whole(store.path / MANIFEST, json.dumps(manifest, indent=2).encode())
