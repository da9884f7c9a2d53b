"""How far each class can be brought: the best that an attacker can do for it.

For one class there is one best attack at a placement: every touched ablation turns to
it and away from all others. So how well its worst duel can become is known exactly, and
so is whether it can be made to win by some margin.
"""

import numpy as np

from dsmooth_jax.duels import most_taken, preference, untouched_sums

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
