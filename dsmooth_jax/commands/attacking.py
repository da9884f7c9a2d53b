"""Attacking a training run: what `attack.py` calls. Functions without flags."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dsmooth_jax.attacks.attack import Attacked, UnsoundError, attack
from dsmooth_jax.attacks.undefended import undefended
from dsmooth_jax.attacks.victims import touched_index
from dsmooth_jax.commands import cli
from dsmooth_jax.commands.filling import open_images, out_folder, say_written
from dsmooth_jax.commands.label_certification import is_masked_run
from dsmooth_jax.data import Dataset
from dsmooth_jax.masked import MaskedClassifier, load_masked
from dsmooth_jax.reach import votes_hold
from dsmooth_jax.report.attack_summary import (
    attack_record,
    attack_rows,
    format_attacks,
    write_pictures,
)
from dsmooth_jax.report.summary import write_rows
from dsmooth_jax.smoothed import DECISIONS, SmoothedClassifier, load_smoothed
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.attack_store import (
    begin_attack,
    missing_parts,
    read_parts,
    remove_attack,
    write_part,
)
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.workdir import ATTACKED, BEST, LOCK, SUMMARY
from dsmooth_jax.threat import Patch, check_patch, placements, touched
from dsmooth_jax.training.ownership import locked
from dsmooth_jax.types import ImageSize
from dsmooth_jax.wording import counted

VICTIMS: tuple[str, ...] = (*DECISIONS, "undefended")

_PART = 64  # images of a part: what a kill can lose


def attack_workdir(
    workdir: pathlib.Path,
    ask: Callable[[ImageSize], Sequence[Patch]],
    *,
    out: pathlib.Path | None = None,
    decision: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    num_images: int | None = None,
    num_pictures: int = 100,
    is_anew: bool = False,
    batch_size: int = 16,
    chunk_size: int = 8,
    **strength: Any,
) -> dict[str, dict[str, np.ndarray]]:
    """Attacks the images of a split; prints and writes what was found.

    Args:
      workdir: of a training run, whose best checkpoint is attacked.
      ask: image size -> patches.
      out: where to write; WORKDIR/attack/SPLIT if None.
      decision: "votes", "double_masking" or "undefended"; the run's own if None.
      split: "test", "validation" or "train".
      data_dir: where the data are; TFDS's own folder if None.
      num_images: only so many, evenly spread over the split.
      num_pictures: broken images that are written as PNG, at most.
      is_anew: whether to remove an attack that is there first.
      batch_size: candidates at a time; speed only.
      chunk_size: ablations of each at a time; speed only.
      **strength: the other arguments of `attack`.

    Returns:
      {name of the attack: what was found, an entry for each image}.
    """
    record = checkpoint.read_metadata(workdir / BEST)
    defended: SmoothedClassifier | MaskedClassifier
    if is_masked_run(workdir):
        defended = load_masked(workdir)
    else:
        defended = load_smoothed(workdir, chunk_size=chunk_size)
    shape = defended.image_shape
    assert shape is not None  # a run says it
    patches = ask(shape[:2])
    for patch in patches:
        check_patch(patch, shape[:2])
    images = open_images(workdir, shape, record, split, data_dir, num_images)
    out = out_folder(out or workdir / ATTACKED / split)
    made_by = {
        "checkpoint": checkpoint.fingerprint(workdir / BEST),
        "images": images.fingerprint,
        "num_images": len(images),
        "split": split,
    }
    found, records = {}, {}
    with locked("--out", out, LOCK):
        for patch in patches:
            classifier, about = _decided(defended, decision, patch)
            name = "-".join(filter(None, [str(patch), decision]))
            settings = {"patch": str(patch), **about, **strength, **made_by}
            folder = out / name
            if is_anew:
                remove_attack(folder)
            begin_attack(folder, settings)
            run = functools.partial(
                _attack_part, classifier, patch, batch_size, folder, strength
            )
            _fill(folder, name, images, run)
            found[name] = read_parts(folder)
            records[name] = attack_record(settings, found[name])
            write_pictures(folder, found[name], num_pictures)
        print(f"\n{format_attacks(found)}\n")
        write_rows(out / "rows.csv", attack_rows(found))
        write_whole(out / SUMMARY, json.dumps(records, indent=2).encode())
    say_written(out, [str(SUMMARY), "rows.csv", *(f"{name}/" for name in found)])
    return found


def _decided(
    defended: SmoothedClassifier | MaskedClassifier, decision: str | None, patch: Patch
) -> tuple[Any, dict[str, Any]]:
    """The classifier that decides so, and what is said of it."""
    if decision == "undefended":
        return undefended(defended), {"decision": decision}
    if isinstance(defended, MaskedClassifier):
        if decision is not None:
            raise ValueError(
                f"--decision={decision} is of ablations; this run masks pixels"
            )
        about: dict[str, Any] = {"decision": str(defended.masks)}
        if defended.confidence:  # attacks that were kept before say none
            about["confidence"] = defended.confidence
        return defended, about
    if decision == "votes":
        defended = dataclasses.replace(defended, decision="votes", patch=None)
    elif decision is not None:
        defended = dataclasses.replace(defended, decision="double_masking", patch=patch)
    return defended, defended.settings()


def _fill(
    folder: pathlib.Path,
    name: str,
    images: Dataset,
    run: Callable[[int, np.ndarray, np.ndarray], dict[str, np.ndarray]],
) -> None:
    """Attacks the parts that are not there yet."""
    spans = [
        slice(start, min(start + _PART, len(images)))
        for start in range(0, len(images), _PART)
    ]
    todo = missing_parts(folder, len(spans))
    total = sum(spans[part].stop - spans[part].start for part in todo)
    if not todo:
        print(f"found the attack by {name} of {counted(len(images), 'image')}")

    def parts():
        for part in todo:
            span = spans[part]
            pixels = np.asarray(images.images[span])
            arrays = run(span.start, pixels, images.labels[span])
            write_part(folder, part, {**arrays, "id": images.ids[span]})
            yield span.stop - span.start

    for _ in cli.progress(parts(), f"{name}: attacked", total, int):
        pass


def _attack_part(
    classifier: Any,
    patch: Patch,
    batch_size: int,
    folder: pathlib.Path,
    strength: dict[str, Any],
    start: int,
    images: np.ndarray,
    labels: np.ndarray,
) -> dict[str, np.ndarray]:
    """What is written of images of which the first is number ``start``."""
    options = {**strength, "seed": strength.get("seed", 0) + start}
    scores = None
    if isinstance(classifier, SmoothedClassifier):
        scores = classifier.score(images, batch_size=batch_size)
    try:
        found = attack(
            classifier,
            images,
            labels,
            patch,
            **options,
            scores=scores,
            batch_size=batch_size,
        )
    except UnsoundError as error:
        path = folder / "unsound.npz"
        np.savez(path, **vars(error), **options)
        error.add_note(f"image {start + error.index} of the split; all is in {path}")
        raise
    arrays = {
        "label": np.asarray(labels),
        "clean": found.clean,
        "attacked": found.predictions,
        "is_broken": found.is_broken,
        "is_certified": found.is_certified,
        "corner": found.corners,
        "num_gradients": found.num_gradients,
        "image": found.images,
    }
    if isinstance(classifier, SmoothedClassifier):
        assert scores is not None
        arrays |= _touched_scores(classifier, patch, found, batch_size)
        if classifier.patch is None:
            sets = touched(classifier.ablation, patch, images.shape[1:3])
            arrays["votes_hold"] = votes_hold(classifier.vote(scores), sets)
    if isinstance(classifier, MaskedClassifier):
        arrays["table"] = _attacked_tables(classifier, found, batch_size)
    return arrays


def _attacked_tables(
    classifier: MaskedClassifier, found: Attacked, batch_size: int
) -> np.ndarray:
    """int16 [n, M, M]: what answers the attacked images; zeros for all others."""
    is_attacked = found.corners[:, 0] >= 0
    tables = classifier.label(
        found.images[is_attacked], until="predicted", batch_size=batch_size
    )
    every = np.zeros((len(is_attacked), *tables.shape[1:]), np.int16)
    every[is_attacked] = tables
    return every


def _touched_scores(
    classifier: SmoothedClassifier, patch: Patch, found: Attacked, batch_size: int
) -> dict[str, np.ndarray]:
    """What the patches changed: all else is scored as it was.

    ``touched``, int32 [n, m], the ablations that the patch of each image touches, one
    of them again where they are fewer; -1 where there is none. ``scores``, float32
    [n, m, K], theirs on the attacked image.
    """
    is_attacked = found.corners[:, 0] >= 0
    sets, row = placements(classifier.ablation, patch, found.images.shape[1:3])
    kind = row[tuple(found.corners[is_attacked].T)]
    index = touched_index(sets)[kind]
    after = classifier.score(found.images[is_attacked], batch_size=batch_size)
    which = np.full((len(is_attacked), index.shape[1]), -1, np.int32)
    scores = np.zeros((*which.shape, after.shape[2]), np.float32)
    which[is_attacked] = index
    scores[is_attacked] = np.take_along_axis(after, index[..., None], axis=1)
    return {"touched": which, "scores": scores}
