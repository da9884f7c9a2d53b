"""Who wins by what the ablations say that are left: evidence that nobody clips.

Voting hands an attacker the votes of every ablation that the patch touches. Here they
are disregarded: a mask is a set of ablations that holds everything that some placement
can touch, and the winner with masks i and j out is the class of the largest sum of
levels over the ablations left. No level is clipped: what an attacker writes is not
counted, so evidence may be as strong as it is. `double_masking` holds the certificate;
tables of winners come from here.

Where the winner is instead decided by duels of limited preferences, and all touched
sets have one size, this certifies whatever `certify` certifies of the same votes: with
both masks out, a duel is at least what the placement rule leaves of it.

Source: this library. The nearest relative is PatchCURE (Xiang et al., USENIX Security
2024, arXiv:2310.13076), which double-masks the features of a network with a small
receptive field and asks for unanimity.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.double_masking import (
    MOST_CLASSES,
    MaskedCertificate,
    certify_double_masking,
    in_doubt,
    join,
)
from dsmooth_jax.duels import check_levels
from dsmooth_jax.leaving_out import check_sets, refuse_empty_pair
from dsmooth_jax.types import (
    Grades,
    PerImage,
    Table,
)
from dsmooth_jax.voting import TOLERANCE, GradedVotes, check_scores, check_tolerance
from dsmooth_jax.winners import leads_fn, sure_fn, winners_fn

LEVELS_PER_NAT = 1000
"""`log_levels` counts thousandths of a natural logarithm."""

_NO_LIMIT = 2**31 - 1
_CHUNK_ENTRIES = 2**20  # levels and sums held at a time: 4 MiB each, in the cache


def log_levels(scores: ArrayLike, *, floor: float = 1e-4) -> Grades:
    """Turns scores into evidence: their logarithms, in integers that add up exactly.

    Args:
      scores: floating [N, P, K], softmax scores in [0, 1].
      floor: the least score that is told from 0, in [1e-12, 1). One ablation that is
        sure can outweigh ln(1 / floor) nats of others.

    Returns:
      int16 [N, P, K]: rint(1000 ln(max(score, floor))), at most 0.

    Raises:
      TypeError: scores are not floating, the floor is no number.
      ValueError: scores are not [N, P, K], not finite or not in [0, 1]; the floor is
        out of range.

    >>> log_levels(np.array([[[1.0, 0.0], [0.5, 0.5]]]))
    array([[[    0, -9210],
            [ -693,  -693]]], dtype=int16)
    """
    checked = check_scores(scores).astype(np.float32, copy=False)
    if isinstance(floor, bool) or not isinstance(floor, int | float):
        raise TypeError(f"floor={floor!r} must be a number")
    if not 1e-12 <= floor < 1:
        raise ValueError(f"floor={floor!r} must be in [1e-12, 1), for example 1e-4")
    logs = np.log(np.maximum(checked.astype(np.float64), floor))
    return np.rint(LEVELS_PER_NAT * logs).astype(np.int16)


def log_doubts(
    scores: ArrayLike, tolerance: float = TOLERANCE, *, floor: float = 1e-4
) -> Grades:
    """By how much `log_levels` of scores within the tolerance differ.

    Args:
      scores: floating [N, P, K], softmax scores in [0, 1].
      tolerance: by how much a score may differ elsewhere, 0 <= tolerance < 1.
      floor: as in `log_levels`.

    Returns:
      int16 [N, P, K], what `certify_masked` takes as uncertain. Small scores move far:
      one of the floor, 1e-4, by 95 levels where the tolerance is 1e-5.

    Raises:
      TypeError, ValueError: as `log_levels`; a tolerance out of range.

    >>> log_doubts(np.array([[[0.9, 1e-4, 1e-9]]]))
    array([[[ 0, 95,  0]]], dtype=int16)
    """
    return _with_doubts(scores, tolerance, floor)[1]


def levels_and_doubts(
    scores: ArrayLike, tolerance: float
) -> tuple[Grades, Grades | None]:
    """What `certify_masked` takes of scores: `log_levels`, and their `log_doubts`.

    Args:
      scores: as in `log_levels`.
      tolerance: as in `log_doubts`; at 0 nothing is in doubt.

    Returns:
      (levels, uncertain), both int16 [N, P, K]; uncertain is None at 0.

    Raises:
      TypeError, ValueError: as those two.
    """
    return _with_doubts(scores, tolerance) if tolerance else (log_levels(scores), None)


def _with_doubts(
    scores: ArrayLike, tolerance: float, floor: float = 1e-4
) -> tuple[Grades, Grades]:
    """`log_levels` and `log_doubts`, which begins with them."""
    check_tolerance(tolerance)
    checked = check_scores(scores).astype(np.float64)
    levels = log_levels(checked, floor=floor)
    low = log_levels(np.maximum(checked - tolerance, 0), floor=floor)
    high = log_levels(np.minimum(checked + tolerance, 1), floor=floor)
    return levels, np.maximum(levels - low, high - levels)


def mask_table(
    levels: ArrayLike,
    masks: ArrayLike,
    *,
    limit: int | None = None,
    uncertain: ArrayLike | None = None,
) -> Table:
    """The winner with each pair of masks out, of each image.

    Args:
      levels: integer or bool [N, P, K], for example `log_levels`.
      masks: bool [M, P], the ablations that each mask disregards.
      limit: None: the winner has the largest sum of levels. Else the largest worst
        duel, of preferences no larger than this, as in `certify`.
      uncertain: integer [N, P, K], by how much each level may differ elsewhere, for
        example `log_doubts`. Winners that this could change are `in_doubt`.

    Returns:
      int16 [N, M, M], symmetric; of equals the smaller class.

    Raises:
      TypeError, ValueError: levels or masks are not such arrays; a pair of masks that
        leaves no ablation.
    """
    checked, left, limit = _check(levels, masks, limit)
    doubt = _check_doubt(uncertain, checked)
    num_masks = len(left)
    table = np.empty((len(checked), num_masks, num_masks), np.int16)
    for part in _chunks(checked, num_masks):
        winners = winners_fn(checked[part], limit)
        if doubt is not None:
            is_sure = sure_fn(checked[part], doubt[part], limit)
        for i, j in _pairs(checked[part], num_masks):  # never all pairs' sums at once
            won = winners(left[i] & left[j])
            if doubt is not None:
                won = np.where(is_sure(left[i] & left[j], won), won, in_doubt(won))
            table[part, i, j] = table[part, j, i] = won
    return table


def certify_masked(
    levels: ArrayLike,
    masks: ArrayLike,
    covering: ArrayLike,
    *,
    limit: int | None = None,
    uncertain: ArrayLike | None = None,
) -> MaskedCertificate:
    """`certify_double_masking` of `mask_table`, a few images at a time.

    Args:
      levels: as in `mask_table`.
      masks: as in `mask_table`.
      covering: as in `certify_double_masking`, from `covering_touched`.
      limit: as in `mask_table`.
      uncertain: as in `mask_table`. The prediction stays nominal.

    Returns:
      A `MaskedCertificate`, one entry for each image; no table is kept.

    Raises:
      TypeError, ValueError: as those two.

    Guarantee:
      As `certify_double_masking`: no rewriting of the levels of one touched set changes
      a certified prediction; nor does, with uncertain, any difference of the others
      that it allows: every sum of a believed row is won by more.
    """
    checked, left, _ = _check(levels, masks, limit)
    doubt = _check_doubt(uncertain, checked)
    parts = []
    for part in _chunks(checked, len(left)):
        options = {} if doubt is None else {"uncertain": doubt[part]}
        table = mask_table(checked[part], masks, limit=limit, **options)
        parts.append(certify_double_masking(table, covering))
    return join(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class WorstPair:
    """The two masks that harm a class most, of each of N images.

    Attributes:
      first: int64 [N], one of the masks.
      second: int64 [N], the other; the same where one alone is the worst.
      rival: int64 [N], the best of the other classes without both, of equals the
        smaller.
      margin: int64 [N], what the class leads by, less 1 where it would lose a tie. The
        least of all pairs: it wins without any two masks iff margin >= 0, and
        otherwise the rival wins without these.
    """

    first: PerImage
    second: PerImage
    rival: PerImage
    margin: PerImage


def worst_pair(levels: ArrayLike, masks: ArrayLike, chosen: ArrayLike) -> WorstPair:
    """Finds the pair of masks without which a class leads by the least.

    Args:
      levels: as in `mask_table`, which sums them.
      masks: as in `mask_table`.
      chosen: integer [N], the class of each image, for example what is predicted.

    Returns:
      A `WorstPair`, of equals the first by row.

    Raises:
      TypeError, ValueError: as `mask_table`.
    """
    checked, left, _ = _check(levels, masks, None)
    own = np.asarray(chosen)
    num = len(checked)
    pair, rival = np.zeros((num, 2), np.int64), np.zeros(num, np.int64)
    least = np.full(num, np.iinfo(np.int64).max)
    for part in _chunks(checked, len(left)):
        leads = leads_fn(checked[part], own[part])
        for i, j in _pairs(checked[part], len(left)):
            margins, rivals = leads(left[i] & left[j])
            worst = margins.argmin(axis=1)
            is_worse = margins.min(axis=1) < least[part]
            image, worst = np.flatnonzero(is_worse), worst[is_worse]
            least[part][image] = margins[image, worst]
            pair[part][image] = np.stack([i[worst], j[worst]], axis=1)
            rival[part][image] = rivals[image, worst]
    return WorstPair(pair[:, 0], pair[:, 1], rival, least)


def _check(
    levels: ArrayLike, masks: ArrayLike, limit: int | None
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Levels, which ablations each mask leaves, and the limit, all checked."""
    given = np.asarray(levels)
    if given.dtype == np.bool_:  # votes: a sum of them is a count
        given = given.view(np.int8)
    checked, bound, _ = check_levels(
        GradedVotes(given, _NO_LIMIT if limit is None else limit)
    )
    if checked.shape[2] > MOST_CLASSES:
        raise ValueError(
            f"levels have {checked.shape[2]} classes; double masking takes "
            f"{MOST_CLASSES} at most"
        )
    out = check_sets("masks", masks)
    if out.shape[1] != checked.shape[1]:
        raise ValueError(
            f"masks have shape {out.shape}; it must be [M, {checked.shape[1]}], a "
            "column for each ablation of the levels"
        )
    refuse_empty_pair(out)
    return checked, ~out, None if limit is None else bound


def _check_doubt(uncertain: ArrayLike | None, levels: np.ndarray) -> np.ndarray | None:
    if uncertain is None:
        return None
    doubt = np.asarray(uncertain)
    if not np.issubdtype(doubt.dtype, np.integer):
        raise TypeError(
            f"uncertain has dtype {doubt.dtype}; it must be integers, by how much each "
            "level may differ"
        )
    if doubt.shape != levels.shape:
        raise ValueError(
            f"uncertain has shape {doubt.shape}; it must be {levels.shape}, as levels"
        )
    if doubt.size and not 0 <= doubt.min() <= doubt.max() < 2**30:
        raise ValueError(
            f"uncertain holds {doubt.min()} to {doubt.max()}; it must be in 0..2^30 - 1"
        )
    return doubt.astype(np.int64)


def _chunks(levels: np.ndarray, num_masks: int) -> Iterator[slice]:
    """Slices of images of bounded working memory; one, empty, of no image."""
    num_ablations, num_classes = levels.shape[1:]
    per_image = max(num_ablations * num_classes, num_masks**2)
    size = max(1, _CHUNK_ENTRIES // per_image)
    for start in range(0, max(len(levels), 1), size):
        yield slice(start, min(start + size, len(levels)))


def _pairs(
    levels: np.ndarray, num_masks: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of masks i <= j, row by row, so many that their sums are bounded."""
    first, second = np.triu_indices(num_masks)
    size = max(1, _CHUNK_ENTRIES // max(1, len(levels) * levels.shape[2]))
    for start in range(0, len(first), size):
        yield first[start : start + size], second[start : start + size]
