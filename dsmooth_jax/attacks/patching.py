"""Patches put into images: what an attacker writes, and where.

Source: the threat model of Levine & Feizi 2020 (arXiv:2002.10733), section 3: one
rectangle of pixels, wholly inside the image, with any content.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from dsmooth_jax.masking import check_images


def apply_patch(
    images: np.ndarray, contents: ArrayLike, corners: ArrayLike | Sequence[Any]
) -> np.ndarray:
    """Puts a patch into each image.

    Args:
      images: [N, H, W, C], uint8 or floating in [0, 1]; they are not changed.
      contents: [h, w, C], one patch for all, or [N, h, w, C], of the images' dtype.
      corners: int [2] or [N, 2], (row, column) of the patch's upper left pixel.

    Returns:
      The images with their patches, of the images' shape and dtype.

    Raises:
      TypeError, ValueError: images or contents that are none, of another dtype; shapes
        that do not agree; a patch that is not wholly inside the image.

    >>> apply_patch(np.zeros((1, 2, 3, 1)), np.ones((1, 2, 1)), (1, 1))[0, :, :, 0]
    array([[0., 0., 0.],
           [0., 1., 1.]])
    """
    patched = np.array(check_images(images))
    num, height, width, channels = patched.shape
    given = np.asarray(contents)
    if given.dtype != patched.dtype:
        raise TypeError(
            f"contents have dtype {given.dtype}; it must be {patched.dtype}, as images"
        )
    if given.ndim not in (3, 4) or given.shape[-1] != channels:
        raise ValueError(
            f"contents have shape {given.shape}; it must be [h, w, {channels}] or "
            f"[{num}, h, w, {channels}], for images of {patched.shape}"
        )
    where = np.asarray(corners)
    if not np.issubdtype(where.dtype, np.integer):
        raise TypeError(f"corners have dtype {where.dtype}; they must be integers")
    h, w = given.shape[-3:-1]
    try:
        given = np.broadcast_to(given, (num, h, w, channels))
        where = np.broadcast_to(where, (num, 2))
    except ValueError:
        raise ValueError(
            f"contents {given.shape} and corners {where.shape} must be one for all "
            f"images, or one for each of {num}"
        ) from None
    last = np.array([height - h, width - w])
    is_out = ((where < 0) | (where > last)).any(axis=1)
    if is_out.any():
        i = int(is_out.argmax())
        raise ValueError(
            f"corners[{i}]={where[i].tolist()} must be in 0..{last.tolist()}, where a "
            f"patch of {h}x{w} is wholly inside {height}x{width}"
        )
    rows = where[:, :1] + np.arange(h)
    columns = where[:, 1:] + np.arange(w)
    every = np.arange(num)[:, None, None]
    patched[every, rows[:, :, None], columns[:, None, :]] = given
    return patched


def cut(
    images: Float[Array, "B H W C"],
    corners: Int[Array, "B 2"],
    size: tuple[int, int],
) -> Float[Array, "B h w C"]:
    """What each image has where a patch of this size (h, w) would lie."""
    shape = (*size, images.shape[3])

    def one(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), shape)

    return jax.vmap(one)(images, corners.astype(jnp.int32))


def shrunk(
    contents: Float[Array, "B h w C"],
    sizes: Int[Array, "B 2"],
    starts: Int[Array, "B 2"],
    behind: Float[Array, "B h w C"],
) -> Float[Array, "B h w C"]:
    """Contents as seen from further away: smaller, somewhere in their rectangles.

    Args:
      contents: of the patches.
      sizes: (height, width) of what is left of each, pixels.
      starts: (row, column) of it in the rectangle, wholly inside.
      behind: what the image has there, and keeps around it.

    Returns:
      What the rectangles show; traceable and differentiable in contents.
    """

    def one(content, size, start, behind):
        scale = size.astype(jnp.float32) / jnp.array(content.shape[:2], jnp.float32)
        small = jax.image.scale_and_translate(
            content, content.shape, (0, 1), scale, start.astype(jnp.float32), "linear"
        )
        rows, columns = (
            (jnp.arange(n) >= first) & (jnp.arange(n) < first + extent)
            for n, first, extent in zip(content.shape, start, size, strict=False)
        )
        is_inside = rows[:, None, None] & columns[None, :, None]
        return jnp.where(is_inside, small, behind)

    return jax.vmap(one)(
        contents, sizes.astype(jnp.int32), starts.astype(jnp.int32), behind
    )


def paste(
    images: Float[Array, "B H W C"],
    contents: Float[Array, "B h w C"],
    corners: Int[Array, "B 2"],
) -> Float[Array, "B H W C"]:
    """As `apply_patch`, traceable and differentiable in contents; checks nothing."""

    def put(image, content, corner):
        return jax.lax.dynamic_update_slice(image, content, (*corner, jnp.int32(0)))

    return jax.vmap(put)(images, contents, corners.astype(jnp.int32))
