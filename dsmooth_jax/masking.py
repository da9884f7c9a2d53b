"""Ablating images on the device: hide all but a window, or cut the window out.

Pure functions, vmapped over images and over ablations. A hidden pixel is NULL, which
differs from every color: a pixel x in [0, 1] becomes the pair (x, 1 - x), NULL becomes
(0, 0), so C channels become 2C. Pixels are hidden by selection or slicing, never by
multiplication: NaN * 0 is NaN, and a hidden pixel must not be able to say even that.

Source: Levine & Feizi 2020 (arXiv:2002.10733), section 3 and appendix (encoding).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dsmooth_jax.ablation import (
    Ablation,
    SingleWindow,
    check_ablation,
    check_single_window,
)
from dsmooth_jax.types import ImageSize

# A table, not a division: compilers turn x / 255 into x * (1 / 255), which differs in
# the last bit, and 8-bit images must score the same however they were scaled.
_UNIT = np.arange(256, dtype=np.float32) / np.float32(255)


def ablate(
    images: Array | np.ndarray, ablation: Ablation
) -> Float[Array, "B P H W C2"]:
    """Hides all but the window, for every image and every ablation.

    For looking at and for small images: the result holds P copies of every image.
    Scoring and training build one chunk of it at a time (`ablate_at`).

    Args:
      images: [B, H, W, C], floating in [0, 1] or uint8.
      ablation: the ablation.

    Returns:
      float32 [B, P, H, W, 2C]: (x, 1 - x) in the window, 0 elsewhere.

    Raises:
      TypeError, ValueError: images are not as above (values are checked outside jit
        only), or the window exceeds the image.

    Guarantee:
      Entry p depends on no pixel that ablation p hides, whatever is in it, even NaN.
    """
    checked = check_images(images)
    check_ablation(ablation)
    num_ablations = ablation.num_ablations(checked.shape[1:3])
    return ablate_at(to_unit(checked), ablation, jnp.arange(num_ablations))


def ablate_at(
    images: Float[Array, "B H W C"], ablation: Ablation, index: Int[Array, " M"]
) -> Float[Array, "B M H W C2"]:
    """As `ablate`, for the ablations of these numbers only; checks nothing.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      ablation: the ablation.
      index: int [M], ablations in 0..P-1.
    """
    keep_mask = _keep_mask_fn(ablation, images.shape[1:3])
    per_ablation = jax.vmap(lambda image, p: _hide(image, keep_mask(p)), (None, 0))
    return jax.vmap(per_ablation, (0, None))(images, index)


def crop(
    images: Array | np.ndarray, ablation: SingleWindow
) -> Float[Array, "B P h w C2"]:
    """Cuts out the window that each ablation keeps, wrapping around the image's edges.

    Args:
      images: [B, H, W, C], floating in [0, 1] or uint8.
      ablation: `Columns`, `Rows` or `Blocks`.

    Returns:
      float32 [B, P, h, w, 2C], the windows, encoded as (x, 1 - x).

    Raises:
      TypeError: an ablation that keeps several windows, or images as in `ablate`.
      ValueError: as `ablate`.

    Guarantee:
      Entry p depends on no pixel that ablation p hides.
    """
    checked = check_images(images)
    starts = window_starts(ablation, checked.shape[1:3])
    return crop_at(to_unit(checked), ablation, jnp.asarray(starts))


def crop_at(
    images: Float[Array, "B H W C"], ablation: SingleWindow, starts: Int[Array, "M 2"]
) -> Float[Array, "B M h w C2"]:
    """As `crop`, for windows that start at these (row, column); checks nothing."""
    height, width = images.shape[1:3]
    h, w = ablation.window_shape((height, width))

    def cut(image, start):
        wrapped_rows = (start[0] + jnp.arange(h)) % height
        wrapped_columns = (start[1] + jnp.arange(w)) % width
        return encode(image[wrapped_rows][:, wrapped_columns])

    return jax.vmap(jax.vmap(cut, (None, 0)), (0, None))(images, starts)


def random_ablate(
    key: Key[Array, ""], images: Array | np.ndarray, ablation: Ablation
) -> Float[Array, "B H W C2"]:
    """Draws one ablation for each image, uniformly: the input of training.

    Args:
      key: a `jax.random.key`.
      images: [B, H, W, C], floating in [0, 1] or uint8.
      ablation: the ablation.

    Returns:
      float32 [B, H, W, 2C].

    Raises:
      TypeError, ValueError: as `ablate`.
    """
    checked = check_images(images)
    check_ablation(ablation)
    size = checked.shape[1:3]
    num_ablations = ablation.num_ablations(size)
    drawn = jax.random.randint(key, (len(checked),), 0, num_ablations)
    keep_mask = _keep_mask_fn(ablation, size)
    return jax.vmap(lambda image, p: _hide(image, keep_mask(p)))(
        to_unit(checked), drawn
    )


def encode(pixels: Float[Array, "*shape C"]) -> Float[Array, "*shape 2*C"]:
    """Encodes visible pixels x in [0, 1] as (x, 1 - x), along the channels."""
    return jnp.concatenate([pixels, 1 - pixels], axis=-1)


def to_unit(images: Array | np.ndarray) -> Float[Array, "..."]:
    """Turns uint8 pixels, or floating ones in [0, 1], into float32 in [0, 1]."""
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return jnp.asarray(_UNIT)[images]
    return images.astype(jnp.float32)


def check_images(images: Array | np.ndarray) -> Array | np.ndarray:
    """Returns the images, or raises the error that says what is wrong with them.

    Inside jit only shape and dtype can be checked; values are checked where there are
    any. float64 is accepted; it is computed on as float32.
    """
    if not isinstance(images, jax.Array | np.ndarray):
        raise TypeError(f"images are a {type(images).__name__}; they must be an array")
    is_float = jnp.issubdtype(images.dtype, jnp.floating)
    if not is_float and images.dtype != np.uint8:
        raise TypeError(
            f"images have dtype {images.dtype}; they must be uint8, or floating "
            "in [0, 1]"
        )
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"images have shape {images.shape}; it must be [N, H, W, C]; "
            "one image is images[None], grey images need a last axis of 1"
        )
    if is_float and not isinstance(images, jax.core.Tracer):
        values = np.asarray(images)
        bad = ~((values >= 0) & (values <= 1))  # True for NaN too
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"images{list(where)} = {values[where]} must be in [0, 1]; "
                "divide pixels in 0..255 by 255, or pass uint8"
            )
    return images


def window_starts(ablation: SingleWindow, image_size: ImageSize) -> np.ndarray:
    """int32 [P, 2]: where each window starts; refuses ablations of several windows."""
    check_single_window(ablation)
    return ablation.starts(image_size).astype(np.int32)


def _keep_mask_fn(ablation: Ablation, image_size: ImageSize) -> Callable:
    """The function p -> bool [H, W] mask, on the device, from the windows' bands."""
    windows = ablation.windows(image_size)
    rows, columns = jnp.asarray(windows.rows), jnp.asarray(windows.columns)
    choices = jnp.asarray(windows.choices.astype(np.int32))

    def keep_mask(p):
        r, s = jnp.divmod(choices[p], len(columns))  # [k]
        return (rows[r][:, :, None] & columns[s][:, None, :]).any(axis=0)

    return keep_mask


def _hide(image: Float[Array, "H W C"], keep: Array) -> Float[Array, "H W C2"]:
    return jnp.where(keep[:, :, None], encode(image), jnp.float32(0))
