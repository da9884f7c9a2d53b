"""Rows, tables and figures. Every number comes from `evaluation`, none is made here."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.evaluation import Accuracy, Evaluation
from dsmooth_jax.threat import Patch

if TYPE_CHECKING:  # drawing costs a second to import, so it is done when it is used
    from matplotlib.figure import Figure

Results = Mapping[tuple[Patch, str], Evaluation]
"""What was found for each patch and rule."""


def format_table(results: Results) -> str:
    """Lays out accuracies in per cent with 95 % intervals, a line for each patch.

    Args:
      results: for each patch, both rules.
    """
    lines = [
        f"{'':7}  {'clean accuracy':^23}  {'certified accuracy':^23}  "
        f"{'margin rule':^23}  {'certified':>9}",
        f"{'patch':7}  {'%  (95 % interval)':^23}  {'%  (95 % interval)':^23}  "
        f"{'(the paper)':^23}  {'but wrong':>9}",
    ]
    lines.append("-" * len(lines[0]))
    for patch in dict.fromkeys(patch for patch, _ in results):
        placement, margin = results[patch, "placement"], results[patch, "margin"]
        cells = (placement.clean, placement.certified, margin.certified)
        lines.append(
            f"{patch!s:7}  "
            + "  ".join(format_accuracy(cell) for cell in cells)
            + f"  {100 * placement.certified_wrong.value:9.1f}"
        )
    return "\n".join(lines)


def format_accuracy(accuracy: Accuracy) -> str:
    """Returns for example ``' 78.2  ( 75.5 to  80.7)'``: per cent, 95 % interval."""
    low, high = accuracy.interval
    return f"{100 * accuracy.value:5.1f}  ({100 * low:5.1f} to {100 * high:5.1f})"


def accuracy_record(patch: Patch, voting: str, rule: str, result: Evaluation) -> dict:
    """One entry of summary.json's "certificates"."""
    return {
        "patch": [patch.height, patch.width],
        "voting": voting,
        "rule": rule,
        "clean_accuracy": result.clean.value,
        "clean_interval": list(result.clean.interval),
        "certified_accuracy": result.certified.value,
        "certified_interval": list(result.certified.interval),
        "certified_wrong": result.certified_wrong.value,
    }


def format_rows(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> str:
    """Writes columns of equal length as CSV: a line for each image, after a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def accuracy_figure(
    results: Results, *, base_accuracy: float, caption: str
) -> "Figure":
    """Draws certified accuracy over patch size, with clean and base accuracy.

    Args:
      results: as `format_table`. Squares are drawn by their side; of other shapes by
        the side of the square of equal area.
      base_accuracy: the mean over ablations, in [0, 1].
      caption: a line of small print: data, n, model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    patches = list(dict.fromkeys(patch for patch, _ in results))
    are_squares = all(patch.height == patch.width for patch in patches)
    place = np.arange(1.0, len(patches) + 1)
    if are_squares:
        place = np.array([float(patch.height) for patch in patches])
    clean = results[patches[0], "placement"].clean
    span = (0, place.max() * 1.06)
    low, high = (100 * x for x in clean.interval)
    axes.fill_between(span, low, high, color="0.88", linewidth=0)
    axes.plot(span, [100 * clean.value] * 2, color="0.35", linewidth=1.2)
    _annotate(axes, span[1], 100 * clean.value, "clean accuracy", "0.25")
    axes.plot(span, [100 * base_accuracy] * 2, color="0.55", linewidth=1, dashes=(2, 2))
    _annotate(
        axes, span[1], 100 * base_accuracy, "one ablation alone", "0.4", is_below=True
    )
    styles: dict[str, dict[str, Any]] = {
        "placement": {"color": "#0b5fa5", "marker": "o", "label": "placement rule"},
        "margin": {"color": "#c8660a", "marker": "s", "label": "margin rule (paper)"},
    }
    for rule, style in styles.items():
        found = [results[patch, rule].certified for patch in patches]
        value = np.array([100 * a.value for a in found])
        bounds = np.array([[100 * x for x in a.interval] for a in found])
        is_main = rule == "placement"
        axes.errorbar(
            place,
            value,
            yerr=np.abs(bounds.T - value) if is_main else None,
            capsize=2.5,
            linewidth=1.8 if is_main else 1.2,
            zorder=3 if is_main else 2,
            linestyle=("-" if is_main else "--") if are_squares else "none",
            markersize=5,
            markerfacecolor=None if is_main else "white",
            **style,
        )
    axes.set_xlim(*span)
    axes.set_ylim(0, 102)
    axes.set_xticks(place, list(map(str, patches)))
    axes.set_xlabel("patch the attacker may place anywhere (pixels)")
    axes.set_ylabel("images (%)")
    axes.set_title("Certified accuracy against one adversarial patch", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.legend(title="certified accuracy", frameon=False, loc="best")
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def curve_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws a training run: loss and validation accuracies over epochs.

    Args:
      records: the lines of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [r for r in records if "loss" in r]
    left.plot([r["epoch"] for r in train], [r["loss"] for r in train], color="#0b5fa5")
    left.set_ylabel("training loss (nats per ablation)")
    validation = [r for r in records if "certified_accuracy" in r]
    at = " at " + "x".join(map(str, validation[-1]["patch"])) if validation else ""
    for name, style in (
        ("clean_accuracy", {"color": "0.35", "linestyle": "--"}),
        ("certified_accuracy", {"color": "#0b5fa5", "marker": "o", "markersize": 4}),
        ("base_accuracy", {"color": "#c8660a", "linestyle": ":"}),
    ):
        right.plot(
            [r["epoch"] for r in validation],
            [100 * r[name] for r in validation],
            label=name.replace("_", " ") + (at if name.startswith("cert") else ""),
            **style,
        )
    right.set_ylabel("validation images (%)")
    right.set_ylim(0, 102)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    return figure


def write_figure(figure: "Figure", path: pathlib.Path) -> None:
    """Writes a figure as PNG, at a resolution for slides."""
    figure.savefig(path, dpi=160)


def _annotate(
    axes: Any, x: float, y: float, text: str, color: str, *, is_below: bool = False
) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(-2, -3 if is_below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if is_below else "bottom",
        fontsize=8.5,
        color=color,
    )
