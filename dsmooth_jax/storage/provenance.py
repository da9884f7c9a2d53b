"""What made a thing, as plain JSON, and how two such records differ."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

from dsmooth_jax.threat import Patch

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


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a store says its scores were made by. None is what it does not say.

    Scores of another framework say what they like, so nothing here is checked.

    Attributes:
      model: the model's config, or its name.
      checkpoint: the checksum of the model's variables.
      data: {"name", "split", "size", ...}, or a name.
      images: the fingerprint of the images.
      class_names: one for each class.
      voting: chosen on validation data, as are:
      threshold: of threshold votes.
      strength: of graded votes.
      decision: "votes" or "double_masking".
      patch: [height, width] that the masks of double masking are made for.
      chosen_on: where these were chosen.
      device: what computed the scores.
      precision: of its matrix products.
      versions: of the packages, by name.
    """

    model: Any = None
    checkpoint: Any = None
    data: Any = None
    images: Any = None
    class_names: Any = None
    voting: Any = None
    threshold: Any = None
    strength: Any = None
    decision: Any = None
    patch: Any = None
    chosen_on: Any = None
    device: Any = None
    precision: Any = None
    versions: Any = None

    @classmethod
    def from_json(cls, made_by: Mapping[str, Any]) -> "Origin":
        """Reads what a store holds; what has another name is passed over.

        Args:
          made_by: of the store.

        Returns:
          What it says.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: made_by[name] for name in names if name in made_by})

    def to_json(self) -> dict[str, Any]:
        """What a store keeps: everything that is not None."""
        return {k: v for k, v in vars(self).items() if v is not None}

    @property
    def design(self) -> Patch | None:
        """The patch that its masks are made for; None where votes decide."""
        return Patch(*self.patch) if self.decision == "double_masking" else None

    @property
    def model_name(self) -> Any:
        """The model's name."""
        return self.model.get("name") if isinstance(self.model, Mapping) else self.model

    @property
    def data_name(self) -> Any:
        """The data's name."""
        return self._of_data("name") if self._is_detailed else self.data

    @property
    def split(self) -> Any:
        """Which images of the data."""
        return self._of_data("split")

    @property
    def resized_to(self) -> Any:
        """(H, W) that the data source resized images to; None where it did not."""
        return self._of_data("size")

    @property
    def _is_detailed(self) -> bool:
        return isinstance(self.data, Mapping)

    def _of_data(self, name: str) -> Any:
        return self.data.get(name) if self._is_detailed else None


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
