"""What votes can answer, once they are there, with no further forward pass.

Rectangles of an area, several patches at once, and maps of where an image is
vulnerable. Whatever is certified here is certified by `certify` or by the same `duels`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.ablation import (
    Ablation,
    check_num_ablations,
)
from dsmooth_jax.certificate import (
    Certificate,
    certify,
    concatenate,
)
from dsmooth_jax.checks import check_count, check_image_size
from dsmooth_jax.duels import (
    after_each_placement,
    as_votes,
    bounds,
    check_levels,
    check_uncertain,
    chunks,
    count,
    least_duel,
    predict,
    preference,
)
from dsmooth_jax.threat import (
    Patch,
    check_touched,
    merge_equal_rows,
    placements,
    touched,
)
from dsmooth_jax.types import Corners, ImageSize, Maps, PerImage, Rectangles, Touched
from dsmooth_jax.voting import VotesLike

MAX_UNION_ENTRIES = 2**26
"""The most entries, L^k x P, of unions that `certify_several` tries out (64 MiB)."""


def square_of_percent(percent: float, image_size: ImageSize) -> Patch:
    """The square that covers a percentage of the image, as the literature counts it.

    Args:
      percent: in (0, 100].
      image_size: (H, W), pixels.

    Returns:
      The square whose side is s = sqrt(percent / 100 * H * W) rounded up, or down where
      s is at most a third of a pixel above a whole number; at least 1 and at most the
      shorter side of the image.

      The papers state sides, not how they round. This one rule gives them all: 23, 32
      and 39 of 224 for 1, 2 and 3 %, 14 and 35 of 224 for 0.4 and 2.4 % (Xiang et al.
      2022, PatchCleanser), 5 of 32 for 2.4 %, and 42 of 299 for 2 % (Levine & Feizi
      2020). The square may cover a little less than the percentage (42x42 is 1.97 % of
      299x299); to claim a side, name it by `Patch`.

    Raises:
      ValueError: percent is out of range.

    >>> [str(square_of_percent(percent, (224, 224))) for percent in (1, 2, 3)]
    ['23x23', '32x32', '39x39']
    >>> square_of_percent(2, (299, 299))
    Patch(height=42, width=42)
    """
    height, width = check_image_size(image_size)
    if not 0 < percent <= 100:
        raise ValueError(f"percent={percent!r} must be in (0, 100]")
    side = math.ceil(math.sqrt(percent / 100 * height * width) - 1 / 3)
    side = min(max(side, 1), height, width)
    return Patch(side, side)


def rectangles_of_area(area: int, image_size: ImageSize) -> tuple[Patch, ...]:
    """The rectangles of at most this area that no other one of them contains.

    What is certified against each of them is certified against every h x w <= area.

    Args:
      area: pixels, >= 1.
      image_size: (H, W), pixels.

    Returns:
      The maximal ones that fit into the image, by height.

    Raises:
      TypeError, ValueError: area is no integer >= 1.

    >>> [str(patch) for patch in rectangles_of_area(6, (4, 4))]
    ['1x4', '2x3', '3x2', '4x1']
    """
    height, width = check_image_size(image_size)
    check_count("area", area)
    widest = [min(area // h, width) for h in range(1, min(area, height) + 1)]
    return tuple(
        Patch(h, w)
        for h, w in enumerate(widest, start=1)
        if h == len(widest) or widest[h] < w
    )


def touched_by_any(
    ablation: Ablation, patches: tuple[Patch, ...], image_size: ImageSize
) -> Touched:
    """The touched sets of an attacker who chooses one of these patches.

    Args:
      ablation: the ablation.
      patches: one or more.
      image_size: (H, W), pixels.

    Returns:
      bool [L, P]: the rows of `touched` of all patches, equal ones merged.

    Raises:
      ValueError: no patch, or as `touched`.

    Guarantee:
      What `certify` certifies against these rows is certified against each patch.
    """
    if isinstance(patches, Patch) or not len(patches):
        raise ValueError(f"patches={patches!r} must be a tuple of at least one patch")
    sets = [touched(ablation, patch, image_size) for patch in patches]
    return merge_equal_rows(np.concatenate(sets))[0]


def certify_several(
    votes: VotesLike,
    touched: ArrayLike,
    num_patches: int,
    *,
    uncertain: ArrayLike | None = None,
) -> tuple[Certificate, bool]:
    """Certifies against several patches at once, each wherever the attacker likes.

    Args:
      votes: as in `certify`.
      touched: bool [L, P], of one patch. Patches may overlap and need not be alike:
        pass `touched_by_any` for several kinds.
      num_patches: k, >= 1.
      uncertain: as in `certify`.

    Returns:
      (certificate, is_exact). Where L^k is small enough, the placement rule over all
      unions of k touched sets (True); elsewhere each patch takes the most that any one
      could, which is sound and certifies fewer (False).

    Raises:
      TypeError, ValueError: as `certify`; num_patches < 1.

    Guarantee:
      As `certify`, where the attacker places any k patches together, overlapping or
      not: every union is among those tried, or each patch is granted the most it can.
    """
    votes = as_votes(votes)
    levels, limit, is_votes = check_levels(votes)
    sets = check_touched(touched, levels.shape[1])
    doubt = check_uncertain(uncertain, levels.shape)
    check_count("num_patches", num_patches)
    unions = sets
    for _ in range(num_patches - 1):
        if len(unions) * sets.size > MAX_UNION_ENTRIES:
            break
        pairs = unions[:, None] | sets[None]
        unions = merge_equal_rows(pairs.reshape(-1, sets.shape[1]))[0]
    else:
        return certify(votes, unions, uncertain=doubt), True

    parts = [certify(votes[:0], sets)]  # so that N = 0 works
    for part in chunks(levels, len(sets)):
        counts = count(levels[part], limit, is_votes)
        chosen = predict(counts)
        low, high = bounds(levels[part], doubt, part, is_votes)
        preferences = preference(low, high, chosen, limit)
        total = preferences.sum(axis=1, dtype=np.int64)
        left = after_each_placement(preferences, sets, limit).min(axis=0)
        taken = total - left.astype(np.int64)  # the most that one patch takes
        margin, _ = least_duel(total - num_patches * taken, chosen)
        parts.append(Certificate(chosen, margin, counts))
    return concatenate(parts), False


def vulnerability_map(
    votes: VotesLike,
    ablation: Ablation,
    patch: Patch,
    image_size: ImageSize,
    *,
    uncertain: ArrayLike | None = None,
) -> tuple[Maps, Maps]:
    """Where an image is vulnerable: the margin at each placement, and who would win.

    Args:
      votes: as in `certify`.
      ablation: the ablation that the votes are of.
      patch: the patch.
      image_size: (H, W), pixels.
      uncertain: as in `certify`.

    Returns:
      (margin, rival), both int64 [N, H - height + 1, W - width + 1], by the patch's
      upper left corner. Where margin < 0, an attacker there can make the rival win (for
      bool votes; for levels, may be able to). An image's least margin is `certify`'s.

    Raises:
      TypeError, ValueError: as `certify` and `touched`.
    """
    margin, rival, row = _placed_duels(votes, ablation, patch, image_size, uncertain)
    return margin[:, row], rival[:, row]


def worst_placement(
    votes: VotesLike,
    ablation: Ablation,
    patch: Patch,
    image_size: ImageSize,
    *,
    uncertain: ArrayLike | None = None,
) -> tuple[PerImage, PerImage, Corners]:
    """Where one patch does most to each image, and for whom.

    Args:
      votes: as in `certify`.
      ablation: the ablation that the votes are of.
      patch: the patch.
      image_size: (H, W), pixels.
      uncertain: as in `certify`.

    Returns:
      (margin, rival, corner): int64 [N], that of `certify`; int64 [N], the class of the
      duel that is closest there; int64 [N, 2], row and column of the patch's upper left
      pixel, of equally bad placements the first, row by row.

    Raises:
      TypeError, ValueError: as `certify` and `touched`.
    """
    margin, rival, row = _placed_duels(votes, ablation, patch, image_size, uncertain)
    _, first = np.unique(row, return_index=True)  # where each set is placed first
    corners = np.stack(np.unravel_index(first, row.shape), axis=1)
    worst = margin.argmin(axis=1)  # sets come in the order of their first placement
    image = np.arange(len(margin))
    return margin[image, worst], rival[image, worst], corners[worst]


def certified_rectangles(
    votes: VotesLike,
    ablation: Ablation,
    image_size: ImageSize,
    heights: Sequence[int],
    widths: Sequence[int],
    *,
    uncertain: ArrayLike | None = None,
) -> Rectangles:
    """Which rectangles each prediction is certified against.

    Args:
      votes: as in `certify`.
      ablation: the ablation that the votes are of.
      image_size: (H, W), pixels.
      heights: pixels, increasing.
      widths: pixels, increasing.
      uncertain: as in `certify`.

    Returns:
      bool [N, heights, widths].

    Raises:
      TypeError, ValueError: as `certify` and `touched`; sizes that do not increase.

    Guarantee:
      True exactly where `certify` certifies against that rectangle. Only rectangles at
      the edge of what is certified are asked: a larger one touches a superset.
    """
    for name, sizes in (("heights", heights), ("widths", widths)):
        if not len(sizes) or (np.diff(sizes) <= 0).any():
            raise ValueError(f"{name}={tuple(sizes)} must be sizes that increase")
    votes = as_votes(votes)
    doubt = check_uncertain(uncertain, check_levels(votes)[0].shape)
    found = np.zeros((len(votes), len(heights), len(widths)), bool)
    windows = ablation.windows(image_size)
    reach = np.zeros(len(votes), np.int64)  # widths[:reach] are certified

    def hold(height: int, j: int, images: np.ndarray) -> np.ndarray:
        if not len(images):
            return images
        sets = touched(ablation, Patch(height, widths[j]), image_size)
        doubted = None if doubt is None else doubt[images]
        certificate = certify(votes[images], sets, uncertain=doubted)
        return images[certificate.is_certified]

    for i, height in enumerate(heights):
        if not i:  # wider, as far as it goes
            for j in range(len(widths)):
                reach[hold(height, j, np.flatnonzero(reach == j))] += 1
        elif not windows.rows.all():  # of columns, a higher patch touches the same
            for j in reversed(range(len(widths))):  # narrower, till it holds again
                asked = np.flatnonzero(reach == j + 1)
                reach[np.setdiff1d(asked, hold(height, j, asked))] -= 1
        found[:, i] = np.arange(len(widths)) < reach[:, None]
    return found


def runner_up(votes: VotesLike) -> np.ndarray:
    """The class that comes closest to the prediction while nothing is attacked.

    Args:
      votes: as in `certify`.

    Returns:
      int64 [N], of equals the smaller index.

    Raises:
      TypeError, ValueError: as `certify`.
    """
    nothing = np.zeros((1, check_levels(votes)[0].shape[1]), bool)
    return _least_duels(votes, nothing, None)[1][:, 0]


def _placed_duels(
    votes: VotesLike,
    ablation: Ablation,
    patch: Patch,
    image_size: ImageSize,
    uncertain: ArrayLike | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_least_duels` of every touched set of a patch, and `placements`' row."""
    sets, row = placements(ablation, patch, image_size)
    levels = check_levels(votes)[0]
    check_num_ablations("votes", levels.shape[1], ablation, image_size)
    margin, rival = _least_duels(votes, sets, uncertain)
    return margin, rival, row


def _least_duels(
    votes: VotesLike, sets: Touched, uncertain: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """(margin, rival) of the prediction, int64 [N, L], for each touched set alone."""
    levels, limit, is_votes = check_levels(votes)
    doubt = check_uncertain(uncertain, levels.shape)
    margin = np.empty((len(levels), len(sets)), np.int64)
    rival = np.empty_like(margin)
    for part in chunks(levels, len(sets)):
        chosen = predict(count(levels[part], limit, is_votes))
        low, high = bounds(levels[part], doubt, part, is_votes)
        preferences = preference(low, high, chosen, limit)
        left = after_each_placement(preferences, sets, limit)  # [L, n, K]
        margin[part], rival[part] = (x.T for x in least_duel(left, chosen))
    return margin, rival
