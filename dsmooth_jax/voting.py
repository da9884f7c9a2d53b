"""Scores to votes: what each ablation says about each class.

Votes are 0 or 1 (a bool array), or graded (`GradedVotes`). Both go to `certify`.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3: every class whose softmax
score reaches the threshold gets a vote of the ablation (several may, or none); and the
variant in which only the class of highest score gets one.
"""

import dataclasses
import operator
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.checks import is_floating
from dsmooth_jax.types import Scores, Votes

Voting = Literal["threshold", "top_one", "graded"]
VOTINGS: tuple[Voting, ...] = ("threshold", "top_one", "graded")

THRESHOLD, STRENGTH = 0.3, 5.0
"""Of threshold and of graded votes, where nothing is chosen: see `evaluation`."""

GRADES = 100
"""The limit of `graded_votes`: levels of one full vote."""

TOLERANCE = 1e-5
"""By how much a score may differ on another machine, in another batch, on more devices.

What certificates count for the attacker where nothing else is asked; measured in
docs/proven.md."""


@dataclasses.dataclass(frozen=True, eq=False)
class GradedVotes:
    """Graded votes, one value with their limit: so nothing can count them by another.

    ``votes[images]`` are the votes of some images, as of an array.

    Attributes:
      levels: integer [N, P, K], how much each ablation is for each class. Only their
        differences within an ablation count.
      limit: the largest preference that one ablation can have in a duel: one full vote,
        1..2^31 - 1.

    Raises:
      TypeError: levels or limit are not integers.
      ValueError: a limit out of range.
    """

    levels: np.ndarray
    limit: int

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels)
        if not np.issubdtype(levels.dtype, np.integer):
            raise TypeError(
                f"levels have dtype {levels.dtype}; they must be integers, with a "
                "limit; bool votes have none and are given as they are"
            )
        try:
            limit = operator.index(self.limit)
        except TypeError:
            raise TypeError(f"limit={self.limit!r} must be an integer") from None
        if not 1 <= limit < 2**31:
            raise ValueError(f"limit={limit} must be in 1..2^31 - 1")
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "limit", limit)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, P, K)."""
        return self.levels.shape

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, images: slice | np.ndarray) -> "GradedVotes":
        return GradedVotes(self.levels[images], self.limit)


VotesLike: TypeAlias = ArrayLike | GradedVotes
"""What is certified: bool votes [N, P, K], or graded ones."""


def cast_votes(
    scores: ArrayLike,
    voting: Voting,
    *,
    threshold: float = THRESHOLD,
    strength: float = STRENGTH,
) -> Votes | GradedVotes:
    """Casts votes by the voting of this name; the settings of the others are not used.

    Args:
      scores: floating [N, P, K], softmax scores in [0, 1].
      voting: "threshold", "top_one" or "graded".
      threshold: of threshold votes, in (0, 1].
      strength: of graded votes, in [1, 100].

    Returns:
      bool [N, P, K] or `GradedVotes`, as `certify` takes them.

    Raises:
      TypeError, ValueError: as the voting's own function; no such voting.
    """
    check_voting(voting)
    if voting == "graded":
        return graded_votes(scores, strength)
    if voting == "threshold":
        return threshold_votes(scores, threshold)
    return top_one_votes(scores)


def cast_doubts(
    scores: ArrayLike,
    voting: Voting,
    tolerance: float,
    *,
    threshold: float = THRESHOLD,
    strength: float = STRENGTH,
) -> Votes | None:
    """Marks what `cast_votes` casts otherwise of scores within the tolerance.

    Returns:
      bool [N, P, K], as `certify` takes it; None where the tolerance is 0.

    Raises:
      TypeError, ValueError: as `uncertain_votes`; no such voting.
    """
    check_voting(voting)
    check_tolerance(tolerance)
    if not tolerance:
        return None
    if voting == "graded":
        return uncertain_votes(scores, tolerance, strength=strength)
    if voting == "threshold":
        return uncertain_votes(scores, tolerance, threshold=threshold)
    return uncertain_votes(scores, tolerance, top_one=True)


def threshold_votes(scores: ArrayLike, threshold: float) -> Votes:
    """Casts a vote for every class whose score reaches the threshold.

    Args:
      scores: floating [N, P, K], softmax scores in [0, 1].
      threshold: least score that is a vote (the paper's theta), 0 < threshold <= 1.
        Both are compared as float32: see `check_scores`.

    Returns:
      bool [N, P, K].

    Raises:
      TypeError: scores are not floating.
      ValueError: scores are not [N, P, K], not finite or not in [0, 1], or the
        threshold is outside (0, 1].

    >>> threshold_votes(np.array([[[0.7, 0.3], [0.5, 0.5]]]), 0.5).astype(int)
    array([[[1, 0],
            [1, 1]]])
    """
    return check_scores(scores) >= np.float32(check_threshold(threshold))


def top_one_votes(scores: ArrayLike) -> Votes:
    """Casts one vote of each ablation, for the class of highest score.

    Args:
      scores: floating [N, P, K], softmax scores. Ties go to the smaller index.

    Returns:
      bool [N, P, K], one True for each image and ablation.

    Raises:
      TypeError: scores are not floating.
      ValueError: scores are not [N, P, K], not finite or not in [0, 1].
    """
    checked = check_scores(scores)
    return checked.argmax(axis=-1)[..., None] == np.arange(checked.shape[-1])


def graded_votes(scores: ArrayLike, strength: float) -> GradedVotes:
    """Grades every class by its score, for duels between classes.

    An ablation that knows nothing weighs nothing, and one that prefers a third class
    still takes sides between the first and the second. What it can prefer in a duel is
    limited to `GRADES`, one full vote.

    Args:
      scores: floating [N, P, K], softmax scores in [0, 1].
      strength: levels per score in units of a full vote, 1 <= strength <= 100; a
        difference of 1 / strength in the scores is a full vote. 1 is the mean of the
        scores (soft voting). Choose it on validation data.

    Returns:
      int16 levels [N, P, K]: rint(100 strength score), halves to even.

    Raises:
      TypeError: scores are not floating.
      ValueError: scores are not as above, or the strength is outside [1, 100].

    Source: this library; the nearest published relative is run-off election
    (Rezaei et al., ICML 2023), which is against data poisoning.

    >>> graded_votes(np.array([[[0.7, 0.3], [0.5, 0.5]]]), strength=2).levels
    array([[[140,  60],
            [100, 100]]], dtype=int16)
    """
    scale = np.float64(GRADES * check_strength(strength))
    levels = np.rint(scale * check_scores(scores).astype(np.float64))
    return GradedVotes(levels.astype(np.int16), GRADES)


def uncertain_votes(
    scores: ArrayLike,
    tolerance: float,
    *,
    threshold: float | None = None,
    strength: float | None = None,
    top_one: bool = False,
) -> Votes:
    """Marks votes that another machine may cast otherwise, for `certify`'s uncertain.

    Args:
      scores: floating [N, P, K].
      tolerance: by how much a score may differ there, 0 <= tolerance < 1.
      threshold: of threshold votes. Give this, the strength or top_one.
      strength: of graded votes. A level must not move by more than one, so the
        tolerance must be below 1 / (100 strength).
      top_one: for top-one votes.

    Returns:
      bool [N, P, K], True where some score within the tolerance votes otherwise.

    Raises:
      TypeError, ValueError: as `threshold_votes` and `graded_votes`; not exactly one of
        threshold, strength and top_one; a tolerance out of range.
    """
    checked = check_scores(scores).astype(np.float64)
    if (threshold is not None) + (strength is not None) + top_one != 1:
        raise ValueError(
            f"threshold={threshold!r}, strength={strength!r} and top_one={top_one!r}: "
            "give exactly one"
        )
    check_tolerance(tolerance, strength)
    low, high = checked - tolerance, checked + tolerance
    if top_one:
        is_possible = high >= low.max(axis=2, keepdims=True)
        is_close = is_possible.sum(axis=2, keepdims=True) > 1
        return is_possible & is_close & (tolerance > 0)
    if threshold is not None:
        theta = np.float64(np.float32(check_threshold(threshold)))
        return (low < theta) & (high >= theta)
    scale = GRADES * check_strength(strength)
    return np.rint(scale * low) != np.rint(scale * high)


def check_tolerance(tolerance: float, strength: float | None = None) -> None:
    """Raises ValueError for a tolerance that is none, of graded votes or of others."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r} must be in [0, 1)")
    if strength is not None:
        scale = GRADES * check_strength(strength)
        if tolerance * scale >= 1:
            raise ValueError(
                f"tolerance={tolerance} must be below {1 / scale:.3g}, one level at "
                f"strength {strength}; more than one level may not be in doubt"
            )


def check_strength(strength: Any) -> float:
    """Returns the strength as a float, or raises the error that says what is wrong."""
    value = _number("strength", strength)
    if not 1 <= value <= 100:
        raise ValueError(f"strength={strength!r} must be in [1, 100]")
    return value


def check_voting(voting: Any) -> None:
    """Raises ValueError unless there is a voting of this name."""
    if voting not in VOTINGS:
        raise ValueError(f"voting={voting!r} must be one of {', '.join(VOTINGS)}")


def check_scores(scores: ArrayLike) -> Scores:
    """Returns scores as float32, or raises the error that says what is wrong.

    Every floating type of NumPy and JAX is taken. bfloat16, float16 and narrower ones
    become float32 exactly, wider ones are rounded to it: so scores vote the same before
    they are stored and after. A score that is not a number would vote for nobody
    without a word, so it is refused.
    """
    checked = np.asarray(scores)
    if not is_floating(checked.dtype):
        raise TypeError(
            f"scores have dtype {checked.dtype}; they must be floating, softmax scores"
        )
    if checked.ndim != 3:
        raise ValueError(f"scores have shape {checked.shape}; it must be [N, P, K]")
    if checked.shape[1] < 1 or checked.shape[2] < 2:
        raise ValueError(
            f"scores have shape {checked.shape}; [N, P, K] needs P >= 1 ablations and "
            "K >= 2 classes"
        )
    if checked.dtype.itemsize < 4:  # not all of these compare as they should
        checked = checked.astype(np.float32)
    bad = ~((checked >= 0) & (checked <= 1))  # True for NaN too
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"scores{list(where)} = {checked[where]} (and {int(bad.sum()) - 1} more) "
            "must be in [0, 1]; pass softmax scores, not logits"
        )
    return checked.astype(np.float32, copy=False)


def check_threshold(threshold: Any) -> float:
    """Returns the threshold as a float, or raises the error that says what is wrong."""
    value = _number("threshold", threshold)
    if not (0 < value <= 1 and np.float32(value) > 0):  # the comparison is in float32
        raise ValueError(
            f"threshold={threshold!r} must be in (0, 1]; at 0 every class gets "
            "every vote"
        )
    return value


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be a number") from None
