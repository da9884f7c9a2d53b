"""How far each class can be brought: the best that an attacker can do for it.

For one class there is one best attack at a placement: every touched ablation turns to
it and away from all others. So how well its worst duel can become is known exactly, and
so is whether it can be made to win by some margin.
"""

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.certificate import certify
from dsmooth_jax.duels import (
    check_levels,
    chunks,
    count,
    most_taken,
    predict,
    preference,
    untouched_sums,
)
from dsmooth_jax.threat import check_touched
from dsmooth_jax.types import PerImageFlag
from dsmooth_jax.voting import VotesLike

NUM_STRONG = 10
"""Of more classes than this, only duels between so many strong ones are all counted."""


def best_worst_duels(
    low: np.ndarray,
    high: np.ndarray,
    counts: np.ndarray,
    touched: np.ndarray,
    limit: int,
    is_votes: bool,
) -> np.ndarray:
    """The worst duel of each class when a placement's ablations all turn to it.

    Args:
      low: integer [n, P, K], the least level of each class.
      high: integer [n, P, K], the greatest (the same array where levels are certain).
      counts: int64 [n, K], from `duels.count`; for levels they say which classes are
        strong.
      touched: bool [L, P].
      limit: A.
      is_votes: levels are 0 or 1, and limit 1.

    Returns:
      float64 [L, n, K]: the least duel of each class. For votes, and for levels of at
      most `NUM_STRONG` classes, this is what the best attack reaches; for more
      classes it is an upper bound. Votes whose least duel is tied and lost to a smaller
      index have 1/2 less, so that such a class wins iff it is >= 0. (Levels have not: a
      class that ties a duel can win the election if its rival loses another.)
    """
    gained = most_taken(touched, limit)
    if is_votes:
        return _best_of_votes(low, high, touched) + gained
    # A class needs all its duels to win, so leaving some out is sound: it only grants
    # the attacker more. Every class meets the strongest rival; the classes that do best
    # against it meet the other strong rivals, too.
    rivals = np.argsort(-counts, axis=1, kind="stable")[:, :NUM_STRONG]
    best = _against(low, high, rivals[:, 0], touched, limit)
    strong = np.argsort(-best.max(axis=0), axis=1, kind="stable")[:, :NUM_STRONG]
    few = np.concatenate([rivals, strong], axis=1)[:, None]
    low, high = (np.take_along_axis(levels, few, axis=2) for levels in (low, high))
    index = np.broadcast_to(strong, (len(touched), *strong.shape))
    least = np.take_along_axis(best, index, axis=2)
    num_rivals = rivals.shape[1]
    for r in range(1, num_rivals):
        column = np.full(len(rivals), r)
        duels = _against(low, high, column, touched, limit)[:, :, num_rivals:]
        duels[:, strong == rivals[:, [r]]] = np.inf
        np.minimum(least, duels, out=least)
    np.put_along_axis(best, index, least, axis=2)
    return best + gained


def _against(
    low: np.ndarray,
    high: np.ndarray,
    rival: np.ndarray,
    touched: np.ndarray,
    limit: int,
) -> np.ndarray:
    """float64 [L, n, K]: untouched duels with one class, infinite its own."""
    duels = untouched_sums(preference(low, high, rival, limit), touched, limit)
    is_own = np.arange(duels.shape[2]) == rival[:, None]
    return np.where(is_own, np.inf, -duels.astype(np.float64))


def _best_of_votes(
    low: np.ndarray, high: np.ndarray, touched: np.ndarray
) -> np.ndarray:
    """The least duel of each class: against the highest other count."""
    kept = untouched_sums(low, touched, 1).astype(np.float64)
    reached = kept if low is high else untouched_sums(high, touched, 1)
    classes = np.arange(kept.shape[2])
    first = kept.argmax(axis=2, keepdims=True)  # of equals the smallest index
    is_first = classes == first
    second = np.where(is_first, -np.inf, kept).max(axis=2, keepdims=True)
    strongest = np.where(is_first, second, kept.max(axis=2, keepdims=True))
    return reached - strongest - (first < classes) / 2


def votes_hold(votes: VotesLike, touched: ArrayLike) -> PerImageFlag:
    """Whether no rewriting of one touched set changes the prediction: exactly.

    The best attack on votes, where the attacker need not find pixels that cast them. Of
    bool votes it is `certify`. Graded votes can hold where `certify` refuses: a class
    that loses a duel may win the election.

    Args:
      votes: as in `certify`; a table of every ablation for each class.
      touched: bool [L, P], as in `certify`.

    Returns:
      bool [N], False where some levels of the ablations of one row of ``touched``
      change the prediction. Of graded votes any integers are levels.

    Raises:
      TypeError, ValueError: as `certify`.

    >>> from dsmooth_jax.voting import GradedVotes
    >>> levels = np.repeat([[4, 2, 0], [0, 4, 2], [2, 0, 4]], [7, 4, 4], axis=0)
    >>> circle = GradedVotes(levels[None], limit=2)  # of duels; 0 loses one by little
    >>> certify(circle, np.eye(15, dtype=bool)).is_certified
    array([False])
    >>> votes_hold(circle, np.eye(15, dtype=bool))
    array([ True])
    """
    levels, limit, is_votes = check_levels(votes)
    if is_votes:
        return certify(votes, touched).is_certified
    sets = check_touched(touched, levels.shape[1])
    holds = np.empty(len(levels), bool)
    num_classes = levels.shape[2]
    classes = np.arange(num_classes)
    for part in chunks(levels, len(sets)):
        worst = np.empty((len(sets), len(levels[part]), num_classes))
        for c in classes:  # its worst duel among the ablations left alone
            chosen = np.full(len(levels[part]), c)
            mine = preference(levels[part], levels[part], chosen, limit)
            duels = untouched_sums(mine, sets, limit)
            worst[:, :, c] = np.where(classes == c, np.inf, duels).min(axis=2)
        # For a rival all that is touched puts it first, and the predicted class last:
        # no rewriting makes the one's worst duel better, or the other's worse.
        predicted = predict(count(levels[part], limit, False))[:, None]  # [n, 1]
        taken = most_taken(sets, limit)
        own = np.take_along_axis(worst, predicted[None], axis=2) - taken
        rival = worst + taken
        wins = (rival > own) | ((rival == own) & (classes < predicted))
        wins &= classes != predicted
        holds[part] = ~wins.any(axis=(0, 2))
    return holds
