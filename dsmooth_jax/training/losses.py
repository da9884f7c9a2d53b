"""What training minimises: cross-entropy of ablations, or one of the certificates.

Cross-entropy asks every ablation to be right. The certificate asks for less, and for
something else: that the duels of the whole image be won with the worst placement's
votes given away. `certified_margin` is that margin with smooth preferences in place of
integer ones, so that a gradient knows which ablations still matter. `masked_margins`
are those of double masking: what is left of each duel with any two masks out.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3, for cross-entropy on ablated
images. A loss on the certified margin of a network that is read in one pass is the idea
of Metzen & Yatsura, ICLR 2021 (arXiv:2102.04154); this one follows our duels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dsmooth_jax.checks import check_choice, check_count, check_pair, check_range

LossName = Literal["cross_entropy", "certified_margin", "double_masked"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What training minimises.

    Attributes:
      name: "cross_entropy" of random ablations; or "certified_margin" (of votes) or
        "double_masked", which score all ablations of each image, or every so many-th.
      label_smoothing: of cross-entropy, in [0, 1).
      every: >= 1; the margin is that of every so many-th ablation, as
        `ablation.thinned` has them. Neighbours say much the same, and half of them cost
        0.6. The margins of votes are then half as large, and so should be the
        temperature; those of double masking are counted so many times.
      patch: (height, width) in pixels, which the margin is certified against.
      target: the margin worth having, in full preferences of one ablation; of double
        masking in nats, natural logarithms of the scores.
      temperature: > 0, in the same unit; what counts as nearly certified.
      cross_entropy: >= 0, the weight of the ablations' mean cross-entropy beside it.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    every: int = 1
    patch: Sequence[int] = (5, 5)
    target: float = 1.0
    temperature: float = 4.0
    cross_entropy: float = 0.1

    def __post_init__(self) -> None:
        check_choice("loss.name", self.name, get_args(LossName))
        check_range("loss.label_smoothing", self.label_smoothing, least=0, below=1)
        check_count("loss.every", self.every)
        check_range("loss.target", self.target)
        check_range("loss.temperature", self.temperature, above=0)
        check_range("loss.cross_entropy", self.cross_entropy, least=0)
        # JSON has lists.
        object.__setattr__(self, "patch", check_pair("loss.patch", self.patch))


def cross_entropy(
    logits: Float[Array, "B n K"], labels: Int[Array, " B"], smoothing: float = 0.0
) -> Float[Array, ""]:
    """The mean cross-entropy of ablations with their images' labels."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)[:, None, :]
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def certified_margin(
    logits: Float[Array, "B P K"],
    labels: Int[Array, " B"],
    touched: Bool[Array, "L P"],
) -> Float[Array, "B K"]:
    """The placement rule's margin of the true class over each other, made smooth.

    In the duel of y and j an ablation prefers y by tanh((logit_y - logit_j) / 2), which
    is p_y - p_j where the two are all there is. The attacker takes what a placement's
    ablations gave and casts them all for j, at the worst placement of this duel.

    Args:
      logits: of every ablation.
      labels: the true classes, in 0..K-1.
      touched: the distinct touched sets of the patch, as `dsmooth_jax.touched` gives.

    Returns:
      The margins, [B, K], in full preferences of one ablation, at most P - 2 max|T|;
      +inf at the true class. As logits grow they tend to those of `certify` for levels
      that are the ranks of the logits, with limit 1, less its 1 for lost ties.
    """
    true = jnp.take_along_axis(logits, labels[:, None, None], axis=-1)  # [B, P, 1]
    preference = jnp.tanh((true - logits) / 2)  # [B, P, K]
    sets = touched.astype(logits.dtype)
    # What the attacker gains at a placement: its preferences, and as many for j.
    lost = jnp.einsum("lp,bpk->blk", sets, preference + 1)
    margin = preference.sum(axis=1) - lost.max(axis=1)
    return jnp.where(
        jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), jnp.inf, margin
    )


def masked_margins(
    logits: Float[Array, "B P K"],
    labels: Int[Array, " B"],
    masks: Bool[Array, "M P"],
    *,
    floor: float = 1e-4,
) -> Float[Array, "B Q K"]:
    """What is left of the true class's duels with any two masks out.

    Args:
      logits: of every ablation.
      labels: the true classes, in 0..K-1.
      masks: the ablations that each mask disregards.
      floor: the least score that is told from 0, as of `dsmooth_jax.log_levels`.

    Returns:
      The lead of the true class over each other, in nats, for each of the
      Q = M (M + 1) / 2 pairs of masks; +inf at the true class. All above 0 where
      `dsmooth_jax.mask_table` of the scores holds nothing but the true class, up to the
      rounding of levels.
    """
    scores = jnp.maximum(jax.nn.log_softmax(logits), jnp.log(floor))
    true = jnp.take_along_axis(scores, labels[:, None, None], axis=-1)
    one, other = jnp.triu_indices(len(masks))
    left = jnp.logical_not(masks[one] | masks[other]).astype(logits.dtype)
    margins = jnp.einsum("qp,bpk->bqk", left, true - scores)
    is_true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)[:, None]
    return jnp.where(is_true, jnp.inf, margins)


def margin_loss(
    margins: Float[Array, "B *rivals"], *, target: float, temperature: float
) -> Float[Array, ""]:
    """log(1 + sum over rivals of exp((target - margin) / temperature)), the mean.

    Rivals are classes, or classes with each pair of masks out. Zero for images
    certified with margins far above the target, linear in the worst margin far below.
    """
    gaps = (target - margins) / temperature  # -inf at the true class
    gaps = gaps.reshape(len(gaps), -1)
    zero = jnp.zeros_like(gaps[:, :1])
    return jax.nn.logsumexp(jnp.concatenate([zero, gaps], axis=1), axis=1).mean()
