"""Training base classifiers on random ablations: the pieces of a loop.

Everything is a pure function of its arguments; the random numbers of a step come from
the run's key and the step's number alone, so a run that resumes at step t goes on as if
it had never stopped.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3: cross-entropy on randomly
ablated images. They draw one ablation for each minibatch; here each image has its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Key, Shaped

from dsmooth_jax.checks import check_choice, check_count
from dsmooth_jax.masking import to_unit
from dsmooth_jax.models import BaseClassifier, ImageClassifier, Variables
from dsmooth_jax.training.augment import AugmentConfig, augment
from dsmooth_jax.training.losses import LossConfig, LossFn, make_loss
from dsmooth_jax.training.teaching import Teach
from dsmooth_jax.wording import counted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while training, a PyTree.

    Attributes:
      step: int32 [], steps taken (Any here: abstract values pass through too).
      variables: {"params": ..., "batch_stats": ...}.
      opt_state: Optax's.
      average: the exponential moving average of the variables; None where it is off.
    """

    step: Any
    variables: Variables
    opt_state: Any
    average: Variables | None = None

    @property
    def best_variables(self) -> Variables:
        """What to validate and to certify: the average where there is one."""
        return self.variables if self.average is None else self.average


TrainStep = Callable[
    [TrainState, Shaped[Array, "B H W C"], Shaped[Array, "B *K"], Key[Array, ""]],
    tuple[TrainState, dict[str, Array]],
]
"""A `Partial`, where it has arrays of its own."""


def init_state(
    classifier: BaseClassifier | ImageClassifier,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    variables: Variables | None = None,
    has_average: bool = False,
) -> TrainState:
    """The first state: of given variables, or of some that are drawn."""
    variables = classifier.init(key) if variables is None else variables
    opt_state = optimizer.init(variables["params"])
    # A copy: the two are donated to the same step.
    average = jax.tree.map(jnp.copy, variables) if has_average else None
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, average)


def make_train_step(
    classifier: BaseClassifier | ImageClassifier,
    optimizer: optax.GradientTransformation,
    augment_config: AugmentConfig,
    loss_config: LossConfig | None = None,
    *,
    sets: Bool[np.ndarray, "L P"] | None = None,
    ema_decay: float = 0.0,
    precision: str = "float32",
    num_accumulated: int = 1,
    schedule: optax.Schedule | None = None,
) -> Partial:
    """Builds the pure function (state, images, labels, key) -> (state, metrics).

    ``images`` are uint8 or floating [B, H, W, C], ``labels`` integers [B], or
    soft, floating [B, K], for cross-entropy; ``key`` the run's (the step's is derived
    from it). Metrics are "loss" and "accuracy", means over
    the images of the batch, ablated or partly hidden, scalars on the device; and
    "learning_rate" where a schedule is given. Accuracy is that against the likeliest
    class of soft labels.

    Args:
      classifier: what is trained.
      optimizer: Optax's.
      augment_config: what is done to the images first.
      loss_config: cross-entropy if None.
      sets: of the loss's patch, in the ablation thinned as the loss says: the touched
        sets for a loss on the margin of votes, the masks for one on double masking.
      ema_decay: of the moving average, in [0, 1); for a state that has one.
      precision: "bfloat16" to compute activations and gradients in it; parameters,
        optimizer state, batch statistics and the loss stay float32.
      num_accumulated: parts of a batch that are computed one after the other, >= 1; it
        must divide B. Memory is that of a part, and the gradient the mean of theirs: of
        a network without batch normalisation the gradient of the whole batch (up to
        the random numbers, which each part draws for itself).
      schedule: of the optimizer's learning rate, to report it.

    Raises:
      ValueError: a loss on a margin without its sets; a precision or a number of
        parts that is none; when called, a batch that does not divide.
    """
    check_choice("train.precision", precision, ("float32", "bfloat16"))
    check_count("train.num_accumulated", num_accumulated)
    loss_fn = make_loss(
        loss_config or LossConfig(),
        classifier,
        sets=sets,
        compute_dtype=jnp.dtype(precision),
    )

    def train_step(teach, state, images, labels, key):
        augment_key, ablate_key = jax.random.split(jax.random.fold_in(key, state.step))
        augmented = augment(augment_key, to_unit(images), augment_config)
        loss = loss_fn if teach is None else _taught(loss_fn, teach)
        gradient, batch_stats, metrics = _accumulate(
            loss, num_accumulated, state.variables, augmented, labels, ablate_key
        )
        params = state.variables["params"]
        if schedule is not None:
            rate = jnp.asarray(schedule(state.step), jnp.float32)
            metrics = {**metrics, "learning_rate": rate}
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {
            "params": optax.apply_updates(params, updates),
            "batch_stats": batch_stats,
        }
        average = state.average
        if average is not None:
            # Early steps forget faster: the first draw of the weights says nothing.
            step = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
            average = optax.incremental_update(variables, average, 1 - decay)
        return TrainState(state.step + 1, variables, opt_state, average), metrics

    return Partial(train_step, None)


def with_teacher(step: Partial, teach: Teach) -> Partial:
    """The same step of cross-entropy, on the soft labels that a teacher makes.

    The teacher's arrays are leaves of what is returned: a compiled function can take
    them as arguments.
    """
    return Partial(step.func, teach)


def _taught(loss_fn: LossFn, teach: Teach) -> LossFn:
    return lambda params, batch_stats, images, labels, key: loss_fn(
        params, batch_stats, images, teach(images, labels, key), key
    )


def _gradient(
    loss_fn: LossFn, variables: Variables, images: Array, labels: Array, key: Any
) -> tuple[Any, Any, dict[str, Array]]:
    """(gradient, batch statistics, metrics) of one part of a batch."""
    (loss, (batch_stats, accuracy)), gradient = jax.value_and_grad(
        loss_fn, has_aux=True
    )(variables["params"], variables["batch_stats"], images, labels, key)
    return gradient, batch_stats, {"loss": loss, "accuracy": accuracy}


def _accumulate(
    loss_fn: LossFn,
    num_parts: int,
    variables: Variables,
    images: Array,
    labels: Array,
    key: Any,
) -> tuple[Any, Any, dict[str, Array]]:
    """The means over all parts; batch statistics pass from one to the next."""
    if num_parts == 1:
        return _gradient(loss_fn, variables, images, labels, key)
    if len(images) % num_parts:
        raise ValueError(
            f"train.num_accumulated={num_parts} must divide the batch, "
            f"{counted(len(images), 'image')}"
        )

    def part(carry, inputs):
        batch_stats, sums = carry
        gradient, batch_stats, metrics = _gradient(
            loss_fn, {**variables, "batch_stats": batch_stats}, *inputs
        )
        return (batch_stats, jax.tree.map(jnp.add, sums, (gradient, metrics))), None

    # Part i takes every n-th image from the i-th on: on several devices each image
    # stays where it is.
    images, labels = (
        x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1) for x in (images, labels)
    )
    keys = jax.random.split(key, num_parts)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    nothing = {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}
    first = variables["batch_stats"], (zeros, nothing)
    (batch_stats, sums), _ = jax.lax.scan(part, first, (images, labels, keys))
    gradient, metrics = jax.tree.map(lambda leaf: leaf / num_parts, sums)
    return gradient, batch_stats, metrics
