"""Checkpoints: arrays with the plain JSON that says what they are, and checksums.

One directory holds one run; each step is `<directory>/<step>/`, written by Orbax
under another name and renamed when whole. Orbax itself keeps no checksum of the data
and casts a wrong dtype silently, so this module stores the path, dtype and shape of
every leaf and two SHA-256 sums beside the metadata, and `restore` compares all of
them. It is the only module that knows Orbax.

One process, or the processes of one run together, write to a directory at a time.
"""

import hashlib
import json
import math
import operator
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
_TMP_SUFFIX = ".orbax-checkpoint-tmp"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not the one that was asked for."""


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
      CheckpointError: the step is not above the newest one.
      TypeError: a leaf that is no array, that JAX would change (int64 without
        x64), or a typed PRNG key; metadata that JSON would change.
      ValueError: `step` or `keep` out of range, no leaf or an empty one, a number
        in the metadata that is not finite.
    """
    directory, step = Path(directory).absolute(), operator.index(step)
    if step < 0:
        raise ValueError(f"step={step} must be at least 0")
    if keep < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    _check_json(metadata, "metadata")
    newest = latest_step(directory)
    if newest is not None and step <= newest:
        raise CheckpointError(
            f"step={step} must be above {newest}, the newest step in {directory}: "
            "restore that one and go on from it, or save into another directory"
        )
    host_tree = _to_host(tree)
    record: dict[str, Any] = {
        "metadata": metadata,
        "leaves": _describe_leaves(host_tree),
        "arrays_sha256": _arrays_sha256(host_tree),
    }
    record["json_sha256"] = _json_sha256(record)
    is_first_process = jax.process_index() == 0
    if is_first_process:
        _remove_leftovers(directory)
    _orbax().save(directory / str(step), host_tree, custom_metadata=record)
    if is_first_process:
        for old in _steps(directory)[:-keep]:
            # Renamed first: a kill while deleting must not leave half a step.
            doomed = directory / f"{old}.deleted{_TMP_SUFFIX}"
            (directory / str(old)).rename(doomed)
            shutil.rmtree(doomed)


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
    path = _step_path(directory, step)
    record = _read_record(path)
    for leaf_path, leaf in _leaves(target):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"the target leaf {leaf_path!r} is a {type(leaf).__name__}: it must "
                "be an array or a jax.ShapeDtypeStruct"
            )
    wanted = _describe_leaves(target)
    difference = _first_leaf_difference(record["leaves"], wanted)
    if difference:
        raise CheckpointError(
            f"the checkpoint {path} is not of this model: {difference}. Restore it "
            "into the model and optimiser that its metadata name, or another directory"
        )
    host_target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
    try:
        host_tree = _orbax().load(path, host_target)
    except Exception as error:
        raise _damaged(path, f"cannot be read ({_root_cause(error)})") from error
    # The leaves too: where the stored data disagree, Orbax may return another shape.
    if (
        _describe_leaves(host_tree) != wanted
        or _arrays_sha256(host_tree) != record["arrays_sha256"]
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


def read_metadata(directory: str | Path, *, step: int | None = None) -> dict:
    """The JSON of a checkpoint, verified; reads no arrays.

    Args:
      directory: The run's checkpoint directory.
      step: Which step; None is the newest.

    Raises:
      CheckpointError: nothing there, or JSON that does not match its checksum.
    """
    return _read_record(_step_path(directory, step))["metadata"]


def latest_step(directory: str | Path) -> int | None:
    """The newest whole step in a directory, None where there is none."""
    return max(_steps(Path(directory)), default=None)


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


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def _step_path(directory: str | Path, step: int | None) -> Path:
    directory = Path(directory).absolute()
    steps = _steps(directory)
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {directory}: train first")
    if step is None:
        return directory / str(steps[-1])
    if step not in steps:
        raise CheckpointError(
            f"step={step} is not in {directory}: it holds {', '.join(map(str, steps))}"
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
        raise _damaged(path, f"cannot be read ({_root_cause(error)})") from error
    keys = {"metadata", "leaves", "arrays_sha256", "json_sha256"}
    if not isinstance(record, dict) or record.keys() != keys:
        raise _damaged(path, "has not the metadata that dsmooth_jax writes")
    if record.pop("json_sha256") != _json_sha256(record):
        raise _damaged(path, "does not match its checksum: its metadata were altered")
    return record


def _damaged(path: Path, what: str) -> CheckpointError:
    others = [str(step) for step in _steps(path.parent) if str(step) != path.name]
    remedy = f"restore another step ({', '.join(others)})" if others else "retrain"
    return CheckpointError(f"the checkpoint {path} {what}; {remedy}")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line[:200]}"


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Every leaf with its path, such as "params/conv1/kernel"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _describe_leaves(tree: PyTree) -> list[list]:
    """[path, dtype, shape] of every leaf, as JSON."""
    return [
        [path, np.dtype(leaf.dtype).name, list(leaf.shape)]
        for path, leaf in _leaves(tree)
    ]


def _first_leaf_difference(saved: list[list], wanted: list[list]) -> str:
    old = {path: (dtype, shape) for path, dtype, shape in saved}
    new = {path: (dtype, shape) for path, dtype, shape in wanted}
    for path in new:
        if path not in old:
            return f"{path!r} is wanted but was not saved"
    for path, (dtype, shape) in old.items():
        if path not in new:
            return f"{path!r} was saved but is not wanted"
        for what, was, now in zip(
            ("dtype", "shape"), (dtype, shape), new[path], strict=True
        ):
            if was != now:
                return f"{path!r} was saved with {what} {was}, wanted {now}"
    return ""


def _to_host(tree: PyTree) -> PyTree:
    """The same tree with NumPy leaves of the dtypes that JAX will restore."""
    paths = [path for path, _ in _leaves(tree)]
    if not paths or len(set(paths)) != len(paths):
        raise ValueError("tree must have at least one leaf, and distinct leaf paths")
    leaves, structure = jax.tree.flatten(tree)
    host = [_leaf_to_host(p, leaf) for p, leaf in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(structure, host)


def _leaf_to_host(path: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise TypeError(f"the leaf {path!r} is a {type(leaf).__name__}, not an array")
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"the leaf {path!r} is a PRNG key: save its key_data")
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise TypeError(f"the leaf {path!r} is spread over processes: gather it")
    elif isinstance(leaf, np.ndarray | np.generic):
        kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if kept != leaf.dtype:
            raise TypeError(
                f"the leaf {path!r} has dtype {leaf.dtype}, which JAX would restore "
                f"as {kept}: convert it first"
            )
    else:
        leaf = jnp.asarray(leaf)
    host = np.asarray(leaf)
    if not host.size:
        raise ValueError(f"the leaf {path!r} of shape {host.shape} has no elements")
    return host


def _arrays_sha256(tree: PyTree) -> str:
    digest = hashlib.sha256()
    # By path: a named tuple may be restored into a dict, which sorts its leaves.
    for path, leaf in sorted(_leaves(tree), key=lambda item: item[0]):
        digest.update(json.dumps([path, leaf.dtype.name, leaf.shape]).encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _json_sha256(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_json(value: Any, path: str) -> None:
    """Refuses what would not come back from JSON as it went in."""
    if isinstance(value, dict):
        for key, child in value.items():
            if type(key) is not str:
                raise TypeError(f"the key {key!r} in {path} must be a string")
            _check_json(child, f"{path}.{key}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _check_json(child, f"{path}[{index}]")
    elif value is not None and type(value) not in (str, bool, int, float):
        raise TypeError(
            f"{path}={value!r} is a {type(value).__name__}: metadata must be plain "
            "JSON (a tuple: write a list; a NumPy number: call .item())"
        )
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"{path}={value!r} must be finite")
