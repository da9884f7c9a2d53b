"""Who wins by what some of the ablations say, and whether in every case.

The winner has the largest sum of levels, or with a limit the largest worst duel, of
equals the smaller class; for many sets of ablations at once, exactly.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dsmooth_jax.duels import least_duel, predict, preference, worst_duels

WinnersFn: TypeAlias = Callable[[np.ndarray], np.ndarray]


def winners_fn(levels: np.ndarray, limit: int | None) -> WinnersFn:
    """Ablations left, [Q, P] -> the winners of levels [n, P, K], int64 [n, Q]."""
    if limit is None:
        table = _by_ablation(levels)
        return lambda left: _largest(_sums(table, left))[0]

    def by_duels(left: np.ndarray) -> np.ndarray:
        winners = [predict(worst_duels(levels[:, row], limit)) for row in left]
        return np.stack(winners, axis=1)

    return by_duels


LeadsFn: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def leads_fn(levels: np.ndarray, chosen: np.ndarray) -> LeadsFn:
    """Ablations left, [Q, P] -> how the sum of class chosen [n] stands to the others'.

    (margin, rival), int64 [n, Q]: the largest sum of another class, of equals the
    smaller, and what the chosen class has more, less 1 where it would lose a tie. So it
    wins where margin >= 0, and elsewhere the rival does.
    """
    table = _by_ablation(levels)
    every = np.arange(len(chosen))

    def leads(left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums = _sums(table, left)  # [Q, K, n]
        own = sums[:, chosen, every]
        sums[:, chosen, every] = -np.inf
        rival, best = _largest(sums)
        return (own - best).T.astype(np.int64) - (rival < chosen[:, None]), rival

    return leads


SureFn: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def sure_fn(levels: np.ndarray, doubt: np.ndarray, limit: int | None) -> SureFn:
    """Ablations left [Q, P], winners [n, Q] -> bool [n, Q]: they win in every case."""
    low, high = levels - doubt, levels + doubt
    if limit is None:
        lowest, highest = _by_ablation(low), _by_ablation(high)
        return lambda left, winner: _is_largest(
            _sums(lowest, left), _sums(highest, left), winner
        )

    def by_duels(left: np.ndarray, winner: np.ndarray) -> np.ndarray:
        margins = [
            least_duel(preference(low[:, row], high[:, row], c, limit).sum(axis=1), c)
            for row, c in zip(left, winner.T, strict=True)
        ]
        return np.stack([margin >= 0 for margin, _ in margins], axis=1)

    return by_duels


def _is_largest(low: np.ndarray, high: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """Least and greatest sums [Q, K, n], winners [n, Q] -> bool [n, Q]."""
    chosen = winner.T
    own = np.take_along_axis(low, chosen[:, None], axis=1)[:, 0]
    is_sure = np.ones(chosen.shape, bool)
    for k in range(high.shape[1]):
        rival = high[:, k]
        is_sure &= (rival < own) | ((rival == own) & (k > chosen)) | (k == chosen)
    return is_sure.T


def _by_ablation(levels: np.ndarray) -> np.ndarray:
    """Integers [n, P, K] as a floating [P, K, n] in which sums over P are exact.

    A matrix product of integers is exact in floating point while every partial sum is
    below 2^24 (float32) or 2^53 (float64), and far faster there than in integers.
    """
    extreme = max(abs(int(levels.min())), abs(int(levels.max()))) if levels.size else 0
    bound = extreme * levels.shape[1]
    if bound >= 2**53:
        raise ValueError(
            f"levels are as large as {extreme}; sums of {levels.shape[1]} must stay "
            "below 2^53"
        )
    exact = np.float32 if bound < 2**24 else np.float64
    return np.ascontiguousarray(levels.transpose(1, 2, 0), exact)


def _sums(table: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Sums of a [P, K, n] over each set [Q, P]: [Q, K, n]."""
    num_ablations, num_classes, n = table.shape
    sums = sets.astype(table.dtype) @ table.reshape(num_ablations, num_classes * n)
    return sums.reshape(len(sets), num_classes, n)


def _largest(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[Q, K, n] -> `predict` of each set, int64 [n, Q], many times faster; its sum."""
    winner = np.zeros(sums[:, 0].shape, np.int64)
    best = sums[:, 0].copy()
    for k in range(1, sums.shape[1]):
        is_better = sums[:, k] > best
        winner[is_better] = k
        np.maximum(best, sums[:, k], out=best)
    return winner.T, best
