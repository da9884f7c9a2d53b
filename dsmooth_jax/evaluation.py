"""Where labels meet certificates: accuracies with intervals, and choices on validation.

Nothing here knows where labels come from. Which split may choose and which may only be
measured is the caller's discipline: thresholds are chosen on validation data.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from dsmooth_jax.certificate import Certificate, Rule, certify
from dsmooth_jax.voting import check_scores, threshold_votes

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(2, 19))
"""The thresholds tried where none are given: 0.1, 0.15, ..., 0.9."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of images, with its 95 % Wilson score interval.

    Attributes:
      count: images counted.
      num_images: images in all.
    """

    count: int
    num_images: int

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


def evaluate(certificate: Certificate, labels: ArrayLike) -> Evaluation:
    """Counts right, certified, and certified-but-wrong predictions.

    Args:
      certificate: of N images.
      labels: integers [N], 0..K-1.

    Returns:
      The three accuracies, each of all N images.

    Raises:
      TypeError: labels are not integers.
      ValueError: their number or range does not fit the certificate.
    """
    num_images, num_classes = certificate.counts.shape
    truth = check_labels(labels, num_images, num_classes)
    right = certificate.prediction == truth
    certified = certificate.is_certified

    def share(hits: np.ndarray) -> Accuracy:
        return Accuracy(int(hits.sum()), num_images)

    return Evaluation(share(right), share(right & certified), share(~right & certified))


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
    checked = check_scores(scores)
    truth = check_labels(labels, len(checked), checked.shape[2])
    if not len(checked):
        return float("nan")
    return float((checked.argmax(axis=2) == truth[:, None]).mean())


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
    if not len(thresholds):
        raise ValueError("thresholds=() must name at least one threshold")
    if not len(np.asarray(scores)):
        raise ValueError("scores hold no image; a choice needs at least one")

    def goodness(threshold: float) -> tuple[int, int, float]:
        votes = threshold_votes(scores, threshold)
        result = evaluate(certify(votes, touched, rule=rule), labels)
        return result.certified.count, result.clean.count, -threshold

    return max((float(t) for t in thresholds), key=goodness)


def check_labels(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    """Returns labels as an array, or raises the error that says what is wrong."""
    truth = np.asarray(labels)
    if not np.issubdtype(truth.dtype, np.integer):
        raise TypeError(
            f"labels have dtype {truth.dtype}; they must be integers, one class index "
            "for each image"
        )
    if truth.shape != (num_images,):
        raise ValueError(f"labels have shape {truth.shape}; it must be [{num_images}]")
    if truth.size and not (truth.min() >= 0 and truth.max() < num_classes):
        worst = int(np.argmax((truth < 0) | (truth >= num_classes)))
        raise ValueError(
            f"labels[{worst}] = {truth[worst]} must be in 0..{num_classes - 1}, "
            f"the {num_classes} classes of the scores"
        )
    return truth
