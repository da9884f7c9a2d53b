"""What the page of masks shows of attacks: the image, the patch, what gave way.

A mask that hides the whole patch says what it said before. So where an image fell, that
mask was not believed: another class stands in its row, alone or with one mask more. All
is from what attack.py kept: no network is run.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsmooth_jax.double_masking import NOT_COMPUTED, nominal
from dsmooth_jax.masks import covered_placements
from dsmooth_jax.report.attack_summary import FoundAttack
from dsmooth_jax.report.label_analysis import (
    Break,
    LabelAnalysis,
    broken_pair,
    said,
)

_MOST_SHOWN = 60
"""Images of all attacks together: for a page that stays light."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttackedImage:
    """What an attack made of one image.

    Attributes:
      index: of the image, in the store.
      pixels: uint8 [H, W, C], with the patch.
      corner: (row, column) of the patch's upper left pixel.
      before: the class that was answered, and
      after: is now.
      alone_before: int64 [K], how many single masks said each class before, and
      alone_after: say it now; None of attacks by older versions, which kept no tables.
      broken: a mask that hides the patch, and the one with which it says another class
        than before, or none for sure; None where the image stands, or of older
        versions.
    """

    index: int
    pixels: np.ndarray
    corner: tuple[int, int]
    before: int
    after: int
    alone_before: np.ndarray
    alone_after: np.ndarray | None
    broken: Break | None


def attacked_images(
    analysis: LabelAnalysis, found: Sequence[FoundAttack]
) -> list[tuple[FoundAttack, list[AttackedImage]]]:
    """Collects what the page shows of attacks on a classifier with masks of pixels.

    Args:
      analysis: what was found of the tables.
      found: what `attacks_of` found of the same store.

    Returns:
      Each attack on the double-masked answer that was tried on any image, and images of
      it: at even distances, those that fell first.
    """
    shown = [
        (one, np.flatnonzero(one.arrays["corner"][:, 0] >= 0))
        for one in found
        if not one.decision
    ]
    shown = [(one, tried) for one, tried in shown if len(tried)]
    images = []
    for one, tried in shown:
        most = min(len(tried), max(1, _MOST_SHOWN // len(shown)))
        chosen = tried[np.arange(most) * len(tried) // most]
        stands = ~one.arrays["is_broken"][chosen]
        ordered = chosen[np.argsort(stands, kind="stable")].tolist()
        images.append((one, [_image(analysis, one, i) for i in ordered]))
    return images


def _image(analysis: LabelAnalysis, one: FoundAttack, i: int) -> AttackedImage:
    """What is said of image i of an attack."""
    store, arrays = analysis.store, one.arrays
    index, before = int(one.index[i]), int(arrays["clean"][i])
    corner = tuple(arrays["corner"][i].tolist())
    alone_after = broken = None
    if "table" in arrays:
        table = nominal(arrays["table"][i])
        alone_after = _counts(np.diagonal(table), store.num_classes)
        if arrays["is_broken"][i]:
            covers, row_of = covered_placements(
                store.masks, one.patch, store.image_size
            )
            disagrees = (table != before) & (table != NOT_COMPUTED)
            pair = broken_pair(disagrees, covers[row_of[corner]])
            broken = Break(corner, *pair, said(table[pair]))
    return AttackedImage(
        index=index,
        pixels=arrays["image"][i],
        corner=corner,
        before=before,
        after=int(arrays["attacked"][i]),
        alone_before=_counts(analysis.singles[index], store.num_classes),
        alone_after=alone_after,
        broken=broken,
    )


def _counts(singles: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(singles, minlength=num_classes)
