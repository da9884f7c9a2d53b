"""Top-k and alarms, of the images of one group: what `analysis` keeps of them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dsmooth_jax.alarms import (
    AlarmCertificate,
    certify_with_alarm,
    choose_alarm_margin,
)
from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.ranks import worst_rank
from dsmooth_jax.report.request import Request
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.types import PerImage, Touched, Votes
from dsmooth_jax.voting import GradedVotes, VotesLike, Voting

Cast: TypeAlias = Mapping[Voting, tuple[Votes | GradedVotes, Votes | None]]
"""Of each voting what `Request.cast` gives."""

SweptRank: TypeAlias = tuple[Voting, float, str, int]
"""A voting, its setting, an attack by its name, k."""


def rank_labels(
    labels: np.ndarray, cast: Cast, request: Request
) -> tuple[dict[tuple[Voting, str], PerImage], dict[Voting, PerImage]]:
    """The worst rank of each label against each attack, and its rank unattacked."""
    ranks, clean = {}, {}
    for voting, (votes, doubt) in cast.items() if request.top_k else ():
        nothing = np.zeros((1, votes.shape[1]), bool)
        clean[voting] = _rank(labels, votes, nothing, voting, None)
        for attack in request.single_attacks:
            found = _rank(labels, votes, attack.touched, voting, doubt)
            ranks[voting, attack.name] = found
    return ranks, clean


def sweep_ranks(
    scores: np.ndarray, labels: np.ndarray, request: Request
) -> dict[SweptRank, Accuracy]:
    """Images whose label is certified to rank among the first k, at every setting."""
    settings: list[tuple[Voting, float]]
    settings = [("threshold", value) for value in request.thresholds]
    settings += [("graded", value) for value in request.strengths]
    found = {}
    for voting, value in settings if request.top_k else ():
        setting: dict[str, Any] = {
            "threshold" if voting == "threshold" else "strength": value
        }
        votes, doubt = dataclasses.replace(request, **setting).cast(scores, voting)
        for attack in request.single_attacks:
            ranks = _rank(labels, votes, attack.touched, voting, doubt)
            for k in request.top_k:
                found[voting, value, attack.name, k] = within(ranks, k)
    return found


def within(ranks: PerImage, k: int) -> Accuracy:
    """The share of images with a rank among the first k."""
    return Accuracy(int((ranks <= k).sum()), len(ranks))


def certify_alarms(
    cast: Cast, request: Request
) -> dict[tuple[Voting, str], AlarmCertificate]:
    """Certificates with an alarm margin of 0, to be taken at any other."""
    return {
        (voting, attack.name): certify_with_alarm(
            votes, attack.touched, alarm_margin=0, uncertain=doubt
        )
        for voting, (votes, doubt) in cast.items()
        for attack in request.single_attacks
        if request.alarms
    }


def alarm_margins(
    validation: Iterable[tuple[slice, np.ndarray]] | ScoreStore,
    request: Request,
    rates: Sequence[float],
) -> dict[tuple[Voting, float], int]:
    """Chooses alarm margins on validation images, as `Request` takes them.

    Args:
      validation: their scores, of the same classifier.
      request: whose votings and settings they are for.
      rates: of false alarms, each in [0, 1).

    Returns:
      {(voting, rate): alarm margin}.

    Raises:
      TypeError, ValueError: as `choose_alarm_margin`.
    """
    margins: dict[Voting, list[PerImage]] = {v: [] for v in request.votings}
    for _, scores in validation:
        nothing = np.zeros((1, scores.shape[1]), bool)
        for voting, held in margins.items():
            votes, _ = request.cast(scores, voting)
            found = certify_with_alarm(votes, nothing, alarm_margin=0)
            held.append(found.margin)
    return {
        (voting, rate): choose_alarm_margin(np.concatenate(held), rate)
        for voting, held in margins.items()
        for rate in rates
    }


def _rank(
    labels: np.ndarray,
    votes: VotesLike,
    touched: Touched,
    voting: Voting,
    doubt: Votes | None,
) -> PerImage:
    ranks = worst_rank(
        votes,
        touched,
        classes=labels[:, None],
        one_vote=voting == "top_one",
        uncertain=doubt,
    )
    return ranks[:, 0]
