"""The one rule: who is preferred, who wins, and what an attacker can take away.

Everything that predicts or certifies goes through here, so prediction and certificate
cannot disagree. Every voting is a table of integer levels u_p(c), one for each ablation
p and class c, and a limit A. Ablation p prefers class c to class j by
``clip(u_p(c) - u_p(j), -A, A)`` (`preference`); a duel of two classes is the sum over
the ablations. All arithmetic is exact. Nothing here chunks: callers bound n.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3, for 0/1 votes and the largest
touched set; duels and placements are this library's.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.voting import GradedVotes, VotesLike

_CHUNK_BYTES = 2**24  # working memory aimed at for one chunk of images


def as_votes(votes: VotesLike) -> "np.ndarray | GradedVotes":
    """Votes of which some images' can be taken."""
    return votes if isinstance(votes, GradedVotes) else np.asarray(votes)


def check_levels(votes: VotesLike) -> tuple[np.ndarray, int, bool]:
    """Levels in a dtype that holds their differences, limit, is_votes."""
    if isinstance(votes, GradedVotes):
        levels, limit, is_votes = votes.levels, votes.limit, False
    else:
        levels, limit, is_votes = np.asarray(votes), 1, True
    if is_votes and levels.dtype != np.bool_:
        raise TypeError(
            f"votes have dtype {levels.dtype}; they must be bool, or integer levels "
            "together with their limit, GradedVotes(levels, limit); make votes of "
            "scores by threshold_votes, top_one_votes or graded_votes"
        )
    if levels.ndim != 3:
        raise ValueError(f"votes have shape {levels.shape}; it must be [N, P, K]")
    if levels.shape[1] < 1 or levels.shape[2] < 2:
        raise ValueError(
            f"votes have shape {levels.shape}; [N, P, K] needs P >= 1 ablations and "
            "K >= 2 classes"
        )
    if is_votes:
        return levels.view(np.int8), 1, True
    extreme = max(abs(int(levels.min())), abs(int(levels.max()))) if levels.size else 0
    for dtype in (np.int16, np.int32, np.int64):  # products and differences fit
        if 2 * (extreme + 1) <= np.iinfo(dtype).max:
            return levels.astype(dtype, copy=False), limit, False
    raise ValueError(f"votes have a level of size {extreme}; it must be below 2^62")


def check_uncertain(
    uncertain: ArrayLike | None, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Returns doubts as an array, or raises the error that says what is wrong."""
    if uncertain is None:
        return None
    doubt = np.asarray(uncertain)
    if doubt.dtype != np.bool_:
        raise TypeError(f"uncertain has dtype {doubt.dtype}; it must be bool")
    if doubt.shape != shape:
        raise ValueError(
            f"uncertain has shape {doubt.shape}; it must be {shape}, as votes"
        )
    return doubt


def chunks(levels: np.ndarray, num_sets: int) -> Iterator[slice]:
    """Slices of images [N, P, K] of bounded working memory, for L touched sets."""
    num_images, num_ablations, num_classes = levels.shape
    rows = max(num_ablations, num_sets, num_classes)
    size = max(1, _CHUNK_BYTES // (8 * rows * num_classes))
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))


def bounds(
    levels: np.ndarray, uncertain: np.ndarray | None, part: slice, is_votes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest level that each ablation may give each class."""
    if uncertain is None:
        return levels, levels
    doubt = uncertain[part].astype(levels.dtype)
    if is_votes:  # an uncertain vote is 0 or 1, never -1 or 2
        return levels * (1 - doubt), np.maximum(levels, doubt)
    return levels - doubt, levels + doubt


def preference(
    low: np.ndarray, high: np.ndarray, chosen: np.ndarray, limit: int
) -> np.ndarray:
    """The one rule: how much each ablation prefers the chosen class to each class.

    Args:
      low: integer [n, P, K], the least level of each class.
      high: integer [n, P, K], the greatest (the same array where levels are certain).
      chosen: int [n], the class c of each image.
      limit: A.

    Returns:
      [n, P, K] of low's dtype: clip(low(c) - high(j), -A, A) for each rival j. The
      entry j = c has no meaning.
    """
    own = np.take_along_axis(low, chosen[:, None, None], axis=2)
    difference = own - high
    if limit < np.iinfo(difference.dtype).max:
        np.clip(difference, -limit, limit, out=difference)
    return difference


def count(levels: np.ndarray, limit: int, is_votes: bool) -> np.ndarray:
    """int64 [n, K]: votes of each class, or for levels its worst duel."""
    if is_votes:
        return levels.sum(axis=1, dtype=np.int64)
    return worst_duels(levels, limit)


def worst_duels(levels: np.ndarray, limit: int) -> np.ndarray:
    """int64 [n, K]: min over j of the sum of `preference`, for every class c.

    Where no level exceeds the limit A, preferences are differences and sums of levels
    say all: the worst duel is that against the largest sum of another class. So levels
    are cut off at A and summed, and only the duels of strong classes, which have a
    level above A, are made and corrected: for level u of c above A and level v of j, by
    clip(u - v, -A, A) - (A - min(v, A)).
    """
    # In an ablation only differences count: the least level becomes 0.
    levels = levels - levels.min(axis=2, keepdims=True)
    limit = min(limit, np.iinfo(levels.dtype).max)  # no difference is larger
    total = np.minimum(levels, limit).sum(axis=1, dtype=np.int64)  # [n, K]
    is_above = levels > limit
    strong = np.flatnonzero(is_above.any(axis=(0, 1)))  # S classes
    corrections = np.zeros((len(levels), len(strong), levels.shape[2]), np.int64)
    for s, c in enumerate(strong):
        image, ablation = np.nonzero(is_above[:, :, c])
        others = levels[image, ablation]  # [hits, K]
        own = others[:, [c]]
        excess = np.clip(own - others, -limit, limit) - (
            limit - np.minimum(others, limit)
        )
        # Where both levels are above A, the smaller class corrects for both.
        excess[:, :c][others[:, :c] > limit] = 0
        first = np.flatnonzero(np.diff(image, prepend=-1))
        corrections[image[first], s] = np.add.reduceat(
            excess, first, axis=0, dtype=np.int64
        )
    duels = total[:, strong, None] - total[:, None] + corrections  # [n, S, K]
    duels[:, :, strong] -= corrections[:, :, strong].swapaxes(1, 2)
    without = 2**62  # more than any sum
    weak = np.where(np.isin(np.arange(total.shape[1]), strong), -without, total)
    worst = total - _largest_other(weak)
    if len(strong):
        np.minimum(worst, -duels.max(axis=1), out=worst)
        duels[:, np.arange(len(strong)), strong] = without
        worst[:, strong] = duels.min(axis=2)
    return worst


def _largest_other(values: np.ndarray) -> np.ndarray:
    """[n, K] -> [n, K]: the largest of the other entries of the row."""
    second, first = np.partition(values, -2, axis=1)[:, -2:].T[..., None]
    is_first = np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]
    return np.where(is_first, second, first)


def predict(counts: np.ndarray) -> np.ndarray:
    """[n, K] -> [n]: the class of highest count, ties to the smaller index."""
    return counts.argmax(axis=1)


def untouched_sums(table: np.ndarray, touched: np.ndarray, largest: int) -> np.ndarray:
    """Sums over the ablations that each placement leaves alone.

    Args:
      table: integer [n, P, K], no entry larger in size than `largest`.
      touched: bool [L, P].
      largest: a bound.

    Returns:
      floating [L, n, K], exact integers; twice as large ones would be, too.
    """
    return sums_over(np.logical_not(touched), by_ablation(table, 2 * largest))


def by_ablation(table: np.ndarray, largest: int) -> np.ndarray:
    """Integers [n, P, K] as a floating [P, n, K] whose sums over P are exact.

    A matrix product of integers is exact in floating point while every partial sum is
    below 2^24 (float32) or 2^53 (float64), and far faster there than in integers.
    """
    bound = largest * table.shape[1]
    if bound >= 2**53:
        raise ValueError(
            f"levels are as large as {largest}; sums of {table.shape[1]} must stay "
            "below 2^53"
        )
    exact = np.dtype("f4" if bound < 2**24 else "f8")
    return np.ascontiguousarray(table.transpose(1, 0, 2), exact)


def sums_over(sets: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Sums of `by_ablation` [P, n, K] over each set of ablations [Q, P]: [Q, n, K]."""
    num_ablations, n, num_classes = table.shape
    sums = sets.astype(table.dtype) @ table.reshape(num_ablations, n * num_classes)
    return sums.reshape(len(sets), n, num_classes)


def most_taken(touched: np.ndarray, limit: int) -> np.ndarray:
    """int64 [L, 1, 1]: what a duel gains or loses by turning all touched ablations."""
    return limit * touched.sum(axis=1, dtype=np.int64)[:, None, None]


def after_each_placement(
    preferences: np.ndarray, touched: np.ndarray, limit: int
) -> np.ndarray:
    """What is left of each duel when a placement's ablations all turn.

    Args:
      preferences: integer [n, P, K], of the predicted class.
      touched: bool [L, P].
      limit: A.

    Returns:
      floating [L, n, K], exact integers: the untouched preferences, less A for each
      touched ablation.
    """
    left = untouched_sums(preferences, touched, limit)
    left -= most_taken(touched, limit).astype(left.dtype)
    return left


def least_duel(duels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The closest duel of the chosen class, ties counted for the smaller class index.

    Args:
      duels: [..., n, K], what is left of the duel against each class.
      chosen: int [n].

    Returns:
      (margin, rival), int64 [..., n]: margin >= 0 iff the chosen class wins all duels.
    """
    classes = np.arange(duels.shape[-1])
    left = duels - (classes < chosen[:, None])
    left = np.where(classes == chosen[:, None], np.inf, left)
    return left.min(axis=-1).astype(np.int64), left.argmin(axis=-1)
