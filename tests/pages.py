"""What tests of the explorer ask of a store: one pixel as patch, some images shown."""

from collections.abc import Sequence

import dsmooth_jax as ds
from dsmooth_jax.report.request import Request, attacks_on


def one_pixel_request(ablation, size, sample: Sequence[int]):
    """Of graded votes, without figures; the page shows the images of the sample."""
    return Request(
        attacks_on(ablation, size, [ds.Patch(1, 1)]),
        ("graded",),
        0.3,
        3.0,
        voting="graded",
        has_figures=False,
        sample=sample,
    )
