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

Results = Mapping[tuple[str, Patch | str, str], Evaluation]
"""What was found for each voting, attack (a patch, or several by a name) and rule."""


STYLES: dict[tuple[str, str], dict[str, Any]] = {
    ("graded", "placement"): {"color": "#0b5fa5", "marker": "o", "linestyle": "-"},
    ("threshold", "placement"): {"color": "#c8660a", "marker": "s", "linestyle": "-"},
    ("top_one", "placement"): {"color": "#4d7c1f", "marker": "^", "linestyle": "-"},
    ("threshold", "margin"): {"color": "#c8660a", "marker": "s", "linestyle": ":"},
    ("top_one", "margin"): {"color": "#4d7c1f", "marker": "^", "linestyle": ":"},
}
"""What is drawn, told apart by colour and by marker. The margin rule is the paper's."""


def format_table(results: Results) -> str:
    """Lays out accuracies in per cent with 95 % intervals, a line per patch and voting.

    Args:
      results: of each attack at least the placement rule.
    """
    lines = [
        f"{'':9} {'':9}  {'clean accuracy':^22}  {'certified accuracy':^22}  "
        f"{'margin rule':^11}  {'certified':>9}",
        f"{'patch':9} {'voting':9}  {'%  (95 % interval)':^22}  "
        f"{'%  (95 % interval)':^22}  {'(paper)':^11}  {'but wrong':>9}",
    ]
    lines.append("-" * len(lines[0]))
    last = None
    order = [list(dict.fromkeys(names)) for names in zip(*results, strict=True)]
    for voting, attack in ((v, a) for a in order[1] for v in order[0]):
        placement = results[voting, attack, "placement"]
        margin = results.get((voting, attack, "margin"))
        lines.append(
            f"{'' if attack == last else attack!s:9} {voting:9}  "
            f"{format_accuracy(placement.clean)}  "
            f"{format_accuracy(placement.certified)}  "
            + (f"{100 * margin.certified.value:7.1f}    " if margin else " " * 11)
            + f"  {100 * placement.certified_wrong.value:9.1f}"
        )
        last = attack
    return "\n".join(lines)


def format_accuracy(accuracy: Accuracy) -> str:
    """Returns for example ``' 78.2 ( 75.5 to  80.7)'``: per cent, 95 % interval."""
    low, high = accuracy.interval
    return f"{100 * accuracy.value:5.1f} ({100 * low:5.1f} to {100 * high:5.1f})"


def accuracy_record(
    voting: str, attack: Patch | str, rule: str, result: Evaluation
) -> dict[str, Any]:
    """One entry of summary.json's "certificates"."""
    sides = [attack.height, attack.width] if isinstance(attack, Patch) else None
    return {
        "patch": sides,
        "attack": str(attack),
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
    patches = list(dict.fromkeys(a for _, a, _ in results if isinstance(a, Patch)))
    votings = list(dict.fromkeys(voting for voting, _, _ in results))
    are_squares = all(patch.height == patch.width for patch in patches)
    place = np.arange(1.0, len(patches) + 1)
    if are_squares:
        place = np.array([float(patch.height) for patch in patches])
    span = (0, place.max() * 1.06)
    best = max((results[v, patches[0], "placement"].clean for v in votings), key=_value)
    low, high = (100 * x for x in best.interval)
    axes.fill_between(span, low, high, color="0.88", linewidth=0)
    axes.plot(span, [100 * best.value] * 2, color="0.35", linewidth=1.2)
    _annotate(axes, span[1], 100 * best.value, "clean accuracy", "0.25")
    axes.plot(span, [100 * base_accuracy] * 2, color="0.55", linewidth=1, dashes=(2, 2))
    _annotate(
        axes, span[1], 100 * base_accuracy, "one ablation alone", "0.4", is_below=True
    )
    for (voting, rule), style in STYLES.items():
        if (voting, patches[0], rule) not in results:
            continue
        found = [results[voting, patch, rule].certified for patch in patches]
        value = np.array([100 * a.value for a in found])
        bounds = np.array([[100 * x for x in a.interval] for a in found])
        axes.errorbar(
            place,
            value,
            yerr=np.abs(bounds.T - value) if rule == "placement" else None,
            capsize=2.5,
            linewidth=1.6,
            linestyle=style["linestyle"] if are_squares else "none",
            color=style["color"],
            marker=style["marker"],
            markersize=5,
            markerfacecolor="white" if rule == "margin" else style["color"],
            zorder=3 if rule == "placement" else 2,
            label=f"{voting.replace('_', ' ')} votes, {rule} rule",
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


def map_figure(mean_margin: np.ndarray, patch: Patch, *, caption: str) -> "Figure":
    """Draws a mean vulnerability map: where a patch takes most.

    Args:
      mean_margin: [H - height + 1, W - width + 1], in votes, by the upper left corner.
      patch: the patch.
      caption: a line of small print.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(mean_margin, cmap="cividis", interpolation="nearest")
    figure.colorbar(image, label="mean margin left (votes)")
    axes.set_title(f"Where a {patch} patch takes most", fontsize=12)
    axes.set_xlabel("left column of the patch (pixels)")
    axes.set_ylabel("top row of the patch (pixels)")
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _value(accuracy: Accuracy) -> float:
    return accuracy.value


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
