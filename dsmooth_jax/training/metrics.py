"""What is measured in steps, and metrics.jsonl: a line for each validation of a run.

Lines come without gaps or repeats.

A run that goes on from step t cuts off what was written after t, and writes it again.
TensorBoard's files beside it, where asked for, likewise.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dsmooth_jax.storage.files import write_whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
    """What steps measured, in one array: the host fetches one, not one for each name.

    Attributes:
      values: float32 [n, M], of n steps (Any here: abstract values pass through too).
      names: of the M metrics.
    """

    values: Any
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, metrics: Mapping[str, Array]) -> "Measured":
        """The scalars of one step."""
        names = tuple(sorted(metrics))
        values = [metrics[name].astype(jnp.float32) for name in names]
        return cls(jnp.stack(values)[None], names)


class Means:
    """Means of the metrics of each step since the last validation.

    Sums are float64 and grow step by step, so that when they are read from the device
    or from a checkpoint makes no difference.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0):
        self.sums, self.count = dict(sums or {}), count
        self.learning_rate = math.nan  # the last step's
        # Of each call its steps, and their metrics, still on the device.
        self.unread: list[tuple[int, Measured]] = []

    @property
    def num_unread(self) -> int:
        """Steps whose metrics are not read yet."""
        return sum(count for count, _ in self.unread)

    def read(self, done: int, *, is_all: bool = True) -> tuple[str, int] | None:
        """Adds the metrics that are unread.

        Args:
          done: steps taken.
          is_all: whether to wait for the call that is running, too.

        Returns:
          What is not finite, and the number of its step, from 1; None where all is.
        """
        step = done - self.num_unread
        left = [] if is_all else self.unread[-1:]
        ready = self.unread[: len(self.unread) - len(left)]
        for count, measured in ready:
            for values in jax.device_get(measured.values)[:count].tolist():
                step += 1
                found = dict(zip(measured.names, values, strict=True))
                self.learning_rate = found.pop("learning_rate")
                for name, value in found.items():
                    if not math.isfinite(value):
                        return f"the {name} became {value}", step
                    self.sums[name] = self.sums.get(name, 0.0) + value
            self.count += count
        self.unread = left
        return None

    def values(self) -> dict[str, float]:
        """The means."""
        return {name: total / self.count for name, total in self.sums.items()}

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self.sums, "count": self.count}


def cut(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Cuts off the lines after a step, and one that a kill cut short.

    Args:
      path: of metrics.jsonl; it may be missing.
      step: the last one to keep.

    Returns:
      The lines that are kept.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # training repeats that step
        if record["step"] <= step:
            kept.append(record)
    if len(kept) < len(lines):
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_whole(path, text.encode())
    return kept


def append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes one more line, and has it on disk before the checkpoint that follows."""
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def tensorboard(
    folder: pathlib.Path | None, step: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens TensorBoard's log.

    Args:
      folder: where it is; None: nothing is logged.
      step: that the run goes on from; TensorBoard forgets what was logged after it.

    Yields:
      A function that logs the numbers of a line of metrics.jsonl.

    Raises:
      ValueError: tensorboardX is not installed.
    """
    if folder is None:
        yield lambda record: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs tensorboardX: pip install tensorboardX"
        ) from error
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:

        def log(record: Mapping[str, Any]) -> None:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    writer.add_scalar(name, value, record["step"])
            writer.flush()

        yield log
