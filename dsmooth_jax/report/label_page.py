"""The page of a classifier with masks of pixels: one HTML file that opens from disk.

The same style as the page of a smoothed classifier. What breaks a certificate is drawn
over the picture: the placement, and the two masks that together change the class.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.evaluation import Evaluation
from dsmooth_jax.report.attack_summary import FoundAttack
from dsmooth_jax.report.attacked_masks import AttackedImage, attacked_images
from dsmooth_jax.report.html import cell, environment, facts, inline_svg, style
from dsmooth_jax.report.label_analysis import Break, LabelAnalysis
from dsmooth_jax.report.overlays import mask_boxes, patch_box, picture
from dsmooth_jax.report.summary import percent
from dsmooth_jax.report.thumbnails import choose, class_names, load_thumbnails, shrink
from dsmooth_jax.storage.label_store import LabelStore
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
    analysis: LabelAnalysis,
    figure: "Figure",
    attacks: Sequence[FoundAttack] = (),
    *,
    claim: str,
    caption: str,
    masks: str,
) -> str:
    """Renders the page.

    Args:
      analysis: with the `choose_shown` of `choose` as its sample.
      figure: of certified accuracy.
      attacks: of `attacks_of`.
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
            attacks=[
                _attack(store, one, images)
                for one, images in attacked_images(analysis, attacks)
            ],
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
    found = []
    for image in analysis.sample.tolist():
        broken = analysis.breaks.get(image)
        patches = [patch_box(analysis.patch, broken.corner)] if broken else []
        shown = {
            "id": str(store.ids[image]),
            "label": names[store.labels[image]],
            "prediction": names[certificate.prediction[image]],
            "is_right": bool(certificate.prediction[image] == store.labels[image]),
            "is_certified": broken is None,
            **_overlaid(store, broken, patches),
        }
        if pixels is not None and image in chosen:
            at = int(np.searchsorted(chosen, image))
            shown |= picture(pixels[at], store.image_size)
        found.append(shown)
    return found


def _attack(
    store: LabelStore, one: FoundAttack, images: Sequence[AttackedImage]
) -> dict[str, Any]:
    """What is drawn of an attack."""
    names = class_names(store)
    small = shrink(np.stack([image.pixels for image in images]))
    shown = [
        {
            "id": str(store.ids[image.index]),
            "before": names[image.before],
            "after": names[image.after],
            "fell": image.before != image.after,
            "alone": [
                _counts(counts, names)
                for counts in (image.alone_before, image.alone_after)
                if counts is not None
            ],
            **_overlaid(store, image.broken, [patch_box(one.patch, image.corner)]),
            **picture(pixels, store.image_size),
        }
        for image, pixels in zip(images, small, strict=True)
    ]
    return {
        "patch": str(one.patch),
        "fell": int(one.arrays["is_broken"].sum()),
        "tried": counted(int((one.arrays["corner"][:, 0] >= 0).sum()), "image"),
        "shown": shown,
    }


def _overlaid(
    store: LabelStore, broken: Break | None, patches: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The masks with which that class was not said, and patches, over a picture."""
    pair, other = set(), ""
    if broken is not None:
        pair = {broken.first, broken.second}
        names, label = class_names(store), broken.label
        other = "no class for sure" if label is None else names[label]
    return {
        "size": list(store.image_size),
        "boxes": [*mask_boxes(store.masks, store.image_size, pair), *patches],
        "num_masks": len(pair),
        "other": other,
    }


def _counts(counts: np.ndarray, names: Sequence[str]) -> str:
    """Returns for example "cat (12), dog (24)", the most frequent first."""
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return ", ".join(f"{names[k]} ({counts[k]})" for k in order)


def _pairs(num_masks: int) -> int:
    return num_masks * (num_masks + 1) // 2
