"""The report: everything that was found, written to a folder.

From saved scores alone, so that it can be made again for any run, in seconds:
summary.json, rows.csv, figures as PNG and SVG, and report.html, one page that holds it
all and opens from disk.
"""

import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from dsmooth_jax import figures, maps, page, tables
from dsmooth_jax.answers import Answers
from dsmooth_jax.drawing import write_figure
from dsmooth_jax.inquiry import Question, shown_sizes
from dsmooth_jax.store import ScoreStore
from dsmooth_jax.voting import GRADES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(
    store: ScoreStore, question: Question, answers: Answers, out: pathlib.Path
) -> list[str]:
    """Writes what was found.

    Args:
      store: the scores.
      question: what was asked.
      answers: what `ask` found.
      out: a folder; made where it is not there.

    Returns:
      The names of the files, the most readable first. Figures and page only where the
      question has figures.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = ["summary.json", "rows.csv"]
    found = tables.summary(store, question, answers)
    (out / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    rows = tables.image_rows(store, question, answers)
    tables.write_rows(out / "rows.csv", rows)
    if answers.sweep:
        tables.write_rows(out / "sweep.csv", tables.sweep_rows(answers))
        written.append("sweep.csv")
    if answers.maps:
        margin, rival = answers.maps["margin"], answers.maps["rival"]
        np.savez_compressed(out / "maps.npz", margin=margin, rival=rival)
        written.append("maps.npz")
    if question.has_figures:
        drawn = draw(store, question, answers)
        for name, figure in drawn.items():
            write_figure(figure, out / f"{name}.png")
        html = page.render(store, question, answers, drawn)
        (out / "report.html").write_text(html, "utf-8", "backslashreplace")
        figure_names = [f"{name}.png" for name in drawn]
        written = ["report.html", *figure_names, *written]
    return written


def draw(
    store: ScoreStore, question: Question, answers: Answers
) -> dict[str, "Figure"]:
    """Draws every figure of a report.

    Args:
      store: the scores.
      question: what was asked, with figures.
      answers: what was found.

    Returns:
      {name: matplotlib figure}, in the order of the page.
    """
    num_images, focus, main = len(store), question.focus, question.main
    about_all = tables.caption(store, question, question.votings)
    about_main = tables.caption(store, question, [main])
    assert answers.rectangles is not None and answers.unproven is not None
    margin = answers.margins[main, focus, "placement"]
    settings = {voting: question.setting(voting) for voting in question.votings}
    drawn = {
        "certified_accuracy": figures.accuracy_figure(
            answers.squares(store.labels, _sides(store, answers)),
            base_accuracy=answers.base_accuracy,
            caption=about_all,
        ),
        "rectangles": maps.rectangles_figure(
            answers.rectangles / num_images,
            *map(shown_sizes, store.image_size),
            caption=about_main,
        ),
        "margins": figures.margins_figure(
            margin / (GRADES if main == "graded" else 1),
            answers.predictions[main] == store.labels,
            focus,
            caption=about_main,
        ),
        "map": maps.map_figure(
            answers.unproven / num_images, focus, caption=about_main
        ),
        "positions": maps.positions_figure(
            answers.right_by_ablation / num_images,
            store.ablation,
            store.image_size,
            caption=tables.caption(store, question, []),
        ),
    }
    if answers.settings:  # top one votes have none
        drawn["settings"] = figures.settings_figure(
            answers.settings,
            {v: value for v, value in settings.items() if value is not None},
            focus,
            caption=tables.caption(store, question, []),
        )
    return drawn


def _sides(store: ScoreStore, answers: Answers) -> list[int]:
    """Squares from 1x1 to the first against which nothing is certified."""
    largest = max(int(side.max(initial=0)) for side in answers.largest.values())
    return list(range(1, min(largest + 1, *store.image_size) + 1))
