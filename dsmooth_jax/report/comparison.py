"""Runs side by side: the same images, asked the same patches, one table, one figure."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dsmooth_jax.checks import user_path
from dsmooth_jax.evaluation import Evaluation
from dsmooth_jax.report import figures, summary
from dsmooth_jax.report.analysis import Analysis, Watch, analyze
from dsmooth_jax.report.label_analysis import LabelAnalysis, analyze_labels
from dsmooth_jax.report.plot_style import write_figure
from dsmooth_jax.report.request import DOUBLE_MASKING, attacks_on, request_of
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.label_store import LabelStore, open_labels
from dsmooth_jax.storage.score_store import ScoreStore, open_scores
from dsmooth_jax.storage.shards import StoreError, is_store, is_tables
from dsmooth_jax.storage.timing import seconds_per_image
from dsmooth_jax.storage.workdir import CERTIFIED, COMPARISON, SCORES
from dsmooth_jax.threat import Patch
from dsmooth_jax.wording import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Run: TypeAlias = Analysis | LabelAnalysis
"""What was found of a run: of scores of ablations, or of classes under masks."""


def find_scores(path: PathLike, split: str) -> ScoreStore | LabelStore:
    """Opens the scores, or the tables, that a run's folder holds.

    Args:
      path: a store, a workdir of train.py, or a folder that certify.py wrote to.
      split: "test", "validation" or "train"; of a workdir.

    Raises:
      StoreError: there are none.
    """
    folder = user_path("path", path)
    places = [folder, folder / CERTIFIED / split / SCORES, folder / SCORES]
    for place in places:
        if is_store(place):
            return open_labels(place) if is_tables(place) else open_scores(place)
    raise StoreError(
        f"{path} holds no scores, nor does {places[1]}; make them first with "
        f"python certify.py --workdir={path}"
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells paths apart: without the folders that all begin or end with.

    >>> short_names(["runs/a/certify/test", "runs/b/certify/test"])
    ['a', 'b']
    """
    parts = [list(pathlib.PurePath(path).parts) for path in paths]
    for end in (0, -1):
        while all(parts) and len({one[end] for one in parts}) == 1:
            for one in parts:
                one.pop(end)
    return ["/".join(one) or path for one, path in zip(parts, paths, strict=True)]


def check_same_images(stores: Mapping[str, ScoreStore | LabelStore]) -> None:
    """Raises StoreError unless all scores are of the same images, in the same order."""
    (first_name, first), *others = stores.items()
    for name, other in others:
        pairs = {
            "the number of images": (len(first), len(other)),
            "the image shape": (first.image_shape, other.image_shape),
            "the number of classes": (first.num_classes, other.num_classes),
            "ids": (first.ids.tolist(), other.ids.tolist()),
            "labels": (first.labels.tolist(), other.labels.tolist()),
        }
        if first.origin.images is not None and other.origin.images is not None:
            pairs["pixels"] = (first.origin.images, other.origin.images)
        for what, (one, two) in pairs.items():
            if one != two:
                shown = "" if isinstance(one, list) else f", {one} and {two}"
                raise StoreError(
                    f"{first_name} and {name} are of different images: {what} differ"
                    f"{shown}; compare runs on the same split of the same data"
                )


def compare(
    stores: Mapping[str, ScoreStore | LabelStore],
    patches: Sequence[Patch],
    *,
    voting: str | None = None,
    watch: Watch = iter,
) -> dict[str, Run]:
    """Asks every run the same patches, each by its own settings.

    Args:
      stores: {name: scores, or classes under masks}, two or more.
      patches: against which.
      voting: of all that are of ablations, or "double_masking", made for each patch;
        the decision that each run has saved, if None.
      watch: as in `analyze`.

    Returns:
      {name: what was found}.

    Raises:
      StoreError: the images differ.
      ValueError: fewer than two runs; a patch that a run's masks do not cover.
    """
    if len(stores) < 2:
        raise ValueError(f"stores={list(stores)} must be two or more runs")
    check_same_images(stores)
    runs: dict[str, Run] = {}
    for name, store in stores.items():
        if isinstance(store, LabelStore):
            runs[name] = analyze_labels(store, patches, watch=watch)
            continue
        is_masked = voting == DOUBLE_MASKING
        asked: Any = None if is_masked else voting
        request = request_of(
            store.origin,
            attacks_on(store.ablation, store.image_size, patches),
            (asked or store.origin.voting or "threshold",),
            design=patches[0] if is_masked else None,
            has_figures=False,
            has_squares=asked is None,
        )
        if asked:  # whatever the run itself decides by
            request = dataclasses.replace(request, design=None)
        runs[name] = analyze(store, request, watch=watch)
    return runs


def rows(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """One record for each patch and run; what is gained and lost against the first."""
    first = next(iter(runs.values()))
    asked = first if isinstance(first, LabelAnalysis) else first.request
    found = []
    for patch in asked.patches:
        for name, run in runs.items():
            here, there = (_is_hit(one, patch) for one in (run, first))
            record, result = _decided(run, patch)
            found.append(
                {
                    "patch": str(patch),
                    "run": name,
                    **record,
                    "num_images": result.clean.num_images,
                    "clean": result.clean,
                    "certified": result.certified,
                    "gained": int((here & ~there).sum()),
                    "lost": int((there & ~here).sum()),
                    "views": views(run),
                    "seconds": seconds_per_image(run.store),
                }
            )
    return found


def views(run: Run) -> float:
    """How often an image is looked at: ablations, or passes on average."""
    if isinstance(run, LabelAnalysis):
        return float(run.num_passes.mean()) if len(run.store) else 0.0
    return float(run.store.ablation.num_ablations(run.store.image_size))


def _decided(run: Run, patch: Patch) -> tuple[dict[str, Any], Evaluation]:
    """How a run decides against a patch, and what it reaches."""
    record: dict[str, Any]
    if isinstance(run, LabelAnalysis):
        store = run.store
        record = {
            "ablation": str(store.masks),
            "voting": "pixels",
            "setting": store.confidence or "",
        }
        return record, run.result(patch)
    way = run.way_against(str(patch))
    record = {
        "ablation": str(run.store.ablation),
        "voting": way,
        "setting": run.request.setting(way),
    }
    return record, run.results[way, str(patch), "placement"]


def _is_hit(run: Run, patch: Patch) -> np.ndarray:
    """Bool [N]: right and certified."""
    if isinstance(run, LabelAnalysis):
        found = run.certificates[patch]
        return found.is_certified & (found.prediction == run.store.labels)
    return run.is_hit(run.way_against(str(patch)), str(patch))


def format_comparison(runs: Mapping[str, Run]) -> str:
    """Lays the rows out as text, at most 100 columns where names have at most 24.

    Then what an image costs each run: how often it is looked at, and the seconds that
    were measured when it was scored, "-" where they were not.
    """
    shown = {name: one_line(name) for name in runs}
    wide = max(9, *map(len, shown.values()))
    lines = [
        f"{'':9} {'':{wide}}  {'':9}  {'clean':>6}  {'certified accuracy':^22}  "
        f"{'against the first':^17}",
        f"{'patch':9} {'run':{wide}}  {'voting':9}  {'%':>6}  "
        f"{'%  (95 % interval)':^22}  {'gained':>8} {'lost':>8}",
    ]
    lines.append("-" * len(lines[1]))
    last, first = None, next(iter(runs))
    for row in rows(runs):
        patch, name = row["patch"], row["run"]
        change = "" if name == first else f"{row['gained']:8,} {row['lost']:8,}"
        lines.append(
            f"{'' if patch == last else patch:9} {shown[name]:{wide}}  "
            f"{summary.SHORT.get(row['voting'], row['voting']):9}  "
            f"{100 * row['clean'].value:6.1f}  "
            f"{summary.format_accuracy(row['certified'])}  {change:17}".rstrip()
        )
        last = patch
    lines += ["", f"{'an image':9} {'run':{wide}}  {'views':>9}  {'seconds':>9}  on"]
    for name, run in runs.items():
        seconds = seconds_per_image(run.store)
        lines.append(
            f"{'':9} {shown[name]:{wide}}  {views(run):9,.0f}  "
            f"{'-' if seconds is None else format(seconds, '.2g'):>9}  "
            f"{one_line(str(run.store.origin.device or '-'))}"
        )
    return "\n".join(lines)


def draw(runs: Mapping[str, Run]) -> "Figure":
    """Draws certified accuracy over the side of a square, a line for each run."""
    first = next(iter(runs.values()))
    found = {}
    for name, run in runs.items():
        if isinstance(run, LabelAnalysis):
            found[name] = {s: run.result(Patch(s, s)) for s in run.squares}
            continue
        way = run.request.voting if run.request.design is None else DOUBLE_MASKING
        last = min(int(run.largest[way].max()) + 1, *first.store.image_size)
        squares = run.squares(range(1, last + 1))
        found[name] = {
            square.height: result
            for (each, square, _), result in squares.items()
            if each == way
        }
    images = summary.describe_images(first.store)
    return figures.comparison_figure(found, caption=images)


def write(runs: Mapping[str, Run], out: pathlib.Path) -> list[str]:
    """Writes comparison.csv and the figure; returns the names of the files."""
    out.mkdir(parents=True, exist_ok=True)
    records = [
        {k: v.count if k in ("clean", "certified") else v for k, v in row.items()}
        for row in rows(runs)
    ]
    columns = {key: [record[key] for record in records] for key in records[0]}
    summary.write_rows(out / COMPARISON, columns)
    write_figure(draw(runs), out / "comparison.png")
    return ["comparison.png", "comparison.svg", str(COMPARISON)]
