"""Where labels meet certificates: accuracies with intervals, and choices on validation.

Nothing here knows where labels come from. Which split may choose and which may only be
measured is the caller's discipline: thresholds are chosen on validation data.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from dsmooth_jax.certificate import RULES, Certificate, Rule, certify
from dsmooth_jax.double_masking import MaskedCertificate
from dsmooth_jax.types import PerAblation, PerImageFlag
from dsmooth_jax.voting import (
    Voting,
    cast_doubts,
    cast_votes,
    check_scores,
    graded_votes,
    threshold_votes,
)

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(2, 19))
"""The thresholds tried where none are given: 0.1, 0.15, ..., 0.9."""

STRENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0)
"""The strengths of graded votes tried where none are given."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of images, with its 95 % Wilson score interval.

    Attributes:
      count: images counted.
      num_images: images in all.
    """

    count: int
    num_images: int

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(self.count + other.count, self.num_images + other.num_images)

    @property
    def value(self) -> float:
        """The share in [0, 1]; NaN of no images."""
        return self.count / self.num_images if self.num_images else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high) in [0, 1]; (0, 1) of no images."""
        if not self.num_images:
            return 0.0, 1.0
        wilson = binomtest(self.count, self.num_images).proportion_ci(method="wilson")
        return float(wilson.low), float(wilson.high)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a smoothed classifier did on labelled images, against one patch.

    Attributes:
      clean: images whose prediction is right.
      certified: images whose prediction is right and certified.
      certified_wrong: images whose prediction is certified and wrong.
    """

    clean: Accuracy
    certified: Accuracy
    certified_wrong: Accuracy

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Of both sets of images: a store is evaluated shard by shard."""
        return Evaluation(
            self.clean + other.clean,
            self.certified + other.certified,
            self.certified_wrong + other.certified_wrong,
        )


def evaluate(
    certificate: Certificate | MaskedCertificate, labels: ArrayLike
) -> Evaluation:
    """Counts right, certified, and certified-but-wrong predictions.

    Args:
      certificate: of N images, by votes or by double masking.
      labels: integers [N], 0..K-1.

    Returns:
      The three accuracies, each of all N images.

    Raises:
      TypeError: labels are not integers.
      ValueError: their number or range does not fit the certificate.
    """
    num_classes = None
    if isinstance(certificate, Certificate):
        num_classes = certificate.counts.shape[1]
    truth = check_labels(labels, len(certificate.prediction), num_classes)
    return tally(certificate.prediction == truth, certificate.is_certified)


def tally(is_right: PerImageFlag, is_certified: PerImageFlag) -> Evaluation:
    """Counts what `evaluate` counts, where both are known for each image already.

    Args:
      is_right: bool [N], the prediction is the label.
      is_certified: bool [N], the prediction cannot change.

    Returns:
      The three accuracies, each of all N images.
    """

    def share(hits: PerImageFlag) -> Accuracy:
        return Accuracy(int(hits.sum()), len(is_right))

    return Evaluation(
        share(is_right), share(is_right & is_certified), share(~is_right & is_certified)
    )


def base_accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """The mean accuracy of the base classifier, over images and ablations.

    Args:
      scores: floating [N, P, K] in [0, 1].
      labels: integers [N].

    Returns:
      The share of (image, ablation) pairs whose highest score is the label's; NaN for
      N = 0.

    Raises:
      TypeError, ValueError: as `threshold_votes` and `evaluate`.
    """
    right = right_by_ablation(scores, labels)
    num_pairs = len(np.asarray(scores)) * len(right)
    return float(right.sum() / num_pairs) if num_pairs else float("nan")


def right_by_ablation(scores: ArrayLike, labels: ArrayLike) -> PerAblation:
    """Counts the images that the base classifier gets right from each ablation alone.

    Args:
      scores: floating [N, P, K] in [0, 1].
      labels: integers [N].

    Returns:
      int64 [P]; `base_accuracy` is their sum over N P. Counts of shards add up.

    Raises:
      TypeError, ValueError: as `base_accuracy`.
    """
    checked = check_scores(scores)
    truth = check_labels(labels, len(checked), checked.shape[2])
    return (checked.argmax(axis=2) == truth[:, None]).sum(axis=0, dtype=np.int64)


def sweep(
    scores: ArrayLike,
    labels: ArrayLike,
    touched: Mapping[Hashable, np.ndarray],
    *,
    thresholds: Sequence[float] = (),
    strengths: Sequence[float] = (),
    rules: Sequence[Rule] = RULES,
    tolerance: float = 0.0,
) -> dict[tuple[Voting, float, Hashable, Rule], Evaluation]:
    """Evaluates every setting of every voting against every attack, by every rule.

    Args:
      scores: floating [N, P, K]; of a larger store, a shard: results of shards add up.
      labels: integers [N].
      touched: for each attack, by any name, its touched sets bool [L, P].
      thresholds: settings of threshold votes.
      strengths: settings of graded votes.
      rules: of `certify`.
      tolerance: votes that scores this close would cast otherwise count for the
        attacker.

    Returns:
      {(voting, setting, name of the attack, rule): evaluation}.

    Raises:
      TypeError, ValueError: as `certify`, `evaluate` and the votings.
    """
    found = {}
    settings: list[tuple[Voting, float]]
    settings = [("threshold", value) for value in thresholds]
    settings += [("graded", value) for value in strengths]
    for voting, value in settings:
        setting = {"threshold": value, "strength": value}
        votes = cast_votes(scores, voting, **setting)
        doubt = cast_doubts(scores, voting, tolerance, **setting)
        for name, sets in touched.items():
            for rule in rules:
                certificate = certify(votes, sets, rule=rule, uncertain=doubt)
                found[voting, value, name, rule] = evaluate(certificate, labels)
    return found


def choose_threshold(
    scores: ArrayLike,
    labels: ArrayLike,
    touched: ArrayLike,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    rule: Rule = "placement",
) -> float:
    """Chooses the threshold of highest certified accuracy on validation data.

    Args:
      scores: floating [N, P, K] of validation images.
      labels: integers [N].
      touched: bool [L, P], of the patch to choose for.
      thresholds: the candidates, each in (0, 1].
      rule: as in `certify`.

    Returns:
      The threshold with most right and certified images; of equals the one with most
      right ones, then the smaller.

    Raises:
      TypeError, ValueError: as `threshold_votes`, `certify` and `evaluate`; no images
        or no thresholds.
    """
    return _choose(
        "thresholds",
        thresholds,
        scores,
        labels,
        lambda value: certify(threshold_votes(scores, value), touched, rule=rule),
    )


def choose_strength(
    scores: ArrayLike,
    labels: ArrayLike,
    touched: ArrayLike,
    *,
    strengths: Sequence[float] = STRENGTHS,
    rule: Rule = "placement",
) -> float:
    """Chooses the strength of graded votes as `choose_threshold` does the threshold.

    Args:
      scores: floating [N, P, K] of validation images.
      labels: integers [N].
      touched: bool [L, P], of the patch to choose for.
      strengths: the candidates, each in [1, 100].
      rule: as in `certify`.

    Returns:
      The strength with most right and certified images; of equals the one with most
      right ones, then the smaller.

    Raises:
      TypeError, ValueError: as `choose_threshold`.
    """
    return _choose(
        "strengths",
        strengths,
        scores,
        labels,
        lambda value: certify(graded_votes(scores, value), touched, rule=rule),
    )


@dataclasses.dataclass(frozen=True)
class ChosenVoting:
    """A voting with its settings, and what it reaches where they were chosen.

    Attributes:
      voting: "threshold" or "graded".
      threshold: the best of threshold votes, whichever voting is chosen.
      strength: the best of graded votes, likewise.
      evaluation: of the chosen voting, by the placement rule.
    """

    voting: Voting
    threshold: float
    strength: float
    evaluation: Evaluation


def choose_voting(
    scores: ArrayLike, labels: ArrayLike, touched: ArrayLike
) -> ChosenVoting:
    """Chooses voting, threshold and strength on validation data.

    Args:
      scores: floating [N, P, K] of validation images.
      labels: integers [N].
      touched: bool [L, P], of the patch to choose for.

    Returns:
      Of the best threshold and the best strength, the voting with most right and
      certified images; of equals the one with most right ones, then threshold votes.

    Raises:
      TypeError, ValueError: as `choose_threshold`.
    """
    threshold = choose_threshold(scores, labels, touched)
    strength = choose_strength(scores, labels, touched)
    found = []
    votings: tuple[Voting, ...] = ("threshold", "graded")
    for voting in votings:
        votes = cast_votes(scores, voting, threshold=threshold, strength=strength)
        result = evaluate(certify(votes, touched), labels)
        found.append(ChosenVoting(voting, threshold, strength, result))
    return max(
        found,
        key=lambda one: (one.evaluation.certified.count, one.evaluation.clean.count),
    )


def _choose(
    name: str,
    candidates: Sequence[float],
    scores: ArrayLike,
    labels: ArrayLike,
    certify_with: Callable[[float], Certificate],
) -> float:
    if not len(candidates):
        raise ValueError(f"{name}={candidates!r} must name at least one candidate")
    if not len(np.asarray(scores)):
        raise ValueError("scores hold no image; a choice needs at least one")

    def goodness(value: float) -> tuple[int, int, float]:
        result = evaluate(certify_with(value), labels)
        return result.certified.count, result.clean.count, -value

    return max((float(value) for value in candidates), key=goodness)


def check_labels(
    labels: ArrayLike, num_images: int, num_classes: int | None
) -> np.ndarray:
    """Returns labels as an array, or raises the error that says what is wrong.

    Where the number of classes is not known, None, a label is any class from 0 on.
    """
    truth = np.asarray(labels)
    if not np.issubdtype(truth.dtype, np.integer):
        raise TypeError(
            f"labels have dtype {truth.dtype}; they must be integers, one class index "
            "for each image"
        )
    if truth.shape != (num_images,):
        raise ValueError(f"labels have shape {truth.shape}; it must be [{num_images}]")
    is_class = truth >= 0
    if num_classes is not None:
        is_class &= truth < num_classes
    if not is_class.all():
        worst = int(is_class.argmin())
        range_ = (
            "0 or above"
            if num_classes is None
            else f"in 0..{num_classes - 1}, the {num_classes} classes of the scores"
        )
        raise ValueError(f"labels[{worst}] = {truth[worst]} must be {range_}")
    return truth
