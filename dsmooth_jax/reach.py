"""How far each class can be brought: the best that an attacker can do for it.

For one class there is one best attack at a placement: every touched ablation turns to
it and away from all others. So how well its worst duel can become is known exactly, and
so is whether it can be made to win by some margin.
"""

import numpy as np

from dsmooth_jax.duels import most_taken, preference, untouched_sums

NUM_REFERENCES = 10
"""Of more classes than this, only duels with so many strong ones are counted."""


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
      most `NUM_REFERENCES` classes, this is what the best attack reaches; for more
      classes it is an upper bound. Votes whose least duel is tied and lost to a smaller
      index have 1/2 less, so that such a class wins iff it is >= 0. (Levels have not: a
      class that ties a duel can win the election if its rival loses another.)
    """
    gained = most_taken(touched, limit)
    if is_votes:
        return _best_of_votes(low, high, touched) + gained
    classes = np.arange(counts.shape[1])
    best = np.full((len(touched), *counts.shape), np.inf)
    # A class that loses to any of these loses: leaving rivals out proves less, soundly.
    strongest = np.argsort(-counts, axis=1, kind="stable")[:, :NUM_REFERENCES]
    for rival in strongest.T:
        against = -untouched_sums(preference(low, high, rival, limit), touched, limit)
        own = classes == rival[:, None]
        np.minimum(best, np.where(own, np.inf, against), out=best)
    return best + gained


def _best_of_votes(
    low: np.ndarray, high: np.ndarray, touched: np.ndarray
) -> np.ndarray:
    """The least duel of each class: against the highest other count."""
    kept = untouched_sums(low, touched, 1).astype(np.float64)
    reached = kept if low is high else untouched_sums(high, touched, 1)
    classes = np.arange(kept.shape[2])
    first = kept.argmax(axis=2, keepdims=True)  # of equals the smallest index
    is_first = classes == first
    rest = np.where(is_first, -np.inf, kept)
    second = rest.argmax(axis=2, keepdims=True)
    rival = np.where(is_first, second, first)
    strongest = np.where(
        is_first, rest.max(axis=2, keepdims=True), kept.max(axis=2, keepdims=True)
    )
    return reached - strongest - (rival < classes) / 2
