"""What an attacker climbs: the decision itself, with a gradient that never vanishes.

A margin is positive where a rival wins over an image's own class, as the classifier
decides: its *value* is that of the votes, or of the two rounds, as they are counted.
Votes, limits and maxima are flat nearly everywhere, so its *gradient* is that of a
smooth guide: the same ablations, the same masks, the log ratio of the two classes.

Source: this library. That an attack must follow what decides, not a stand-in: Tramer
et al., "On Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020
(arXiv:2002.08347). Values forward and guides backward: Athalye et al., ICML 2018
(arXiv:1802.00420), section 4.1.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsmooth_jax.voting import GRADES, Voting

_LEAST_SCORE = 1e-4
"""Scores below this are one to `log_levels`; here they keep a tenth of their slope."""

_NATS = 10.0
"""The lead at which a pair of masks is half decided, for the guide."""


def guided(value: Array, guide: Array) -> Array:
    """The value, with the gradient of the guide."""
    return jax.lax.stop_gradient(value - guide) + guide


def votes_margin(
    scores: Float[Array, "B P K"],
    own: Int[Array, " B"],
    rival: Int[Array, " B"],
    *,
    voting: Voting,
    threshold: float,
    strength: float,
) -> Float[Array, " B"]:
    """By how much the rival's worst duel is better than the own class's, in votes.

    Args:
      scores: softmax scores of every ablation.
      own: the class that the attacker wants to lose.
      rival: the class that it wants to win over it, another one.
      voting: as of `cast_votes`.
      threshold: likewise.
      strength: likewise.

    Returns:
      Positive iff the own class is not predicted, because of this rival.
    """
    limit = GRADES if voting == "graded" else 1
    if voting == "graded":
        levels = jnp.round(GRADES * strength * scores)
    elif voting == "threshold":
        levels = (scores >= threshold).astype(jnp.float32)
    else:
        levels = jax.nn.one_hot(scores.argmax(axis=2), scores.shape[2])

    def worst_duel(chosen: Array) -> Array:
        difference = at(levels, chosen)[:, :, None] - levels
        duels = jnp.clip(difference, -limit, limit).sum(axis=1)  # [B, K]
        return jnp.where(_is(chosen, duels), jnp.inf, duels).min(axis=1)

    tie = jnp.where(rival < own, 0.5, -0.5)
    value = (worst_duel(rival) - worst_duel(own) + tie) / limit
    ratio = at(_logs(scores), rival) - at(_logs(scores), own)
    return guided(value, soft_sign(ratio).sum(axis=1))


def double_masking_margin(
    scores: Float[Array, "B P K"],
    own: Int[Array, " B"],
    rival: Int[Array, " B"],
    left: Float[Array, "M M P"],
) -> Float[Array, " B"]:
    """How far the two rounds of double masking over ablations are from the rival, nats.

    Args:
      scores: softmax scores of every ablation.
      own: the class that the attacker wants to lose.
      rival: the class that it wants to win.
      left: 1 for each ablation that is in neither mask i nor mask j, else 0.

    Returns:
      Positive where no row agrees on the own class, and the rival has the majority of
      the single masks or a row of its own: then the own class is not predicted.
    """
    sums = jnp.einsum("ijp,bpk->bijk", left, _logs(scores))
    ratio = at(sums, rival) - at(sums, own)  # [B, M, M]
    leads = lead(sums, own), lead(sums, rival)
    alone = (jnp.diagonal(x, axis1=1, axis2=2) for x in leads)
    value = two_rounds(*leads, *alone)
    return guided(value, soft_sign(ratio / _NATS).mean(axis=(1, 2)))


def two_rounds(
    own: Float[Array, "B M m"],
    rival: Float[Array, "B M m"],
    own_alone: Float[Array, "B M"],
    rival_alone: Float[Array, "B M"],
) -> Float[Array, " B"]:
    """The value of double masking, of leads over all other classes.

    Args:
      own: of the own class under mask i and each that it is combined with.
      rival: of the rival.
      own_alone: of the own class under mask i alone.
      rival_alone: of the rival.

    A row that agrees on the own class is the end of all hope: no other row can agree on
    another class, and it is believed if the majority is another.
    """
    believed = rival.min(axis=2).max(axis=1)
    # The rival wins k + 1 or more single masks and the own class k or fewer, for a k.
    most, least = -jnp.sort(-rival_alone, axis=1), -jnp.sort(-own_alone, axis=1)
    majority = jnp.minimum(most, -least).max(axis=1)
    return jnp.minimum(-own.min(axis=2).max(axis=1), jnp.maximum(majority, believed))


def logits_margin(
    logits: Float[Array, "B K"], own: Int[Array, " B"], rival: Int[Array, " B"]
) -> Float[Array, " B"]:
    """By how much the rival's logit is above the own class's: nothing to make smooth.

    Source: Carlini & Wagner, S&P 2017 (arXiv:1608.04644), objective f6.
    """
    return at(logits, rival) - at(logits, own)


def at(table: Float[Array, "B *axes K"], chosen: Int[Array, " B"]) -> Array:
    """Each image's entries of its chosen class, [B, *axes]."""
    index = chosen.reshape(-1, *(1,) * (table.ndim - 1))
    return jnp.take_along_axis(table, index, axis=-1)[..., 0]


def lead(table: Float[Array, "B *axes K"], chosen: Int[Array, " B"]) -> Array:
    """By how much each image's chosen class is above the best other, [B, *axes]."""
    others = jnp.where(_is(chosen, table), -jnp.inf, table)
    return at(table, chosen) - others.max(axis=-1)


def soft_sign(x: Array) -> Array:
    """In (-1, 1); steep at 0, and never quite flat."""
    return x / (1 + jnp.abs(x))


def _is(chosen: Array, table: Array) -> Array:
    """Bool of the table's shape: True at each image's chosen class."""
    flags = jnp.arange(table.shape[-1])[None] == chosen[:, None]
    flags = flags.reshape(len(chosen), *(1,) * (table.ndim - 2), -1)
    return jnp.broadcast_to(flags, table.shape)


def _logs(scores: Array) -> Array:
    """Log scores, at least those of the floor; their slope goes on below it."""
    logs, least = jnp.log(jnp.maximum(scores, 1e-30)), math.log(_LEAST_SCORE)
    floored = jnp.maximum(logs, least)
    return guided(floored, jnp.where(logs > least, logs, 0.1 * logs))
