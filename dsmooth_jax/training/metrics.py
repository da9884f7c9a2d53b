"""metrics.jsonl: one line for each validation of a run, without gaps or repeats.

A run that goes on from step t cuts off what was written after t, and writes it again.
TensorBoard's files beside it, where asked for, likewise.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dsmooth_jax.storage.files import write_whole


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
