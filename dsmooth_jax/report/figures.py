"""Figures: each a function from what was found to a matplotlib figure.

Drawn for paper and for a color-blind reader first: series differ by marker and line as
well as by color, maps by lightness, and the number of images is in the caption. No
number is made here.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.alarms import AlarmCertificate, evaluate_alarm
from dsmooth_jax.certificate import Rule
from dsmooth_jax.evaluation import Accuracy, Evaluation
from dsmooth_jax.report.plot_style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    interval_band,
    interval_marks,
    legend,
    new_figure,
    note,
    our_style,
    percent,
    percent_axis,
)
from dsmooth_jax.report.request import DOUBLE_MASKING, Way
from dsmooth_jax.threat import Patch
from dsmooth_jax.voting import Voting
from dsmooth_jax.wording import counted, one_line

if TYPE_CHECKING:  # drawing costs a second to import, so it is done when it is used
    from matplotlib.figure import Figure

_STYLES: dict[tuple[Way, Rule], dict[str, Any]] = {
    (DOUBLE_MASKING, "placement"): {"color": PURPLE, "marker": "D", "linestyle": "-"},
    ("graded", "placement"): {"color": BLUE, "marker": "o", "linestyle": "-"},
    ("threshold", "placement"): {"color": ORANGE, "marker": "s", "linestyle": "--"},
    ("top_one", "placement"): {"color": GREEN, "marker": "^", "linestyle": "-."},
    ("threshold", "margin"): {"color": ORANGE, "marker": "s", "linestyle": ":"},
    ("top_one", "margin"): {"color": GREEN, "marker": "^", "linestyle": ":"},
}
"""What is drawn, told apart by color and by marker. The margin rule is the paper's."""


@our_style()
def accuracy_figure(
    results: Mapping[tuple[Way, Patch, Rule], Evaluation],
    *,
    base_accuracy: float,
    attacked: Mapping[int, Accuracy] | None = None,
    caption: str,
) -> "Figure":
    """Draws certified accuracy over patch size, with clean and base accuracy.

    Args:
      results: {(way to decide, patch, rule): evaluation}. Squares are drawn by their
        side; other shapes one after the other.
      base_accuracy: the mean over ablations, in [0, 1].
      attacked: {side: images right after an attack by this square}, where there is one.
      caption: a line of small print: data, n, model.
    """
    figure, axes = new_figure(
        "Certified accuracy against one adversarial patch", caption
    )
    patches = list(dict.fromkeys(patch for _, patch, _ in results))
    # The clean accuracy of votes: that of double masking depends on the patch.
    votings = dict.fromkeys(way for way, _, _ in results if way != DOUBLE_MASKING)
    are_squares = all(patch.height == patch.width for patch in patches)
    place = np.arange(1.0, len(patches) + 1)
    if are_squares:
        place = np.array([float(patch.height) for patch in patches])
    span = (0, place.max() * 1.04 + 0.2)
    best = max(
        (results[v, patches[0], "placement"].clean for v in votings),
        key=lambda accuracy: accuracy.value,
    )
    axes.fill_between(span, *percent(best.interval), color=FAINT, linewidth=0)
    axes.plot(span, [100 * best.value] * 2, color=INK, linewidth=1)
    note(axes, span[1], 100 * best.value, "clean accuracy, no patch")
    axes.plot(span, [100 * base_accuracy] * 2, color=MUTED, linewidth=1, dashes=(1, 2))
    note(axes, span[1], 100 * base_accuracy, "one ablation alone")
    for (voting, rule), style in _STYLES.items():
        if (voting, patches[0], rule) not in results:
            continue
        is_shown = np.array([(voting, patch, rule) in results for patch in patches])
        found = [
            results[voting, patch, rule].certified
            for patch, is_there in zip(patches, is_shown, strict=True)
            if is_there
        ]
        is_placement = rule == "placement"
        if is_placement:
            interval_band(axes, place[is_shown], found, style["color"])
        axes.plot(
            place[is_shown],
            [100 * accuracy.value for accuracy in found],
            **style | ({} if are_squares else {"linestyle": "none"}),
            linewidth=1.6,
            markersize=4.5,
            markerfacecolor=style["color"] if is_placement else PAPER,
            zorder=3 if is_placement else 2,
            label="double masking"
            if voting == DOUBLE_MASKING
            else f"{voting.replace('_', ' ')} votes, {rule} rule",
        )
    if attacked and are_squares:
        interval_marks(axes, attacked, "right after an attack")
    axes.set_xlim(*span)
    if are_squares:
        axes.set_xlabel("side of the square patch (pixels)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set_xticks(place, list(map(str, patches)))
        axes.set_xlabel("patch, height x width (pixels)")
    percent_axis(axes, "images, right and certified (%)")
    legend(axes, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, fontsize=9)
    return figure


@our_style()
def settings_figure(
    results: Mapping[tuple[Voting, float], Evaluation],
    chosen: Mapping[Voting, float],
    patch: Patch,
    *,
    caption: str,
) -> "Figure":
    """Draws clean and certified accuracy over the threshold and over the strength.

    Args:
      results: {(voting, setting): evaluation}; each voting gets a panel.
      chosen: the setting in use, of each voting.
      patch: against which.
      caption: a line of small print.
    """
    votings = list(dict.fromkeys(voting for voting, _ in results))
    figure, panels = new_figure(
        f"Choice of the setting, against a {patch} patch", caption, panels=len(votings)
    )
    axes_of = [panels] if len(votings) == 1 else list(panels)
    for axes, voting in zip(axes_of, votings, strict=True):
        values = sorted(value for v, value in results if v == voting)
        found = [results[voting, value] for value in values]
        style = _STYLES[voting, "placement"]
        axes.plot(
            values,
            [100 * e.clean.value for e in found],
            color=INK,
            linewidth=1,
            dashes=(4, 2),
            label="clean",
        )
        certified = [e.certified for e in found]
        interval_band(axes, values, certified, style["color"])
        axes.plot(
            values,
            [100 * accuracy.value for accuracy in certified],
            color=style["color"],
            marker=style["marker"],
            markersize=4,
            label="right and certified",
        )
        here = 100 * results[voting, chosen[voting]].certified.value
        axes.plot(
            [chosen[voting]],
            [here],
            marker="o",
            markersize=12,
            markerfacecolor="none",
            markeredgecolor=INK,
            linestyle="none",
        )
        axes.set_title(
            f"in use: {chosen[voting]:g}", fontsize=9, color=MUTED, loc="right"
        )
        name = {"threshold": "threshold, a score", "graded": "strength, log scale"}
        axes.set_xlabel(name[voting])
        if voting == "graded":
            axes.set_xscale("log")
            ticks = [v for v in (1, 2, 5, 10, 20, 50, 100) if v <= max(values)]
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()
        percent_axis(axes, "images (%)")
    legend(axes_of[0], loc="lower left")
    for axes in axes_of[1:]:
        axes.set_ylabel("")
        axes.tick_params(labelleft=False)
    return figure


@our_style()
def margins_figure(
    margin: np.ndarray, is_right: np.ndarray, patch: Patch, *, caption: str
) -> "Figure":
    """Draws how far each prediction is from being changed, right and wrong ones apart.

    Args:
      margin: [N], votes.
      is_right: bool [N].
      patch: against which.
      caption: a line of small print.
    """
    figure, axes = new_figure(f"Margin against a {patch} patch", caption)
    # Zero is shown, wherever the margins are.
    low, high = float(margin.min(initial=0)), float(margin.max(initial=0))
    step = max(1.0, np.ceil((high - low) / 40))
    # Zero is an edge: nothing on its left is certified, everything on its right is.
    edges = np.arange(np.floor(low / step) * step, high + 2 * step, step)
    groups = (
        (is_right, "right", {"facecolor": BLUE, "edgecolor": PAPER}),
        (
            ~is_right,
            "wrong",
            {"facecolor": PAPER, "edgecolor": ORANGE, "hatch": "/////"},
        ),
    )
    axes.hist(
        [margin[mask] for mask, _, _ in groups],
        edges,
        stacked=True,
        label=[
            f"{name} ({counted(int(mask.sum()), 'image')})" for mask, name, _ in groups
        ],
    )
    for container, (_, _, style) in zip(axes.containers, groups, strict=True):
        for bar in container:
            bar.set(linewidth=0.6, **style)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlim(edges[0] - step, high + 2 * step)
    for text, side, place in (("certified", "left", 5), ("not certified", "right", -5)):
        axes.annotate(
            text,
            (0, 1),
            xytext=(place, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            fontsize=9,
            color=MUTED,
        )
    axes.set_xlabel("margin left at the worst placement (votes)")
    axes.set_ylabel("images")
    legend(axes, loc="best")
    return figure


@our_style()
def alarms_figure(
    certificate: AlarmCertificate,
    labels: np.ndarray,
    chosen: Sequence[int],
    patch: Patch,
    *,
    unit: int,
    caption: str,
) -> "Figure":
    """Draws what an alarm detects over the false alarms that it costs.

    Args:
      certificate: of all images, at any alarm margin.
      labels: int64 [N].
      chosen: alarm margins in use.
      patch: against which.
      unit: how many units of a margin are a vote.
      caption: a line of small print.
    """
    figure, axes = new_figure(f"Alarms against a {patch} patch", caption)
    most = max(int(certificate.margin.max()), int(certificate.rival_margin.max())) + 1
    margins = np.unique(np.linspace(0, max(most, 0), 101).astype(int)).tolist()
    found = [evaluate_alarm(certificate.at(margin), labels) for margin in margins]
    rates = [100 * one.false_alarms.value for one in found]
    for name, style in (
        ("detected", _STYLES["graded", "placement"]),
        ("unwavering", _STYLES["threshold", "placement"]),
    ):
        shares = [getattr(one, name) for one in found]
        interval_band(axes, rates, shares, style["color"])
        axes.plot(
            rates,
            [100 * share.value for share in shares],
            color=style["color"],
            linestyle=style["linestyle"],
            label=name,
        )
        for margin in chosen:
            at = evaluate_alarm(certificate.at(margin), labels)
            axes.plot(
                [100 * at.false_alarms.value],
                [100 * getattr(at, name).value],
                color=style["color"],
                marker=style["marker"],
                linestyle="none",
            )
            if name == "detected":
                axes.annotate(
                    f"{margin / unit:.3g} votes",
                    (100 * at.false_alarms.value, 100 * at.detected.value),
                    xytext=(5, -11),
                    textcoords="offset points",
                    fontsize=8,
                    color=MUTED,
                )
    axes.set_xlabel("images that raise an alarm with no attack (%)")
    axes.set_xlim(0, 100)
    percent_axis(axes, "images, right (%)")
    legend(axes, loc="best")
    return figure


@our_style()
def comparison_figure(
    runs: Mapping[str, Mapping[int, Evaluation]],
    *,
    attacked: Mapping[int, Accuracy] | None = None,
    caption: str,
) -> "Figure":
    """Draws certified accuracy over the side of a square patch, a line for each run.

    Args:
      runs: {name: {side in pixels: evaluation}}, all on the same images.
      attacked: {side: images right after an attack by this square}, where there is one.
      caption: a line of small print.
    """
    figure, axes = new_figure("Certified accuracy on the same images", caption)
    figure.set_figheight(max(3.9, 2 + 0.22 * len(runs)))  # inches: room for a legend
    styles, names = list(_STYLES.values()), []
    for index, (name, found) in enumerate(runs.items()):
        style = styles[index % 3] | {"markerfacecolor": PAPER if index > 2 else None}
        sides = sorted(found)
        certified = [found[side].certified for side in sides]
        interval_band(axes, sides, certified, style["color"])
        clean = 100 * found[sides[0]].clean.value
        names.append(f"{one_line(name, 40)} (clean {clean:.1f} %)")
        axes.plot(
            sides,
            [100 * accuracy.value for accuracy in certified],
            **style,
            linewidth=1.6,
            markersize=4.5,
            label=names[-1],
        )
    if attacked:
        interval_marks(axes, attacked, "right after an attack")
        names.append(str(axes.containers[-1].get_label()))
    axes.set_xlabel("side of the square patch (pixels)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, None)
    percent_axis(axes, "images, right and certified (%)")
    legend(axes, names, loc="lower left" if attacked else "upper right")
    return figure


@our_style()
def curve_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws a training run: loss and validation accuracies over epochs.

    Args:
      records: the lines of metrics.jsonl.
    """
    figure, (left, right) = new_figure("", "", panels=2)
    train = [r for r in records if "loss" in r]
    # Marked, so that the only point of a run that is validated once is seen.
    marked = {"marker": "o", "markersize": 4}
    epochs, values = [r["epoch"] for r in train], [r["loss"] for r in train]
    left.plot(epochs, values, color=BLUE, **marked)
    left.set_ylabel("training loss (mean of images)")
    validation = [r for r in records if "certified_accuracy" in r]
    at = " at " + "x".join(map(str, validation[-1]["patch"])) if validation else ""
    for name, style in (
        ("clean_accuracy", {"color": INK, "linestyle": "--"}),
        ("certified_accuracy", {"color": BLUE}),
        ("base_accuracy", {"color": ORANGE, "linestyle": ":"}),
    ):
        right.plot(
            [r["epoch"] for r in validation],
            [100 * r[name] for r in validation],
            label=name.removesuffix("_accuracy") + (at if "cert" in name else ""),
            **style,
            **marked,
        )
    percent_axis(right, "validation images (%)")
    legend(right, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
    return figure
