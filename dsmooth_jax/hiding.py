"""Windows hidden from training images at random: what makes a network stand masks.

Source: the masked training is that of PatchCleanser (Xiang et al., USENIX Security
2022, arXiv:2108.09135), section 4, which hides square windows at random; choosing what
hurts most among a few is greedy cutout (Saha et al., "Revisiting Image Classifier
Training for Improved Certified Robust Defense against Adversarial Patches", TMLR 2023,
arXiv:2306.12610), here in its simplest form.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from dsmooth_jax.checks import check_count, check_range
from dsmooth_jax.types import ImageSize


@dataclasses.dataclass(frozen=True)
class HidingConfig:
    """What is hidden from each training image.

    Attributes:
      size: pixels, >= 0; the side of a hidden square, at a place drawn uniformly among
        those inside the image. 0: nothing is hidden.
      count: squares hidden at once, >= 1; they may overlap.
      none: in [0, 1), the chance that an image is shown whole.
      worst_of: >= 1; so many are drawn, and the one with the largest loss is taken.
        More than one costs a further forward pass of so many images each.
    """

    size: int = 0
    count: int = 2
    none: float = 0.3
    worst_of: int = 1

    def __post_init__(self) -> None:
        if self.size != 0:
            check_count("train.hide.size", self.size)
        check_count("train.hide.count", self.count)
        check_range("train.hide.none", self.none, least=0, below=1)
        check_count("train.hide.worst_of", self.worst_of)


def draw_hidden(
    key: Key[Array, ""], config: HidingConfig, batch: int, image_size: ImageSize
) -> Bool[Array, "n B H W"]:
    """Draws what is hidden: ``worst_of`` choices for each image of a batch.

    An image that is shown whole is so in all of them. Raises ValueError for squares
    that do not fit into the image.
    """
    height, width = image_size
    if config.size > min(height, width):
        raise ValueError(
            f"train.hide.size={config.size} must be in 0..{min(height, width)}, for "
            f"images of {height}x{width}"
        )
    where_key, none_key = jax.random.split(key)
    last = jnp.array([height, width]) - config.size
    shape = (config.worst_of, batch, config.count, 2)
    starts = jax.random.randint(where_key, shape, 0, last[None, None, None] + 1)

    def bands(axis: int) -> Array:  # bool [n, B, count, length]
        offset = (
            jnp.arange(image_size[axis])[None, None, None] - starts[..., axis, None]
        )
        return (offset >= 0) & (offset < config.size)

    hidden = (bands(0)[..., :, None] & bands(1)[..., None, :]).any(axis=2)
    is_whole = jax.random.bernoulli(none_key, config.none, (1, batch, 1, 1))
    return hidden & ~is_whole
