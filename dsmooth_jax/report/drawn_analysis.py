"""What only figures show, and what takes most work: of all images, or of a sample."""

import numpy as np

from dsmooth_jax.evaluation import STRENGTHS, THRESHOLDS, Evaluation, sweep
from dsmooth_jax.queries import certified_rectangles, vulnerability_map
from dsmooth_jax.report.request import Request
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.voting import Voting


def analyze_drawn(
    scores: np.ndarray,
    span: slice,
    store: ScoreStore,
    request: Request,
    is_right: np.ndarray,
) -> tuple[dict[tuple[Voting, float], Evaluation], np.ndarray, np.ndarray]:
    """The fields ``settings``, ``unproven`` and ``rectangles`` of an `Analysis`.

    Args:
      scores: float32 [n, P, K].
      span: which images of the store they are of.
      store: the store.
      request: what is asked; images that it does not draw are left out.
      is_right: bool [n], by the request's voting.
    """
    part = _drawn(request, span)
    labels = store.labels[span][part]
    votes, doubt = request.cast(scores[part], request.voting)
    ablation, size = store.ablation, store.image_size
    at, _ = vulnerability_map(votes, ablation, request.patch, size, uncertain=doubt)
    sides = map(request.sizes, size)
    robust = certified_rectangles(votes, ablation, size, *sides, uncertain=doubt)
    return (
        _analyze_settings(scores[part], labels, request),
        (at < 0).sum(axis=0),
        robust[is_right[part]].sum(axis=0),
    )


def _drawn(request: Request, span: slice) -> np.ndarray | slice:
    """Which of these images the costly figures count."""
    if request.drawn is None:
        return slice(None)
    is_here = (request.drawn >= span.start) & (request.drawn < span.stop)
    return request.drawn[is_here] - span.start


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
        tolerance=request.tolerance,
    )
    return {(voting, value): result for (voting, value, *_), result in found.items()}
