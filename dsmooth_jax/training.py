"""Training base classifiers on random ablations: the pieces of a loop.

Everything is a pure function of its arguments; the random numbers of a step come from
the run's key and the step's number alone, so a run that resumes at step t goes on as if
it had never stopped.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3: cross-entropy on randomly
ablated images. They draw one ablation for each minibatch; here each image has its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Shaped

from dsmooth_jax.masking import to_unit
from dsmooth_jax.models import BaseClassifier, Variables


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An Optax optimiser with its schedule.

    Attributes:
      name: "adamw", or "sgd" (with momentum; its weight decay is added to the gradient,
        as in the paper).
      learning_rate: the highest, > 0.
      weight_decay: >= 0.
      momentum: of sgd, in [0, 1).
      schedule: "cosine" to zero, "piecewise" (a tenth from each boundary on), or
        "constant".
      warmup_epochs: linear from zero, >= 0; may be a fraction.
      boundaries: epochs at which a piecewise schedule drops, increasing.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Literal["cosine", "piecewise", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    boundaries: Sequence[float] = ()

    def __post_init__(self) -> None:
        _check_choice("optimizer.name", self.name, ("adamw", "sgd"))
        _check_choice(
            "optimizer.schedule", self.schedule, ("cosine", "piecewise", "constant")
        )
        _check_range("optimizer.learning_rate", self.learning_rate, above=0)
        _check_range("optimizer.weight_decay", self.weight_decay, least=0)
        _check_range("optimizer.momentum", self.momentum, least=0, below=1)
        _check_range("optimizer.warmup_epochs", self.warmup_epochs, least=0)
        object.__setattr__(self, "boundaries", tuple(self.boundaries))  # JSON has lists
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(
                f"optimizer.boundaries={self.boundaries} must increase, in epochs"
            )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to each training image, at random, before it is ablated.

    Attributes:
      shift: pixels, >= 0; the image moves by up to so many in each direction (a crop
        from the image padded by zeros).
      flip: whether half of the images are mirrored left to right.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        _check_range("augment.shift", self.shift, least=0)
        if not isinstance(self.shift, int):
            raise TypeError(f"augment.shift={self.shift} must be an integer, in pixels")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while training, a PyTree.

    Attributes:
      step: int32 [], steps taken (Any here: abstract values pass through too).
      variables: {"params": ..., "batch_stats": ...}.
      opt_state: Optax's.
    """

    step: Any
    variables: Variables
    opt_state: Any


TrainStep = Callable[
    [TrainState, Shaped[Array, "B H W C"], Int[Array, " B"], Key[Array, ""]],
    tuple[TrainState, dict[str, Array]],
]


def make_optimizer(
    config: OptimizerConfig, *, num_epochs: float, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimiser and its learning-rate schedule (step -> rate).

    Args:
      config: names and numbers.
      num_epochs: length of the run; a cosine schedule ends there.
      steps_per_epoch: may be a fraction; nothing of an epoch is dropped.
    """
    schedule = _schedule(config, num_epochs, steps_per_epoch)
    if config.name == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay), schedule
    return (
        optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule, momentum=config.momentum),
        ),
        schedule,
    )


def init_state(
    classifier: BaseClassifier,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
) -> TrainState:
    """Draws the variables and the optimiser's first state."""
    variables = classifier.init(key)
    opt_state = optimizer.init(variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state)


def make_train_step(
    classifier: BaseClassifier,
    optimizer: optax.GradientTransformation,
    augment_config: AugmentConfig,
) -> TrainStep:
    """Builds the pure function (state, images, labels, key) -> (state, metrics).

    ``images`` are uint8 or floating [B, H, W, C], ``labels`` integers [B], ``key`` the
    run's (the step's is derived from it). Metrics are "loss" and "accuracy", means over
    the ablated images of the batch, scalars on the device.
    """

    def train_step(state, images, labels, key):
        augment_key, ablate_key = jax.random.split(jax.random.fold_in(key, state.step))
        augmented = augment(augment_key, to_unit(images), augment_config)

        def loss_fn(params):
            variables = {**state.variables, "params": params}
            logits, batch_stats = classifier.train_logits(
                variables, augmented, ablate_key
            )
            targets = jnp.broadcast_to(labels[:, None], logits.shape[:2])  # [B, n]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            accuracy = (logits.argmax(axis=-1) == targets).mean()
            return losses.mean(), (batch_stats, accuracy)

        params = state.variables["params"]
        (loss, (batch_stats, accuracy)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {
            "params": optax.apply_updates(params, updates),
            "batch_stats": batch_stats,
        }
        metrics = {"loss": loss, "accuracy": accuracy}
        return TrainState(state.step + 1, variables, opt_state), metrics

    return train_step


def augment(
    key: Key[Array, ""], images: Float[Array, "B H W C"], config: AugmentConfig
) -> Float[Array, "B H W C"]:
    """Shifts and mirrors each image at random, on the device."""
    batch, height, width, channels = images.shape
    shift_key, flip_key = jax.random.split(key)
    if config.shift:
        pad = config.shift
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(shift_key, (batch, 2), 0, 2 * pad + 1)
        images = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (height, width, channels)
            )
        )(padded, corners)
    if config.flip:
        flipped = jax.random.bernoulli(flip_key, 0.5, (batch, 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    return images


def _schedule(
    config: OptimizerConfig, num_epochs: float, steps_per_epoch: float
) -> optax.Schedule:
    total = max(1, round(num_epochs * steps_per_epoch))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        raise ValueError(
            f"optimizer.warmup_epochs={config.warmup_epochs} must be fewer than the "
            f"run's epochs, {num_epochs}"
        )
    match config.schedule:
        case "cosine":
            main = optax.cosine_decay_schedule(config.learning_rate, total - warmup)
        case "piecewise":
            drops = {
                round(e * steps_per_epoch) - warmup: 0.1 for e in config.boundaries
            }
            main = optax.piecewise_constant_schedule(config.learning_rate, drops)
        case "constant":
            main = optax.constant_schedule(config.learning_rate)
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([ramp, main], [warmup]) if warmup else main


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {choices}")


def _check_range(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number")
    if least is not None and not value >= least:
        raise ValueError(f"{name}={value} must be >= {least}")
    if above is not None and not value > above:
        raise ValueError(f"{name}={value} must be > {above}")
    if below is not None and not value < below:
        raise ValueError(f"{name}={value} must be < {below}")
