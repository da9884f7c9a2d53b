"""What a report is asked: which patches, which votings, which settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.alarms import check_alarm_margin
from dsmooth_jax.certificate import Rule
from dsmooth_jax.checks import check_count
from dsmooth_jax.evaluation import STRENGTHS
from dsmooth_jax.leaving_out import covering_touched, design_masks, masks_of_several
from dsmooth_jax.queries import rectangles_of_area, touched_by_any
from dsmooth_jax.storage.provenance import Origin
from dsmooth_jax.threat import Patch, touched
from dsmooth_jax.types import AblationMasks, ImageSize, Touched, Votes
from dsmooth_jax.voting import (
    STRENGTH,
    THRESHOLD,
    TOLERANCE,
    GradedVotes,
    Voting,
    cast_doubts,
    cast_votes,
    check_strength,
    check_threshold,
    check_tolerance,
    check_voting,
)

Way: TypeAlias = Voting | Literal["double_masking"]
"""How a classifier decides: by which votes, or by leaving ablations out."""

DOUBLE_MASKING: Way = "double_masking"

Key: TypeAlias = tuple[Way, str, Rule]
"""A way to decide, an attack by its name, a rule."""

NUM_SIZES = 32
"""The most patch heights and widths that a figure or a slider shows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """What is certified against.

    Attributes:
      name: as tables and files call it, for example "5x5" or "2 x 5x5".
      touched: bool [L, P], its touched sets.
      num_patches: how many of them at once, >= 1.
      patch: the patch, where it is one of one size; None where it is more.
      masks: bool [M, P], what double masking leaves out, two at a time; None where it
        cannot certify against this.
      masked_for: the patch that these masks are made for; None for more than a patch.
    """

    name: str
    touched: Touched
    num_patches: int = 1
    patch: Patch | None = None
    masks: AblationMasks | None = None
    masked_for: Patch | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is asked of scores.

    Attributes:
      attacks: in the order of the table, each of another name; see `attacks_on`.
      votings: the votings, side by side.
      threshold: of threshold votes, in (0, 1].
      strength: of graded votes, in [1, 100].
      voting: the voting that the figures are about.
      design: the patch that the masks of the classifier are made for, where it decides
        by double masking; None where it decides by votes.
      tolerance: by how much scores may differ elsewhere; votes that this would cast
        otherwise count for the attacker. 0: for the scores as they are alone.
      thresholds: of a sweep over every attack and both rules.
      strengths: likewise.
      top_k: how far down the label may be ranked and count as right, each >= 1; of
        every attack by one patch.
      alarms: {(voting, rate of false alarms): alarm margin}, see `alarm_margins`;
        likewise.
      has_maps: also the margin of every image at every placement of the first patch.
      has_figures: also what only figures and page show.
      has_squares: also double masking against every square.
      sample: int64 [n], increasing: the images whose scores are kept, for the page.
      drawn: int64 [n], increasing: the images that figures over settings, rectangles
        and placements count; all where None.
      num_sizes: the most patch heights and widths that a figure or a slider shows.
    """

    attacks: Sequence[Attack]
    votings: tuple[Voting, ...]
    threshold: float
    strength: float
    _: dataclasses.KW_ONLY
    voting: Voting
    design: Patch | None = None
    tolerance: float = TOLERANCE
    thresholds: Sequence[float] = ()
    strengths: Sequence[float] = ()
    top_k: Sequence[int] = ()
    alarms: Mapping[tuple[Voting, float], int] = dataclasses.field(default_factory=dict)
    has_maps: bool = False
    has_figures: bool = True
    has_squares: bool = True
    sample: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, np.int64)
    )
    drawn: np.ndarray | None = None
    num_sizes: int = NUM_SIZES

    def __post_init__(self) -> None:
        for voting in self.votings:
            check_voting(voting)
        if self.voting not in self.votings:
            raise ValueError(f"voting={self.voting!r} must be one of {self.votings}")
        check_threshold(self.threshold)
        check_strength(self.strength)
        is_graded = "graded" in self.votings
        strengths = [*self.strengths, *([self.strength] if is_graded else [])]
        if is_graded and self.has_figures and not self.strengths:
            strengths += STRENGTHS
        check_tolerance(self.tolerance, max(strengths, default=None))
        for k in self.top_k:
            check_count("top_k", k)
        for alarm_margin in self.alarms.values():
            check_alarm_margin(alarm_margin)
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
    def single_attacks(self) -> list[Attack]:
        """Those by one patch at a time, of whatever sizes."""
        return [attack for attack in self.attacks if attack.num_patches == 1]

    @property
    def patch(self) -> Patch:
        """The patch that figures of a single one are about: the middle one by area."""
        ordered = sorted(self.patches, key=lambda patch: patch.height * patch.width)
        return ordered[len(ordered) // 2]

    @property
    def attack(self) -> Attack:
        """The attack by this patch."""
        return next(one for one in self.attacks if one.patch == self.patch)

    def cast(
        self, scores: np.ndarray, voting: Voting
    ) -> tuple[Votes | GradedVotes, Votes | None]:
        """Votes by a voting with its setting, and which are uncertain by the tolerance.

        Args:
          scores: float32 [N, P, K].
          voting: the voting.

        Returns:
          (votes, doubt): what is certified of them is
          ``certify(votes, touched, uncertain=doubt)``.
        """
        settings = {"threshold": self.threshold, "strength": self.strength}
        votes = cast_votes(scores, voting, **settings)
        return votes, cast_doubts(scores, voting, self.tolerance, **settings)

    def sizes(self, extent: int) -> list[int]:
        """Patch sizes from 1 to the extent, pixels: all where they are not too many."""
        sizes = np.linspace(1, extent, min(extent, self.num_sizes)).round()
        return np.unique(sizes).astype(int).tolist()

    def setting(self, way: Way) -> float | None:
        """The voting's threshold or strength; None for what has none."""
        return {"threshold": self.threshold, "graded": self.strength}.get(way)


def request_of(
    saved: Origin,
    attacks: Sequence[Attack],
    votings: Sequence[Voting] = ("threshold", "graded"),
    *,
    threshold: float | None = None,
    strength: float | None = None,
    design: Patch | None = None,
    **others: Any,
) -> Request:
    """Asks with the voting and the settings that were chosen for a model.

    Args:
      saved: of the scores, their store's `origin`.
      attacks: as of `Request`.
      votings: side by side.
      threshold: instead of the chosen one.
      strength: likewise.
      design: instead of the chosen one, see `Request`.
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
        design=saved.design if design is None else design,
        **others,
    )


def attacks_on(
    ablation: Ablation,
    image_size: ImageSize,
    patches: Sequence[Patch],
    *,
    area: int | None = None,
    num_patches: int = 1,
    design: Patch | None = None,
) -> list[Attack]:
    """What to certify against: each patch, and more where asked.

    Args:
      ablation: the ablation.
      image_size: (H, W), pixels.
      patches: one or more.
      area: also each maximal rectangle of at most so many pixels, and all at once.
      num_patches: also so many of each of the patches at once, where above 1.
      design: the patch that the masks of double masking are made for; None makes them
        for each attack anew.

    Returns:
      The attacks, as `Request` takes them.

    Raises:
      TypeError, ValueError: as `touched` and `rectangles_of_area`; a design that is too
        large for these ablations.
    """
    rectangles = () if area is None else rectangles_of_area(area, image_size)
    designed = None if design is None else design_masks(ablation, design, image_size)

    def attack(
        name: str, sets: Touched, num_patches: int = 1, patch: Patch | None = None
    ) -> Attack:
        out = masks(sets, num_patches, patch)
        return Attack(name, sets, num_patches, patch, out, design or patch)

    def masks(
        sets: Touched, num_patches: int, patch: Patch | None
    ) -> AblationMasks | None:
        try:
            if designed is None:
                if patch is None:
                    return masks_of_several(sets, num_patches)
                return design_masks(ablation, patch, image_size)
            covering_touched(designed, sets)
        except ValueError:  # too large for these ablations, or not inside the design
            return None
        return designed if num_patches == 1 else None

    sets = {
        patch: touched(ablation, patch, image_size) for patch in [*patches, *rectangles]
    }
    found = [attack(str(p), one, patch=p) for p, one in sets.items()]
    if area is not None:
        together = touched_by_any(ablation, rectangles, image_size)
        found.append(attack(f"area <={area}", together))
    if num_patches > 1:
        found += [
            attack(f"{num_patches} x {patch}", sets[patch], num_patches)
            for patch in dict.fromkeys(patches)
        ]
    return found
