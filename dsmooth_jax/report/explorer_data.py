"""What a page knows of each image that it shows, as plain JSON.

Margins against every square, where the worst placement lies, which duel is lost there,
and what each ablation says in that duel: enough to draw any of it, and to add it up
again, without the scores.
"""

import base64
from typing import Any

import numpy as np

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.duels import bounds, check_levels, preference
from dsmooth_jax.queries import worst_placement
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.masked_explorer import explore_masks, share
from dsmooth_jax.report.thumbnails import class_names
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import ImageSize
from dsmooth_jax.voting import Voting

ALARMS = ("needs none", "raised as it is", "raised if attacked", "may stay silent")
"""What an alarm does for an image; the page holds them by their index."""


def explore(analysis: Analysis) -> dict[str, Any]:
    """Collects what the explorer of a page shows.

    Args:
      analysis: what was found; the request's sample is what is shown one by one.

    Returns:
      Plain JSON. ``votings`` holds for each voting ``clean`` and ``squares``, counts
      over *all* images with 95 % intervals in [0, 1], and for the images shown, in the
      order of ``ids``: ``prediction``, ``largest`` (side of the largest certified
      square), and for each of ``sides`` the ``margin``, the ``rival`` and the
      ``corner`` (row * W + column) of the worst placement; ``duels``, for each rival
      that occurs (and the label), base64 of int8 [P]: how much each ablation prefers
      the prediction to it at least, in units of 1 / ``limit`` of a vote; ``asked``, of
      each attack for which ranks or alarms were asked, its name, ``rank`` and
      ``worstRank`` of the label, and by rate of false alarms which of `ALARMS` holds.
      ``masking`` is of `explore_masks`.
    """
    store, request = analysis.store, analysis.request
    sides = analysis.request.sizes(min(store.image_size))
    return {
        "classes": class_names(store),
        "numImages": len(store),
        "imageSize": list(store.image_size),
        "sides": sides,
        "main": request.voting,
        "focus": _nearest_side(request.patch, sides),
        "windows": _windows(store.ablation, store.image_size),
        "ids": store.ids[request.sample].tolist(),
        "labels": store.labels[request.sample].tolist(),
        "votings": {
            voting: _voting(analysis, voting, sides) for voting in request.votings
        },
        "alarms": ALARMS,
        "masking": explore_masks(analysis, sides),
    }


def is_grid(ablation: Ablation, image_size: ImageSize) -> bool:
    """Whether ablations lie in a grid: one window each, several down and across."""
    windows = ablation.windows(image_size)
    return windows.is_single and min(len(windows.rows), len(windows.columns)) > 1


def _voting(analysis: Analysis, voting: Voting, sides: list[int]) -> dict[str, Any]:
    store, request = analysis.store, analysis.request
    squares = analysis.squares(sides)
    found = [squares[voting, Patch(side, side), "placement"] for side in sides]
    votes, doubt = request.cast(analysis.sample, voting)
    width = store.image_size[1]
    margins, rivals, corners = [], [], []  # [sides, n] each
    for side in sides:
        margin, rival, corner = worst_placement(
            votes,
            store.ablation,
            Patch(side, side),
            store.image_size,
            uncertain=doubt,
        )
        margins.append(margin)
        rivals.append(rival)
        corners.append(corner @ [width, 1])
    prediction = analysis.predictions[voting][request.sample]
    levels, limit, is_votes = check_levels(votes)
    low, high = bounds(levels, doubt, slice(None), is_votes)
    preferences = preference(low, high, prediction, limit)
    asked = np.stack([*rivals, store.labels[request.sample]], axis=1)  # [n, sides + 1]
    return {
        "setting": request.setting(voting),
        "limit": limit,
        "clean": share(found[0].clean),
        "squares": [
            {"certified": share(e.certified), "wrong": share(e.certified_wrong)}
            for e in found
        ],
        "prediction": prediction.tolist(),
        "largest": analysis.largest[voting][request.sample].tolist(),
        "margin": np.stack(margins, axis=1).tolist(),
        "rival": np.stack(rivals, axis=1).tolist(),
        "corner": np.stack(corners, axis=1).tolist(),
        "duels": [
            {
                str(j): base64.b64encode(one[:, j].astype(np.int8).tobytes()).decode()
                for j in np.unique(classes[classes != own]).tolist()
            }
            for one, classes, own in zip(preferences, asked, prediction, strict=True)
        ],
        "asked": _asked(analysis, voting),
    }


def _asked(analysis: Analysis, voting: Voting) -> list[dict[str, Any]]:
    """What top-k and alarms say of the images shown, a record for each attack."""
    request, records = analysis.request, []
    for attack in request.single_attacks:
        record: dict[str, Any] = {}
        if request.top_k:
            record["rank"] = analysis.clean_ranks[voting][request.sample].tolist()
            worst = analysis.ranks[voting, attack.name]
            record["worstRank"] = worst[request.sample].tolist()
        for (of, rate), margin in request.alarms.items():
            if of == voting:
                found = analysis.alarms[voting, attack.name].at(margin)
                states = [found.is_unwavering, found.is_alarm, found.is_detected]
                state = np.select(states, [0, 1, 2], 3)[request.sample]
                record.setdefault("alarms", {})[f"{100 * rate:g} %"] = state.tolist()
        if record:
            records.append({"attack": attack.name, **record})
    return records


def _nearest_side(patch: Patch, sides: list[int]) -> int:
    """The square whose area is nearest to the patch's."""
    return min(sides, key=lambda m: abs(m * m - patch.height * patch.width))


def _windows(ablation: Ablation, image_size: ImageSize) -> dict[str, Any]:
    """Which pixels each ablation keeps: bands as [[start, stop], ...], and choices."""
    windows = ablation.windows(image_size)
    return {
        "rows": [_intervals(band) for band in windows.rows],
        "columns": [_intervals(band) for band in windows.columns],
        # Window w is rows[w // S], columns[w % S]; ablation p keeps choices[p].
        "choices": None if windows.is_single else windows.choices.tolist(),
    }


def _intervals(band: np.ndarray) -> list[list[int]]:
    """The runs of True in bool [length], as half-open intervals."""
    edges = np.flatnonzero(np.diff(np.pad(band.astype(np.int8), 1)))
    return edges.reshape(-1, 2).tolist()
