"""The views of a bandnet: scores of each window as it is, moved, and mirrored.

The same pixels make all of them, so the mean of what a network says of them is as local
as what it says of one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64

from dsmooth_jax import masking
from dsmooth_jax.ablation import Columns, Rows, SingleWindow
from dsmooth_jax.models.base import Variables
from dsmooth_jax.types import ImageSize


def over_views(
    image_logits: Callable,
    axis: int,
    shift: int,
    mirror_images: np.ndarray | None,
    chunk_size: int,
) -> Callable:
    """The mean logits of each window as it is, moved along an axis, and mirrored."""

    def mean_logits(
        variables: Variables, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        sides = [images] if mirror_images is None else [images, images[:, :, ::-1]]
        views = jnp.concatenate([_moved(side, axis, shift) for side in sides])
        # On a CPU small batches are faster: they stay in its caches.
        if len(views) <= chunk_size and jax.default_backend() != "cpu":
            logits = image_logits(variables, views.reshape(-1, *images.shape[1:]))
        else:
            # One after the other: they need memory for one.
            logits = jax.lax.map(lambda view: image_logits(variables, view), views)
        num_moved = len(views) // len(sides)
        shape = (len(sides), num_moved, len(images), *logits.shape[-2:])
        logits = logits.reshape(shape).mean(1)
        if mirror_images is None:
            return logits[0]
        return (logits[0] + logits[1][:, mirror_images]) / 2

    return mean_logits


def over_run_views(
    run_logits: Callable, axis: int, shift: int, mirror_images: np.ndarray | None
) -> Callable:
    """As `over_views`, of a run of windows."""

    def mean_logits(
        variables: Variables,
        images: Float[Array, "B H W C"],
        first: Int[Array, " B"],
        count: int,
    ) -> Float[Array, "B n K"]:
        def mean(side: Array, first: Array) -> Array:
            read = functools.partial(run_logits, variables, first=first, count=count)
            return jax.lax.map(read, _moved(side, axis, shift)).mean(0)

        logits = mean(images, first)
        if mirror_images is None:
            return logits
        last = (first + count - 1) % len(mirror_images)
        mirrored = mean(images[:, :, ::-1], jnp.asarray(mirror_images)[last])
        return (logits + mirrored[:, ::-1]) / 2

    return mean_logits


def _moved(images: Float[Array, "B H W C"], axis: int, shift: int) -> Array:
    """The images, [1, B, ...]; with a shift also moved both ways, [3, B, ...]."""
    if not shift:
        return images[None]
    length = images.shape[axis]
    padding = [(shift, shift) if a == axis else (0, 0) for a in range(4)]
    padded = jnp.pad(images, padding)
    offsets = (0, shift, 2 * shift)
    cut = [jax.lax.slice_in_dim(padded, n, n + length, axis=axis) for n in offsets]
    return jnp.stack(cut)


def whole_axis(ablation: SingleWindow, size: ImageSize, shift: int) -> int:
    """The axis of images [B, H, W, C] that the ablation keeps whole."""
    if not isinstance(ablation, Columns | Rows):
        raise ValueError(
            f"shift={shift}: {ablation!r} keeps neither axis whole, and a window that "
            "moves would see other pixels; use shift=0"
        )
    axis = 1 if isinstance(ablation, Columns) else 2
    if not 0 <= shift < size[axis - 1]:
        raise ValueError(
            f"shift={shift} must be in 0..{size[axis - 1] - 1}, in pixels of the image"
        )
    return axis


def mirror_images(ablation: SingleWindow, size: ImageSize) -> Int64[np.ndarray, " P"]:
    """For each window, which one of the flipped image has its pixels."""
    _, width = ablation.window_shape(size)
    starts = [tuple(start) for start in masking.window_starts(ablation, size).tolist()]
    places = {start: index for index, start in enumerate(starts)}
    flipped = [(row, (size[1] - column - width) % size[1]) for row, column in starts]
    if not places.keys() >= set(flipped):
        raise ValueError(
            f"mirror=True: {ablation!r} has no mirror image in {size[1]} columns; use "
            "stride=1, or mirror=False"
        )
    return np.array([places[start] for start in flipped], np.int64)
