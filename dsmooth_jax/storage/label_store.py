"""Classes under masks on disk: the tables of `mask_labels`, computed once.

A store as of `score_store`, of files tables-00000.npy, int16 [n, M, M]. What an early
exit left out is marked in them, and changes no answer to any patch that the masks
cover.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.double_masking import check_table, nominal
from dsmooth_jax.masks import Masks, masks_from_json, masks_to_json
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.shards import Shards


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LabelStore(Shards):
    """Tables [N, M, M] on disk, read a shard at a time.

    Attributes:
      path: the folder.
      masks: what the M masks hide.
      fill: what hidden pixels become, None for NULL.
      confidence: the least score of a class under two masks that is believed.
      tolerance: by how much a score may differ elsewhere; classes that this could
        change are marked as in doubt.
      image_shape: (H, W, C).
      num_classes: K.
      labels: int64 [N], the true classes.
      ids: str [N].
      made_by: plain JSON, as of `ScoreStore`.
      shard_size: images in each shard but the last.
      checksums: sha256 of each finished shard's file, by its number.
    """

    KIND: ClassVar[str] = "tables"

    masks: Masks
    fill: float | None = None
    confidence: float = 0.0
    tolerance: float

    def view(self) -> dict[str, Any]:  # noqa: D102
        return {
            "masks": masks_to_json(self.masks),
            "fill": self.fill,
            "confidence": self.confidence,
            "tolerance": self.tolerance,
        }

    @classmethod
    def read_view(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        return {
            "masks": masks_from_json(manifest["masks"]),
            "fill": manifest["fill"],
            "confidence": manifest.get("confidence", 0.0),  # older stores lack it
            "tolerance": manifest["tolerance"],
        }

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """(M, M)."""
        num_masks = self.masks.num_masks(self.image_size)
        return num_masks, num_masks

    @property
    def dtype(self) -> np.dtype:
        """int16."""
        return np.dtype(np.int16)

    def check(self, arrays: ArrayLike) -> np.ndarray:
        """Returns tables, or raises what is wrong with them."""
        tables = check_table(arrays)
        if tables.size and nominal(tables).max() >= self.num_classes:
            raise ValueError(
                f"tables hold class {nominal(tables).max()}; it must be in "
                f"0..{self.num_classes - 1}"
            )
        return tables.astype(np.int16)


def open_labels(path: PathLike) -> LabelStore:
    """Opens a finished store of tables.

    Args:
      path: the folder that certify.py wrote for a classifier with masks of pixels.

    Returns:
      The store. Tables are read, and their checksums verified, when asked for.

    Raises:
      StoreError: there is no such store, it is unfinished, or its manifest is damaged.
    """
    return LabelStore.open_finished(path)
