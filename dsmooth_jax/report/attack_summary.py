"""What an attack found, as a table, rows and pictures; every number from its arrays."""

import dataclasses
import io
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.report.summary import format_accuracy
from dsmooth_jax.storage.attack_store import (
    Arrays,
    missing_parts,
    read_parts,
    read_settings,
)
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.label_store import LabelStore
from dsmooth_jax.storage.shards import Shards
from dsmooth_jax.storage.workdir import ATTACKED
from dsmooth_jax.threat import Patch

ACCURACIES = ("clean", "attacked", "votes_hold", "certified")
"""Images that are right: as they are; after the attack; whose votes nothing can turn
(of votes alone); certified."""


def accuracies(found: Arrays) -> dict[str, Accuracy]:
    """The accuracies of `ACCURACIES` that there are.

    Args:
      found: arrays as `attack_workdir` writes them.
    """
    is_right = found["clean"] == found["label"]
    counted = {"clean": is_right, "attacked": found["attacked"] == found["label"]}
    if "votes_hold" in found:
        counted["votes_hold"] = is_right & found["votes_hold"]
    counted["certified"] = is_right & found["is_certified"]
    return {
        name: Accuracy(int(flags.sum()), len(flags)) for name, flags in counted.items()
    }


def format_attacks(found: Mapping[str, Arrays]) -> str:
    """Lays out accuracies in per cent with 95 % intervals, a line for each patch."""
    wide = max(5, *map(len, found))
    every = {patch: accuracies(arrays) for patch, arrays in found.items()}
    names = [n for n in ACCURACIES if any(n in one for one in every.values())]
    titles = {"votes_hold": "votes hold"}
    head = "  ".join(f"{titles.get(name, name):^22}" for name in names)
    lines = [f"{'patch':{wide}}  {head}"]
    lines.append("-" * len(lines[0]))
    for patch, one in every.items():
        cells = [format_accuracy(one[n]) if n in one else " " * 22 for n in names]
        lines.append(f"{patch:{wide}}  {'  '.join(cells)}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class FoundAttack:
    """What attack.py found of n images of a store.

    Attributes:
      patch: pixels.
      decision: the one that was asked for; "" for the run's own.
      settings: what was attacked, and how.
      arrays: an entry for each of the images.
      index: int64 [n], which images of the store they are.
    """

    patch: Patch
    decision: str
    settings: dict[str, Any]
    arrays: Arrays
    index: np.ndarray

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(filter(None, [str(self.patch), self.decision]))


def attacks_of(store: Shards) -> list[FoundAttack]:
    """What attack.py found of a store's images, in the run of the store.

    Args:
      store: of a run's folder, RUN/certify/SPLIT/scores.

    Returns:
      The attacks on the same checkpoint and images, smaller patches first.
    """
    if len(store.path.absolute().parents) < 3:
        return []
    run, split = store.path.absolute().parents[2], str(store.origin.split)
    place = {name: i for i, name in enumerate(store.ids.tolist())}
    found = []
    for folder in (run / ATTACKED / split).glob("*x*"):
        named = re.fullmatch(r"(\d+)x(\d+)-?(\w*)", folder.name)
        settings = read_settings(folder) if named else None
        if settings is None or settings["checkpoint"] != store.origin.checkpoint:
            continue
        assert named is not None
        height, width, decision = named.groups()
        if isinstance(store, LabelStore) and not decision:
            how = settings["decision"], settings.get("confidence", 0.0)
            if how != (str(store.masks), store.confidence):
                continue  # the same network, decided otherwise
        if missing_parts(folder, 1):
            continue  # begun, and nothing found yet
        arrays = read_parts(folder)
        index = [place.get(name, -1) for name in arrays["id"].tolist()]
        if -1 not in index:
            patch = Patch(int(height), int(width))
            one = FoundAttack(patch, decision, settings, arrays, np.array(index))
            found.append(one)
    return sorted(
        found, key=lambda one: (one.patch.height, one.patch.width, one.decision)
    )


def attacked_squares(found: Iterable[FoundAttack]) -> dict[int, Accuracy]:
    """Of attacks by squares on the classifier's own decision.

    Returns:
      {side: images that were right after the attack}.
    """
    return {
        one.patch.height: accuracies(one.arrays)["attacked"]
        for one in found
        if one.patch.height == one.patch.width and not one.decision
    }


def attack_rows(found: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    """The columns of rows.csv: of each patch a row for each image."""
    each = found.values()
    rows = {
        "patch": np.repeat(list(found), [len(one["label"]) for one in each]),
        **{
            name: np.concatenate([one[name] for one in each])
            for name in ("id", "label", "clean", "attacked")
        },
    }
    for name in ("is_broken", "is_certified"):
        rows[name] = np.concatenate([one[name] for one in each]).astype(np.int64)
    corners = np.concatenate([one["corner"] for one in each])
    rows["row"], rows["column"] = corners.T
    rows["num_gradients"] = np.concatenate([one["num_gradients"] for one in each])
    return rows


def attack_record(settings: Mapping[str, Any], found: Arrays) -> dict[str, Any]:
    """One entry of summary.json."""
    shares = accuracies(found)
    return {
        **settings,
        "num_images": len(found["label"]),
        "num_broken": int(found["is_broken"].sum()),
        "num_gradients": int(found["num_gradients"].sum()),
        **{name: share.value for name, share in shares.items()},
        **{f"{name}_interval": list(share.interval) for name, share in shares.items()},
    }


def write_pictures(folder: pathlib.Path, found: Arrays, most: int) -> list[str]:
    """Writes broken images as PNG files, at most so many, and returns their names."""
    from PIL import Image

    names = []
    for i in np.flatnonzero(found["is_broken"])[:most]:
        pixels = found["image"][i]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        content = io.BytesIO()
        image.save(content, "PNG")
        name = f"{i:05d}_{found['label'][i]}_as_{found['attacked'][i]}.png"
        write_whole(folder / name, content.getvalue())
        names.append(name)
    return names
