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
from collections.abc import Mapping
from typing import Any, ClassVar

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
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.shards import Shards, StoreError, is_store
from dsmooth_jax.types import ImageShape
from dsmooth_jax.voting import check_scores


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoreStore(Shards):
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

    KIND: ClassVar[str] = "scores"

    ablation: Ablation

    def view(self) -> dict[str, Any]:  # noqa: D102
        return {"ablation": ablation_to_json(self.ablation)}

    @classmethod
    def read_view(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        return {"ablation": ablation_from_json(manifest["ablation"])}

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """(P, K)."""
        return self.ablation.num_ablations(self.image_size), self.num_classes

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def check(self, arrays: ArrayLike) -> np.ndarray:  # noqa: D102
        return check_scores(arrays)


def open_scores(path: PathLike) -> ScoreStore:
    """Opens a finished store.

    Args:
      path: the folder that certify.py or `save_scores` wrote.

    Returns:
      The store. Scores are read, and their checksums verified, when asked for.

    Raises:
      StoreError: there is no store, it is unfinished, or its manifest is damaged.
    """
    return ScoreStore.open_finished(path)


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
    store = ScoreStore.create(
        path,
        ablation=ablation,
        image_shape=image_shape,
        num_classes=checked.shape[2],
        labels=labels,
        ids=ids,
        made_by=made_by or {},
    )
    for shard in store.missing:
        store = store.put(shard, checked[store.span(shard)])
    return store
