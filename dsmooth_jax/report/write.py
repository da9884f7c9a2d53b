"""The report: everything that was found, written to a folder.

From saved scores alone, so that it can be made again for any run, in seconds:
summary.json, rows.csv, figures as PNG and SVG, and report.html, one page that holds it
all and opens from disk.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dsmooth_jax.checks import user_path
from dsmooth_jax.report import figures, heatmaps, html, more_tables, summary
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.attack_summary import FoundAttack, attacked_squares, attacks_of
from dsmooth_jax.report.plot_style import write_figure
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.workdir import SUMMARY
from dsmooth_jax.voting import GRADES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(analysis: Analysis, out: PathLike) -> list[str]:
    """Writes what was found.

    Args:
      analysis: what `analyze` found.
      out: a folder; made where it is not there.

    Returns:
      The names of the files, the most readable first. Figures and page only where the
      question has figures.
    """
    out, request = user_path("out", out), analysis.request
    out.mkdir(parents=True, exist_ok=True)
    written = [str(SUMMARY), "rows.csv"]
    found = summary.summarize(analysis)
    if request.top_k:
        found["top_k"] = more_tables.records(more_tables.top_k_table(analysis))
    if request.alarms:
        found["alarms"] = more_tables.records(more_tables.alarm_table(analysis))
    (out / SUMMARY).write_text(json.dumps(found, indent=2) + "\n")
    rows = summary.image_rows(analysis) | more_tables.columns(analysis)
    summary.write_rows(out / "rows.csv", rows)
    if analysis.sweep:
        summary.write_rows(out / "sweep.csv", summary.sweep_rows(analysis))
        written.append("sweep.csv")
    if analysis.maps:
        margin, rival = analysis.maps["margin"], analysis.maps["rival"]
        np.savez_compressed(out / "maps.npz", margin=margin, rival=rival)
        written.append("maps.npz")
    if request.has_figures:
        attacks = attacks_of(analysis.store)
        drawn = draw_figures(analysis, attacks)
        for name, figure in drawn.items():
            write_figure(figure, out / f"{name}.png")
        page = html.render(analysis, drawn, attacks)
        (out / "report.html").write_text(page, "utf-8", "backslashreplace")
        figure_names = [f"{name}.png" for name in drawn]
        written = ["report.html", *figure_names, *written]
    return written


def draw_figures(
    analysis: Analysis, attacks: Sequence[FoundAttack] = ()
) -> dict[str, "Figure"]:
    """Draws every figure of a report.

    Args:
      analysis: what was found, with figures.
      attacks: of `attacks_of`.

    Returns:
      {name: matplotlib figure}, in the order of the page.
    """
    store, request = analysis.store, analysis.request
    num_images, patch, voting = len(store), request.patch, request.voting
    num_drawn = num_images if request.drawn is None else len(request.drawn)
    of_them = "" if num_drawn == num_images else f", {num_drawn:,} of them drawn"
    about_all = summary.caption(analysis, request.votings)
    about_main = summary.caption(analysis, [voting])
    assert analysis.rectangles is not None and analysis.unproven is not None
    margin = analysis.margins[voting, str(patch), "placement"]
    settings = {each: request.setting(each) for each in request.votings}
    drawn = {
        "certified_accuracy": figures.accuracy_figure(
            analysis.squares(_sides(analysis)),
            base_accuracy=analysis.base_accuracy,
            attacked=attacked_squares(attacks),
            caption=about_all,
        ),
        "rectangles": heatmaps.rectangles_figure(
            analysis.rectangles / num_drawn,
            *map(request.sizes, store.image_size),
            caption=about_main + of_them,
        ),
        "margins": figures.margins_figure(
            margin / (GRADES if voting == "graded" else 1),
            analysis.is_right(voting),
            patch,
            caption=about_main,
        ),
        "map": heatmaps.map_figure(
            analysis.unproven / num_drawn, patch, caption=about_main + of_them
        ),
        "positions": heatmaps.positions_figure(
            analysis.right_by_ablation / num_images,
            store.ablation,
            store.image_size,
            caption=summary.caption(analysis, []),
        ),
    }
    if request.alarms:
        drawn["alarms"] = figures.alarms_figure(
            analysis.alarms[voting, str(patch)],
            analysis.store.labels,
            [margin for (v, _), margin in request.alarms.items() if v == voting],
            patch,
            unit=more_tables.unit(voting),
            caption=about_main,
        )
    if analysis.settings:  # top one votes have none
        drawn["settings"] = figures.settings_figure(
            analysis.settings,
            {v: value for v, value in settings.items() if value is not None},
            patch,
            caption=summary.caption(analysis, []) + of_them,
        )
    return drawn


def _sides(analysis: Analysis) -> list[int]:
    """Squares from 1x1 to the first against which nothing is certified."""
    largest = max(int(side.max(initial=0)) for side in analysis.largest.values())
    return list(range(1, min(largest + 1, *analysis.store.image_size) + 1))
