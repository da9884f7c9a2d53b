"""Everything that a report says, asked of a store in one pass over its shards.

`analyze` reads each shard once, casts each voting's votes once, and keeps what adds up
over images or is one number for each. Memory is bounded, whatever the number of images.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from dsmooth_jax.certificate import (
    RULES,
    Certificate,
    Rule,
    certify,
    largest_certified_patch,
)
from dsmooth_jax.evaluation import (
    STRENGTHS,
    THRESHOLDS,
    Accuracy,
    Evaluation,
    evaluate,
    right_by_ablation,
    sweep,
    tally,
)
from dsmooth_jax.queries import (
    certified_rectangles,
    certify_several,
    runner_up,
    vulnerability_map,
)
from dsmooth_jax.report.request import Key, Request, shown_sizes
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import PerAblation, PerImage
from dsmooth_jax.voting import Voting, uncertain_votes

Watch: TypeAlias = Callable[
    [Iterator[tuple[slice, np.ndarray]]], Iterable[tuple[slice, np.ndarray]]
]
"""Passes on groups of images, (which, their scores), and shows how far it is."""

# Scores held at a time: shards are small, and each touched set is enumerated once here.
_GROUP_BYTES = 2**26
_GROUP_IMAGES = 1000


def _of_keys(combine: Callable[[Any, Any], Any]) -> Mapping[str, Any]:
    """A field's metadata: how two are combined, in a dict those of the same key."""

    def of_keys(one: Any, two: Any) -> Any:
        if isinstance(one, dict):
            return {key: of_keys(one[key], two[key]) for key in one}
        return None if one is None else combine(one, two)

    return {"combine": of_keys}


_ADDED = _of_keys(operator.add)  # counts
_JOINED = _of_keys(lambda one, two: np.concatenate([one, two]))  # an entry per image
_SAME = _of_keys(lambda one, _: one)  # of the request alone


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """What `analyze` found about N images.

    Attributes:
      store: their scores.
      request: what was asked of them.
      results: {(voting, attack, rule): evaluation}; attacks by their names.
      margins: {(voting, attack, rule): int64 [N]}, of `certify`.
      predictions: {voting: int64 [N]}.
      largest: {voting: int64 [N]}, the side of the largest certified square.
      runner_up: int64 [N], by the request's voting.
      uncertain: {(voting, attack): images right and certified where doubtful votes
        count for the attacker}.
      is_exact: {(voting, attack): whether unions were tried out}, of several patches.
      right_by_ablation: int64 [P].
      sweep: {(voting, setting, attack, rule): evaluation}; empty unless asked.
      maps: {"margin", "rival": int64 [N, Dh, Dw]}; empty unless asked.
      settings: {(voting, setting): evaluation against the request's patch}; for
        figures.
      unproven: int64 [Dh, Dw], images that the request's patch at this placement may
        change, by the request's voting; for figures.
      rectangles: int64 [heights, widths], images right and certified, of
        `shown_sizes`; for figures.
      sample: float32 [n, P, K], the scores of the request's sample.
    """

    store: ScoreStore = dataclasses.field(metadata=_SAME)
    request: Request = dataclasses.field(metadata=_SAME)
    results: dict[Key, Evaluation] = dataclasses.field(metadata=_ADDED)
    margins: dict[Key, PerImage] = dataclasses.field(metadata=_JOINED)
    predictions: dict[Voting, PerImage] = dataclasses.field(metadata=_JOINED)
    largest: dict[Voting, PerImage] = dataclasses.field(metadata=_JOINED)
    runner_up: PerImage = dataclasses.field(metadata=_JOINED)
    uncertain: dict[tuple[Voting, str], Accuracy] = dataclasses.field(metadata=_ADDED)
    is_exact: dict[tuple[Voting, str], bool] = dataclasses.field(metadata=_SAME)
    right_by_ablation: PerAblation = dataclasses.field(metadata=_ADDED)
    sweep: dict[tuple[Any, ...], Evaluation] = dataclasses.field(metadata=_ADDED)
    maps: dict[str, np.ndarray] = dataclasses.field(metadata=_JOINED)
    settings: dict[tuple[Voting, float], Evaluation] = dataclasses.field(
        metadata=_ADDED
    )
    unproven: np.ndarray | None = dataclasses.field(metadata=_ADDED)
    rectangles: np.ndarray | None = dataclasses.field(metadata=_ADDED)
    sample: np.ndarray = dataclasses.field(metadata=_JOINED)

    def __add__(self, other: "Analysis") -> "Analysis":
        """Of both sets of images, in this order."""
        return Analysis(
            *(way(getattr(self, n), getattr(other, n)) for n, way in _WAYS.items())
        )

    @property
    def base_accuracy(self) -> float:
        """The mean over images and ablations; NaN of no images."""
        pairs = len(self.runner_up) * len(self.right_by_ablation)
        return float(self.right_by_ablation.sum() / pairs) if pairs else float("nan")

    def is_right(self, voting: Voting) -> np.ndarray:
        """Bool [N]: predicted as labelled, by this voting."""
        return self.predictions[voting] == self.store.labels

    def squares(
        self, sides: Iterable[int]
    ) -> dict[tuple[Voting, Patch, Rule], Evaluation]:
        """Evaluations against squares, by the placement rule, of all votings.

        What is certified against a square is certified against every smaller one, so
        the largest says all.

        Args:
          sides: pixels.

        Returns:
          {(voting, square, "placement"): evaluation}.
        """
        return {
            (voting, Patch(side, side), "placement"): tally(
                self.is_right(voting), self.largest[voting] >= side
            )
            for side in sides
            for voting in self.largest
        }


def ways_to_combine(record: type) -> dict[str, Callable[[Any, Any], Any]]:
    """How two values of each field of a record are combined.

    Raises:
      TypeError: a field does not say. A guess would add up what is one per image.
    """
    fields = dataclasses.fields(record)
    if silent := [field.name for field in fields if "combine" not in field.metadata]:
        raise TypeError(
            f"{record.__name__}.{silent[0]} must say how it is combined: "
            "dataclasses.field(metadata=_ADDED), _JOINED or _SAME"
        )
    return {field.name: field.metadata["combine"] for field in fields}


_WAYS = ways_to_combine(Analysis)  # at import: no field is forgotten


def analyze(
    store: ScoreStore,
    request: Request,
    *,
    watch: Watch = iter,
) -> Analysis:
    """Finds what is asked of saved scores, with no forward pass.

    Args:
      store: the scores.
      request: what is asked.
      watch: passes on what it is given, images (which, scores), to show how far it is.

    Returns:
      The analysis, of all images of the store.

    Raises:
      TypeError, ValueError: as `certify` and `cast_votes`.
      StoreError: a shard is missing or damaged.
    """
    parts = (
        _analyze_images(scores, span, store, request)
        for span, scores in watch(_groups(store))
    )
    return functools.reduce(operator.add, parts)


def _groups(store: ScoreStore) -> Iterator[tuple[slice, np.ndarray]]:
    """Joins consecutive shards; an empty store is one group of no image."""
    num_ablations = store.ablation.num_ablations(store.image_size)
    empty = np.empty((0, num_ablations, store.num_classes), np.float32)
    held, start, stop = [empty], 0, 0
    for span, scores in store:
        held.append(scores)
        stop = span.stop
        is_full = sum(part.nbytes for part in held) >= _GROUP_BYTES
        if is_full or stop - start >= _GROUP_IMAGES:
            yield slice(start, stop), np.concatenate(held)
            held, start = [], stop
    if start < stop or not stop:
        yield slice(start, stop), np.concatenate(held)


def _analyze_images(
    scores: np.ndarray, span: slice, store: ScoreStore, request: Request
) -> Analysis:
    """What is found about these images alone."""
    labels = store.labels[span]
    kept = request.sample[(request.sample >= span.start) & (request.sample < span.stop)]
    cast = {voting: request.cast(scores, voting) for voting in request.votings}
    certificates: dict[Key, Certificate] = {}
    uncertain: dict[tuple[Voting, str], Accuracy] = {}
    is_exact: dict[tuple[Voting, str], bool] = {}
    for voting, (votes, limit) in cast.items():
        doubt = _doubtful(scores, voting, request)
        for attack in request.attacks:
            name, sets = attack.name, attack.touched
            if attack.num_patches > 1:
                several, is_exact[voting, name] = certify_several(
                    votes, sets, attack.num_patches, limit=limit
                )
                certificates[voting, name, "placement"] = several
                continue
            for rule in RULES:
                found = certify(votes, sets, rule=rule, limit=limit)
                certificates[voting, name, rule] = found
            if doubt is not None:
                found = certify(votes, sets, limit=limit, uncertain=doubt)
                uncertain[voting, name] = evaluate(found, labels).certified
    predictions = {
        voting: found.prediction for (voting, _, _), found in certificates.items()
    }
    votes, limit = cast[request.voting]
    ablation, size = store.ablation, store.image_size
    maps = {}
    if request.has_maps:
        margin, rival = vulnerability_map(
            votes, ablation, request.patches[0], size, limit=limit
        )
        maps = {"margin": margin, "rival": rival}
    settings, unproven, rectangles = {}, None, None
    if request.has_figures:
        settings = _analyze_settings(scores, labels, request)
        at = vulnerability_map(votes, ablation, request.patch, size, limit=limit)[0]
        unproven = (at < 0).sum(axis=0)
        heights, widths = map(shown_sizes, size)
        robust = certified_rectangles(
            votes, ablation, size, heights, widths, limit=limit
        )
        rectangles = robust[predictions[request.voting] == labels].sum(axis=0)
    return Analysis(
        store=store,
        request=request,
        results={k: evaluate(found, labels) for k, found in certificates.items()},
        margins={k: found.margin for k, found in certificates.items()},
        predictions=predictions,
        largest={
            voting: largest_certified_patch(v, ablation, size, limit=limit)
            for voting, (v, limit) in cast.items()
        },
        runner_up=runner_up(votes, limit=limit),
        uncertain=uncertain,
        is_exact=is_exact,
        right_by_ablation=right_by_ablation(scores, labels),
        sweep=sweep(
            scores,
            labels,
            {a.name: a.touched for a in request.attacks if a.num_patches == 1},
            thresholds=request.thresholds,
            strengths=request.strengths,
        ),
        maps=maps,
        settings=settings,
        unproven=unproven,
        rectangles=rectangles,
        sample=scores[kept - span.start],
    )


def _analyze_settings(
    scores: np.ndarray, labels: np.ndarray, request: Request
) -> dict[tuple[Voting, float], Evaluation]:
    """Evaluations over the settings of each voting shown, the chosen one among them."""
    tried: dict[Voting, set[float]] = {
        "threshold": {*(request.thresholds or THRESHOLDS), request.threshold},
        "graded": {*(request.strengths or STRENGTHS), request.strength},
    }
    wanted = {v: sorted(tried[v]) if v in request.votings else () for v in tried}
    found = sweep(
        scores,
        labels,
        {a.name: a.touched for a in request.attacks if a.patch == request.patch},
        thresholds=wanted["threshold"],
        strengths=wanted["graded"],
        rules=("placement",),
    )
    return {(voting, value): result for (voting, value, *_), result in found.items()}


def _doubtful(
    scores: np.ndarray, voting: Voting, request: Request
) -> np.ndarray | None:
    """Votes within the tolerance of being cast otherwise; None where not defined."""
    name = {"threshold": "threshold", "graded": "strength"}.get(voting)
    if name is None:
        return None
    setting: dict[str, Any] = {name: request.setting(voting)}
    return uncertain_votes(scores, request.tolerance, **setting)
