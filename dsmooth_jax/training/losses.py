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
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, Shaped

from dsmooth_jax.checks import check_choice, check_count, check_pair, check_range
from dsmooth_jax.models import BaseClassifier, ImageClassifier
from dsmooth_jax.threat import check_touched

LossFn: TypeAlias = Callable[
    [Any, Any, Float[Array, "B H W C"], Shaped[Array, "B *nK"], Key[Array, ""]],
    tuple[Float[Array, ""], tuple[Any, Float[Array, ""]]],
]
"""(params, batch_stats, images, labels, key) -> (loss, (batch_stats, accuracy)). Labels
are integers [B]; for cross-entropy of ablations they may be soft, floating [B, K], or
[B, n, K] where each ablation has its own."""

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


def make_loss(
    config: LossConfig,
    classifier: BaseClassifier | ImageClassifier,
    *,
    sets: Bool[np.ndarray, "L P"] | None = None,
    compute_dtype: DTypeLike = jnp.float32,
) -> LossFn:
    """Builds the loss of a classifier's parameters.

    Args:
      config: which loss.
      classifier: what is trained.
      sets: the touched sets or masks of the config's patch, in the ablation thinned as
        the config says; cross-entropy alone needs none.
      compute_dtype: of parameters and activations; logits and the loss are float32.

    Returns:
      (params, batch_stats, images, labels, key) -> (loss, (batch_stats, accuracy)): the
      means over the ablated images, and the statistics after them.

    Raises:
      ValueError: another loss than cross-entropy without sets; when called, with those
        of another ablation; a loss of ablations for a classifier of whole images.
    """
    is_margin = config.name != "cross_entropy"
    if is_margin and sets is None:
        raise ValueError(
            f"sets=None: loss.name={config.name!r} needs touched sets or masks"
        )
    if is_margin and isinstance(classifier, ImageClassifier):
        raise ValueError(
            f"loss.name={config.name!r} is of ablations; with masks of pixels it must "
            "be 'cross_entropy'"
        )

    def loss_fn(params, batch_stats, images, labels, key):
        params = jax.tree.map(lambda leaf: leaf.astype(compute_dtype), params)
        variables = {"params": params, "batch_stats": batch_stats}
        if isinstance(classifier, ImageClassifier):
            logits, batch_stats = classifier.train_logits(
                variables, images, labels, key
            )
        elif is_margin:
            logits, batch_stats = classifier.train_all_logits(
                variables, images, config.every
            )
            _check_sets(sets, logits, config)
        else:
            logits, batch_stats = classifier.train_logits(variables, images, key)
        logits = logits.astype(jnp.float32)
        loss = cross_entropy(logits, labels, config.label_smoothing)
        if is_margin:
            if config.name == "double_masked":
                margins = masked_margins(logits, labels, jnp.asarray(sets))
                margins = config.every * margins
            else:
                margins = certified_margin(logits, labels, jnp.asarray(sets))
            loss = config.cross_entropy * loss + margin_loss(
                margins, target=config.target, temperature=config.temperature
            )
        true = labels if labels.ndim == 1 else labels.argmax(axis=-1)
        true = true if true.ndim == 2 else true[:, None]
        accuracy = (logits.argmax(axis=-1) == true).mean()
        return loss, (batch_stats, accuracy)

    return loss_fn


def cross_entropy(
    logits: Float[Array, "B n K"],
    labels: Int[Array, " B"] | Float[Array, "B *n K"],
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean cross-entropy of ablations with their labels, hard or soft."""
    is_hard = labels.ndim == 1
    targets = jax.nn.one_hot(labels, logits.shape[-1]) if is_hard else labels
    targets = targets if targets.ndim == 3 else targets[:, None, :]
    targets = optax.smooth_labels(targets, smoothing)
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


def _check_sets(sets: Any, logits: Array, config: LossConfig) -> None:
    try:
        check_touched(sets, logits.shape[1])
    except ValueError as error:
        every = config.every
        raise ValueError(
            f"{error}, with loss.every={every}; use those of thinned(ablation, {every})"
        ) from None
