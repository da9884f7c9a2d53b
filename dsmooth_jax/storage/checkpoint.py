"""Checkpoints: arrays with the plain JSON that says what they are, and checksums.

One directory holds one run; each step is `<directory>/<step>/`, written by Orbax
under another name and renamed when whole. Orbax itself keeps no checksum of the data
and casts a wrong dtype silently, so this module stores the path, dtype and shape of
every leaf and two SHA-256 sums beside the metadata, and `restore` compares all of
them. It is the only module that knows Orbax.

One process, or the processes of one run together, write to a directory at a time.
"""

import operator
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsmooth_jax.checks import user_path
from dsmooth_jax.storage import pytrees
from dsmooth_jax.storage.pytrees import PyTree

_TMP_SUFFIX = ".orbax-checkpoint-tmp"

# How the storage below Orbax says that something else than the data is at fault.
_NOT_DAMAGE = (
    "MemoryError",
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Too many open files",
    "Permission denied",
    "Cannot allocate memory",
    "Input/output error",
    "Stale file handle",
)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not the one that was asked for."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is there but is not what was written."""


def save(
    directory: str | Path, step: int, tree: PyTree, metadata: dict, *, keep: int = 1
) -> None:
    """Writes one checkpoint, then deletes all but the newest `keep`.

    Blocks until the checkpoint is whole on disk. A kill at any moment leaves the
    newest earlier one whole; what a killed save left behind is removed here.
    With several processes, all of them call this with equal arguments.

    Args:
      directory: The run's checkpoint directory; made if missing.
      step: At least 0, and above every step in the directory.
      tree: Any PyTree of arrays or Python numbers (nested dicts, lists, tuples,
        optax states), at least one leaf. Arrays are in memory on every process
        (sharded over its devices, or replicated).
      metadata: Plain JSON: dicts with string keys, lists, strings, finite numbers,
        booleans, None.
      keep: How many of the newest steps to keep, at least 1.

    Raises:
      CheckpointError: the step is not above the newest one; or it could not be written
        (the disk is full, for example), then what was there before is still there.
      TypeError: a leaf that is no array, that JAX would change (int64 without
        x64), or a typed PRNG key; metadata that JSON would change.
      ValueError: `step` or `keep` out of range, no leaf or an empty one, a number
        in the metadata that is not finite.
    """
    directory, step = check_directory(directory), operator.index(step)
    if step < 0:
        raise ValueError(f"step={step} must be at least 0")
    if keep < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    pytrees.check_json(metadata, "metadata")
    newest = latest_step(directory)
    if newest is not None and step <= newest:
        raise CheckpointError(
            f"step={step} must be above {newest}, the newest step in {directory}: "
            "restore that one and go on from it, or save into another directory"
        )
    host_tree = pytrees.to_host(tree)
    record: dict[str, Any] = {
        "metadata": metadata,
        "leaves": pytrees.describe(host_tree),
        "arrays_sha256": pytrees.arrays_sha256(host_tree),
    }
    record["json_sha256"] = pytrees.json_sha256(record)
    is_first_process = jax.process_index() == 0
    if is_first_process:
        _remove_leftovers(directory)
    try:
        _orbax().save(directory / str(step), host_tree, custom_metadata=record)
    except Exception as error:  # Orbax and its storage raise all kinds
        if is_first_process:
            _remove_leftovers(directory)  # they take room on a full disk
        kept = (
            "nothing was saved" if newest is None else f"step {newest} is still whole"
        )
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {directory} "
            f"({_root_cause(error)}); {kept} there; make room, then go on from it"
        ) from error
    if is_first_process:
        for old in steps(directory)[:-keep]:
            _delete(directory, old)


def restore(
    directory: str | Path, target: PyTree, *, step: int | None = None
) -> tuple[PyTree, dict]:
    """Reads one checkpoint and verifies it against the target and its checksums.

    Args:
      directory: The run's checkpoint directory.
      target: A PyTree of arrays or `jax.ShapeDtypeStruct`: the structure, shapes and
        dtypes wanted. A leaf's sharding, where it has one, says where the result
        goes; the devices need not be those it was saved from.
      step: Which step; None is the newest.

    Returns:
      (tree, metadata): JAX arrays in the structure of `target`, and the saved JSON.

    Raises:
      CheckpointError: nothing there; another structure, shape or dtype than `target`,
        naming the first leaf that differs; content that does not match its
        checksums. The message names the directory.
      TypeError: a leaf of `target` without shape and dtype.
    """
    jax.devices()  # where there are none, that is no fault of the checkpoint
    path = _step_path(directory, step)
    record = _read_record(path)
    for leaf_path, leaf in pytrees.leaves(target):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"the target leaf {leaf_path!r} is a {type(leaf).__name__}: it must "
                "be an array or a jax.ShapeDtypeStruct"
            )
    wanted = pytrees.describe(target)
    difference = pytrees.first_difference(record["leaves"], wanted)
    if difference:
        raise CheckpointError(
            f"the checkpoint {path} is not of this model: {difference}. Restore it "
            "into the model and optimizer that its metadata name, or another directory"
        )
    host_target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
    try:
        host_tree = _orbax().load(path, host_target)
    except Exception as error:
        raise _unreadable(path, error) from error
    # The leaves too: where the stored data disagree, Orbax may return another shape.
    if (
        pytrees.describe(host_tree) != wanted
        or pytrees.arrays_sha256(host_tree) != record["arrays_sha256"]
    ):
        raise _damaged(path, "does not match its checksum: its arrays were altered")
    tree = jax.tree.map(
        # A copy: the arrays must not share memory that NumPy owns when donated.
        lambda leaf, like: jax.device_put(
            leaf, getattr(like, "sharding", None), may_alias=False
        ),
        host_tree,
        target,
    )
    return tree, record["metadata"]


def restore_newest(
    directory: str | Path, target: PyTree
) -> tuple[PyTree, dict, tuple[str, ...]]:
    """Reads the newest whole checkpoint, and sets damaged newer ones aside.

    What is set aside is renamed to STEP.damaged and counts no more. With several
    processes, all of them call this; they read the same files.

    Args:
      directory: The run's checkpoint directory.
      target: As of `restore`.

    Returns:
      (tree, metadata, what was wrong with each damaged newer one).

    Raises:
      CheckpointError: nothing there, nothing whole, or another structure, shape or
        dtype than `target`.
      TypeError: as `restore`.
    """
    directory = check_directory(directory)
    problems: list[str] = []
    for step in reversed(steps(directory)):
        try:
            tree, metadata = restore(directory, target, step=step)
        except DamagedCheckpointError as error:
            problems.append(str(error))
            continue
        set_aside(directory, after=step)
        return tree, metadata, tuple(problems)
    if problems:
        raise CheckpointError(f"no checkpoint in {directory} is whole: {problems[0]}")
    return *restore(directory, target), ()


def set_aside(directory: str | Path, *, after: int) -> None:
    """Renames the steps above one to STEP.damaged: they count no more.

    With several processes, all of them call this.
    """
    directory = check_directory(directory)
    if jax.process_count() > 1:
        # Every process has read them before the first one renames them.
        multihost_utils.sync_global_devices("damaged checkpoints")
    if jax.process_index() == 0:
        for step in steps(directory):
            if step > after:
                shutil.rmtree(directory / f"{step}.damaged", ignore_errors=True)
                (directory / str(step)).rename(directory / f"{step}.damaged")


def discard_after(directory: str | Path, step: int) -> None:
    """Deletes the steps above one: a run that goes on from there makes them again."""
    directory = check_directory(directory)
    if jax.process_index() == 0:
        for later in steps(directory):
            if later > step:
                _delete(directory, later)


def read_metadata(directory: str | Path, *, step: int | None = None) -> dict:
    """The JSON of a checkpoint, verified; reads no arrays.

    Args:
      directory: The run's checkpoint directory.
      step: Which step; None is the newest.

    Raises:
      CheckpointError: nothing there, or JSON that does not match its checksum.
    """
    return _read_record(_step_path(directory, step))["metadata"]


def steps(directory: str | Path) -> list[int]:
    """The whole steps in a directory, ascending."""
    directory = user_path("directory", directory)
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def check_directory(directory: str | Path) -> Path:
    """The absolute path of a checkpoint directory, or CheckpointError: no UTF-8."""
    path = user_path("directory", directory).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{path} is not UTF-8, and checkpoints cannot be kept there; rename the "
            "folder, or name another"
        ) from None
    return path


def is_leftover(path: Path) -> bool:
    """Whether a killed save or deletion left this: it holds nothing."""
    return _TMP_SUFFIX in path.name


def latest_step(directory: str | Path) -> int | None:
    """The newest whole step in a directory, None where there is none."""
    return max(steps(directory), default=None)


def fingerprint(directory: str | Path, *, step: int | None = None) -> str:
    """The checksum of a checkpoint's arrays: equal for equal variables.

    Args:
      directory: The run's checkpoint directory.
      step: Which step; None is the newest.

    Raises:
      CheckpointError: as `read_metadata`.
    """
    return _read_record(_step_path(directory, step))["arrays_sha256"]


def _orbax() -> Any:
    # Slow to import: only when used.
    from orbax.checkpoint import v1  # type: ignore[import-untyped]

    return v1


def _step_path(directory: str | Path, step: int | None) -> Path:
    directory = check_directory(directory)
    there = steps(directory)
    if not there:
        raise CheckpointError(f"there is no checkpoint in {directory}: train first")
    if step is None:
        return directory / str(there[-1])
    if step not in there:
        raise CheckpointError(
            f"step={step} is not in {directory}: it holds {', '.join(map(str, there))}"
        )
    return directory / str(step)


def _remove_leftovers(directory: Path) -> None:
    for leftover in directory.glob(f"*{_TMP_SUFFIX}*"):
        shutil.rmtree(leftover)


def _read_record(path: Path) -> dict[str, Any]:
    """What `save` stored beside the arrays, after checking that it is unaltered."""
    try:
        record = _orbax().metadata(path).custom_metadata
    except Exception as error:
        raise _unreadable(path, error) from error
    keys = {"metadata", "leaves", "arrays_sha256", "json_sha256"}
    if not isinstance(record, dict) or record.keys() != keys:
        raise _damaged(path, "has not the metadata that dsmooth_jax writes")
    if record.pop("json_sha256") != pytrees.json_sha256(record):
        raise _damaged(path, "does not match its checksum: its metadata were altered")
    return record


def _delete(directory: Path, step: int) -> None:
    # Renamed first: a kill while deleting must not leave half a step.
    doomed = directory / f"{step}.deleted{_TMP_SUFFIX}"
    (directory / str(step)).rename(doomed)
    shutil.rmtree(doomed)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What Orbax's error is: damage only where nothing else keeps us from reading."""
    cause = _root_cause(error)
    try:
        for file in (path, *path.rglob("*")):
            if file.is_dir():
                os.listdir(file)
            else:
                with open(file, "rb") as opened:
                    while opened.read(2**20):
                        pass
    except OSError as refused:  # the permissions, the disk, the network
        cause = _root_cause(refused)
    else:
        is_here = any(word in cause for word in _NOT_DAMAGE)
        if not is_here and not isinstance(error, MemoryError):
            return _damaged(path, f"cannot be read ({cause})")
    return CheckpointError(
        f"the checkpoint {path} cannot be read here ({cause}), which may be no fault "
        "of it: nothing was changed; put that right and give the same command again"
    )


def _damaged(path: Path, what: str) -> DamagedCheckpointError:
    others = [str(step) for step in steps(path.parent) if str(step) != path.name]
    remedy = f"restore another step ({', '.join(others)})" if others else "retrain"
    return DamagedCheckpointError(f"the checkpoint {path} {what}; {remedy}")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).strip().partition("\n")[0]
    if len(first_line) > 200:  # the path comes first, what the system says last
        first_line = f"{first_line[:60]} ... {first_line[-140:]}"
    return f"{type(error).__name__}: {first_line}"
