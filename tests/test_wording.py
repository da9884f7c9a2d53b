"""Text from data: shown in one line, parsed by nothing, calculated by nobody."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax.report import comparison, figures, plot_style, summary
from dsmooth_jax.wording import counted, csv_text, one_line

NAMES = ["Ba$$in", "cost $5 to $10", r"$\frac$", r"a\$b", "_hidden", "two\nlines"]
NAMES += ["\u6f22\u5b57", "\u05e2\u05d1\u05e8", "\U0001f600", "x" * 3000]
NAMES += ["nul\0 and \x1b[31m", "lone \udce9", "turned \u202e round", "%d {0} <b>&"]
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "'=1", "''"]
FORMULAS += ["\uff1d1", "-", "=1,2", '=HYPERLINK("x")']


@pytest.fixture
def stores(tmp_path):
    """Runs by odd names, of odd data, whose ids are formulas."""
    rng = np.random.default_rng(0)
    num = len(FORMULAS)
    return {
        name: ds.save_scores(
            tmp_path / str(index),
            rng.dirichlet(np.ones(3), (num, 7)).astype(np.float32),
            ablation=ds.Columns(2),
            image_shape=(5, 7, 1),
            labels=np.arange(num) % 3,
            ids=FORMULAS,
            made_by={"data": {"name": name, "split": name}, "model": name},
        )
        for index, name in enumerate([*NAMES, *FORMULAS[5:7]])
    }


def test_figures_show_names_as_they_are(stores, tmp_path):
    # Protects a report from a $: no mathematics, no name left out of the legend.
    runs = comparison.compare(stores, [ds.Patch(1, 1)])
    comparison.write(runs, tmp_path)
    comparison.format_comparison(runs)
    figure = comparison.draw(runs)
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [one.rpartition(" (clean")[0] for one in shown] == [
        one_line(name, 40) for name in stores
    ]
    text = (tmp_path / "comparison.svg").read_text(encoding="utf-8")
    for name in (
        "Ba$$in",
        "cost $5 to $10",
        r"$\frac$",
        r"a\$b",
        "_hidden",
        "two lines",
    ):
        assert f">{name} (clean" in text
    assert not any(c in text for c in "\0\x1b\u202e")
    with open(tmp_path / "comparison.csv", encoding="utf-8", newline="") as file:
        found = [row["run"] for row in csv.DictReader(file)]
    wanted = [n.encode("utf-8", "backslashreplace").decode() for n in stores]
    assert [one.removeprefix("'") for one in found] == wanted
    assert not any(one.lstrip().startswith(tuple("=+-@")) for one in found)


def test_captions_and_claims_hold_one_line(stores):
    # Protects the sentence that is quoted and the small print, for any data set.
    for name, store in stores.items():
        said = summary.describe_images(store), summary.describe_model(store)
        for text in said:
            assert len(text.splitlines()) == 1 and len(text) < 260
            assert one_line(name) in text or not name.strip()
        figure = figures.margins_figure(
            np.zeros(1), np.ones(1, bool), ds.Patch(1, 1), caption=said[0]
        )
        assert plot_style.get_caption(figure).startswith("14 ")
        assert figure.texts[0].get_parse_math() is False


def test_no_cell_is_a_formula_and_every_text_comes_back():
    # Protects who opens rows.csv by a click; numbers stay numbers.
    texts = [*FORMULAS, *NAMES[:-3], "plain", ""]
    columns = {"id": np.array(texts), "margin": -np.arange(len(texts))}
    rows = list(csv.reader(io.StringIO(summary.format_rows(columns), newline="")))[1:]
    assert [row[0].removeprefix("'") for row in rows] == columns["id"].tolist()
    assert [int(row[1]) for row in rows] == columns["margin"].tolist()
    for text, (cell, _) in zip(texts, rows, strict=True):
        assert cell.startswith("'") == (text in FORMULAS)


def test_what_is_one_is_said_so(tmp_path):
    # Protects "1 image": in sentences, tables and figures.
    assert [counted(n, "image") for n in (0, 1, 2)] == [
        "0 images",
        "1 image",
        "2 images",
    ]
    assert csv_text("") == one_line("") == ""
    figure = figures.margins_figure(
        np.array([-3.0]), np.ones(1, bool), ds.Patch(1, 1), caption=""
    )
    (right, wrong) = figure.axes[0].get_legend().get_texts()
    assert right.get_text() == "right (1 image)"
    assert wrong.get_text() == "wrong (0 images)"


@pytest.mark.parametrize("place", [-200.0, 500.0, 0.0, -1.0])
def test_margins_far_from_zero_show_zero(place, tmp_path):
    # Protects the figure where nothing is certified, or everything far from the edge.
    margin = place + np.random.default_rng(0).normal(0, 0.3, 50)
    figure = figures.margins_figure(
        margin, margin > place, ds.Patch(5, 5), caption="50 images"
    )
    low, high = figure.axes[0].get_xlim()
    assert low <= min(0, margin.min()) and high >= max(0, margin.max())
    plot_style.write_figure(
        figure, tmp_path / "margins.png"
    )  # warnings are errors here
    bars = [bar for group in figure.axes[0].containers for bar in group]
    assert sum(bar.get_height() for bar in bars) == 50
    held = sum(bar.get_height() for bar in bars if bar.get_x() >= -1e-9)
    assert held == (margin >= 0).sum()


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "none there", "Agg"]
)
def test_figures_need_no_backend(backend, tmp_path):
    # Protects whoever runs the programs out of a notebook, and the notebook's own.
    code = (
        "import os, pathlib, sys\n"
        "from dsmooth_jax.report import figures, plot_style\n"
        "figure = figures.curve_figure([{'loss': 1.0, 'epoch': 1}])\n"
        "plot_style.write_figure(figure, pathlib.Path(sys.argv[1]))\n"
        "import matplotlib\n"
        "print(os.environ['MPLBACKEND'], matplotlib.get_backend(auto_select=False))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "figure.png")],
        env=os.environ | {"MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    kept = "agg" if backend == "Agg" else None
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.lower() == f"{backend} {kept}\n".lower()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.svg").exists()


def test_figures_look_the_same_whatever_a_user_has_set(monkeypatch):
    # Protects figures from a notebook's dark style, and from LaTeX that is not there.
    import matplotlib

    def draw():
        return plot_style.svg(figures.curve_figure([{"loss": 1.0, "epoch": 1}]))

    plain = draw()
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black"}):
        assert draw() == plain
