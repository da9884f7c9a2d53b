"""What a page knows of double masking, as plain JSON.

Against each square: what is certified of all images, the masks, and for each image
shown the two masks that harm its answer most, with what every ablation says between
that answer and its rival there. A page can leave the masks out and add up the rest.
"""

import base64
from typing import Any

import numpy as np

from dsmooth_jax.evaluation import Accuracy, evaluate
from dsmooth_jax.evidence import LEVELS_PER_NAT, log_levels, worst_pair
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.masked_analysis import detected_accuracy, square_masks


def explore_masks(analysis: Analysis, sides: list[int]) -> dict[str, Any]:
    """Collects what the explorer shows of double masking.

    Args:
      analysis: what was found, with squares.
      sides: of the squares of the slider, pixels.

    Returns:
      Plain JSON. ``squares``, for each side, null where it is too large to be certified
      so: ``clean``, ``certified``, ``wrong`` and ``detected``, counts over all images
      with their intervals; ``masks``, base64 of bits [M, P], each row begun anew, the
      highest bit first; and for each image shown its ``answer``, ``isCertified`` and
      ``isDetected`` (0 or 1), and ``first``, ``second``, ``rival`` and ``margin`` of
      its `worst_pair`. ``leads``, for each image shown: {"answer rival": base64 of
      little-endian int16 [P], the levels of the one less those of the other}, in units
      of 1 / ``perNat`` of a natural logarithm.
    """
    sample = analysis.request.sample
    levels = log_levels(analysis.sample)
    masks = square_masks(analysis.store.ablation, analysis.store.image_size, sides)
    leads: list[dict[str, str]] = [{} for _ in sample]
    squares: list[dict[str, Any] | None] = []
    for side in sides:
        if side not in analysis.masked_squares:
            squares.append(None)
            continue
        found = analysis.masked_squares[side]
        labels = analysis.store.labels
        counted = evaluate(found, labels)
        answer = found.prediction[sample]
        pair = worst_pair(levels, masks[side], answer)
        squares.append(
            {
                "clean": share(counted.clean),
                "certified": share(counted.certified),
                "wrong": share(counted.certified_wrong),
                "detected": share(detected_accuracy(found, labels)),
                "masks": coded(np.packbits(masks[side], axis=1)),
                "answer": answer.tolist(),
                "isCertified": found.is_certified[sample].astype(int).tolist(),
                "isDetected": found.is_detected[sample].astype(int).tolist(),
                "first": pair.first.tolist(),
                "second": pair.second.tolist(),
                "rival": pair.rival.tolist(),
                "margin": pair.margin.tolist(),
            }
        )
        classes = np.stack([answer, pair.rival], axis=1)[:, None]
        own, other = np.moveaxis(np.take_along_axis(levels, classes, axis=2), 2, 0)
        for image, lead in enumerate((own - other).astype("<i2")):
            key = f"{answer[image]} {pair.rival[image]}"
            leads[image].setdefault(key, coded(lead))
    return {"perNat": LEVELS_PER_NAT, "squares": squares, "leads": leads}


def share(accuracy: Accuracy) -> list[float]:
    """[count, low, high]."""
    return [accuracy.count, *accuracy.interval]


def coded(array: np.ndarray) -> str:
    """Base64 of the bytes of an array."""
    return base64.b64encode(array.tobytes()).decode()
