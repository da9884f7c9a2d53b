"""Votes and touched sets to certificates: the one place where robustness is proven.

Prediction, margin rule and placement rule all stand on sums of preferences between two
classes, which `duels` holds: integers in, exact integers out.

Source: the margin rule is Levine & Feizi 2020 (arXiv:2002.10733), section 3, with the
tie rule made explicit. The placement rule, exact for 0/1 votes, is this library's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.ablation import Ablation, check_ablation, check_num_ablations
from dsmooth_jax.duels import (
    after_each_placement,
    as_votes,
    bounds,
    check_levels,
    check_uncertain,
    chunks,
    count,
    least_duel,
    predict,
    preference,
)
from dsmooth_jax.threat import Patch, check_touched
from dsmooth_jax.threat import touched as touched_sets
from dsmooth_jax.types import ImageSize, PerClass, PerImage, PerImageFlag
from dsmooth_jax.voting import VotesLike

Rule = Literal["placement", "margin"]
RULES: tuple[Rule, ...] = ("placement", "margin")


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """What is proven about the prediction for each of N images.

    Attributes:
      prediction: int64 [N], the smoothed classifier's class.
      margin: int64 [N], by how much the prediction wins its closest duel after the
        worst placement, in votes (in units of 1 / limit of a vote for graded ones).
      counts: int64 [N, K], votes for each class; graded, each class's worst duel.
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
    votes: VotesLike,
    touched: ArrayLike,
    *,
    rule: Rule = "placement",
    uncertain: ArrayLike | None = None,
) -> Certificate:
    """Certifies each image's smoothed prediction against all placements of a patch.

    Args:
      votes: bool [N, P, K], or `GradedVotes`.
      touched: bool [L, P], L >= 1, from `touched`; to certify against several patches
        at once pass the unions of their rows.
      rule: "placement" (looks at every touched set; exact for votes) or "margin" (the
        paper's, which counts only the largest set).
      uncertain: bool [N, P, K], votes that may be cast otherwise on another machine.
        They count for the attacker: as not cast for the predicted class and as cast for
        its rivals (a level: one lower, one higher). The prediction stays nominal.

    Returns:
      A `Certificate`, one entry for each image.

    Raises:
      TypeError: votes are neither bool nor graded, touched or uncertain are not bool.
      ValueError: shapes that do not agree, no touched set, fewer than two classes, a
        rule that does not exist.

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
    levels, limit, is_votes = check_levels(votes)
    touched = check_touched(touched, levels.shape[1])
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {RULES}")
    doubt = check_uncertain(uncertain, levels.shape)

    counts = np.empty((len(levels), levels.shape[2]), np.int64)
    margin = np.empty(len(levels), np.int64)
    prediction = np.empty(len(levels), np.int64)
    for part in chunks(levels, len(touched)):
        counts[part] = count(levels[part], limit, is_votes)
        prediction[part] = predict(counts[part])
        low, high = bounds(levels[part], doubt, part, is_votes)
        preferences = preference(low, high, prediction[part], limit)
        if rule == "margin":
            left = preferences.sum(axis=1, dtype=np.int64)
            left -= 2 * limit * int(touched.sum(axis=1).max())
        else:
            left = after_each_placement(preferences, touched, limit).min(axis=0)
        margin[part], _ = least_duel(left, prediction[part])
    return Certificate(prediction, margin, counts)


def predict_votes(votes: VotesLike) -> PerImage:
    """The smoothed prediction alone: what `certify` would certify.

    Args:
      votes: as in `certify`.

    Returns:
      int64 [N].
    """
    levels, limit, is_votes = check_levels(votes)
    prediction = np.empty(len(levels), np.int64)
    for part in chunks(levels, 1):
        prediction[part] = predict(count(levels[part], limit, is_votes))
    return prediction


def concatenate(parts: Sequence[Certificate]) -> Certificate:
    """Joins the certificates of consecutive images against one patch."""
    return Certificate(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Certificate)
        )
    )


def largest_certified_patch(
    votes: VotesLike,
    ablation: Ablation,
    image_size: ImageSize,
    *,
    rule: Rule = "placement",
    uncertain: ArrayLike | None = None,
) -> PerImage:
    """Finds the largest square patch against which each prediction is certified.

    Args:
      votes: as in `certify`.
      ablation: the ablation that the votes are of.
      image_size: (H, W), pixels.
      rule: as in `certify`.
      uncertain: as in `certify`.

    Returns:
      int64 [N], the side in pixels, 0 where not even one pixel is certified.

    Raises:
      TypeError, ValueError: as `certify`, and where votes are not of this ablation.

    Guarantee:
      As `certify`, for that square and every rectangle inside it.
    """
    check_ablation(ablation)
    votes = as_votes(votes)
    doubt = check_uncertain(uncertain, check_levels(votes)[0].shape)
    check_num_ablations("votes", votes.shape[1], ablation, image_size)
    # A larger square touches a superset, so each image's answer is found by bisection.
    side = np.zeros(len(votes), np.int64)  # certified
    refused = np.full(len(votes), min(image_size) + 1)
    while (is_open := refused - side > 1).any():
        middle = (side + refused) // 2
        for m in np.unique(middle[is_open]).tolist():
            asked = np.flatnonzero(is_open & (middle == m))
            sets = touched_sets(ablation, Patch(m, m), image_size)
            certificate = certify(
                votes[asked],
                sets,
                rule=rule,
                uncertain=None if doubt is None else doubt[asked],
            )
            side[asked[certificate.is_certified]] = m
            refused[asked[~certificate.is_certified]] = m
    return side
