"""What the commands that fill a store, and ask it, have in common."""

import dataclasses
import pathlib
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dsmooth_jax import data, distributed, distributed_scoring
from dsmooth_jax.commands import cli
from dsmooth_jax.data import Dataset
from dsmooth_jax.report.thumbnails import load_thumbnails, save_thumbnails
from dsmooth_jax.scoring import MATMUL_PRECISION
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.provenance import Origin, versions
from dsmooth_jax.storage.shards import Shards, is_store
from dsmooth_jax.storage.workdir import BEST, SCORES
from dsmooth_jax.training.ownership import check_folder
from dsmooth_jax.types import ImageShape
from dsmooth_jax.wording import counted


def out_folder(out: pathlib.Path, scores: Shards | None = None) -> pathlib.Path:
    """Where to write: nothing that another command wrote there may be lost."""
    check_folder("--out", out)
    if is_store(out):
        raise ValueError(f"--out={out} is a store itself; give a folder beside it")
    there = out / SCORES
    if scores is not None and there.exists() and not there.samefile(scores.path):
        raise ValueError(
            f"--out={out} holds what was found of other scores, {there}; give another"
        )
    return out


def open_images(
    workdir: pathlib.Path,
    image_shape: ImageShape,
    record: dict[str, Any],
    split: str,
    data_dir: str | None,
    num_images: int | None,
) -> Dataset:
    """The images of the split, which must be those of the run."""
    images = data.load(split=split, data_dir=data_dir, **record["data"])
    if distributed.is_first():
        print(images, flush=True)
    known = record["fingerprints"].get(split, images.fingerprint)
    if images.fingerprint != known:
        raise ValueError(
            f"the {split} images of {images.name} are not those that "
            f"{workdir} was trained with; check --data_dir"
        )
    for what, found, wanted in (
        ("images of shape", images.image_shape, image_shape),
        ("a number of classes of", images.num_classes, record["num_classes"]),
    ):
        if found != wanted:
            raise ValueError(
                f"the {split} images of {images.name} have {what} {found}, but "
                f"{workdir} was trained on {wanted}; check --data_dir"
            )
    if num_images is not None:
        if not 1 <= num_images <= len(images):
            raise ValueError(
                f"--num_images={num_images} must be in 1..{len(images)}, "
                f"the images in {split}"
            )
        spread = np.arange(num_images) * len(images) // num_images
        images = images.take(spread)
    return images


def made_by(
    workdir: pathlib.Path,
    record: Mapping[str, Any],
    images: Dataset,
    split: str,
    chosen: Origin,
) -> Origin:
    """What a store says it was made by, beside what was chosen in training."""
    return dataclasses.replace(
        chosen,
        model=record["model"],
        checkpoint=checkpoint.fingerprint(workdir / BEST),
        data={**record["data"], "split": split},
        images=images.fingerprint,
        class_names=images.class_names,
        device=jax.devices()[0].device_kind,
        precision=MATMUL_PRECISION,
        versions=versions(),
    )


def fill_store(
    create: Callable[[], Shards],
    compute: Callable[[np.ndarray], np.ndarray],
    images: Dataset,
    path: pathlib.Path,
    *,
    is_anew: bool,
) -> pathlib.Path:
    """Computes what is not there yet, a shard at a time.

    Args:
      create: begins the store, or takes it up.
      compute: images of a shard -> their arrays.
      images: all of them.
      path: of the store.
      is_anew: whether to remove what is there first.

    Returns:
      Where the store is.
    """
    is_first = distributed.is_first()
    if is_anew and is_first:
        distributed_scoring.remove(path)
    distributed.barrier("old scores removed")
    scores = distributed_scoring.take_up(path, create)
    if is_first and images.image_shape[2] in (1, 3) and load_thumbnails(scores) is None:
        pixels: Any = images.images  # an array, or images that stay on disk
        save_thumbnails(scores, pixels)
    if not (todo := scores.missing):
        print(f"found all scores, of {counted(len(scores), 'image')}, in {scores.path}")
        return scores.path
    # Each process says how it gets on with its own share.
    index, count = distributed.share()
    total = sum(len(scores.labels[scores.span(s)]) for s in todo[index::count])
    filled = distributed_scoring.fill(scores, images.images, compute)
    started = time.time()
    for _ in cli.progress(filled, "scored", total, int) if is_first else filled:
        pass
    if is_first:
        seconds = time.time() - started
        every = sum(len(scores.labels[scores.span(s)]) for s in todo)
        rate = every / seconds
        print(
            f"scored {counted(every, 'image')} in {seconds:.1f} s, {rate:.1f} images/s"
        )
    return scores.path


def say_written(out: pathlib.Path, names: Iterable[str]) -> None:
    """Says which files are where."""
    print(wrapped(f"Written to {out}: {', '.join(names)}"))


def wrapped(text: str) -> str:
    """Lines for a terminal; a path stays whole."""
    return textwrap.fill(text, 96, break_long_words=False, break_on_hyphens=False)


def watch(num_images: int) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Says how far the pass over the scores of so many images is."""

    def passed_on(groups: Iterator[Any]) -> Iterator[Any]:
        return cli.progress(groups, "certified", num_images, lambda one: len(one[1]))

    return passed_on
