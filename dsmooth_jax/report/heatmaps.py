"""Figures by position and by shape: what depends on where, or on height and width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dsmooth_jax.ablation import Ablation, SingleWindow
from dsmooth_jax.report.plot_style import (
    BLUE,
    INK,
    color_bar,
    draw_map,
    least_step,
    new_figure,
    our_style,
    tick_sizes,
)
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import ImageSize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@our_style()
def rectangles_figure(
    share: np.ndarray, heights: Sequence[int], widths: Sequence[int], *, caption: str
) -> "Figure":
    """Draws certified accuracy against every rectangle as a map.

    Args:
      share: [heights, widths], in [0, 1].
      heights: of the patch, pixels, increasing.
      widths: likewise.
      caption: a line of small print.
    """
    figure, axes = new_figure("Certified accuracy by the patch's shape", caption)
    shown = 100 * share
    # What nothing is certified against is left out, but for one row and column.
    last = [
        min(int(np.flatnonzero(shown.any(axis=axis)).max(initial=0)) + 2, length)
        for axis, length in ((1, len(heights)), (0, len(widths)))
    ]
    shown = shown[: last[0], : last[1]]
    image = draw_map(axes, shown, vmax=100)
    axes.set_aspect("auto")  # of columns or rows, one side is much longer
    tick_sizes(axes.set_yticks, heights[: last[0]])
    tick_sizes(axes.set_xticks, widths[: last[1]])
    axes.set_xlabel("width of the patch (pixels)")
    axes.set_ylabel("height of the patch (pixels)")
    color_bar(figure, image, "images, right and certified (%)")
    levels = [x for x in (25, 50, 75) if shown.min() < x < shown.max()]
    if levels and min(shown.shape) > 1:
        inks = ["0.99" if level < 60 else "0.05" for level in levels]
        lines = axes.contour(shown, levels=levels, colors=inks, linewidths=1)
        axes.clabel(lines, fmt="%d %%", fontsize=8.5)
    return figure


@our_style()
def positions_figure(
    accuracy: np.ndarray, ablation: Ablation, image_size: ImageSize, *, caption: str
) -> "Figure":
    """Draws how often the base classifier is right from each ablation alone.

    Args:
      accuracy: [P], in [0, 1].
      ablation: whose P ablations these are.
      image_size: (H, W), pixels.
      caption: a line of small print.
    """
    figure, axes = new_figure("What single ablations know", caption)
    mean = 100 * float(np.mean(accuracy))
    if isinstance(ablation, SingleWindow):
        starts = ablation.starts(image_size)
        rows, columns = (np.unique(starts[:, axis]) for axis in (0, 1))
        if len(rows) > 1 and len(columns) > 1:
            grid = 100 * accuracy.reshape(len(rows), len(columns))
            image = draw_map(axes, grid, vmax=None)
            tick_sizes(axes.set_xticks, columns.tolist())
            tick_sizes(axes.set_yticks, rows.tolist())
            axes.set_xlabel("first kept column (pixels)")
            axes.set_ylabel("first kept row (pixels)")
            color_bar(figure, image, "images right (%)")
            return figure
        axis = "column" if len(columns) > 1 else "row"
        place, label = starts.max(axis=1), f"first kept {axis} (pixels)"
    else:
        place, label = np.arange(len(accuracy)), "ablation, in the order of keep_masks"
    axes.bar(
        place, 100 * accuracy, width=0.8 * least_step(place), color=BLUE, linewidth=0
    )
    axes.axhline(mean, color=INK, linewidth=1, dashes=(4, 2))
    axes.annotate(
        f"mean {mean:.1f} %",
        (1, mean),
        xytext=(-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
    )
    axes.set_xlabel(label)
    axes.set_ylabel("images right (%)")
    axes.set_ylim(0, max(102.0 if mean > 60 else 1.25 * 100 * accuracy.max(), 5))
    return figure


@our_style()
def map_figure(share: np.ndarray, patch: Patch, *, caption: str) -> "Figure":
    """Draws where in the image a patch is dangerous, over all images.

    Args:
      share: [H - height + 1, W - width + 1], by the patch's upper left corner: the
        share of images, in [0, 1], whose prediction a patch there may change.
      patch: the patch.
      caption: a line of small print.
    """
    figure, axes = new_figure(f"Where a {patch} patch is dangerous", caption)
    image = draw_map(axes, 100 * share, vmax=None)
    axes.set_xlabel("left column of the patch (pixels)")
    axes.set_ylabel("top row of the patch (pixels)")
    color_bar(figure, image, "images not proven there (%)")
    return figure
