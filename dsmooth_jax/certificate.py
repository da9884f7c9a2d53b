"""Votes and touched sets to certificates: the one place where robustness is proven.

Every voting is a table of integer levels u_p(c), one for each ablation p and class c,
and a limit A. Ablation p prefers class c to class j by ``clip(u_p(c) - u_p(j), -A, A)``
(`_preference`, the one rule). Prediction, margin rule and placement rule all stand on
sums of these preferences, exact integers throughout.

Source: the margin rule is Levine & Feizi 2020 (arXiv:2002.10733), section 3, with the
tie rule made explicit. The placement rule, exact for 0/1 votes, is this library's.
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.ablation import Ablation, check_ablation
from dsmooth_jax.threat import Patch
from dsmooth_jax.threat import touched as touched_sets
from dsmooth_jax.types import ImageSize, PerClass, PerImage, PerImageFlag

Rule = Literal["placement", "margin"]
RULES: tuple[Rule, ...] = ("placement", "margin")

_CHUNK_BYTES = 2**24  # working memory aimed at for one chunk of images


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """What is proven about the prediction for each of N images.

    Attributes:
      prediction: int64 [N], the smoothed classifier's class.
      margin: int64 [N], by how much the prediction wins its closest duel after the
        worst placement, in votes (in units of 1 / limit of a vote for levels).
      counts: int64 [N, K], votes for each class; of levels, each class's worst duel.
        The prediction is its arg max, ties to the smaller index.
    """

    prediction: PerImage
    margin: PerImage
    counts: PerClass

    @property
    def is_certified(self) -> PerImageFlag:
        """Bool [N]: no placement can change the prediction. The same as margin >= 0."""
        return self.margin >= 0


def certify(
    votes: ArrayLike,
    touched: ArrayLike,
    *,
    rule: Rule = "placement",
    limit: int | None = None,
    uncertain: ArrayLike | None = None,
) -> Certificate:
    """Certifies each image's smoothed prediction against all placements of a patch.

    Args:
      votes: bool [N, P, K], or integer levels [N, P, K] together with their limit.
      touched: bool [L, P], L >= 1, from `touched`; to certify against several patches
        at once pass the unions of their rows.
      rule: "placement" (looks at every touched set; exact for votes) or "margin" (the
        paper's, which counts only the largest set).
      limit: the largest preference that one ablation can have in a duel, >= 1; for
        integer levels only.
      uncertain: bool [N, P, K], votes that may be cast otherwise on another machine.
        They count for the attacker: as not cast for the predicted class and as cast for
        its rivals (a level: one lower, one higher). The prediction stays nominal.

    Returns:
      A `Certificate`, one entry for each image.

    Raises:
      TypeError: votes are neither bool nor integers, touched or uncertain are not bool.
      ValueError: shapes that do not agree, no touched set, fewer than two classes,
        levels without a limit or votes with one, a rule that does not exist.

    Guarantee:
      Where ``is_certified``, the prediction is the same whatever the touched ablations
      of any one row of ``touched`` vote: every class is compared, at every row, ties
      included. It follows that no patch changes the prediction of the classifier, with
      any content, if the score of each ablation depends only on the pixels that it
      keeps (see `check_locality`) and ``touched`` belongs to the patch. For bool votes
      (none uncertain) the placement rule is also exact: where it refuses, some votes of
      the touched ablations change the prediction. That a prediction cannot change does
      not make it right.

    >>> votes = np.array([[[True, False]] * 4 + [[False, True]]])  # 4 votes to 1
    >>> certify(votes, np.eye(5, dtype=bool)).margin  # any one may change sides
    array([1])
    """
    levels, limit, is_votes = _check_levels(votes, limit)
    touched = _check_touched(touched, levels.shape[1])
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {RULES}")
    if uncertain is not None:
        uncertain = _check_uncertain(uncertain, levels.shape)

    num_images, num_ablations, num_classes = levels.shape
    rows = max(num_ablations, len(touched))
    chunk = max(1, _CHUNK_BYTES // (8 * rows * num_classes))
    counts = np.empty((num_images, num_classes), np.int64)
    margin = np.empty(num_images, np.int64)
    prediction = np.empty(num_images, np.int64)
    for start in range(0, num_images, chunk):
        part = slice(start, start + chunk)
        counts[part] = _counts(levels[part], limit, is_votes)
        prediction[part] = _predict(counts[part])
        low, high = _bounds(levels[part], uncertain, part, is_votes)
        preference = _preference(low, high, prediction[part], limit)
        duels = _after_attack(preference, touched, limit, rule)
        margin[part] = _closest(duels, prediction[part])
    return Certificate(prediction, margin, counts)


def predict_votes(votes: ArrayLike, *, limit: int | None = None) -> PerImage:
    """The smoothed prediction alone: what `certify` would certify.

    Args:
      votes: as in `certify`.
      limit: as in `certify`.

    Returns:
      int64 [N].
    """
    levels, limit, is_votes = _check_levels(votes, limit)
    return _predict(_counts(levels, limit, is_votes))


def concatenate(parts: Sequence[Certificate]) -> Certificate:
    """Joins the certificates of consecutive images against one patch."""
    return Certificate(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Certificate)
        )
    )


def largest_certified_patch(
    votes: ArrayLike,
    ablation: Ablation,
    image_size: ImageSize,
    *,
    rule: Rule = "placement",
    limit: int | None = None,
) -> PerImage:
    """Finds the largest square patch against which each prediction is certified.

    Args:
      votes: as in `certify`.
      ablation: the ablation that the votes are of.
      image_size: (H, W), pixels.
      rule: as in `certify`.
      limit: as in `certify`.

    Returns:
      int64 [N], the side in pixels, 0 where not even one pixel is certified.

    Raises:
      TypeError, ValueError: as `certify`, and where votes are not of this ablation.

    Guarantee:
      As `certify`, for that square and every rectangle inside it.
    """
    check_ablation(ablation)
    votes = np.asarray(votes)
    _check_levels(votes, limit)
    num_ablations = ablation.num_ablations(image_size)
    if votes.shape[1] != num_ablations:
        raise ValueError(
            f"votes have {votes.shape[1]} ablations; {ablation} has {num_ablations} on "
            f"an image of {tuple(image_size)}"
        )
    side = np.zeros(len(votes), np.int64)
    alive = np.arange(len(votes))
    # A larger square touches a superset, so what is lost once stays lost.
    for m in range(1, min(image_size) + 1):
        sets = touched_sets(ablation, Patch(m, m), image_size)
        certificate = certify(votes[alive], sets, rule=rule, limit=limit)
        alive = alive[certificate.is_certified]
        side[alive] = m
        if not alive.size:
            break
    return side


def _preference(
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


def _counts(levels: np.ndarray, limit: int, is_votes: bool) -> np.ndarray:
    """int64 [n, K]: votes of each class, or for levels its worst duel."""
    if is_votes:
        return levels.sum(axis=1, dtype=np.int64)
    num_classes = levels.shape[2]
    worst = np.empty((len(levels), num_classes), np.int64)
    for c in range(num_classes):
        chosen = np.full(len(levels), c)
        duels = _preference(levels, levels, chosen, limit).sum(axis=1, dtype=np.int64)
        duels[:, c] = np.iinfo(np.int64).max
        worst[:, c] = duels.min(axis=1)
    return worst


def _predict(counts: np.ndarray) -> np.ndarray:
    """[n, K] -> [n]: the class of highest count, ties to the smaller index."""
    return counts.argmax(axis=1)


def _after_attack(
    preference: np.ndarray, touched: np.ndarray, limit: int, rule: Rule
) -> np.ndarray:
    """int64 [n, K]: what is left of each duel after the placement worst for it."""
    if rule == "margin":
        total = preference.sum(axis=1, dtype=np.int64)
        return total - 2 * limit * int(touched.sum(axis=1).max())
    n, num_ablations, num_classes = preference.shape
    # A matrix product of integers is exact in floating point while every partial sum is
    # below 2^24 (float32) or 2^53 (float64), and far faster there than in integers.
    exact = np.dtype("f4" if 2 * limit * num_ablations < 2**24 else "f8")
    table = np.ascontiguousarray(preference.transpose(1, 0, 2), exact)  # [P, n, K]
    untouched = np.logical_not(touched).astype(exact)
    left = untouched @ table.reshape(num_ablations, n * num_classes)  # [L, n K]
    left -= (limit * touched.sum(axis=1)).astype(exact)[:, None]
    return left.min(axis=0).reshape(n, num_classes).astype(np.int64)


def _closest(duels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """int64 [n]: the least duel, ties counted for the smaller class index."""
    classes = np.arange(duels.shape[1])
    left = duels - (classes < chosen[:, None])
    left[np.arange(len(left)), chosen] = np.iinfo(np.int64).max
    return left.min(axis=1)


def _bounds(
    levels: np.ndarray, uncertain: np.ndarray | None, part: slice, is_votes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest level that each ablation may give each class."""
    if uncertain is None:
        return levels, levels
    doubt = uncertain[part].astype(levels.dtype)
    if is_votes:  # an uncertain vote is 0 or 1, never -1 or 2
        return levels * (1 - doubt), np.maximum(levels, doubt)
    return levels - doubt, levels + doubt


def _check_levels(votes: ArrayLike, limit: Any) -> tuple[np.ndarray, int, bool]:
    """Levels in a dtype that holds their differences, limit, is_votes."""
    levels = np.asarray(votes)
    is_votes = levels.dtype == np.bool_
    if not is_votes and not np.issubdtype(levels.dtype, np.integer):
        raise TypeError(
            f"votes have dtype {levels.dtype}; they must be bool, or integer levels "
            "with their limit; make votes of scores by threshold_votes or top_one_votes"
        )
    if levels.ndim != 3:
        raise ValueError(f"votes have shape {levels.shape}; it must be [N, P, K]")
    if levels.shape[1] < 1 or levels.shape[2] < 2:
        raise ValueError(
            f"votes have shape {levels.shape}; [N, P, K] needs P >= 1 ablations and "
            "K >= 2 classes"
        )
    if is_votes:
        if limit is not None:
            raise ValueError(
                f"limit={limit!r} is for integer levels; bool votes have 1"
            )
        return levels.view(np.int8), 1, True
    if limit is None:
        raise ValueError(
            f"votes are {levels.dtype} levels, which need their limit=; "
            "0/1 votes must be bool"
        )
    try:
        limit = operator.index(limit)
    except TypeError:
        raise TypeError(f"limit={limit!r} must be an integer") from None
    if not 1 <= limit < 2**31:
        raise ValueError(f"limit={limit} must be in 1..2^31 - 1")
    extreme = max(abs(int(levels.min())), abs(int(levels.max()))) if levels.size else 0
    for dtype in (
        np.int16,
        np.int32,
        np.int64,
    ):  # products and differences fit: no wrap
        if 2 * (extreme + 1) <= np.iinfo(dtype).max:
            return levels.astype(dtype, copy=False), limit, False
    raise ValueError(f"votes have a level of size {extreme}; it must be below 2^62")


def _check_touched(touched: ArrayLike, num_ablations: int) -> np.ndarray:
    sets = np.asarray(touched)
    if sets.dtype != np.bool_:
        raise TypeError(
            f"touched has dtype {sets.dtype}; it must be bool, from touched()"
        )
    if sets.ndim != 2 or sets.shape[1] != num_ablations:
        raise ValueError(
            f"touched has shape {sets.shape}; it must be [L, {num_ablations}], a "
            "column for each ablation of the votes"
        )
    if not len(sets):
        raise ValueError(
            "touched has no row; L must be >= 1 (no row would prove nothing)"
        )
    return sets


def _check_uncertain(uncertain: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    doubt = np.asarray(uncertain)
    if doubt.dtype != np.bool_:
        raise TypeError(f"uncertain has dtype {doubt.dtype}; it must be bool")
    if doubt.shape != shape:
        raise ValueError(
            f"uncertain has shape {doubt.shape}; it must be {shape}, as votes"
        )
    return doubt
