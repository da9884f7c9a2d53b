"""Several base classifiers of the same ablations as one: the mean of what they say.

Source: Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive
Uncertainty Estimation using Deep Ensembles", NeurIPS 2017 (arXiv:1612.01474).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dsmooth_jax.scoring import ScoresFn, bound, softmax, some_scores

_LEAST = 1e-30
"""The least score that is told from 0."""


def mean_scores(scores_fns: Sequence[ScoresFn]) -> ScoresFn:
    """Makes a base classifier of several: the geometric mean of their scores.

    Args:
      scores_fns: base classifiers of one ablation and of the same K classes.

    Returns:
      A scores_fn: images [B, H, W, C] -> scores [B, P, K], the softmax of the mean of
      the logarithms of theirs.

    Raises:
      ValueError: no classifier is given.

    Guarantee:
      Score p depends on nothing but the members' scores p, and so on no pixel that
      none of theirs depends on.
    """
    if not scores_fns:
        raise ValueError("scores_fns=[] must hold at least one base classifier")
    return Partial(_MeanScores(), *(bound("scores_fns", fn) for fn in scores_fns))


@dataclasses.dataclass(frozen=True)
class _MeanScores:
    def __call__(self, *fns_and_images: Any) -> Float[Array, "B P K"]:
        *fns, images = fns_and_images
        return _mean([fn(images) for fn in fns])

    def some(self, *inputs: Any) -> Float[Array, "B m K"]:
        *fns, images, index, is_run = inputs
        return _mean([some_scores(fn, images, index, is_run=is_run) for fn in fns])


def _mean(scores: Sequence[Float[Array, "B n K"]]) -> Float[Array, "B n K"]:
    logs = [jnp.log(jnp.maximum(one, _LEAST)) for one in scores]
    return softmax(jnp.stack(logs).mean(0))
