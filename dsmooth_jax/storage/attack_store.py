"""What an attack found, on disk: a part for so many images, written as it goes.

A folder for each attack: ``settings.json``, which says what was attacked and how, and
``part-00000.npz``, ..., whose arrays have checksums. A kill loses the part that was
being made and no more. Parts of older versions hold fewer arrays.
"""

import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.provenance import describe_difference
from dsmooth_jax.storage.shards import StoreError

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""An entry for each image, by name."""

_SETTINGS = "settings.json"


def begin_attack(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Begins a folder, or takes it up where it holds an attack of these settings.

    Raises:
      StoreError: it holds another attack.
    """
    there = read_settings(folder)
    if there is not None and there != json.loads(json.dumps(settings)):
        difference = describe_difference(there, settings)
        raise StoreError(
            f"{folder} holds another attack ({difference}); give --overwrite to lose "
            "it, or another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _SETTINGS, json.dumps(settings, indent=2).encode())


def read_settings(folder: pathlib.Path) -> dict[str, Any] | None:
    """What the attack in a folder was of; None where there is none."""
    path = folder / _SETTINGS
    return json.loads(path.read_text()) if path.exists() else None


def missing_parts(folder: pathlib.Path, num_parts: int) -> list[int]:
    """Numbers of the parts that are not there yet."""
    return [part for part in range(num_parts) if not _path(folder, part).exists()]


def write_part(folder: pathlib.Path, part: int, arrays: Arrays) -> None:
    """Writes what was found of the images of a part, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_whole(_path(folder, part), content.getvalue())


def read_parts(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what was found of all images, part after part: what all parts hold.

    Raises:
      StoreError: a part is damaged, or there is none.
    """
    parts: list[dict[str, np.ndarray]] = []
    for path in sorted(folder.glob("part-*.npz")):
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                parts.append({name: file[name] for name in file.files})
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"{path} is damaged ({error}); remove it and attack again, which makes "
                "it anew"
            ) from None
    if not parts:
        raise StoreError(f"{folder} holds no attack; make one with attack.py")
    names = [name for name in parts[0] if all(name in one for one in parts)]
    return {name: np.concatenate([one[name] for one in parts]) for name in names}


def remove_attack(folder: pathlib.Path) -> None:
    """Removes the parts and settings of an attack, and nothing else."""
    for path in [*folder.glob("part-*.npz"), folder / _SETTINGS]:
        path.unlink(missing_ok=True)


def _path(folder: pathlib.Path, part: int) -> pathlib.Path:
    return folder / f"part-{part:05d}.npz"
