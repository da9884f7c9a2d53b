"""The page of a classifier with masks of pixels: one HTML file that opens from disk.

The same style as the page of a smoothed classifier. What breaks a certificate is drawn
over the picture: the placement, and the two masks that together change the class.
"""

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.evaluation import Evaluation
from dsmooth_jax.report.html import cell, environment, facts, inline_svg, style
from dsmooth_jax.report.label_analysis import LabelAnalysis
from dsmooth_jax.report.summary import percent
from dsmooth_jax.report.thumbnails import (
    atlas,
    choose,
    class_names,
    load_thumbnails,
)
from dsmooth_jax.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SHOWN = 60
"""The most images that the page shows one by one."""


def choose_shown(positions: int) -> np.ndarray:
    """At most 60 of so many positions, at even distances."""
    most = min(positions, MOST_SHOWN)
    return np.arange(most) * positions // max(most, 1)


def render(
    analysis: LabelAnalysis, figure: "Figure", *, claim: str, caption: str, masks: str
) -> str:
    """Renders the page.

    Args:
      analysis: with the `choose_shown` of `choose` as its sample.
      figure: of certified accuracy.
      claim: what is proven, in a sentence.
      caption: the figure's small print.
      masks: "36 masks of 9x9 pixels".

    Returns:
      HTML, complete.
    """
    store = analysis.store
    num_right = [
        {
            "patch": str(patch),
            "clean": cell(found.clean),
            "certified": cell(found.certified),
            "unanimous": percent(analysis.unanimous(patch).certified),
            "detected": percent(analysis.detected),
            "wrong": percent(found.certified_wrong),
        }
        for patch, found in ((p, analysis.result(p)) for p in analysis.patches)
    ]
    made_by = {k: v for k, v in store.made_by.items() if k != "class_names"}
    versions = made_by.pop("versions", {})
    return (
        environment()
        .get_template("labels.html")
        .render(
            title=f"Certified against a {analysis.patch} patch",
            claim=claim.replace(" %", "\u00a0%"),
            stats=_stats(analysis, analysis.result(analysis.patch)),
            rows=num_right,
            svg=inline_svg(figure, "certified_accuracy"),
            caption=caption,
            masks=masks,
            patch=str(analysis.patch),
            images=counted(len(store), "image"),
            shown=_shown(analysis),
            num_passes=f"{analysis.num_passes.mean():,.0f}" if len(store) else "0",
            all_passes=f"{_pairs(store.entry_shape[0]):,}",
            image_size="{}x{}".format(*store.image_size),
            provenance=[
                ("Tables were made by", facts(made_by)),
                ("Versions", facts(versions)),
            ],
            css=style(),
        )
    )


def _stats(analysis: LabelAnalysis, found: Evaluation) -> list[dict[str, str]]:
    named = [
        ("Right, no patch", found.clean),
        (f"Right and certified at {analysis.patch}", found.certified),
        ("Right and detected", analysis.detected),
    ]
    return [
        {
            "name": name,
            "value": percent(accuracy) + " %",
            "detail": f"{accuracy.count:,} of {counted(accuracy.num_images, 'image')}",
        }
        for name, accuracy in named
    ]


def _shown(analysis: LabelAnalysis) -> list[dict[str, Any]]:
    """What is drawn of each image of the sample."""
    store, names = analysis.store, class_names(analysis.store)
    pixels, chosen = load_thumbnails(store), choose(store)
    certificate = analysis.certificates[analysis.patch]
    rows, columns = store.masks.starts(store.image_size)
    height, width = store.masks.shape

    def window(mask: int) -> dict[str, int]:
        row, column = divmod(mask, len(columns))
        return {
            "y": rows[row],
            "x": columns[column],
            "height": height,
            "width": width,
        }

    found = []
    for image in analysis.sample.tolist():
        broken = analysis.breaks.get(image)
        shown: dict[str, Any] = {
            "id": str(store.ids[image]),
            "label": names[store.labels[image]],
            "prediction": names[certificate.prediction[image]],
            "is_right": bool(certificate.prediction[image] == store.labels[image]),
            "is_certified": broken is None,
            "boxes": [],
            "size": list(store.image_size),
        }
        if broken is not None:
            shown["other"] = names[broken.label]
            shown["num_masks"] = 1 if broken.first == broken.second else 2
            shown["boxes"] = [
                {"kind": "mask", **window(mask)}
                for mask in sorted({broken.first, broken.second})
            ]
            row, column = broken.corner
            patch = {"height": analysis.patch.height, "width": analysis.patch.width}
            shown["boxes"].append({"kind": "patch", "y": row, "x": column, **patch})
        if pixels is not None and image in chosen:
            at = int(np.searchsorted(chosen, image))
            media, content, _, cell = atlas(pixels[at : at + 1])
            scale = store.image_size[0] / pixels.shape[1]
            shown["uri"] = f"data:{media};base64,{base64.b64encode(content).decode()}"
            shown["cell"] = [extent * scale for extent in cell]
        found.append(shown)
    return found


def _pairs(num_masks: int) -> int:
    return num_masks * (num_masks + 1) // 2
