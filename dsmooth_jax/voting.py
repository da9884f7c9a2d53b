"""Scores to votes: what each ablation says about each class.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3: every class whose softmax
score reaches the threshold gets a vote of the ablation (several may, or none); and the
variant in which only the class of highest score gets one.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.types import AnyScores, Votes

Voting = Literal["threshold", "top_one"]
VOTINGS: tuple[Voting, ...] = ("threshold", "top_one")


def cast_votes(scores: ArrayLike, voting: Voting, *, threshold: float) -> Votes:
    """Casts votes by the voting of this name; the settings of the others are not used.

    Raises:
      TypeError, ValueError: as the voting's own function; no such voting.
    """
    check_voting(voting)
    if voting == "threshold":
        return threshold_votes(scores, threshold)
    return top_one_votes(scores)


def threshold_votes(scores: ArrayLike, threshold: float) -> Votes:
    """Casts a vote for every class whose score reaches the threshold.

    Args:
      scores: floating [N, P, K], softmax scores in [0, 1].
      threshold: least score that is a vote (the paper's theta), 0 < threshold <= 1.
        Both are compared as float32, in which scores are computed and stored.

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
    # Scores of higher precision vote as they do once they are stored as float32.
    checked = check_scores(scores).astype(np.float32, copy=False)
    return checked >= np.float32(check_threshold(threshold))


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


def check_voting(voting: Any) -> None:
    """Raises ValueError unless there is a voting of this name."""
    if voting not in VOTINGS:
        raise ValueError(f"voting={voting!r} must be one of {', '.join(VOTINGS)}")


def check_scores(scores: ArrayLike) -> AnyScores:
    """Returns scores as an array, or raises the error that says what is wrong.

    A score that is not a number would vote for nobody without a word, so it is refused.
    """
    checked = np.asarray(scores)
    if not np.issubdtype(checked.dtype, np.floating):
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
    bad = ~((checked >= 0) & (checked <= 1))  # True for NaN too
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"scores{list(where)} = {checked[where]} (and {int(bad.sum()) - 1} more) "
            "must be in [0, 1]; pass softmax scores, not logits"
        )
    return checked


def check_threshold(threshold: Any) -> float:
    """Returns the threshold as a float, or raises the error that says what is wrong."""
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        raise TypeError(f"threshold={threshold!r} must be a number") from None
    if not (0 < value <= 1 and np.float32(value) > 0):  # the comparison is in float32
        raise ValueError(
            f"threshold={threshold!r} must be in (0, 1]; at 0 every class gets "
            "every vote"
        )
    return value
