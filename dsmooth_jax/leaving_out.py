"""Sets of ablations to disregard, so that what a patch can touch is among them.

A mask is a set of ablations. It covers a placement of the patch if it holds everything
that is touched there. The smallest masks are the touched sets themselves; where they
are many, unions over neighbouring placements are fewer and disregard more. `evidence`
asks who wins without two of them.

Source: this library.
"""

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.checks import check_count
from dsmooth_jax.threat import (
    Patch,
    check_touched,
    merge_equal_rows,
    placements,
)
from dsmooth_jax.types import AblationMasks, Covering, ImageSize

_MOST_EXACT = 64  # 2,080 pairs
_MOST_MERGED = 36  # 666 pairs
_MOST_UNIONS = 512  # 131,328 pairs
_CHUNK_ENTRIES = 2**23


def ablation_masks(touched_sets: ArrayLike) -> AblationMasks:
    """The smallest masks for a patch: the touched sets that lie in no other one.

    Args:
      touched_sets: bool [L, P], from `touched`, or unions of its rows for several
        patches.

    Returns:
      bool [M, P], M <= L, in their order.

    Raises:
      TypeError, ValueError: touched_sets are not bool [L, P] with L >= 1.

    >>> ablation_masks(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)).astype(int)
    array([[1, 1, 0],
           [0, 1, 1]])
    """
    sets = check_sets("touched_sets", touched_sets)
    sets = merge_equal_rows(sets)[0]
    outside = np.logical_not(sets).astype(np.float32)
    is_kept = np.empty(len(sets), bool)
    step = max(1, _CHUNK_ENTRIES // len(sets))
    for start in range(0, len(sets), step):
        part = sets[start : start + step].astype(np.float32)
        is_inside = part @ outside.T == 0  # each set lies in itself
        is_kept[start : start + step] = is_inside.sum(axis=1) == 1
    return sets[is_kept]


def merged_masks(
    ablation: Ablation, patch: Patch, image_size: ImageSize, *, per_axis: int = 6
) -> AblationMasks:
    """Fewer masks for many placements: unions of touched sets over cells of placements.

    Along each axis the placements of the patch are cut into so many runs of nearly one
    length; a mask is all that a cell of them can touch.

    Args:
      ablation: the ablation.
      patch: the patch, pixels.
      image_size: (H, W), pixels.
      per_axis: runs along each axis, >= 1; fewer masks disregard more and cost less.

    Returns:
      bool [M, P], M <= per_axis^2: equal masks and those inside another are dropped.

    Raises:
      TypeError, ValueError: as `touched`; per_axis is no integer >= 1.

    Guarantee:
      Every set of `touched` lies in one of the masks.
    """
    check_count("per_axis", per_axis)
    return _merge(*placements(ablation, patch, image_size), per_axis)


def _merge(sets: np.ndarray, row: np.ndarray, per_axis: int) -> AblationMasks:
    """The unions of `placements` over cells, those inside another dropped."""
    unions = [
        sets[np.unique(cell)].any(axis=0)
        for band in np.array_split(row, min(per_axis, row.shape[0]), axis=0)
        for cell in np.array_split(band, min(per_axis, row.shape[1]), axis=1)
    ]
    return ablation_masks(np.stack(unions))


def masks_of_several(touched_sets: ArrayLike, num_patches: int) -> AblationMasks:
    """The masks against several patches at once: unions of so many touched sets.

    Args:
      touched_sets: bool [L, P], of one patch; of several kinds, of all of them.
      num_patches: >= 1.

    Returns:
      bool [M, P], the unions that lie in no other one.

    Raises:
      TypeError, ValueError: not such arguments; more than 512 masks, or two that leave
        no ablation: the patches cannot be certified in this way.

    Guarantee:
      All that so many patches together can touch lies in one of the masks.
    """
    check_count("num_patches", num_patches)
    sets = masks = ablation_masks(touched_sets)
    for _ in range(num_patches - 1):
        _refuse_too_many(masks)
        masks = ablation_masks((masks[:, None] | sets).reshape(-1, sets.shape[1]))
    _refuse_too_many(masks)
    refuse_empty_pair(masks)
    return masks


def design_masks(
    ablation: Ablation, patch: Patch, image_size: ImageSize
) -> AblationMasks:
    """The masks that a classifier decides by, where they are made for this patch.

    Args:
      ablation: the ablation.
      patch: the largest patch to certify, pixels.
      image_size: (H, W), pixels.

    Returns:
      bool [M, P]: the touched sets themselves where at most 64 of them are maximal;
      else the finest `merged_masks` that are at most 36.

    Raises:
      TypeError, ValueError: as `touched`; two masks that leave no ablation, where the
        patch is too large to be certified in this way.

    Guarantee:
      Every set of `touched`, of this patch and of every smaller one, lies in a mask.
    """
    sets, row = placements(ablation, patch, image_size)
    masks = ablation_masks(sets)
    if len(masks) > _MOST_EXACT:
        coarser = (_merge(sets, row, k) for k in range(_MOST_MERGED, 0, -1))
        masks = next(merged for merged in coarser if len(merged) <= _MOST_MERGED)
    refuse_empty_pair(masks)
    return masks


def covering_touched(masks: ArrayLike, touched_sets: ArrayLike) -> Covering:
    """Which masks hold each touched set, wholly.

    Args:
      masks: bool [M, P].
      touched_sets: bool [L, P], of the patch to certify against.

    Returns:
      bool [L, M], as `certify_double_masking` takes it.

    Raises:
      TypeError, ValueError: not bool [., P] of one P; a touched set that lies in no
        mask.
    """
    out = check_sets("masks", masks)
    sets = check_touched(touched_sets, out.shape[1])
    covers = sets.astype(np.float32) @ np.logical_not(out).T.astype(np.float32) == 0
    is_bare = ~covers.any(axis=1)
    if is_bare.any():
        raise ValueError(
            f"touched_sets[{int(is_bare.argmax())}] (and {int(is_bare.sum()) - 1} "
            "more) lies in no mask; the masks are for a smaller patch, or not for this "
            "ablation: make them of these touched sets"
        )
    return covers


def _refuse_too_many(masks: np.ndarray) -> None:
    if len(masks) > _MOST_UNIONS:
        raise ValueError(
            f"{len(masks):,} masks are more than {_MOST_UNIONS}, too many pairs of them"
        )


def refuse_empty_pair(masks: np.ndarray) -> None:
    """Raises ValueError where two of the masks leave no ablation to look at."""
    left = np.logical_not(masks).astype(np.float32)
    pairs = np.argwhere(left @ left.T == 0)
    if len(pairs):
        raise ValueError(
            f"masks {pairs[0, 0]} and {pairs[0, 1]} leave no ablation; the patch is "
            "too large for these ablations to be certified by double masking"
        )


def check_sets(name: str, sets: ArrayLike) -> np.ndarray:
    """Returns sets of ablations as an array, or raises the error that says why not."""
    checked = np.asarray(sets)
    if checked.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {checked.dtype}; it must be bool")
    if checked.ndim != 2 or not checked.size:
        raise ValueError(
            f"{name} has shape {checked.shape}; it must be [., P] with at least one row"
        )
    return checked
