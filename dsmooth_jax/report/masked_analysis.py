"""What double masking certifies, of a few images: by attack, and by square."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.double_masking import MaskedCertificate
from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.evidence import certify_masked
from dsmooth_jax.leaving_out import covering_touched, design_masks
from dsmooth_jax.report.request import Attack
from dsmooth_jax.threat import Patch, touched
from dsmooth_jax.types import AblationMasks, ImageSize


def against_attacks(
    levels: np.ndarray, attacks: Sequence[Attack], doubt: np.ndarray | None
) -> dict[str, MaskedCertificate]:
    """Certificates by the masks of each attack, where it has some.

    Args:
      levels: int16 [N, P, K], from `log_levels`.
      attacks: each decided by its own masks.
      doubt: by how much each level may differ elsewhere, from `log_doubts`.

    Returns:
      {attack: certificate}.
    """
    found = {}
    for attack in attacks:
        if attack.masks is None:
            continue
        # Of several patches the masks are all the maximal unions of touched sets.
        sets = attack.touched if attack.num_patches == 1 else attack.masks
        covering = covering_touched(attack.masks, sets)
        found[attack.name] = certify_masked(
            levels, attack.masks, covering, uncertain=doubt
        )
    return found


def against_squares(
    levels: np.ndarray,
    masks: Mapping[int, AblationMasks],
    ablation: Ablation,
    image_size: ImageSize,
    doubt: np.ndarray | None,
) -> dict[int, MaskedCertificate]:
    """Certificates by masks made for each square.

    Args:
      levels: int16 [N, P, K], from `log_levels`.
      masks: of each side, from `square_masks`.
      ablation: the ablation.
      image_size: (H, W), pixels.
      doubt: as in `against_attacks`.

    Returns:
      {side: certificate}.
    """
    found = {}
    for side, one in masks.items():
        sets = touched(ablation, Patch(side, side), image_size)
        covering = covering_touched(one, sets)
        found[side] = certify_masked(levels, one, covering, uncertain=doubt)
    return found


def square_masks(
    ablation: Ablation, image_size: ImageSize, sides: Iterable[int]
) -> dict[int, AblationMasks]:
    """The masks that are made for each square, of increasing sides: {side: masks}."""
    found = {}
    for side in sides:
        try:
            found[side] = design_masks(ablation, Patch(side, side), image_size)
        except ValueError:  # too large for these ablations, as are all above
            break
    return found


def detected_accuracy(found: MaskedCertificate, labels: np.ndarray) -> Accuracy:
    """Images right on which all single masks agree."""
    is_right = found.prediction == labels
    return Accuracy(int((found.is_detected & is_right).sum()), len(labels))
