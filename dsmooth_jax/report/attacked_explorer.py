"""What a page knows of attacks on the images that it shows, as plain JSON.

The attacked image, where the patch is, what was answered, and what each ablation says
for the one class or the other, before and after. All from what attack.py kept: nothing
is scored again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsmooth_jax.duels import check_levels, preference
from dsmooth_jax.evidence import LEVELS_PER_NAT, log_levels
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.attack_summary import FoundAttack
from dsmooth_jax.report.masked_explorer import coded
from dsmooth_jax.voting import GRADES, cast_votes

_MOST_SHOWN = 240
"""Images of all attacks together: for a page that stays light."""


def explore_attacks(
    analysis: Analysis, found: Sequence[FoundAttack]
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Collects what the explorer shows of attacks on a classifier of ablations.

    Args:
      analysis: what was found of the scores.
      found: what `attacks_of` found of the same store.

    Returns:
      For each attack that reached an image of the sample plain JSON, and the attacked
      images, uint8 [n, H, W, C]. ``name``; ``size`` of the patch, [height, width];
      ``decision``, "votes" or "double_masking"; ``by``, the same in words; ``unit``,
      how many make a vote, or a natural logarithm; ``fell`` and ``tried``, counts of
      images over the whole attack. For each image shown its place in the sample
      (``images``), the patch's ``row`` and ``column``, the answer ``before`` and
      ``after``, the ``rival``, which is the answer after, or else who came nearest, and
      ``preferences``: base64 of little-endian int16 [2, P], by how much each ablation
      prefers the answer before to the rival, before and after; null of attacks of older
      versions.
    """
    shown = [one for one in found if one.settings.get("decision") in _DECISIONS]
    explored = []
    for one in shown:
        sample, is_attacked = analysis.request.sample, one.arrays["corner"][:, 0] >= 0
        chosen = np.flatnonzero(is_attacked & np.isin(one.index, sample))
        most = min(len(chosen), max(1, _MOST_SHOWN // len(shown)))
        chosen = chosen[np.arange(most) * len(chosen) // max(most, 1)]
        if len(chosen):
            place = np.searchsorted(sample, one.index[chosen])
            page = {**_about(one), **_images(one, chosen, place, analysis.sample)}
            explored.append((page, one.arrays["image"][chosen]))
    return explored


_DECISIONS = ("votes", "double_masking")


def _about(one: FoundAttack) -> dict[str, Any]:
    """What is said of the whole attack."""
    voting = one.settings["voting"].replace("_", " ")
    design = "x".join(map(str, one.settings["patch"] or ()))
    is_votes = one.settings["decision"] == "votes"
    limit = GRADES if one.settings["voting"] == "graded" else 1
    return {
        "name": one.name,
        "size": [one.patch.height, one.patch.width],
        "decision": one.settings["decision"],
        "by": f"{voting} votes" if is_votes else f"double masking, made for {design}",
        "unit": limit if is_votes else LEVELS_PER_NAT,
        "fell": int(one.arrays["is_broken"].sum()),
        "tried": int((one.arrays["corner"][:, 0] >= 0).sum()),
    }


def _images(
    one: FoundAttack, chosen: np.ndarray, place: np.ndarray, sample: np.ndarray
) -> dict[str, Any]:
    """What is said of each image shown."""
    arrays = {name: array[chosen] for name, array in one.arrays.items()}
    own, rival = arrays["clean"], arrays["attacked"].copy()
    preferences = None
    if "scores" in arrays:
        before = sample[place]
        after = before.copy()
        after[np.arange(len(after))[:, None], arrays["touched"]] = arrays["scores"]
        both = [_preferences(scores, own, one.settings) for scores in (before, after)]
        rival = np.where(rival == own, _nearest(both[1], own), rival)
        index = rival[:, None, None]
        pairs = [np.take_along_axis(x, index, axis=2)[..., 0] for x in both]
        preferences = [coded(pair) for pair in np.stack(pairs, axis=1).astype("<i2")]
    return {
        "images": place.tolist(),
        "row": arrays["corner"][:, 0].tolist(),
        "column": arrays["corner"][:, 1].tolist(),
        "before": own.tolist(),
        "after": arrays["attacked"].tolist(),
        "rival": rival.tolist(),
        "preferences": preferences,
    }


def _preferences(
    scores: np.ndarray, own: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    """Integers [n, P, K]: by how much each ablation prefers the own class to each."""
    if settings["decision"] == "double_masking":
        levels = log_levels(scores).astype(np.int32)
        return preference(levels, levels, own, np.iinfo(np.int16).max)
    votes = cast_votes(
        scores,
        settings["voting"],
        threshold=settings["threshold"],
        strength=settings["strength"],
    )
    levels, limit, _ = check_levels(votes)
    return preference(levels, levels, own, limit)


def _nearest(preferences: np.ndarray, own: np.ndarray) -> np.ndarray:
    """int64 [n]: the class against which least is left, of all ablations together."""
    sums = preferences.sum(axis=1, dtype=np.int64)
    sums[np.arange(len(sums)), own] = np.iinfo(np.int64).max
    return sums.argmin(axis=1)
