"""What made a thing, as plain JSON, and how two such records differ."""

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

_LONGEST = 60  # of a value that a reader can compare

# What a checksum that differs means.
_WORDS = {
    "ids": "ids: other images",
    "labels": "labels: other labels",
    "made_by.checkpoint": "made_by.checkpoint: another classifier, or trained further",
    "made_by.images": "made_by.images: other pixels",
    "fingerprints.train": "fingerprints.train: other training images",
    "fingerprints.validation": "fingerprints.validation: other validation images",
}


def versions() -> dict[str, str]:
    """The versions that scores and checkpoints depend on, by package name."""
    names = ("dsmooth_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        # This package may be run from the repository's root, not installed.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe_difference(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Says what differs between two JSON dicts, to refuse to mix what they made.

    Args:
      saved: what is on disk.
      wanted: what is asked for now. A tuple equals a list of the same values.

    Returns:
      Each differing key with both values, dotted paths in alphabetical order, joined by
      "; "; "" when equal. Values too long to read, checksums for example, are not
      shown.

    >>> describe_difference({"train": {"lr": 0.1}}, {"train": {"lr": 0.2}})
    'train.lr: saved 0.1, wanted 0.2'
    """
    old, new = flatten(saved), flatten(wanted)
    missing = object()
    differences = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key, missing), new.get(key, missing)
        if was != now:
            texts = ["nothing" if x is missing else json.dumps(x) for x in (was, now)]
            if any(len(text) > _LONGEST for text in texts):  # a checksum, or a list
                differences.append(_WORDS.get(key, f"{key}: another one"))
            else:
                differences.append(f"{key}: saved {texts[0]}, wanted {texts[1]}")
    return "; ".join(differences)


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Returns {dotted path: value}; an empty dict is a value of its own."""
    if isinstance(value, Mapping) and (value or not path):
        flat: dict[str, Any] = {}
        for key, child in value.items():
            flat |= flatten(child, f"{path}.{key}" if path else str(key))
        return flat
    return {path: _lists(value)}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value
