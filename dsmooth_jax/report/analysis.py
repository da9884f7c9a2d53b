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

from dsmooth_jax.alarms import AlarmCertificate, join_alarms
from dsmooth_jax.certificate import (
    RULES,
    Certificate,
    Rule,
    certify,
    largest_certified_patch,
)
from dsmooth_jax.double_masking import (
    MaskedCertificate,
    double_masking_predict,
    join,
)
from dsmooth_jax.evaluation import (
    Accuracy,
    Evaluation,
    evaluate,
    right_by_ablation,
    sweep,
    tally,
)
from dsmooth_jax.evidence import levels_and_doubts, mask_table
from dsmooth_jax.leaving_out import design_masks
from dsmooth_jax.queries import (
    certify_several,
    runner_up,
    vulnerability_map,
)
from dsmooth_jax.report.drawn_analysis import analyze_drawn
from dsmooth_jax.report.groups import groups_of, side_by_side
from dsmooth_jax.report.masked_analysis import (
    against_attacks,
    against_squares,
    detected_accuracy,
    square_masks,
)
from dsmooth_jax.report.ranking import (
    SweptRank,
    certify_alarms,
    rank_labels,
    sweep_ranks,
)
from dsmooth_jax.report.request import (
    DOUBLE_MASKING,
    Key,
    Request,
    Way,
)
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import AblationMasks, PerAblation, PerImage, Touched, Votes
from dsmooth_jax.voting import GradedVotes, Voting

Watch: TypeAlias = Callable[
    [Iterator[tuple[slice, np.ndarray]]], Iterable[tuple[slice, np.ndarray]]
]
"""Passes on groups of images, (which, their scores), and shows how far it is."""


def _of_keys(combine: Callable[[Any, Any], Any]) -> Mapping[str, Any]:
    """A field's metadata: how two are combined, in a dict those of the same key."""

    def of_keys(one: Any, two: Any) -> Any:
        if isinstance(one, dict):
            return {key: of_keys(one[key], two[key]) for key in one}
        return None if one is None else combine(one, two)

    return {"combine": of_keys}


def _join(one: Any, two: Any) -> Any:
    is_record = isinstance(one, MaskedCertificate)
    return join([one, two]) if is_record else np.concatenate([one, two])


_ADDED = _of_keys(operator.add)  # counts
_JOINED = _of_keys(_join)  # an entry per image
_SAME = _of_keys(lambda one, _: one)  # of the request alone


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """What `analyze` found about N images.

    Attributes:
      store: their scores.
      request: what was asked of them.
      results: {(way to decide, attack, rule): evaluation}; attacks by their names.
      margins: {(voting, attack, rule): int64 [N]}, of `certify`.
      masked: {attack: certificate by double masking}, where it can certify.
      masked_squares: {side: the same, by masks for this square}; for figures.
      prediction: int64 [N], what the classifier answers: by its votes, or by the masks
        of its design.
      predictions: {voting: int64 [N]}.
      largest: {way to decide: int64 [N]}, the side of the largest certified square; by
        double masking where there are figures.
      runner_up: int64 [N], by the request's voting.
      nominal: {(voting, attack): images right and certified, by the placement rule,
        for the scores as they are alone: at a tolerance of 0}.
      is_exact: {(voting, attack): whether unions were tried out}, of several patches.
      right_by_ablation: int64 [P].
      sweep: {(voting, setting, attack, rule): evaluation}; empty unless asked.
      ranks: {(voting, attack): int64 [N]}, the label's worst, where top_k is asked.
      clean_ranks: {voting: int64 [N]}, the label's rank as images are; likewise.
      alarms: {(voting, attack): certificate, at an alarm margin of 0}; empty unless
        asked.
      sweep_ranks: {(voting, setting, attack, k): images whose label is certified to
        rank so high}; empty unless both are asked.
      maps: {"margin", "rival": int64 [N, Dh, Dw]}; empty unless asked.
      settings: {(voting, setting): evaluation against the request's patch}; for
        figures.
      unproven: int64 [Dh, Dw], images that the request's patch at this placement may
        change, by the request's voting; for figures.
      rectangles: int64 [heights, widths], images right and certified, of
        `Request.sizes`; for figures.
      sample: float32 [n, P, K], the scores of the request's sample.
    """

    store: ScoreStore = dataclasses.field(metadata=_SAME)
    request: Request = dataclasses.field(metadata=_SAME)
    results: dict[Key, Evaluation] = dataclasses.field(metadata=_ADDED)
    margins: dict[Key, PerImage] = dataclasses.field(metadata=_JOINED)
    masked: dict[str, MaskedCertificate] = dataclasses.field(metadata=_JOINED)
    masked_squares: dict[int, MaskedCertificate] = dataclasses.field(metadata=_JOINED)
    prediction: PerImage = dataclasses.field(metadata=_JOINED)
    predictions: dict[Way, PerImage] = dataclasses.field(metadata=_JOINED)
    largest: dict[Way, PerImage] = dataclasses.field(metadata=_JOINED)
    runner_up: PerImage = dataclasses.field(metadata=_JOINED)
    nominal: dict[tuple[Way, str], Accuracy] = dataclasses.field(metadata=_ADDED)
    is_exact: dict[tuple[Way, str], bool] = dataclasses.field(metadata=_SAME)
    right_by_ablation: PerAblation = dataclasses.field(metadata=_ADDED)
    sweep: dict[tuple[Any, ...], Evaluation] = dataclasses.field(metadata=_ADDED)
    ranks: dict[tuple[Voting, str], PerImage] = dataclasses.field(metadata=_JOINED)
    clean_ranks: dict[Voting, PerImage] = dataclasses.field(metadata=_JOINED)
    alarms: dict[tuple[Voting, str], AlarmCertificate] = dataclasses.field(
        metadata=_of_keys(join_alarms)
    )
    sweep_ranks: dict[SweptRank, Accuracy] = dataclasses.field(metadata=_ADDED)
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

    def is_right(self, voting: Way) -> np.ndarray:
        """Bool [N]: predicted as labelled, by this voting."""
        return self.predictions[voting] == self.store.labels

    def way_against(self, attack: str) -> Way:
        """How the classifier decides, where it can certify against this attack so."""
        is_masked = self.request.design is not None and attack in self.masked
        return DOUBLE_MASKING if is_masked else self.request.voting

    def is_hit(self, way: Way, attack: str) -> np.ndarray:
        """Bool [N]: right and certified, by the placement rule or by double masking."""
        if way == DOUBLE_MASKING:
            found = self.masked[attack]
            return found.is_certified & (found.prediction == self.store.labels)
        return self.is_right(way) & (self.margins[way, attack, "placement"] >= 0)

    @property
    def clean(self) -> Accuracy:
        """Images that the classifier gets right, as it decides."""
        is_right = self.prediction == self.store.labels
        return Accuracy(int(is_right.sum()), len(is_right))

    @property
    def detected(self) -> dict[str, Accuracy]:
        """{attack: images right on which all single masks agree}."""
        labels = self.store.labels
        return {a: detected_accuracy(found, labels) for a, found in self.masked.items()}

    def squares(
        self, sides: Iterable[int]
    ) -> dict[tuple[Way, Patch, Rule], Evaluation]:
        """Evaluations against squares, by the placement rule and by double masking.

        What votes certify they certify against every smaller square: the largest says
        all. Double masking decides by masks made for each square.

        Args:
          sides: pixels.

        Returns:
          {(way to decide, square, "placement"): evaluation}; by double masking of the
          squares that it can certify against.
        """
        found: dict[tuple[Way, Patch, Rule], Evaluation] = {}
        for side in sides:
            square = Patch(side, side)
            for voting in self.predictions:
                is_certified = self.largest[voting] >= side
                found[voting, square, "placement"] = tally(
                    self.is_right(voting), is_certified
                )
            if side in self.masked_squares:
                masked = evaluate(self.masked_squares[side], self.store.labels)
                found[DOUBLE_MASKING, square, "placement"] = masked
        return found


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
    squares = {}
    if request.has_squares:
        sides = request.sizes(min(store.image_size))
        squares = square_masks(store.ablation, store.image_size, sides)

    def analyze_group(group: tuple[slice, np.ndarray]) -> Analysis:
        span, scores = group
        return _analyze_images(scores, span, store, request, squares)

    return functools.reduce(
        operator.add, side_by_side(analyze_group, watch(groups_of(store)))
    )


def _analyze_images(
    scores: np.ndarray,
    span: slice,
    store: ScoreStore,
    request: Request,
    square_masks: Mapping[int, AblationMasks],
) -> Analysis:
    """What is found about these images alone."""
    labels = store.labels[span]
    kept = request.sample[(request.sample >= span.start) & (request.sample < span.stop)]
    cast = {voting: request.cast(scores, voting) for voting in request.votings}
    certificates: dict[Key, Certificate] = {}
    nominal: dict[tuple[Way, str], Accuracy] = {}
    is_exact: dict[tuple[Way, str], bool] = {}
    for voting, (votes, doubt) in cast.items():
        for attack in request.attacks:
            name, sets = attack.name, attack.touched
            if attack.num_patches > 1:
                several, is_exact[voting, name] = certify_several(
                    votes, sets, attack.num_patches, uncertain=doubt
                )
                certificates[voting, name, "placement"] = several
                continue
            for rule in RULES:
                found = certify(votes, sets, rule=rule, uncertain=doubt)
                certificates[voting, name, rule] = found
            found = certificates[voting, name, "placement"]
            nominal[voting, name] = _nominal(found, votes, sets, doubt, labels)
    results = {k: evaluate(found, labels) for k, found in certificates.items()}
    levels, level_doubt = levels_and_doubts(scores, request.tolerance)
    masked = against_attacks(levels, request.attacks, level_doubt)
    for name, found_masked in masked.items():
        results[DOUBLE_MASKING, name, "placement"] = evaluate(found_masked, labels)
    predictions = {
        voting: found.prediction for (voting, _, _), found in certificates.items()
    }
    votes, doubt = cast[request.voting]
    ablation, size = store.ablation, store.image_size
    maps = {}
    if request.has_maps:
        margin, rival = vulnerability_map(
            votes, ablation, request.patches[0], size, uncertain=doubt
        )
        maps = {"margin": margin, "rival": rival}
    largest: dict[Way, PerImage] = {
        voting: largest_certified_patch(v, ablation, size, uncertain=its)
        for voting, (v, its) in cast.items()
    }
    prediction = predictions[request.voting]
    if request.design is not None:
        masks = design_masks(ablation, request.design, size)
        prediction = double_masking_predict(mask_table(levels, masks))
    ranks, clean_ranks = rank_labels(labels, cast, request)
    squares, unproven, rectangles = {}, None, None
    settings: dict[tuple[Voting, float], Evaluation] = {}
    if request.has_squares:
        squares = against_squares(levels, square_masks, ablation, size, level_doubt)
        largest[DOUBLE_MASKING] = np.zeros(len(scores), np.int64)
        for side, masked_square in squares.items():
            largest[DOUBLE_MASKING][masked_square.is_certified] = side
    if request.has_figures:
        settings, unproven, rectangles = analyze_drawn(
            scores, span, store, request, predictions[request.voting] == labels
        )
    return Analysis(
        store=store,
        request=request,
        results=results,
        margins={k: found.margin for k, found in certificates.items()},
        masked=masked,
        masked_squares=squares,
        prediction=prediction,
        predictions=predictions,
        largest=largest,
        runner_up=runner_up(votes),
        nominal=nominal,
        is_exact=is_exact,
        right_by_ablation=right_by_ablation(scores, labels),
        sweep=sweep(
            scores,
            labels,
            {a.name: a.touched for a in request.single_attacks},
            thresholds=request.thresholds,
            strengths=request.strengths,
            tolerance=request.tolerance,
        ),
        ranks=ranks,
        clean_ranks=clean_ranks,
        alarms=certify_alarms(cast, request),
        sweep_ranks=sweep_ranks(scores, labels, request),
        maps=maps,
        settings=settings,
        unproven=unproven,
        rectangles=rectangles,
        sample=scores[kept - span.start],
    )


def _nominal(
    found: Certificate,
    votes: Votes | GradedVotes,
    touched: Touched,
    doubt: Votes | None,
    labels: np.ndarray,
) -> Accuracy:
    """Images right and certified for the scores as they are: no vote is in doubt."""
    is_certified = found.is_certified.copy()
    if doubt is not None:  # what is certified in doubt is without
        asked = ~is_certified
        is_certified[asked] = certify(votes[asked], touched).is_certified
    return tally(found.prediction == labels, is_certified).certified
