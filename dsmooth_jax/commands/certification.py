"""Certifying a training run, scores, or several runs: what `certify.py` calls.

Functions without flags. They print what is found, and write it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dsmooth_jax import distributed
from dsmooth_jax.ablation import Ablation
from dsmooth_jax.commands import cli
from dsmooth_jax.commands.filling import (
    fill_store,
    made_by,
    open_images,
    out_folder,
    say_written,
    watch,
    wrapped,
)
from dsmooth_jax.leaving_out import design_masks
from dsmooth_jax.locality import check_locality
from dsmooth_jax.report import comparison, more_tables, summary
from dsmooth_jax.report.analysis import Analysis, analyze
from dsmooth_jax.report.ranking import alarm_margins
from dsmooth_jax.report.request import Request, attacks_on, request_of
from dsmooth_jax.report.thumbnails import choose, choose_drawn, choose_num_sizes
from dsmooth_jax.report.write import write_report
from dsmooth_jax.scoring import is_masked
from dsmooth_jax.smoothed import load_smoothed
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.provenance import Origin
from dsmooth_jax.storage.score_store import ScoreStore, open_scores
from dsmooth_jax.storage.shards import is_store
from dsmooth_jax.storage.workdir import BEST, CERTIFIED, LOCK, SCORES
from dsmooth_jax.threat import Patch
from dsmooth_jax.training.ownership import locked
from dsmooth_jax.types import ImageSize
from dsmooth_jax.wording import counted

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
    alarm_rates: Sequence[float] = (),
    validation: pathlib.Path | None = None,
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
      alarm_rates: as of `choose_alarms`.
      validation: likewise; WORKDIR/certify/validation/scores if None.
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
    validation = validation or workdir / CERTIFIED / "validation" / SCORES
    request = choose_alarms(request, alarm_rates, validation, smoothed.ablation)
    record = checkpoint.read_metadata(workdir / BEST)
    images = open_images(
        workdir, smoothed.image_shape, record, split, data_dir, num_images
    )
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
    create = functools.partial(
        ScoreStore.create,
        out / SCORES,
        ablation=smoothed.ablation,
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        labels=images.labels,
        ids=images.ids,
        made_by=made_by(workdir, record, images, split, chosen).to_json(),
    )
    score = functools.partial(smoothed.score, batch_size=batch_size)
    with locked("--out", out, LOCK):
        scores = fill_store(create, score, images, out / SCORES, is_anew=is_anew)
        if not distributed.is_first():
            return None
        return answer(open_scores(scores), request, out)


def certify_scores(
    path: pathlib.Path,
    ask: Ask,
    *,
    out: pathlib.Path | None = None,
    alarm_rates: Sequence[float] = (),
    validation: pathlib.Path | None = None,
) -> Analysis:
    """Asks scores that are there.

    Args:
      path: the store.
      ask: what is asked.
      out: where to write; the folder of the store if None.
      alarm_rates: as of `choose_alarms`.
      validation: likewise; beside the store's split if None.
    """
    scores = open_scores(path)
    request = ask(scores.ablation, scores.image_size, scores.origin)
    validation = validation or scores.path.parent.parent / "validation" / SCORES
    request = choose_alarms(request, alarm_rates, validation, scores.ablation)
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
) -> dict[str, comparison.Run]:
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


def choose_alarms(
    request: Request,
    rates: Sequence[float],
    validation: pathlib.Path,
    ablation: Ablation,
) -> Request:
    """Chooses alarm margins on validation images, whose scores are there already.

    Args:
      request: what is asked.
      rates: of false alarms, each in [0, 1).
      validation: a store of scores.
      ablation: that these must be of.

    Returns:
      The request, with the alarms.

    Raises:
      ValueError: the scores are not there, or of something else.
    """
    if not rates:
        return request
    if not is_store(validation):
        raise ValueError(
            f"--alarms asks for rates of false alarms on validation images, and "
            f"{validation} holds no scores of them; make them first with --workdir and "
            "--split=validation, or say where they are by --validation_scores"
        )
    scores = open_scores(validation)
    if scores.ablation != ablation or not len(scores):
        raise ValueError(
            f"--validation_scores={validation} holds {counted(len(scores), 'image')} "
            f"of {scores.ablation}; it must hold some of {ablation}"
        )
    return dataclasses.replace(request, alarms=alarm_margins(scores, request, rates))


def answer(scores: ScoreStore, request: Request, out: pathlib.Path) -> Analysis:
    """Certifies against each attack; prints and writes what was found."""
    request = dataclasses.replace(
        request,
        has_figures=request.has_figures and len(scores) > 0,
        sample=choose(scores),
        drawn=choose_drawn(scores),
        num_sizes=choose_num_sizes(scores),
    )
    analysis = analyze(scores, request, watch=watch(len(scores)))
    about = summary.caption(analysis, request.votings)
    table = summary.format_table(analysis.results, analysis.detected)
    print(f"\n{wrapped(about)}\n\n{table}\n")
    for text in more_tables.texts(analysis):
        print(f"{text}\n")
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
