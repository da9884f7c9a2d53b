"""Several networks, trained one by one, that answer as one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dsmooth_jax import ensembling, scoring
from dsmooth_jax.models.base import BaseClassifier, Logits, Network, Variables


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
        return _mean(
            member.drawn_logits(of_member(variables, index), images, key)
            for index, member in enumerate(members)
        )

    init = _init(members)
    return BaseClassifier(init, _untrained, drawn_logits, _untrained, scores_fn)


def ensemble_of_networks(members: Sequence[Network]) -> Network:
    """The network whose softmax is the geometric mean of its members'.

    Args:
      members: networks of the same inputs and classes.

    Returns:
      A network, its variables as of `ensemble`; its logits are the mean of the
      logarithms of the members' softmax. It is not trained, either.

    Raises:
      ValueError: as `ensemble`.
    """

    def logits(variables: Variables, inputs: Float[Array, "M ..."]) -> Logits:
        return _mean(
            member.logits(of_member(variables, index), inputs)
            for index, member in enumerate(members)
        )

    def quick_logits(variables: Variables, inputs: Float[Array, "M ..."]) -> Logits:
        return _mean(
            member.quick_logits(of_member(variables, index), inputs)
            for index, member in enumerate(members)
        )

    return Network(_init(members), logits, _untrained, quick_logits)


def _mean(logits: Iterable[Float[Array, "*B K"]]) -> Float[Array, "*B K"]:
    return jnp.stack([jax.nn.log_softmax(one) for one in logits]).mean(0)


def _init(
    members: Sequence[BaseClassifier | Network],
) -> Callable[[Array], Variables]:
    if not members:
        raise ValueError("model.members=[] must name at least one network")

    def init(key: Key[Array, ""]) -> Variables:
        keys = jax.random.split(key, len(members))
        each = [member.init(k) for member, k in zip(members, keys, strict=True)]
        return joined(each)

    return init


def _untrained(*_: Any) -> NoReturn:
    raise ValueError(
        "model.name='ensemble' is not trained; train its members one by one, and put "
        "them together with `python -m scripts.join`"
    )


def joined(each: Sequence[Variables]) -> Variables:
    """The variables of an ensemble, from those of its members."""
    return {
        part: {str(index): one[part] for index, one in enumerate(each)}
        for part in ("params", "batch_stats")
    }


def of_member(variables: Variables, index: int) -> Variables:
    """The variables of one member, from those of its ensemble."""
    return {part: arrays[str(index)] for part, arrays in variables.items()}
