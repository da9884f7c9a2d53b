"""What an attack found, as a table, rows and pictures; every number from its arrays."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.report.summary import format_accuracy
from dsmooth_jax.storage.attack_store import Arrays, read_parts, read_settings
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.shards import Shards
from dsmooth_jax.storage.workdir import ATTACKED

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


def attacked_squares(store: Shards) -> dict[int, Accuracy]:
    """What attack.py found of a store's images, of squares, in the run of the store.

    Args:
      store: of a run's folder, RUN/certify/SPLIT/scores.

    Returns:
      {side: images that were right after the attack}, of the classifier's own decision;
      empty where there is no attack on the same checkpoint and images.
    """
    found = {}
    if len(store.path.absolute().parents) < 3:
        return {}
    run, split = store.path.absolute().parents[2], str(store.origin.split)
    for folder in sorted((run / ATTACKED / split).glob("*x*")):
        height, _, width = folder.name.partition("x")
        settings = read_settings(folder) if height == width else None
        if settings is None or settings["checkpoint"] != store.origin.checkpoint:
            continue
        arrays = read_parts(folder)
        if np.isin(arrays["id"], store.ids).all():
            found[int(height)] = accuracies(arrays)["attacked"]
    return found


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
