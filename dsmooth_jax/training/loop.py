"""A training run in a workdir: it survives being killed, and ends where it would have.

Everything that a run's future depends on is in its newest checkpoint (parameters,
optimizer, average, the metrics since the last validation, the best so far) or follows
from the step's number (batches, random numbers). So a run that is killed anywhere, also
while it saves, and started again goes on from there and ends bit for bit as if it had
not been killed, on as many devices of the same kind. On other devices it goes on, too,
and says that it does not.

In a workdir: checkpoints/latest (the newest two), checkpoints/best (what to certify),
metrics.jsonl. All processes of a run call `run`; the first one prints and writes.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from tqdm import tqdm

from dsmooth_jax import distributed
from dsmooth_jax.checks import check_range
from dsmooth_jax.models import Variables
from dsmooth_jax.storage import checkpoint, provenance
from dsmooth_jax.storage.checkpoint import DamagedCheckpointError
from dsmooth_jax.storage.workdir import BEST, LATEST, METRICS, TENSORBOARD
from dsmooth_jax.training import feeding, metrics
from dsmooth_jax.training.choice import Choice
from dsmooth_jax.training.feeding import Resident, Streamed
from dsmooth_jax.training.metrics import Means
from dsmooth_jax.training.ownership import check_free
from dsmooth_jax.training.step import TrainState, TrainStep

_READ_EVERY = 100  # steps between two readings of metrics from the device


@dataclass(frozen=True)
class Plan:
    """How long a run is, and what it does on the way.

    Attributes:
      num_steps: of the whole run, >= 1.
      steps_per_epoch: > 0, not always whole.
      validate_every: steps from one validation to the next, > 0, not always whole.
      save_every: steps from one checkpoint to the next, >= 1, besides those after each
        validation; it changes nothing but what a kill costs.
      tensorboard: whether to log for TensorBoard, too.
      steps_per_call: steps that the device takes before it asks the host for more, >=
        1; None: what suits it. It only runs faster.
    """

    num_steps: int
    steps_per_epoch: float
    validate_every: float
    save_every: int = 1000
    tensorboard: bool = False
    steps_per_call: int | None = None

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, least=1, below=2**31)  # it is int32
        check_range("steps_per_epoch", self.steps_per_epoch, above=0)
        check_range("validate_every", self.validate_every, above=0)
        check_range("--save_every", self.save_every, least=1)
        if self.steps_per_call is not None:
            check_range("--steps_per_call", self.steps_per_call, least=1)

    def is_validated(self, done: int) -> bool:
        """Whether a validation follows after so many steps."""
        # Whether the last of them completes an interval, which may be 2.5.
        done_before = (done - 1) // self.validate_every
        return done == self.num_steps or done // self.validate_every > done_before

    def is_saved(self, done: int) -> bool:
        """Whether a checkpoint does."""
        return self.is_validated(done) or done % self.save_every == 0


@dataclass(frozen=True)
class Outcome:
    """How far a run got.

    Attributes:
      step: steps taken, by this command and those before it.
      num_taken: steps taken by this command.
      num_steps: of the whole run.
      best: the choice of the best validation so far, None before the first.
      lines: of metrics.jsonl.
    """

    step: int
    num_taken: int
    num_steps: int
    best: Choice | None
    lines: list[dict[str, Any]]

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken; if not, SIGTERM asked to stop."""
        return self.step >= self.num_steps


def run(
    workdir: pathlib.Path,
    plan: Plan,
    record: Mapping[str, Any],
    state: TrainState,
    train_step: TrainStep,
    feed: Resident | Streamed,
    validate: Callable[[Variables], Choice],
    *,
    key: Key[Array, ""],
) -> Outcome:
    """Trains; goes on with what lies in the workdir.

    Args:
      workdir: made if missing.
      plan: how long, how often.
      record: what every checkpoint says of the run, plain JSON. "config" and
        "fingerprints" must be those of the run in the workdir.
      state: the first one.
      train_step: pure; its metrics hold "loss" and "learning_rate".
      feed: where the images come from.
      validate: variables -> the choice, the same in all processes. The best is kept,
        the later one of equals.
      key: the run's, of JAX's default kind.

    Raises:
      CheckpointError: a checkpoint cannot be read or written; the message says what is
        left.
      ValueError: the workdir holds another run, or what cannot be gone on from; the
        loss or a parameter is no longer finite, the message says since which step.
    """
    check_free(workdir, record)
    is_first = distributed.is_first()
    mesh = distributed.batch_mesh()
    resumed = _resume(workdir, state, record)
    keys = ("config", "fingerprints")
    distributed.check_same("config", json.dumps({key: record[key] for key in keys}))
    distributed.check_same(
        f"checkpoints in {workdir}", f"step {int(resumed.state.step)}"
    )
    state = distributed.replicate(resumed.state, mesh)
    key_data = distributed.replicate(jax.random.key_data(key), mesh)
    best, first, last = resumed.best, int(resumed.state.step), plan.num_steps
    metrics_path = workdir / METRICS
    lines = metrics.cut(metrics_path, first) if is_first else []
    if first >= last:
        return Outcome(first, 0, last, best, lines)

    means = resumed.means
    begun = time.time()
    logs = workdir / TENSORBOARD if plan.tensorboard and is_first else None
    bar = tqdm(
        initial=first,
        total=last,
        unit="step",
        disable=not (sys.stderr.isatty() and is_first),
    )
    pace = feeding.Pace(feed, plan.steps_per_call)
    take = feed.start(train_step, mesh, key_data, range(first, last), pace.most)
    done, num_calls = first, 0
    with (
        bar,
        distributed.stop_requested() as stop_requested,
        metrics.tensorboard(logs, first) as log,
    ):
        while done < last:
            count = 1
            while count < pace.length and not plan.is_saved(done + count):
                count += 1
            state, measured = take(state, done, count)
            means.unread.append((count, measured))
            pace.follow(measured)
            done, num_calls = done + count, num_calls + 1
            bar.update(count)
            is_validated = plan.is_validated(done)
            stops = stop_requested(num_calls)
            is_saved = stops or plan.is_saved(done)
            is_read = is_saved or means.num_unread >= _READ_EVERY
            if is_read and (wrong := means.read(done, is_all=is_saved)):
                raise _diverged(*wrong, means.learning_rate, workdir)
            if is_saved and (what := _not_finite(state)):
                raise _diverged(what, done, means.learning_rate, workdir)
            is_best = False
            if is_validated:
                choice = validate(_local(state.best_variables))
                choice = dataclasses.replace(choice, step=done)
                line = {"step": done, "epoch": done / plan.steps_per_epoch}
                line |= {**means.values(), **choice.to_json()}
                line["learning_rate"] = means.learning_rate
                means = Means()
                lines.append(line)
                is_best = best is None or choice.is_at_least(best)
                best = choice if is_best else best
                if is_first:
                    metrics.append(metrics_path, line)
                    log(line)
                    left = (time.time() - begun) / (done - first) * (last - done)
                    tqdm.write(
                        f"epoch {line['epoch']:.4g}  loss {line['loss']:.3f}  "
                        f"{choice}  ({left:.0f} s to go)"
                    )
            if is_saved:
                kept = None if best is None else best.to_json()
                saved = {**record, "best": kept, "means": means.to_json()}
                saved["devices"] = _devices()
                checkpoint.save(workdir / LATEST, done, state, saved, keep=2)
            if is_best:
                _save_best(workdir, state, record, best)
            if stops and done < last:
                return Outcome(done, done - first, last, best, lines)
    return Outcome(last, last - first, last, best, lines)


@dataclass(frozen=True)
class _Resumed:
    state: TrainState
    best: Choice | None
    means: Means


def _resume(
    workdir: pathlib.Path, state: TrainState, record: Mapping[str, Any]
) -> _Resumed:
    """What the newest whole checkpoint holds; the given state where there is none."""
    if not checkpoint.steps(workdir / LATEST):
        return _Resumed(state, None, Means())
    state, saved, problems = checkpoint.restore_newest(workdir / LATEST, state)
    step, best = int(state.step), saved["best"] and Choice.from_json(saved["best"])
    notes = [f"{problem}; it is set aside" for problem in problems]
    if problems:
        notes.append(f"going on from step {step}, the newest that is whole")
    if saved["devices"] != _devices():
        unlike = provenance.describe_difference(saved["devices"], _devices())
        notes.append(
            f"going on on other devices ({unlike}): correct, but not bit-identical to "
            "a run that stays on its devices"
        )
    folder = workdir / BEST
    checkpoint.discard_after(folder, step)
    if best is not None and not _is_whole(folder, best.step, state):
        checkpoint.set_aside(folder, after=best.step - 1)
        if best.step == step:  # killed between saving it as latest and as best
            _save_best(workdir, state, record, best)
        else:
            best = None
            notes.append(
                f"the best checkpoint so far in {folder} is gone or damaged: "
                "the best is chosen among the validations still to come"
            )
    if distributed.is_first():
        for note in notes:
            print(note, file=sys.stderr)
    return _Resumed(state, best, Means(**saved["means"]))


def _is_whole(directory: pathlib.Path, step: int, state: TrainState) -> bool:
    if step not in checkpoint.steps(directory):
        return False
    try:
        checkpoint.restore(directory, state.best_variables, step=step)
    except DamagedCheckpointError:
        return False
    return True


def _save_best(
    workdir: pathlib.Path,
    state: TrainState,
    record: Mapping[str, Any],
    best: Choice | None,
) -> None:
    assert best is not None
    saved = {**record, **best.to_json()}
    checkpoint.save(workdir / BEST, best.step, state.best_variables, saved)


def _not_finite(state: TrainState) -> str:
    """What of a state can only give NaN, before it takes the place of a good one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        if is_float and not np.isfinite(np.asarray(leaf)).all():
            return f"{jax.tree_util.keystr(path)} is no longer finite"
    return ""


def _diverged(
    what: str, done: int, learning_rate: float, workdir: pathlib.Path
) -> ValueError:
    newest = checkpoint.latest_step(workdir / LATEST)
    good = "there is no checkpoint yet"
    if newest is not None:
        good = f"the last good checkpoint is step {newest} in {workdir / LATEST}"
    return ValueError(
        f"{what} in step {done}, at learning rate {learning_rate:.3g}; {good}; begin "
        "anew in another --workdir with a lower "
        "--config.train.optimizer.learning_rate"
    )


def _local(variables: Variables) -> Variables:
    """Variables that this process's devices alone can compute with."""
    return jax.tree.map(np.asarray, variables) if jax.process_count() > 1 else variables


def _devices() -> dict[str, Any]:
    return {
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
