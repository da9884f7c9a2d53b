"""What a report is asked: which patches, which votings, which settings."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.certificate import Rule
from dsmooth_jax.queries import rectangles_of_area, touched_by_any
from dsmooth_jax.storage.provenance import Origin
from dsmooth_jax.threat import Patch, touched
from dsmooth_jax.types import ImageSize, Touched
from dsmooth_jax.voting import (
    STRENGTH,
    THRESHOLD,
    Voting,
    cast_votes,
    check_strength,
    check_threshold,
    check_tolerance,
    check_voting,
)

Key: TypeAlias = tuple[Voting, str, Rule]
"""A voting, an attack by its name, a rule."""

_MOST_SIZES = 32  # patch heights and widths that a figure or a slider shows


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """What is certified against.

    Attributes:
      name: as tables and files call it, for example "5x5" or "2 x 5x5".
      touched: bool [L, P], its touched sets.
      num_patches: how many of them at once, >= 1.
      patch: the patch, where it is one of one size; None where it is more.
    """

    name: str
    touched: Touched
    num_patches: int = 1
    patch: Patch | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is asked of scores.

    Attributes:
      attacks: in the order of the table, each of another name; see `attacks_on`.
      votings: the votings, side by side.
      threshold: of threshold votes, in (0, 1].
      strength: of graded votes, in [1, 100].
      voting: the voting that the figures are about.
      tolerance: scores this close to a vote's edge count for the attacker too.
      thresholds: of a sweep over every attack and both rules.
      strengths: likewise.
      has_maps: also the margin of every image at every placement of the first patch.
      has_figures: also what only figures and page show.
      sample: int64 [n], increasing: the images whose scores are kept, for the page.
    """

    attacks: Sequence[Attack]
    votings: tuple[Voting, ...]
    threshold: float
    strength: float
    _: dataclasses.KW_ONLY
    voting: Voting
    tolerance: float = 1e-6
    thresholds: Sequence[float] = ()
    strengths: Sequence[float] = ()
    has_maps: bool = False
    has_figures: bool = True
    sample: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, np.int64)
    )

    def __post_init__(self) -> None:
        for voting in self.votings:
            check_voting(voting)
        if self.voting not in self.votings:
            raise ValueError(f"voting={self.voting!r} must be one of {self.votings}")
        check_threshold(self.threshold)
        check_strength(self.strength)
        is_graded = "graded" in self.votings
        check_tolerance(self.tolerance, self.strength if is_graded else None)
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise ValueError(f"attacks={names} must differ in their names")
        if not self.patches:
            raise ValueError(
                "attacks must hold a patch; add for example ds.Patch(5, 5)"
            )

    @property
    def patches(self) -> list[Patch]:
        """The attacks that are one patch, in the order asked."""
        return [attack.patch for attack in self.attacks if attack.patch is not None]

    @property
    def patch(self) -> Patch:
        """The patch that figures of a single one are about: the middle one by area."""
        ordered = sorted(self.patches, key=lambda patch: patch.height * patch.width)
        return ordered[len(ordered) // 2]

    def cast(self, scores: np.ndarray, voting: Voting) -> tuple[np.ndarray, int | None]:
        """Votes or levels [N, P, K] by a voting with its setting, and their limit."""
        return cast_votes(
            scores, voting, threshold=self.threshold, strength=self.strength
        )

    def setting(self, voting: Voting) -> float | None:
        """The voting's threshold or strength; None for top one, which has none."""
        return {"threshold": self.threshold, "graded": self.strength}.get(voting)


def request_of(
    saved: Origin,
    attacks: Sequence[Attack],
    votings: Sequence[Voting] = ("threshold", "graded"),
    *,
    threshold: float | None = None,
    strength: float | None = None,
    **others: Any,
) -> Request:
    """Asks with the voting and the settings that were chosen for a model.

    Args:
      saved: of the scores, their store's `origin`.
      attacks: as of `Request`.
      votings: side by side.
      threshold: instead of the chosen one.
      strength: likewise.
      others: what else a `Request` holds, by name.

    Returns:
      The request. Figures are about the chosen voting where it is one of those asked,
      else the first of these. Where nothing was chosen, settings are the defaults of
      `SmoothedClassifier`.

    Raises:
      TypeError, ValueError: a setting that cannot be.
    """
    voting: Any = saved.voting or "threshold"
    threshold = saved.threshold if threshold is None else threshold
    strength = saved.strength if strength is None else strength
    return Request(
        attacks,
        tuple(votings),
        THRESHOLD if threshold is None else threshold,
        STRENGTH if strength is None else strength,
        voting=voting if voting in votings else votings[0],
        **others,
    )


def attacks_on(
    ablation: Ablation,
    image_size: ImageSize,
    patches: Sequence[Patch],
    *,
    area: int | None = None,
    num_patches: int = 1,
) -> list[Attack]:
    """What to certify against: each patch, and more where asked.

    Args:
      ablation: the ablation.
      image_size: (H, W), pixels.
      patches: one or more.
      area: also each maximal rectangle of at most so many pixels, and all at once.
      num_patches: also so many of each of the patches at once, where above 1.

    Returns:
      The attacks, as `Request` takes them.

    Raises:
      TypeError, ValueError: as `touched` and `rectangles_of_area`.
    """
    rectangles = () if area is None else rectangles_of_area(area, image_size)
    attacks = {
        patch: Attack(str(patch), touched(ablation, patch, image_size), patch=patch)
        for patch in [*patches, *rectangles]
    }
    found = list(attacks.values())
    if area is not None:
        together = touched_by_any(ablation, rectangles, image_size)
        found.append(Attack(f"area <={area}", together))
    if num_patches > 1:
        found += [
            Attack(f"{num_patches} x {patch}", attacks[patch].touched, num_patches)
            for patch in dict.fromkeys(patches)
        ]
    return found


def shown_sizes(extent: int) -> list[int]:
    """At most 32 patch sizes from 1 to the extent, all where they are no more."""
    return (
        np.unique(np.linspace(1, extent, min(extent, _MOST_SIZES)).round())
        .astype(int)
        .tolist()
    )
