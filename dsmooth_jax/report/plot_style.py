"""How figures look, and how they are written: one palette, one style, PNG and SVG."""

import contextlib
import io
import os
import pathlib
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.wording import one_line

if TYPE_CHECKING:  # drawing costs a second to import, so it is done when it is used
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, PAPER = "#1f2328", "#5f6771", "#dfe3e8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE = "#0b5fa5", "#c8660a", "#4d7c1f", "#7b3f98"
"""The palette; a page replaces these by its own, for dark screens."""

_CAPTION = "caption"  # the mark of the small print

_RC: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": FAINT,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "dsmooth_jax",
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read out
    "text.color": INK,
    "text.parse_math": False,  # names of data may hold a $
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@contextlib.contextmanager
def our_style() -> Iterator[None]:
    """How every figure is drawn and written, whatever a user's own settings are."""
    # matplotlib refuses to be imported under a backend that is not there, and children
    # of a notebook inherit one. Our figures need none; whoever has one set keeps it.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        is_new = "matplotlib" not in sys.modules
        import matplotlib.style
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if is_new and backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    with matplotlib.style.context(["default", _RC]), warnings.catch_warnings():
        # A sign that the font lacks is a box in the PNG; the SVG holds it as text.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font")
        yield


@our_style()
def write_figure(figure: "Figure", path: pathlib.Path) -> None:
    """Writes a figure as PNG, at a resolution for slides, and beside it as SVG.

    Args:
      figure: any of the above.
      path: of the PNG.
    """
    path.with_suffix(".svg").write_text(svg(figure), encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=160)


@our_style()
def svg(figure: "Figure", *, has_caption: bool = True) -> str:
    """Returns a figure as SVG; the same figure gives the same text.

    Args:
      figure: any of ours.
      has_caption: whether the small print is in it.
    """
    text = io.StringIO()
    small_print = [one for one in figure.texts if one.get_gid() == _CAPTION]
    for one in small_print:
        one.set_visible(has_caption)
    figure.savefig(text, format="svg", metadata={"Date": None})
    for one in small_print:
        one.set_visible(True)
    return re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE)


def get_caption(figure: "Figure") -> str:
    """The small print of a figure, on one line."""
    found = (one.get_text() for one in figure.texts if one.get_gid() == _CAPTION)
    return " ".join(next(found, "").split())


def new_figure(title: str, caption: str, *, panels: int = 1) -> Any:
    """A figure and its axes (an array of them for several panels); in `our_style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.8, 3.9), layout="constrained")
    axes = figure.subplots(1, panels)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    for one in np.ravel(axes):
        one.set_axisbelow(True)
    if caption:
        caption = textwrap.fill(one_line(caption, 480), 96)  # five lines at most
        figure.supxlabel(
            caption, x=0.01, ha="left", fontsize=8, color=MUTED, gid=_CAPTION
        )
    return figure, axes


def percent_axis(axes: "Axes", label: str) -> None:
    """An axis of shares: 0 to 100 %, with lines for the eye to follow."""
    axes.set_ylim(0, 102)
    axes.set_ylabel(label)
    axes.grid(axis="y", color=FAINT)


def interval_band(
    axes: "Axes", place: Any, accuracies: Sequence[Accuracy], color: str
) -> None:
    """The 95 % intervals, behind a line."""
    low, high = zip(*(percent(a.interval) for a in accuracies), strict=True)
    axes.fill_between(place, low, high, color=color, alpha=0.16, linewidth=0)


def interval_marks(
    axes: "Axes", accuracies: Mapping[int, Accuracy], label: str
) -> None:
    """Marks accuracies {place: accuracy} with their intervals, and says of how many."""
    values = np.array([100 * one.value for one in accuracies.values()])
    ends = np.array([100 * np.array(one.interval) for one in accuracies.values()]).T
    counts = sorted({one.num_images for one in accuracies.values()})
    of = " or ".join(f"{count:,}" for count in counts)
    axes.errorbar(
        list(accuracies),
        values,
        yerr=np.abs(ends - values),
        color=INK,
        marker="x",
        linestyle="none",
        linewidth=1,
        zorder=4,
        label=f"{label}, {of} images",
    )


def percent(interval: tuple[float, float]) -> tuple[float, float]:
    """An interval of shares in [0, 1], in per cent."""
    return 100 * interval[0], 100 * interval[1]


def note(axes: "Axes", x: float, y: float, text: str) -> None:
    """Small print at the right end of a line."""
    axes.annotate(
        text,
        (x, y),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        color=MUTED,
    )


def draw_map(axes: "Axes", values: np.ndarray, *, vmax: float | None) -> Any:
    """A map in a scale that is monotonous in lightness."""
    axes.spines[:].set_visible(False)
    return axes.imshow(
        values, cmap="cividis", interpolation="nearest", vmin=0, vmax=vmax
    )


def color_bar(figure: "Figure", image: Any, label: str) -> None:
    """The scale of a map, beside it."""
    figure.colorbar(image, label=label).outline.set_visible(False)  # type: ignore[operator]


def legend(axes: "Axes", names: Sequence[str] | None = None, **place: Any) -> None:
    """A legend without a frame, of the lines that have a label, or of all by name."""
    if names is not None:  # matplotlib leaves out labels that begin with _
        place |= {"handles": axes.get_lines(), "labels": names}
    axes.legend(frameon=False, **place)


def tick_sizes(set_ticks: Any, sizes: Sequence[int]) -> None:
    """Names every cell of a map's axis, or every second, ..., where there are many."""
    every = -(-len(sizes) // 12)
    places = range(0, len(sizes), every)
    set_ticks(list(places), [str(sizes[place]) for place in places])


def least_step(place: np.ndarray) -> float:
    """The least distance of two places."""
    return float(np.diff(np.unique(place)).min()) if len(place) > 1 else 1.0
