"""Trees of arrays and plain JSON, as a checkpoint sees them: described and summed."""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Lists every leaf with its path, such as "params/conv1/kernel"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def describe(tree: PyTree) -> list[list]:
    """Describes every leaf as JSON: [path, dtype, shape]."""
    return [
        [path, np.dtype(leaf.dtype).name, list(leaf.shape)]
        for path, leaf in leaves(tree)
    ]


def first_difference(saved: list[list], wanted: list[list]) -> str:
    """Says which leaf of two descriptions differs first, and how; "" where none."""
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


def to_host(tree: PyTree) -> PyTree:
    """Returns the same tree with NumPy leaves, of the dtypes that JAX will restore.

    Raises:
      TypeError: a leaf that is no array, that JAX would change (int64 without x64), or
        a typed PRNG key.
      ValueError: no leaf, or an empty one.
    """
    paths = [path for path, _ in leaves(tree)]
    if not paths or len(set(paths)) != len(paths):
        raise ValueError("tree must have at least one leaf, and distinct leaf paths")
    values, structure = jax.tree.flatten(tree)
    host = [_leaf_to_host(p, leaf) for p, leaf in zip(paths, values, strict=True)]
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


def arrays_sha256(tree: PyTree) -> str:
    """Sums paths, dtypes, shapes and content of NumPy leaves, as hex."""
    digest = hashlib.sha256()
    # By path: a named tuple may be restored into a dict, which sorts its leaves.
    for path, leaf in sorted(leaves(tree), key=lambda item: item[0]):
        digest.update(json.dumps([path, leaf.dtype.name, leaf.shape]).encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def json_sha256(record: dict[str, Any]) -> str:
    """Sums plain JSON, whatever the order of its keys, as hex."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_json(value: Any, path: str) -> None:
    """Refuses, by path, what would not come back from JSON as it went in."""
    if isinstance(value, dict):
        for key, child in value.items():
            if type(key) is not str:
                raise TypeError(f"the key {key!r} in {path} must be a string")
            check_json(child, f"{path}.{key}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            check_json(child, f"{path}[{index}]")
    elif value is not None and type(value) not in (str, bool, int, float):
        raise TypeError(
            f"{path}={value!r} is a {type(value).__name__}: metadata must be plain "
            "JSON (a tuple: write a list; a NumPy number: call .item())"
        )
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"{path}={value!r} must be finite")
