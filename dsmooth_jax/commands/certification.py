"""Certifying a training run, scores, or several runs: what `certify.py` calls.

Functions without flags. They print what is found, and write it.
"""

import dataclasses
import functools
import pathlib
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from dsmooth_jax import data, distributed, distributed_scoring
from dsmooth_jax.ablation import Ablation
from dsmooth_jax.commands import cli
from dsmooth_jax.data import Dataset
from dsmooth_jax.leaving_out import design_masks
from dsmooth_jax.locality import check_locality
from dsmooth_jax.report import comparison, summary
from dsmooth_jax.report.analysis import Analysis, analyze
from dsmooth_jax.report.request import Request, attacks_on, request_of
from dsmooth_jax.report.thumbnails import choose, load_thumbnails, save_thumbnails
from dsmooth_jax.report.write import write_report
from dsmooth_jax.scoring import MATMUL_PRECISION, is_masked
from dsmooth_jax.smoothed import SmoothedClassifier, load_smoothed
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.provenance import Origin, versions
from dsmooth_jax.storage.score_store import ScoreStore, open_scores
from dsmooth_jax.storage.shards import is_store
from dsmooth_jax.storage.workdir import BEST, CERTIFIED, SCORES
from dsmooth_jax.threat import Patch
from dsmooth_jax.training.ownership import check_folder, locked
from dsmooth_jax.types import ImageSize
from dsmooth_jax.wording import counted

LOCK = "certify.lock"

Ask: TypeAlias = Callable[[Ablation, ImageSize, Origin], Request]
"""What is asked of scores, once it is known what they are; see `ask`."""


def ask(
    ablation: Ablation,
    image_size: ImageSize,
    origin: Origin,
    *,
    patches: str = "2x2,5x5",
    area: int | None = None,
    num_patches: int = 1,
    design_patch: str | None = None,
    **others: Any,
) -> Request:
    """Asks about patches that are given as text; all is checked.

    Args:
      ablation: of the scores.
      image_size: (H, W), pixels.
      origin: what was chosen in training.
      patches: HEIGHTxWIDTH in pixels, P% of the image, or "squares", all of them.
      area: also any rectangle of at most so many pixels.
      num_patches: also so many patches of each kind at once, where above 1.
      design_patch: the patch that all masks of double masking are made for; if None,
        those for each patch are its own.
      **others: as of `request_of`.
    """
    design = None
    if design_patch is not None:
        design = _parse_design(design_patch, ablation, image_size)
    attacks = attacks_on(
        ablation,
        image_size,
        cli.parse_patches(patches, image_size),
        area=area,
        num_patches=num_patches,
        design=design,
    )
    return request_of(origin, attacks, design=design, **others)


def _parse_design(text: str, ablation: Ablation, image_size: ImageSize) -> Patch:
    patches = cli.parse_patches(text, image_size, "--design_patch")
    if len(patches) > 1:
        raise ValueError(
            f"--design_patch={text} must be one patch, for example --design_patch=5x5"
        )
    try:
        design_masks(ablation, patches[0], image_size)
    except ValueError as error:
        raise ValueError(f"--design_patch={text}: {error}") from None
    return patches[0]


def certify_workdir(
    workdir: pathlib.Path,
    ask: Ask,
    *,
    out: pathlib.Path | None = None,
    split: str = "test",
    data_dir: str | None = None,
    num_images: int | None = None,
    is_anew: bool = False,
    batch_size: int = 32,
    chunk_size: int = 8,
) -> Analysis | None:
    """Scores the images of a split, and asks their scores; all processes together.

    Args:
      workdir: of a training run, whose best checkpoint is certified.
      ask: what is asked.
      out: where to write; WORKDIR/certify/SPLIT if None.
      split: "test", "validation" or "train".
      data_dir: where the data are; TFDS's own folder if None.
      num_images: only so many, evenly spread over the split.
      is_anew: whether to score anew, whatever scores are there.
      batch_size: images scored at a time; speed only.
      chunk_size: ablations of each at a time; speed only.

    Returns:
      What was found; None in all processes but the first.
    """
    smoothed = load_smoothed(workdir, chunk_size=chunk_size)
    chosen = Origin(**smoothed.settings(), chosen_on="validation")
    assert smoothed.image_shape is not None
    request = ask(smoothed.ablation, smoothed.image_shape[:2], chosen)
    record = checkpoint.read_metadata(workdir / BEST)
    images = open_images(workdir, smoothed, record, split, data_dir, num_images)
    out = out_folder(out or workdir / CERTIFIED / split)
    is_new = is_anew or not is_store(out / SCORES)
    if is_new and not is_masked(smoothed.scores_fn):
        check_locality(
            smoothed.scores_fn,
            smoothed.ablation,
            smoothed.image_shape,
            batch_size=batch_size,
        )
        if distributed.is_first():
            print("checked: the score of each ablation depends on what it keeps, alone")
    origin = dataclasses.replace(
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
    with locked("--out", out, LOCK):
        if is_anew and distributed.is_first():
            distributed_scoring.remove(out / SCORES)
        distributed.barrier("old scores removed")
        scores = score_images(smoothed, images, origin, out / SCORES, batch_size)
        if not distributed.is_first():
            return None
        return answer(open_scores(scores), request, out)


def certify_scores(
    path: pathlib.Path, ask: Ask, *, out: pathlib.Path | None = None
) -> Analysis:
    """Asks scores that are there.

    Args:
      path: the store.
      ask: what is asked.
      out: where to write; the folder of the store if None.
    """
    scores = open_scores(path)
    request = ask(scores.ablation, scores.image_size, scores.origin)
    out = out_folder(out or scores.path.parent, scores)
    with locked("--out", out, LOCK):
        return answer(scores, request, out)


def compare_runs(
    paths: Sequence[str],
    *,
    patches: str,
    voting: str | None = None,
    split: str = "test",
    out: pathlib.Path | None = None,
) -> dict[str, Analysis]:
    """Sets runs on the same images side by side; prints and writes what was found.

    Args:
      paths: of workdirs or stores, two or more.
      patches: as of `ask`.
      voting: of all, or "double_masking"; each one's own decision if None.
      split: of workdirs.
      out: where to write; the folder of the first one's store if None.
    """
    stores = {
        name: comparison.find_scores(path, split)
        for name, path in zip(comparison.short_names(paths), paths, strict=True)
    }
    first = next(iter(stores.values()))
    parsed = cli.parse_patches(patches, first.image_size)
    out = out_folder(out or first.path.parent)
    runs = comparison.compare(stores, parsed, voting=voting, watch=watch(len(first)))
    print(f"\n{comparison.format_comparison(runs)}\n")
    say_written(out, comparison.write(runs, out))
    return runs


def out_folder(out: pathlib.Path, scores: ScoreStore | None = None) -> pathlib.Path:
    """Where to write: nothing that another command wrote there may be lost."""
    check_folder("--out", out)
    there = out / SCORES
    if scores is not None and there.exists() and not there.samefile(scores.path):
        raise ValueError(
            f"--out={out} holds what was found of other scores, {there}; give another"
        )
    return out


def open_images(
    workdir: pathlib.Path,
    smoothed: SmoothedClassifier,
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
        ("images of shape", images.image_shape, smoothed.image_shape),
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


def score_images(
    smoothed: SmoothedClassifier,
    images: Dataset,
    origin: Origin,
    path: pathlib.Path,
    batch_size: int,
) -> pathlib.Path:
    """Scores images into a store, or takes up what is there."""
    is_first = distributed.is_first()
    create = functools.partial(
        ScoreStore.create,
        path,
        ablation=smoothed.ablation,
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        labels=images.labels,
        ids=images.ids,
        made_by=origin.to_json(),
    )
    scores = distributed_scoring.take_up(path, create)
    if is_first and images.image_shape[2] in (1, 3) and load_thumbnails(scores) is None:
        pixels: Any = images.images  # also what lies on disk
        save_thumbnails(scores, pixels)
    if not (todo := scores.missing):
        print(f"found all scores, of {counted(len(scores), 'image')}, in {scores.path}")
        return scores.path
    # Each process says how it gets on with its own share.
    index, count = distributed.share()
    total = sum(len(scores.labels[scores.span(s)]) for s in todo[index::count])
    score = functools.partial(smoothed.score, batch_size=batch_size)
    filled = distributed_scoring.fill(scores, images.images, score)
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


def answer(scores: ScoreStore, request: Request, out: pathlib.Path) -> Analysis:
    """Certifies against each attack; prints and writes what was found."""
    request = dataclasses.replace(
        request,
        has_figures=request.has_figures and len(scores) > 0,
        sample=choose(scores),
    )
    analysis = analyze(scores, request, watch=watch(len(scores)))
    about = summary.caption(analysis, request.votings)
    table = summary.format_table(analysis.results, analysis.detected)
    print(f"\n{wrapped(about)}\n\n{table}\n")
    print(wrapped(summary.claim(analysis)))
    print(f"Base accuracy of single ablations: {100 * analysis.base_accuracy:.1f} %.")
    if size := scores.origin.resized_to:
        print(
            f"The data source resized the images to {size[0]}x{size[1]}: patches are "
            "in pixels of the\nresized image, the one that this attacker changes."
        )
    if request.has_figures:
        print("Drawing figures and page ...", flush=True)
    say_written(out, write_report(analysis, out))
    return analysis


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
