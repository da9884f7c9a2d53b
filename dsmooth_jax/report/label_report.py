"""The report of a classifier with masks of pixels: table, rows, summary and page."""

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.masks import masks_to_json
from dsmooth_jax.report import figures, label_page, summary
from dsmooth_jax.report.attack_summary import (
    FoundAttack,
    attacked_squares,
    attacks_of,
)
from dsmooth_jax.report.label_analysis import LabelAnalysis
from dsmooth_jax.report.plot_style import write_figure
from dsmooth_jax.storage.timing import seconds_per_image
from dsmooth_jax.threat import Patch
from dsmooth_jax.wording import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def format_table(analysis: LabelAnalysis) -> str:
    """Lays out accuracies in per cent with 95 % intervals, a line for each patch."""
    wide = max(9, *(len(str(patch)) for patch in analysis.patches))
    lines = [
        f"{'':{wide}}  {'clean accuracy':^22}  {'certified accuracy':^22}  "
        f"{'unanimity':^11} {'detected':>9} {'certified':>9}",
        f"{'patch':{wide}}  {'%  (95 % interval)':^22}  {'%  (95 % interval)':^22}  "
        f"{'(paper)':^11} {'':>9} {'but wrong':>9}",
    ]
    lines.append("-" * len(lines[0]))
    for patch in analysis.patches:
        found = analysis.result(patch)
        lines.append(
            f"{patch!s:{wide}}  {summary.format_accuracy(found.clean)}  "
            f"{summary.format_accuracy(found.certified)}  "
            f"{summary.percent(analysis.unanimous(patch).certified):^11} "
            f"{summary.percent(analysis.detected):>9} "
            f"{summary.percent(found.certified_wrong):>9}"
        )
    return "\n".join(lines)


def claim(analysis: LabelAnalysis) -> str:
    """Says in a sentence what is proven, against whom, for which images and model."""
    patch, store = analysis.patch, analysis.store
    accuracy = analysis.result(patch).certified
    low, high = (100 * bound for bound in accuracy.interval)
    name = one_line(str(store.origin.model_name or "the classifier"))
    return (
        f"{accuracy.count:,} of {summary.describe_images(store)} "
        f"({100 * accuracy.value:.1f} %, 95 % interval {low:.1f} to {high:.1f}) "
        f"{'is' if accuracy.count == 1 else 'are'} classified right, and proven to "
        f"stay so: no {patch} patch, anywhere in the image, with any content, by an "
        f"attacker who knows everything, changes the prediction of {name} with "
        f"{describe_masks(analysis)}, decided by double masking."
    )


def describe_masks(analysis: LabelAnalysis) -> str:
    """Returns for example "36 masks of 9x9 pixels"."""
    store = analysis.store
    count = store.masks.num_masks(store.image_size)
    masks = "{} masks of {}x{} pixels".format(count, *store.masks.shape)
    if store.confidence:
        masks += f", two of them believed from a score of {store.confidence:g} on"
    return masks


def caption(analysis: LabelAnalysis) -> str:
    """The small print of a figure: which images, which masks."""
    images = summary.describe_images(analysis.store)
    return f"{images}, {describe_masks(analysis)}"


def summarize(analysis: LabelAnalysis) -> dict[str, Any]:
    """What summary.json holds."""
    store, records = analysis.store, []
    for patch in analysis.patches:
        for rule, found in (
            ("placement", analysis.result(patch)),
            ("unanimity", analysis.unanimous(patch)),
        ):
            records.append(
                {
                    "patch": [patch.height, patch.width],
                    "attack": str(patch),
                    "voting": "double_masking",
                    "rule": rule,
                    "clean_accuracy": found.clean.value,
                    "clean_interval": list(found.clean.interval),
                    "certified_accuracy": found.certified.value,
                    "certified_interval": list(found.certified.interval),
                    "certified_wrong": found.certified_wrong.value,
                    "detected_accuracy": analysis.detected.value,
                }
            )
    return {
        "num_images": len(store),
        "split": store.origin.split or "unknown",
        "masks": masks_to_json(store.masks),
        "fill": store.fill,
        "image_shape": list(store.image_shape),
        "resized_to": store.origin.resized_to,
        "decision": "double_masking",
        "confidence": store.confidence,
        "tolerance": store.tolerance,
        "clean_accuracy": analysis.result(analysis.patch).clean.value,
        "base_accuracy": analysis.base_accuracy,
        "passes_per_image": _mean(analysis.num_passes),
        "seconds_per_image": seconds_per_image(store),
        "certificates": records,
        "made_by": store.made_by,
    }


def image_rows(analysis: LabelAnalysis) -> dict[str, np.ndarray]:
    """The columns of rows.csv, a row for each image."""
    first = analysis.certificates[analysis.patch]
    return {
        "id": analysis.store.ids,
        "label": analysis.store.labels,
        "prediction": first.prediction,
        "num_passes": analysis.num_passes,
        "is_detected": first.is_detected.astype(np.int64),
        "is_unanimous": first.is_unanimous.astype(np.int64),
        **{
            f"is_certified_{patch}": found.is_certified.astype(np.int64)
            for patch, found in analysis.certificates.items()
        },
    }


def write(
    analysis: LabelAnalysis, out: pathlib.Path, *, has_figures: bool = True
) -> list[str]:
    """Writes what was found.

    Args:
      analysis: from `analyze_labels`.
      out: a folder; made where it is not there.
      has_figures: whether also the figure and report.html.

    Returns:
      The names of the files, the most readable first.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summarize(analysis), indent=2) + "\n"
    (out / "summary.json").write_text(text)
    summary.write_rows(out / "rows.csv", image_rows(analysis))
    written = ["summary.json", "rows.csv"]
    if has_figures:
        attacks = attacks_of(analysis.store)
        figure = draw(analysis, attacks)
        write_figure(figure, out / "certified_accuracy.png")
        html = label_page.render(
            analysis,
            figure,
            attacks,
            claim=claim(analysis),
            caption=caption(analysis),
            masks=describe_masks(analysis),
        )
        (out / "report.html").write_text(html, "utf-8", "backslashreplace")
        written = ["report.html", "certified_accuracy.png", *written]
    return written


def draw(analysis: LabelAnalysis, attacks: Sequence[FoundAttack] = ()) -> "Figure":
    """Draws certified accuracy over the side of a square, by both conditions.

    With crosses for attacks of `attacks_of`.
    """
    squares = {side: Patch(side, side) for side in analysis.squares}
    return figures.comparison_figure(
        {
            "each placement": {s: analysis.result(p) for s, p in squares.items()},
            "unanimity": {s: analysis.unanimous(p) for s, p in squares.items()},
        },
        attacked=attacked_squares(attacks),
        caption=caption(analysis),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
