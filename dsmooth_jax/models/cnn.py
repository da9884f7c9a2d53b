"""A small convolutional chain, fast on CPUs, for whole images with parts hidden.

A 2x2 stem, then stages of two 3x3 convolutions, the first of which is followed by a
maximum over 2x2 pixels; batch normalisation and GELU after each. Mean and maximum over
what is left of the image go into one dense layer: a hidden part draws the mean, and
leaves the maximum alone. Two million parameters and 0.1 giga multiply-adds for 32x32
pixels. The proportions are those of the fast networks of Jordan, "94% on CIFAR-10 in
3.29 Seconds on a Single GPU" (arXiv:2404.00498), section 3.1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dsmooth_jax.checks import check_count
from dsmooth_jax.models.base import Network, check_task, keep_dtypes, network


def cnn(*, image_shape: Sequence[int], num_classes: int, width: int = 64) -> Network:
    """The chain for NULL-encoded images, which have twice the image's channels.

    Args:
      image_shape: (H, W, C) of the images, in pixels and color channels; at least 9
        pixels each way.
      num_classes: K.
      width: channels of the first stage; the stem has 3/8 of it, later stages 4 times
        as many.

    Returns:
      The network, from [M, H, W, 2C] to logits [M, K], of any H and W.

    Raises:
      TypeError, ValueError: an argument is none of these.
    """
    check_task(image_shape, num_classes)
    check_count("model.width", width)
    if min(image_shape[:2]) < 9:
        raise ValueError(
            f"image_shape={tuple(image_shape)} must be at least 9x9 pixels for cnn"
        )
    return network(
        lambda rngs: CNN(2 * image_shape[2], num_classes, width=width, rngs=rngs)
    )


class CNN(nnx.Module):
    """[M, H, W, in_channels] -> logits [M, num_classes]. Arguments as in `cnn`."""

    def __init__(
        self, in_channels: int, num_classes: int, *, width: int, rngs: nnx.Rngs
    ):
        stem = max(1, 3 * width // 8)
        self.stem = nnx.Conv(
            in_channels, stem, (2, 2), padding="VALID", use_bias=True, rngs=rngs
        )
        channels = (stem, width, 4 * width, 4 * width)
        self.stage1 = _Stage(*channels[0:2], rngs=rngs)
        self.stage2 = _Stage(*channels[1:3], rngs=rngs)
        self.stage3 = _Stage(*channels[2:4], rngs=rngs)
        self.head = nnx.Linear(2 * channels[-1], num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M H W C2"]) -> Float[Array, "M K"]:  # noqa: D102
        x = jax.nn.gelu(self.stem(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        pooled = jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=1)
        return self.head(pooled)


class _Stage(nnx.Module):
    """Halves the image: convolution, maximum over 2x2, convolution."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = _conv(in_channels, channels, rngs)
        self.norm1 = _norm(channels, rngs)
        self.conv2 = _conv(channels, channels, rngs)
        self.norm2 = _norm(channels, rngs)

    def __call__(self, x: Float[Array, "M h w c"]) -> Float[Array, "M h2 w2 c2"]:
        x = jax.nn.gelu(self.norm1(largest_of_four(self.conv1(x))))
        return jax.nn.gelu(self.norm2(self.conv2(x)))


def largest_of_four(x: Float[Array, "M h w c"]) -> Float[Array, "M h2 w2 c"]:
    """The maximum of each 2x2 pixels; an odd row or column at the end is left out.

    On CPUs the gradient of `nnx.max_pool` takes a fifth of a training step.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def _conv(in_channels: int, channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(in_channels, channels, (3, 3), use_bias=False, rngs=rngs)


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, promote_dtype=keep_dtypes, rngs=rngs
    )
