"""What is done to training images, at random, before they are ablated."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dsmooth_jax.checks import check_range


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to each training image, at random, before it is ablated.

    Attributes:
      shift: pixels, >= 0; the image moves by up to so many in each direction (a crop
        from the image padded by zeros).
      flip: whether half of the images are mirrored left to right.
      cutout: pixels, >= 0; the side of a grey square at a random place, which may
        overhang the border.
      color: in [0, 1); brightness and contrast of each image and the brightness of
        each of its channels change by factors of up to 1 - color and 1 + color.
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0
    color: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "cutout"):
            value = getattr(self, name)
            check_range(f"augment.{name}", value, least=0)
            if not isinstance(value, int):
                raise TypeError(f"augment.{name}={value} must be an integer, in pixels")
        check_range("augment.color", self.color, least=0, below=1)


def augment(
    key: Key[Array, ""], images: Float[Array, "B H W C"], config: AugmentConfig
) -> Float[Array, "B H W C"]:
    """Shifts, mirrors, colors and cuts each image at random, on the device."""
    batch, height, width, channels = images.shape
    shift_key, flip_key = jax.random.split(key)
    cutout_key, color_key = jax.random.split(jax.random.fold_in(key, 1))
    if config.shift:
        pad = config.shift
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(shift_key, (batch, 2), 0, 2 * pad + 1)
        images = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (height, width, channels)
            )
        )(padded, corners)
    if config.flip:
        flipped = jax.random.bernoulli(flip_key, 0.5, (batch, 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if config.color:
        low, high = 1 - config.color, 1 + config.color
        factors = jax.random.uniform(
            color_key, (batch, 1, 1, 1 + channels), minval=low, maxval=high
        )
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        images = mean + factors[..., :1] * (images - mean)
        images = jnp.clip(factors[..., 1:] * images, 0.0, 1.0)
    if config.cutout:
        centres = jax.random.randint(
            cutout_key, (batch, 2), 0, jnp.array([[height, width]])
        )
        first = centres - config.cutout // 2
        is_cut = jnp.ones((batch, 1, 1), bool)
        for axis, extent in enumerate((height, width)):
            offset = jnp.arange(extent)[None] - first[:, axis, None]  # [B, extent]
            is_inside = (offset >= 0) & (offset < config.cutout)
            is_cut = is_cut & jnp.expand_dims(is_inside, 2 - axis)
        images = jnp.where(is_cut[..., None], 0.5, images)
    return images
