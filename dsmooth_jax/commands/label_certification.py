"""Certifying a run with masks of pixels: classes under pairs of masks, not scores.

As `certification`, which it shares what fills a store with.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from dsmooth_jax import distributed
from dsmooth_jax.commands.filling import (
    fill_store,
    made_by,
    open_images,
    out_folder,
    say_written,
    watch,
    wrapped,
)
from dsmooth_jax.masked import load_masked
from dsmooth_jax.masks import Masks
from dsmooth_jax.report import label_report
from dsmooth_jax.report.label_analysis import (
    LabelAnalysis,
    analyze_labels,
    check_covered,
)
from dsmooth_jax.report.label_page import choose_shown
from dsmooth_jax.report.thumbnails import choose
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.label_store import LabelStore, open_labels
from dsmooth_jax.storage.provenance import Origin
from dsmooth_jax.storage.workdir import BEST, CERTIFIED, LOCK, SCORES
from dsmooth_jax.threat import Patch
from dsmooth_jax.training.ownership import locked
from dsmooth_jax.types import ImageSize

AskMasks: TypeAlias = Callable[[Masks, ImageSize], Sequence[Patch]]
"""Which patches, once it is known what masks and images there are."""


def is_masked_run(workdir: pathlib.Path) -> bool:
    """Whether a run trained a classifier for masks of pixels."""
    return "masks" in checkpoint.read_metadata(workdir / BEST)


def certify_masked_workdir(
    workdir: pathlib.Path,
    ask: AskMasks,
    *,
    out: pathlib.Path | None = None,
    split: str = "test",
    data_dir: str | None = None,
    num_images: int | None = None,
    is_anew: bool = False,
    batch_size: int = 256,
    confidence: float | None = None,
    has_figures: bool = True,
) -> LabelAnalysis | None:
    """Classifies the images of a split under masks, and asks the tables.

    Args:
      workdir: of a training run, whose best checkpoint is certified.
      ask: which patches.
      out: where to write; WORKDIR/certify/SPLIT if None.
      split: "test", "validation" or "train".
      data_dir: where the data are; TFDS's own folder if None.
      num_images: only so many, evenly spread over the split.
      is_anew: whether to begin anew, whatever tables are there.
      batch_size: passes at a time; speed only.
      confidence: in [0, 1), as of `mask_labels`; the run's own if None.
      has_figures: whether to draw and to write the page.

    Returns:
      What was found; None in all processes but the first.
    """
    classifier = load_masked(workdir)
    if confidence is not None:
        classifier = dataclasses.replace(classifier, confidence=confidence)
    assert classifier.image_shape is not None  # a run says it
    patches = ask(classifier.masks, classifier.image_shape[:2])
    record = checkpoint.read_metadata(workdir / BEST)
    images = open_images(
        workdir, classifier.image_shape, record, split, data_dir, num_images
    )
    out = out_folder(out or workdir / CERTIFIED / split)
    create = functools.partial(
        LabelStore.create,
        out / SCORES,
        masks=classifier.masks,
        fill=classifier.fill,
        confidence=classifier.confidence,
        tolerance=classifier.tolerance,
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        labels=images.labels,
        ids=images.ids,
        made_by=made_by(workdir, record, images, split, Origin()).to_json(),
    )
    label = functools.partial(classifier.label, batch_size=batch_size)
    with locked("--out", out, LOCK):
        path = fill_store(create, label, images, out / SCORES, is_anew=is_anew)
        if not distributed.is_first():
            return None
        return answer(open_labels(path), patches, out, has_figures)


def certify_tables(
    path: pathlib.Path,
    ask: AskMasks,
    *,
    out: pathlib.Path | None = None,
    has_figures: bool = True,
) -> LabelAnalysis:
    """Asks tables that are there. Arguments as of `certify_masked_workdir`."""
    tables = open_labels(path)
    patches = ask(tables.masks, tables.image_size)
    out = out_folder(out or tables.path.parent, tables)
    with locked("--out", out, LOCK):
        return answer(tables, patches, out, has_figures)


def answer(
    tables: LabelStore, patches: Sequence[Patch], out: pathlib.Path, has_figures: bool
) -> LabelAnalysis:
    """Certifies tables against each patch; prints and writes what was found."""
    check_covered(tables.masks, patches, tables.image_size)
    chosen = choose(tables)
    analysis = analyze_labels(
        tables,
        patches,
        sample=chosen[choose_shown(len(chosen))],
        watch=watch(len(tables)),
    )
    print(f"\n{wrapped(label_report.caption(analysis))}\n")
    print(f"{label_report.format_table(analysis)}\n")
    print(wrapped(label_report.claim(analysis)))
    if len(tables):
        print(
            f"Base accuracy under single masks: {100 * analysis.base_accuracy:.1f} %; "
            f"{analysis.num_passes.mean():,.0f} passes an image."
        )
    has_figures = has_figures and len(tables) > 0
    say_written(out, label_report.write(analysis, out, has_figures=has_figures))
    return analysis
