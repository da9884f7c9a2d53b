"""Draws the picture of the README: a photograph, and why no patch changes its class.

    python -m scripts.draw_proof [docs/figures/proof.png]

Everything in it is computed: the shipped classifier's graded votes, and their
certificate against 5x5 pixels.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

import dsmooth_jax as ds
from dsmooth_jax.duels import check_levels, preference
from dsmooth_jax.report.plot_style import BLUE, INK, MUTED, ORANGE, our_style
from examples.certify_photograph import CLASSES, PHOTOGRAPH, PRETRAINED

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATCH = ds.Patch(5, 5)
SEEN = (3, 9, 14, 20, 26, 31)  # the ablations that are shown


@our_style()
def main(path: str = str(ROOT / "docs" / "figures" / "proof.png")) -> None:
    """Writes the picture and prints what it says."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    image = np.asarray(Image.open(PHOTOGRAPH))
    size = image.shape[:2]
    smoothed = ds.load_smoothed(PRETRAINED)
    scores = smoothed.score(image[None])
    votes = smoothed.vote(scores)
    touched = ds.touched(smoothed.ablation, PATCH, size)
    [label] = ds.certify(votes, touched).prediction
    [margin], [rival], [[row, column]] = ds.worst_placement(
        votes, smoothed.ablation, PATCH, size
    )
    inside = np.zeros(size, bool)
    inside[row : row + PATCH.height, column : column + PATCH.width] = True
    keeps = smoothed.ablation.keep_masks(size)  # bool [P, H, W]
    is_touched = (keeps & inside).any(axis=(1, 2))
    # By how many votes, from -1 to 1, each ablation prefers the label to the rival.
    levels, limit, _ = check_levels(votes)
    duel = preference(levels, levels, np.array([label]), limit)[0, :, rival] / limit
    others, lost = duel[~is_touched].sum(), is_touched.sum()

    figure = Figure(figsize=(8, 7.6))
    grid = figure.add_gridspec(2, 2, hspace=0.26, wspace=0.12)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.95, bottom=0.1)

    axes = figure.add_subplot(grid[0, 0])
    axes.imshow(image)
    axes.set_title("1. A photograph", fontsize=15)
    axes.axis("off")

    whole = figure.add_subplot(grid[0, 1])
    whole.set_title(f"2. What six of {len(duel)} ablations see", fontsize=15)
    whole.axis("off")
    cells = grid[0, 1].subgridspec(2, 3, hspace=0.22, wspace=0.08)
    for cell, ablation in zip(cells, SEEN, strict=True):
        axes = figure.add_subplot(cell)
        axes.imshow(np.where(keeps[ablation][..., None], image, 222).astype(np.uint8))
        axes.set_xlabel(CLASSES[scores[0, ablation].argmax()], fontsize=13)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)

    axes = figure.add_subplot(grid[1, 0])
    attacked = image.copy()
    attacked[inside] = np.random.default_rng(0).integers(0, 256, (inside.sum(), 3))
    axes.imshow(attacked)
    axes.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5),
            PATCH.width,
            PATCH.height,
            fill=False,
            edgecolor=ORANGE,
            linewidth=3,
        )
    )
    axes.set_title("3. The worst place for a 5x5 patch", fontsize=15)
    axes.set_xlabel(f"it touches {lost} of the {len(duel)} ablations", fontsize=13)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)

    axes = figure.add_subplot(grid[1, 1])
    positions = np.arange(len(duel))
    axes.bar(positions, np.where(is_touched, 0, duel), color=BLUE, width=0.8)
    axes.bar(positions, np.where(is_touched, -1, 0), color=ORANGE, width=0.8)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_title("4. The proof", fontsize=15)
    axes.set_xlabel(
        f"{others:.1f} votes left - {lost} given to the attacker\n"
        f"= {others - lost:.1f} > 0: still {CLASSES[label]}",
        fontsize=13,
    )
    axes.set_xticks([])
    axes.set_yticks(
        [-0.6, 0.6], [CLASSES[rival], CLASSES[label]], rotation=90, va="center"
    )
    axes.tick_params(colors=MUTED, labelsize=11, length=0, pad=1)
    axes.spines[["bottom"]].set_visible(False)
    axes.set_ylim(-1.15, 1.15)

    figure.savefig(path, dpi=110)
    print(
        f"{path}: {CLASSES[label]} against {CLASSES[rival]}, patch at row {row}, column"
        f" {column}: {others:.2f} - {lost} = {others - lost:.2f}; margin {margin}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
