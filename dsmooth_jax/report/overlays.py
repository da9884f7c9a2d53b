"""Pictures of a page, and the boxes drawn over them: a patch, masks of pixels.

All in pixels of the image that the attacker sees, however small the picture is.
"""

import base64
from typing import Any

import numpy as np

from dsmooth_jax.masks import Masks
from dsmooth_jax.report.thumbnails import atlas
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import ImageSize


def picture(pixels: np.ndarray, image_size: ImageSize) -> dict[str, Any]:
    """One picture inside the page.

    Args:
      pixels: uint8 [h, w, C], as `shrink` leaves them.
      image_size: (H, W) of the image that it is of.

    Returns:
      ``uri``, and ``cell``: (height, width) that it fills, pixels of the image.
    """
    media, content, _, cell = atlas(pixels[None])
    scale = image_size[0] / pixels.shape[0]
    return {
        "uri": f"data:{media};base64,{base64.b64encode(content).decode()}",
        "cell": [extent * scale for extent in cell],
    }


def patch_box(patch: Patch, corner: tuple[int, int]) -> dict[str, Any]:
    """Where a patch lies, by (row, column) of its upper left pixel."""
    return _box("patch", corner, (patch.height, patch.width))


def mask_boxes(masks: Masks, image_size: ImageSize, which: set[int]) -> list[dict]:
    """Where some of the masks lie, in their order."""
    rows, columns = masks.starts(image_size)
    places = [divmod(mask, len(columns)) for mask in sorted(which)]
    return [_box("mask", (rows[r], columns[c]), masks.shape) for r, c in places]


def _box(kind: str, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    row, column = map(int, corner)
    return {"kind": kind, "y": row, "x": column, "height": size[0], "width": size[1]}
