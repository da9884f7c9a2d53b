"""Top-k: how far down a class can be pushed.

Classes are ranked as they are predicted: by their votes, by their worst duel for
levels; ties to the smaller index. The worst rank of a class is one more than the number
of classes that an attacker at some placement can put above it, all at once.
"""

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.duels import (
    bounds,
    check_levels,
    check_uncertain,
    chunks,
    count,
    most_taken,
    preference,
    untouched_sums,
)
from dsmooth_jax.reach import best_worst_duels
from dsmooth_jax.threat import check_touched
from dsmooth_jax.types import PerClass
from dsmooth_jax.voting import VotesLike


def worst_rank(
    votes: VotesLike,
    touched: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    one_vote: bool = False,
    uncertain: ArrayLike | None = None,
) -> PerClass:
    """Finds the worst rank that each class can be given by any placement of a patch.

    Certified top-k accuracy is the share of images with
    ``worst_rank(votes, touched, classes=labels[:, None])[:, 0] <= k``.

    Args:
      votes: as in `certify`.
      touched: bool [L, P], as in `certify`; a row in which nothing is touched gives the
        ranks as they are.
      classes: integers [N, M], the classes asked of each image; all where None. Each
        costs as much as a certificate.
      one_vote: each ablation gives one vote, attacked or not, so the attacker's votes
        are spent once. For `top_one_votes` alone.
      uncertain: as in `certify`: they count against the class that is ranked.

    Returns:
      int64 [N, M] (M = K for all classes), 1 is best.

    Raises:
      TypeError, ValueError: as `certify`; classes are not integers [N, M] in 0..K-1;
        one_vote with levels, or with an ablation that does not give one vote.

    Guarantee:
      Whatever the touched ablations of any one row of ``touched`` vote, the class ranks
      no worse, under the assumptions of `certify`. For bool votes (none uncertain) this
      is exact: some rewriting gives this rank (with ``one_vote``, one in which each
      touched ablation gives one vote). For levels it is a bound: each rival is granted
      its own best attack. Rank 1 of a predicted class is what `certify` certifies for
      votes; for levels it holds wherever `certify` certifies.

    Source: this library.

    >>> votes = np.array([[[True, False, False]] * 3 + [[False, True, True]]])
    >>> worst_rank(votes, np.eye(4, dtype=bool))  # 2 to 2: the smaller index is first
    array([[1, 3, 3]])
    """
    levels, limit, is_votes = check_levels(votes)
    sets = check_touched(touched, levels.shape[1])
    doubt = check_uncertain(uncertain, levels.shape)
    if one_vote:
        _check_one_vote(levels, is_votes)
    asked = _check_classes(classes, levels)

    found = np.empty(asked.shape, np.int64)
    for part in chunks(levels, len(sets)):
        low, high = bounds(levels[part], doubt, part, is_votes)
        if is_votes:
            kept = untouched_sums(low, sets, 1)
            rivals = kept if low is high else untouched_sums(high, sets, 1)
        else:
            counts = count(levels[part], limit, is_votes)
            rivals = best_worst_duels(low, high, counts, sets, limit, is_votes)
        for m, own in enumerate(asked[part].T):
            if is_votes:
                least = np.take_along_axis(kept, own[None, :, None], axis=2)
            else:
                least = _least(low, high, own, sets, limit)
            needed = _needed(rivals, least, own)
            if one_vote:
                num_above = _affordable(needed, sets)
            else:
                gift = most_taken(sets, 1) if is_votes else 0
                num_above = (needed <= gift).sum(axis=2)
            found[part, m] = 1 + num_above.max(axis=0)
    return found


def _least(
    low: np.ndarray, high: np.ndarray, own: np.ndarray, touched: np.ndarray, limit: int
) -> np.ndarray:
    """[L, n, 1]: the worst duel of a class when all touched ablations turn away."""
    duels = untouched_sums(preference(low, high, own, limit), touched, limit)
    is_own = np.arange(duels.shape[2]) == own[:, None]
    least = np.where(is_own, np.inf, duels).min(axis=2, keepdims=True)
    return least - most_taken(touched, limit)


def _needed(rivals: np.ndarray, least: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[L, n, K]: what each rival lacks to stand above a class; infinite for itself."""
    classes = np.arange(rivals.shape[2])
    lacking = least - rivals + (classes > own[:, None])
    return np.where(classes == own[:, None], np.inf, np.maximum(lacking, 0))


def _affordable(needed: np.ndarray, touched: np.ndarray) -> np.ndarray:
    """[L, n]: how many rivals the touched votes put above, the cheapest first."""
    spent = np.sort(needed, axis=2).cumsum(axis=2)
    return (spent <= most_taken(touched, 1)).sum(axis=2)


def _check_one_vote(levels: np.ndarray, is_votes: bool) -> None:
    if not is_votes:
        raise ValueError(
            "one_vote=True is for bool votes; levels are not spent: leave it out"
        )
    given = levels.sum(axis=2)
    if (given != 1).any():
        where = tuple(int(i) for i in np.argwhere(given != 1)[0])
        raise ValueError(
            f"one_vote=True, but ablation {where[1]} of image {where[0]} gives "
            f"{given[where]} votes; make votes by top_one_votes, or leave it out"
        )


def _check_classes(classes: ArrayLike | None, levels: np.ndarray) -> np.ndarray:
    num_images, _, num_classes = levels.shape
    if classes is None:
        return np.broadcast_to(np.arange(num_classes), (num_images, num_classes))
    asked = np.asarray(classes)
    if not np.issubdtype(asked.dtype, np.integer):
        raise TypeError(f"classes have dtype {asked.dtype}; they must be integers")
    if asked.ndim != 2 or len(asked) != num_images:
        raise ValueError(
            f"classes have shape {asked.shape}; it must be [{num_images}, M]: "
            "of labels [N] pass labels[:, None]"
        )
    if asked.size and not (asked.min() >= 0 and asked.max() < num_classes):
        worst = asked[(asked < 0) | (asked >= num_classes)][0]
        raise ValueError(f"classes hold {worst}; they must be in 0..{num_classes - 1}")
    return asked
