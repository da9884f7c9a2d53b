"""Several networks, trained one by one, that score as one base classifier."""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dsmooth_jax import ensembling, scoring
from dsmooth_jax.models.base import BaseClassifier, Variables


def ensemble(members: Sequence[BaseClassifier]) -> BaseClassifier:
    """The base classifier whose scores are the geometric mean of its members'.

    Args:
      members: base classifiers of one ablation, images and classes.

    Returns:
      A classifier with the members' variables under "0", "1", ... in "params" and in
      "batch_stats". It is not trained: train its members.

    Raises:
      ValueError: no member is given; when it is asked to train.

    Guarantee:
      As of `mean_scores`.
    """
    if not members:
        raise ValueError("model.members=[] must name at least one network")

    def init(key: Key[Array, ""]) -> Variables:
        keys = jax.random.split(key, len(members))
        each = [member.init(k) for member, k in zip(members, keys, strict=True)]
        return joined(each)

    def untrained(*_: Any) -> NoReturn:
        raise ValueError(
            "model.name='ensemble' is not trained; train its members one by one, and "
            "put them together with `python -m scripts.ship`"
        )

    def scores_fn(variables: Variables) -> scoring.ScoresFn:
        return ensembling.mean_scores(
            [
                member.scores_fn(of_member(variables, index))
                for index, member in enumerate(members)
            ]
        )

    def drawn_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> Float[Array, "B n K"]:
        each = [
            member.drawn_logits(of_member(variables, index), images, key)
            for index, member in enumerate(members)
        ]
        return jnp.stack([jax.nn.log_softmax(logits) for logits in each]).mean(0)

    return BaseClassifier(init, untrained, drawn_logits, untrained, scores_fn)


def joined(each: Sequence[Variables]) -> Variables:
    """The variables of an ensemble, from those of its members."""
    return {
        part: {str(index): one[part] for index, one in enumerate(each)}
        for part in ("params", "batch_stats")
    }


def of_member(variables: Variables, index: int) -> Variables:
    """The variables of one member, from those of its ensemble."""
    return {part: arrays[str(index)] for part, arrays in variables.items()}
