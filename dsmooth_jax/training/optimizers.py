"""Optimizers and their schedules, from plain numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax
import optax.contrib

from dsmooth_jax.checks import check_choice, check_count, check_range


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An Optax optimizer with its schedule.

    Attributes:
      name: "adamw", "sgd" (with momentum; its weight decay is added to the gradient, as
        in the paper), or "muon": Optax's, for kernels reshaped to [inputs, outputs],
        with Adam for vectors and the head.
      learning_rate: the highest, > 0.
      adam_learning_rate: muon's for what Adam updates, > 0; on the same schedule.
      weight_decay: >= 0.
      momentum: of sgd and muon, in [0, 1).
      newton_schulz_steps: iterations of muon for each kernel and step, >= 1; fewer are
        cheaper and orthogonalise less exactly.
      schedule: "cosine" or "linear" to zero, "piecewise" (a tenth from each boundary
        on), or "constant".
      warmup_epochs: linear from zero, >= 0; may be a fraction.
      boundaries: epochs at which a piecewise schedule drops, increasing.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = 1e-3
    adam_learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    momentum: float = 0.9
    newton_schulz_steps: int = 5
    schedule: Literal["cosine", "linear", "piecewise", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    boundaries: Sequence[float] = ()

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, ("adamw", "sgd", "muon"))
        schedules = ("cosine", "linear", "piecewise", "constant")
        check_choice("optimizer.schedule", self.schedule, schedules)
        check_range("optimizer.learning_rate", self.learning_rate, above=0)
        check_range("optimizer.adam_learning_rate", self.adam_learning_rate, above=0)
        check_range("optimizer.weight_decay", self.weight_decay, least=0)
        check_range("optimizer.momentum", self.momentum, least=0, below=1)
        check_count("optimizer.newton_schulz_steps", self.newton_schulz_steps)
        check_range("optimizer.warmup_epochs", self.warmup_epochs, least=0)
        object.__setattr__(self, "boundaries", tuple(self.boundaries))  # JSON has lists
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(
                f"optimizer.boundaries={self.boundaries} must increase, in epochs"
            )


def make_optimizer(
    config: OptimizerConfig, *, num_epochs: float, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimizer and its learning-rate schedule (step -> rate).

    Args:
      config: names and numbers.
      num_epochs: length of the run; a cosine schedule ends there.
      steps_per_epoch: may be a fraction; nothing of an epoch is dropped.
    """
    schedule = _schedule(config, num_epochs, steps_per_epoch)
    match config.name:
        case "adamw":
            optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
        case "sgd":
            optimizer = optax.chain(
                optax.add_decayed_weights(config.weight_decay),
                optax.sgd(schedule, momentum=config.momentum),
            )
        case "muon":
            ratio = config.adam_learning_rate / config.learning_rate
            optimizer = optax.contrib.muon(
                schedule,
                ns_steps=config.newton_schulz_steps,
                beta=config.momentum,
                weight_decay=config.weight_decay,
                adam_learning_rate=lambda step: ratio * schedule(step),
                muon_weight_dimension_numbers=_matrices,
            )
    return optimizer, schedule


def _matrices(params: Any) -> Any:
    """Which axes of each kernel are inputs and outputs; None for what Adam updates."""

    def axes(path: Any, leaf: Any) -> Any:
        # Positions and tokens of a vision transformer are no matrices of a layer.
        if path[-1].key != "kernel" or path[0].key == "head":
            return None
        last = leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last)

    return jax.tree_util.tree_map_with_path(axes, params)


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
        case "linear":
            main = optax.linear_schedule(config.learning_rate, 0.0, total - warmup)
        case "piecewise":
            drops = {
                round(e * steps_per_epoch) - warmup: 0.1 for e in config.boundaries
            }
            main = optax.piecewise_constant_schedule(config.learning_rate, drops)
        case "constant":
            main = optax.constant_schedule(config.learning_rate)
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([ramp, main], [warmup]) if warmup else main
