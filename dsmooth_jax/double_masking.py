"""Double masking: agreement with any one mask out, then with any two.

A *mask* is something to disregard: a window of pixels, or a set of ablations. It covers
a placement of the patch where it disregards everything that the patch can change. The
classifier is asked with masks i and j both out, for every pair: entry (i, j) of a table
of classes, and (i, i) with mask i alone. This module reads such tables and knows
nothing of what the masks are.

Prediction, of one table L:

1. If all L(i, i) agree, that class.
2. Else let c' be their majority. The first i with L(i, i) != c' whose whole row is
   L(i, i) is believed: that class. If there is none, c'.

Certificate: the prediction is c, and every placement has a covering mask whose whole
row is c. Whatever is written at that placement, the covering mask i disregards it, so
row i stays as it is. Then nothing but c can be answered. A mask i' that says another
class, alone, says c together with i, so its row does not agree and it is not believed.
And if the majority is not c, mask i is one whose row agrees: it is believed, and says
c.

An entry of two masks may also say no class, because whoever made the table did not
trust it (`UNSURE`). Its rows are not believed: fewer images are certified, and fewer
wrong rows are believed against a right majority. Nothing in the proof asks what the
other entries say.

Source: the two rounds are PatchCleanser (Xiang, Mahloujifar & Mittal, USENIX Security
2022, arXiv:2108.09135), section 3, which certifies where all pairs agree. The form for
each placement, which certifies those and more, is this library's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.types import PerImage, PerImageFlag

NOT_COMPUTED = -1
"""An entry of a table, off its diagonal, that agrees with no class."""

UNSURE = -(2**15)
"""Likewise: of two masks, where the best score is too low to be believed."""

MOST_CLASSES = -UNSURE - 2
"""Of a table of int16: each class has an entry for doubt, too."""


def in_doubt(classes: Any) -> Any:
    """The entries of a table for classes that another rounding could change.

    Of any library's arrays.

    >>> in_doubt(np.array([0, 7]))
    array([-2, -9])
    """
    return -2 - classes


def nominal(table: np.ndarray) -> np.ndarray:
    """The table with each class in doubt taken as it is."""
    # ~x - 1 is -2 - x, and raises nothing where integers are unsigned.
    is_in_doubt = (table < NOT_COMPUTED) & (table != UNSURE)
    return np.where(is_in_doubt, ~table - 1, table)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedCertificate:
    """What is proven about the double-masked prediction of each of N images.

    Attributes:
      prediction: int64 [N], the class.
      is_certified: bool [N], no placement can change the prediction.
      is_detected: bool [N], all single masks agree, none in doubt. Whoever answers
        only where they agree, and else raises an alarm, gives no other class than this
        under any placement.
      is_unanimous: bool [N], all pairs agree: the published condition. It implies
        is_certified.
    """

    prediction: PerImage
    is_certified: PerImageFlag
    is_detected: PerImageFlag
    is_unanimous: PerImageFlag


def join(parts: Sequence[MaskedCertificate]) -> MaskedCertificate:
    """Certificates of one after the other sets of images, one or more, as one."""
    names = [field.name for field in dataclasses.fields(MaskedCertificate)]
    return MaskedCertificate(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in names)
    )


def double_masking_predict(table: ArrayLike) -> PerImage:
    """Predicts the class of each image by the two rounds above.

    Args:
      table: integer [N, M, M], symmetric: the class with masks i and j out. It may be
        `in_doubt`, and off the diagonal `NOT_COMPUTED` or `UNSURE`.

    Returns:
      int64 [N], exactly the predictions that `certify_double_masking` certifies.

    Raises:
      TypeError, ValueError: the table is not such a table.
    """
    return _predict(nominal(check_table(table)))


def certify_double_masking(table: ArrayLike, covering: ArrayLike) -> MaskedCertificate:
    """Certifies each image's double-masked prediction against all placements.

    Args:
      table: as in `double_masking_predict`.
      covering: bool [L, M], L >= 1: which masks cover each placement, wholly.

    Returns:
      A `MaskedCertificate`, one entry for each image.

    Raises:
      TypeError: the table is not of integers, covering is not bool.
      ValueError: shapes that do not agree, a table that is not symmetric, a placement
        that no mask covers.

    Guarantee:
      Where ``is_certified``, the prediction is the same whatever the table becomes
      outside the rows and columns of the masks that cover one placement, for each
      placement. It follows that no patch changes the prediction, with any content, if
      an entry (i, j) depends on nothing that mask i or mask j disregards, and
      ``covering`` belongs to the patch. That a prediction cannot change does not make
      it right.

    >>> table = np.array([[[1, 1], [1, 0]]])  # mask 1 alone says 0
    >>> certify_double_masking(table, [[True, True]]).is_certified
    array([ True])
    >>> certify_double_masking(table, [[True, True], [False, True]]).is_certified
    array([False])
    """
    labels = check_table(table)
    covers = check_covering(covering, labels.shape[1])
    singles = np.diagonal(labels, axis1=1, axis2=2)
    prediction = _predict(nominal(labels))
    is_believed = (labels == prediction[:, None, None]).all(axis=2)  # [N, M]
    count_covers = is_believed.astype(np.float32) @ covers.T.astype(np.float32)
    return MaskedCertificate(
        prediction,
        (count_covers > 0).all(axis=1),
        (singles == prediction[:, None]).all(axis=1),
        is_believed.all(axis=1),
    )


def _majority(singles: np.ndarray) -> np.ndarray:
    """Int [N, M] -> int64 [N]: the most frequent class, ties to the smaller index."""
    ordered = np.sort(singles, axis=1)
    # Equal classes lie together, smaller ones first. How many of a class lie before
    # each place is largest at the end of the longest run: argmax takes the first such.
    is_new = np.ones(ordered.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = np.arange(ordered.shape[1])
    first = np.maximum.accumulate(np.where(is_new, place, 0), axis=1)
    most = (place - first).argmax(axis=1)
    return np.take_along_axis(ordered, most[:, None], axis=1)[:, 0].astype(np.int64)


def check_table(table: ArrayLike) -> np.ndarray:
    """Returns the table as an array, or raises the error that says what is wrong."""
    labels = np.asarray(table)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"table has dtype {labels.dtype}; it must be integers, the class with "
            "masks i and j out"
        )
    if labels.ndim != 3 or labels.shape[1] != labels.shape[2] or not labels.shape[1]:
        raise ValueError(
            f"table has shape {labels.shape}; it must be [N, M, M] with M >= 1 masks"
        )
    if (labels != labels.swapaxes(1, 2)).any():
        image = int((labels != labels.swapaxes(1, 2)).any(axis=(1, 2)).argmax())
        raise ValueError(
            f"table[{image}] is not symmetric; the class with masks i and j out is "
            "that with j and i out"
        )
    singles = np.diagonal(labels, axis1=1, axis2=2)
    if ((singles == NOT_COMPUTED) | (singles == UNSURE)).any():
        raise ValueError(
            "table has a single mask without a class on its diagonal; every mask "
            "alone must have one"
        )
    return labels


def check_covering(covering: ArrayLike, num_masks: int) -> np.ndarray:
    """Returns covering as an array, or raises the error that says what is wrong."""
    covers = np.asarray(covering)
    if covers.dtype != np.bool_:
        raise TypeError(
            f"covering has dtype {covers.dtype}; it must be bool, [L, M]: which masks "
            "cover each placement"
        )
    if covers.ndim != 2 or covers.shape[1] != num_masks or not len(covers):
        raise ValueError(
            f"covering has shape {covers.shape}; it must be [L, {num_masks}] with "
            "L >= 1 placements, a column for each mask of the table"
        )
    is_bare = ~covers.any(axis=1)
    if is_bare.any():
        raise ValueError(
            f"covering[{int(is_bare.argmax())}] (and {int(is_bare.sum()) - 1} more) is "
            "a placement that no mask covers; nothing could be certified against it"
        )
    return covers


def _predict(labels: np.ndarray) -> np.ndarray:
    singles = np.diagonal(labels, axis1=1, axis2=2)  # [N, M]
    most = _majority(singles)
    agrees = (labels == singles[:, :, None]).all(axis=2)
    is_believed = agrees & (singles != most[:, None])
    believed = np.take_along_axis(singles, is_believed.argmax(axis=1)[:, None], axis=1)[
        :, 0
    ]
    return np.where(is_believed.any(axis=1), believed, most).astype(np.int64)
