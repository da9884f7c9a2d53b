"""A classifier that may raise an alarm instead of answering in silence.

It raises one wherever the smallest duel of its answer is won by less than a margin. The
higher the margin, the fewer attacks change an answer in silence, and the more images
raise an alarm that nobody attacked. A margin of 0 is nearly no alarm; far enough up no
attack passes in silence.

The far end has a sharper form, for which `certify` is enough: with an alarm on whatever
is not certified, no attack on any image changes an answer in silence. (The attacked
image and the clean one differ in one touched set. If the attacked one is certified, no
rewriting of that set changes its prediction, so the clean one has the same.)
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.duels import (
    after_each_placement,
    bounds,
    check_levels,
    check_uncertain,
    chunks,
    count,
    predict,
    preference,
)
from dsmooth_jax.evaluation import Accuracy, check_labels
from dsmooth_jax.reach import best_worst_duels
from dsmooth_jax.threat import check_touched
from dsmooth_jax.types import PerClass, PerImage, PerImageFlag
from dsmooth_jax.voting import VotesLike


@dataclasses.dataclass(frozen=True, eq=False)
class AlarmCertificate:
    """What is proven about answers and alarms for each of N images.

    Margins are in votes (graded: in units of 1 / limit of a vote). A tie that may be
    lost by index is a duel lost by 1.

    Attributes:
      prediction: int64 [N], the smoothed classifier's class.
      margin: int64 [N], by how much the prediction wins its smallest duel, unattacked.
      least_margin: int64 [N], the same after the worst attack at the worst placement.
      rival_margin: int64 [N], by how much another class can be made to win all its
        duels, by the best attack at the best placement for it; negative if by none.
      counts: int64 [N, K], as in `Certificate`.
      alarm_margin: an alarm is raised where the smallest duel is won by less.
    """

    prediction: PerImage
    margin: PerImage
    least_margin: PerImage
    rival_margin: PerImage
    counts: PerClass
    alarm_margin: int

    @property
    def is_alarm(self) -> PerImageFlag:
        """Bool [N]: the image as it is raises an alarm."""
        return self.margin < self.alarm_margin

    @property
    def is_detected(self) -> PerImageFlag:
        """Bool [N]: no attack makes another class the answer without an alarm."""
        return self.rival_margin < self.alarm_margin

    @property
    def is_unwavering(self) -> PerImageFlag:
        """Bool [N]: no attack changes the answer, and none raises an alarm."""
        return self.least_margin >= self.alarm_margin

    def at(self, alarm_margin: int) -> "AlarmCertificate":
        """The same images with another alarm margin; nothing is computed anew."""
        return dataclasses.replace(self, alarm_margin=check_alarm_margin(alarm_margin))


def join_alarms(one: AlarmCertificate, other: AlarmCertificate) -> AlarmCertificate:
    """Of consecutive images, against one patch and with one alarm margin."""
    names = ("prediction", "margin", "least_margin", "rival_margin", "counts")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in names
    }
    return dataclasses.replace(one, **joined)


def certify_with_alarm(
    votes: VotesLike,
    touched: ArrayLike,
    *,
    alarm_margin: int,
    uncertain: ArrayLike | None = None,
) -> AlarmCertificate:
    """Certifies a classifier that raises an alarm where its answer is a close one.

    Args:
      votes: as in `certify`.
      touched: bool [L, P], as in `certify`.
      alarm_margin: an alarm is raised where the smallest duel is won by less; >= 0, in
        votes (in units of 1 / limit of a vote for graded ones). Choose it by
        `choose_alarm_margin`, on validation data.
      uncertain: as in `certify`: they count for the attacker. Prediction, margin and
        alarm stay nominal.

    Returns:
      An `AlarmCertificate`, one entry for each image.

    Raises:
      TypeError, ValueError: as `certify`; alarm_margin is no integer >= 0.

    Guarantee:
      Where ``is_detected``, whatever the touched ablations of any one row of
      ``touched`` vote, the answer is the prediction or there is an alarm. Where
      ``is_unwavering``, it is the prediction and there is none. Both under the
      assumptions of `certify`. For bool votes (none uncertain) both are exact: where
      they refuse, some votes of the touched ablations break them. So they are for
      levels of at most 10 classes, if the alarm margin is above 0; else for levels they
      are sound alone.

    Source: this library; "unwavering" is the word of CrossCert (Zhou et al., FSE 2024).

    >>> votes = np.array([[[True, False]] * 4 + [[False, True]]])  # 4 votes to 1
    >>> found = certify_with_alarm(votes, np.eye(5, dtype=bool), alarm_margin=2)
    >>> found.margin, found.least_margin, found.rival_margin
    (array([3]), array([1]), array([-1]))
    """
    levels, limit, is_votes = check_levels(votes)
    sets = check_touched(touched, levels.shape[1])
    doubt = check_uncertain(uncertain, levels.shape)
    alarm_margin = check_alarm_margin(alarm_margin)

    counts = np.empty((len(levels), levels.shape[2]), np.int64)
    prediction, margin, least, rival = np.empty((4, len(levels)), np.int64)
    for part in chunks(levels, len(sets)):
        counts[part] = count(levels[part], limit, is_votes)
        chosen = prediction[part] = predict(counts[part])
        nominal = preference(levels[part], levels[part], chosen, limit)
        duels = nominal.sum(axis=1, dtype=np.int64)
        is_own = np.arange(duels.shape[1]) == chosen[:, None]
        margin[part] = np.where(is_own, np.inf, duels).min(axis=1)
        low, high = bounds(levels[part], doubt, part, is_votes)
        attacked = preference(low, high, chosen, limit)
        left = after_each_placement(attacked, sets, limit).min(axis=0)
        ties = (np.arange(left.shape[1]) < chosen[:, None]) / 2
        least[part] = _settled(np.where(is_own, np.inf, left - ties).min(axis=1))
        best = best_worst_duels(low, high, counts[part], sets, limit, is_votes)
        rival[part] = _settled(np.where(is_own, -np.inf, best).max(axis=(0, 2)))
    return AlarmCertificate(prediction, margin, least, rival, counts, alarm_margin)


def choose_alarm_margin(margins: ArrayLike, rate: float) -> int:
    """Chooses the alarm margin for a rate of false alarms, on validation images.

    Args:
      margins: int64 [N], ``margin`` of an `AlarmCertificate` of validation images, as
        they are.
      rate: the share of them that may raise an alarm, in [0, 1).

    Returns:
      The largest alarm margin at which no more do; 0 where even there more do.

    Raises:
      TypeError, ValueError: no margins, or margins that are no integers; a rate out of
        range.

    >>> choose_alarm_margin(np.array([5, 0, 2, 9]), 0.25)
    2
    """
    ordered = np.sort(np.asarray(margins))
    if not np.issubdtype(ordered.dtype, np.integer):
        raise TypeError(f"margins have dtype {ordered.dtype}; they must be integers")
    if ordered.ndim != 1 or not len(ordered):
        raise ValueError(f"margins have shape {ordered.shape}; it must be [N], N >= 1")
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate!r} must be in [0, 1)")
    num_allowed = np.flatnonzero(np.arange(len(ordered)) / len(ordered) <= rate)[-1]
    return max(0, int(ordered[num_allowed]))


@dataclasses.dataclass(frozen=True)
class AlarmEvaluation:
    """How a classifier with an alarm did on labelled images, against one patch.

    Attributes:
      detected: images whose prediction is right, and under no attack becomes another
        one without an alarm.
      unwavering: images whose prediction is right and under attack stays so, with no
        alarm.
      false_alarms: images that raise an alarm as they are, right or wrong.
    """

    detected: Accuracy
    unwavering: Accuracy
    false_alarms: Accuracy

    def __add__(self, other: "AlarmEvaluation") -> "AlarmEvaluation":
        """Of both sets of images: a store is evaluated shard by shard."""
        return AlarmEvaluation(
            self.detected + other.detected,
            self.unwavering + other.unwavering,
            self.false_alarms + other.false_alarms,
        )


def evaluate_alarm(certificate: AlarmCertificate, labels: ArrayLike) -> AlarmEvaluation:
    """Counts detected, unwavering and falsely alarmed images.

    Args:
      certificate: of N images.
      labels: integers [N].

    Returns:
      The three shares, each of all N images.

    Raises:
      TypeError: labels are not integers.
      ValueError: their number or range does not fit the certificate.
    """
    num_images, num_classes = certificate.counts.shape
    truth = check_labels(labels, num_images, num_classes)
    is_right = certificate.prediction == truth

    def share(hits: PerImageFlag) -> Accuracy:
        return Accuracy(int(hits.sum()), num_images)

    return AlarmEvaluation(
        share(is_right & certificate.is_detected),
        share(is_right & certificate.is_unwavering),
        share(certificate.is_alarm),
    )


def check_alarm_margin(alarm_margin: int) -> int:
    """Returns the margin as an int, or raises the error that says what is wrong."""
    if isinstance(alarm_margin, bool) or not isinstance(alarm_margin, int | np.integer):
        raise TypeError(f"alarm_margin={alarm_margin!r} must be an integer")
    if alarm_margin < 0:
        raise ValueError(f"alarm_margin={alarm_margin} must be >= 0; 0 is the least")
    return int(alarm_margin)


def _settled(halves: np.ndarray) -> np.ndarray:
    """Integers of multiples of 1/2: a tie that is lost (-1/2) is lost by 1."""
    return np.where(halves == -0.5, -1, np.ceil(halves)).astype(np.int64)
