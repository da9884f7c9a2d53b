"""Who wins by what some of the ablations say, and whether in every case.

The winner has the largest sum of levels, or with a limit the largest worst duel, of
equals the smaller class; for many sets of ablations at once, exactly.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dsmooth_jax.duels import (
    by_ablation,
    least_duel,
    predict,
    preference,
    sums_over,
    worst_duels,
)

WinnersFn: TypeAlias = Callable[[np.ndarray], np.ndarray]


def winners_fn(levels: np.ndarray, limit: int | None) -> WinnersFn:
    """Ablations left, [Q, P] -> the winners of levels [n, P, K], int64 [n, Q]."""
    if limit is None:
        table = by_ablation(levels, _extreme(levels))
        return lambda left: sums_over(left, table).argmax(axis=2).T

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
    table = by_ablation(levels, _extreme(levels))

    def leads(left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums = sums_over(left, table)
        return _lead(sums, sums, chosen[:, None])

    return leads


SureFn: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def sure_fn(levels: np.ndarray, doubt: np.ndarray, limit: int | None) -> SureFn:
    """Ablations left [Q, P], winners [n, Q] -> bool [n, Q]: they win in every case."""
    low, high = levels - doubt, levels + doubt
    if limit is None:
        lowest, highest = (by_ablation(x, _extreme(x)) for x in (low, high))

        def by_sums(left: np.ndarray, winner: np.ndarray) -> np.ndarray:
            sums = sums_over(left, lowest), sums_over(left, highest)
            return _lead(*sums, winner)[0] >= 0

        return by_sums

    def by_duels(left: np.ndarray, winner: np.ndarray) -> np.ndarray:
        margins = [
            least_duel(preference(low[:, row], high[:, row], c, limit).sum(axis=1), c)
            for row, c in zip(left, winner.T, strict=True)
        ]
        return np.stack([margin >= 0 for margin, _ in margins], axis=1)

    return by_duels


def _lead(
    low: np.ndarray, high: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sums [Q, n, K], classes [n, Q or 1] -> `leads_fn`'s answer.

    What is chosen has its least sum, every rival its greatest. Overwrites `high`.
    """
    index = np.broadcast_to(chosen.T, low.shape[:2])[..., None]
    own = np.take_along_axis(low, index, axis=2)
    np.put_along_axis(high, index, -np.inf, axis=2)
    rival = high.argmax(axis=2)[..., None]  # of equals the smaller class
    margin = own - np.take_along_axis(high, rival, axis=2)
    margin = margin.astype(np.int64) - (rival < index)
    return margin[..., 0].T, rival[..., 0].T


def _extreme(levels: np.ndarray) -> int:
    return max(abs(int(levels.min())), abs(int(levels.max()))) if levels.size else 0
