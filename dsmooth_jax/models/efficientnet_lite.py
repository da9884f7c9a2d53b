"""EfficientNet-Lite0: an ImageNet classifier for images as they are, small and quick.

EfficientNet without squeeze-and-excitation and with ReLU6 (Tan & Le, ICML 2019,
arXiv:1905.11946; the lite variants are TensorFlow's). As there, padding is "SAME",
which puts the odd pixel on the right, and batch normalisation has epsilon 1e-3.
Nothing about it is certified: it is what masks and attacks are shown on.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from dsmooth_jax.models.base import Network, check_task, keep_dtypes, network

_STAGES = (
    # (blocks, kernel, stride of the first, channels)
    (1, 3, 1, 16),
    (2, 3, 2, 24),
    (2, 5, 2, 40),
    (3, 3, 2, 80),
    (3, 5, 1, 112),
    (4, 5, 2, 192),
    (1, 3, 1, 320),
)


def efficientnet_lite0(*, image_shape: Sequence[int], num_classes: int) -> Network:
    """EfficientNet-Lite0 for NULL-encoded images, of twice the image's channels.

    Args:
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.

    Returns:
      The network, from [M, H, W, 2C] to logits [M, K].

    Raises:
      ValueError: an argument is none of these.
    """
    check_task(image_shape, num_classes)
    return network(
        lambda rngs: EfficientNetLite0(
            in_channels=2 * image_shape[2], num_classes=num_classes, rngs=rngs
        )
    )


class EfficientNetLite0(nnx.Module):
    """[M, H, W, in_channels] -> logits [M, num_classes]."""

    def __init__(self, *, in_channels: int, num_classes: int, rngs: nnx.Rngs):
        self.conv_stem = _conv(in_channels, 32, 3, 2, rngs)
        self.norm_stem = _norm(32, rngs)
        self.block_names: tuple[str, ...] = ()
        channels = 32
        for stage, (num_blocks, kernel, stride, features) in enumerate(_STAGES):
            for index in range(num_blocks):
                name = f"block{len(self.block_names) + 1:02d}"
                block = _Block(
                    channels,
                    features,
                    expansion=6 if stage else 1,
                    kernel=kernel,
                    stride=1 if index else stride,
                    rngs=rngs,
                )
                setattr(self, name, block)
                self.block_names += (name,)
                channels = features
        self.conv_head = _conv(channels, 1280, 1, 1, rngs)
        self.norm_head = _norm(1280, rngs)
        self.head = nnx.Linear(1280, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M H W C2"]) -> Float[Array, "M K"]:  # noqa: D102
        x = jax.nn.relu6(self.norm_stem(self.conv_stem(x)))
        for name in self.block_names:
            x = getattr(self, name)(x)
        x = jax.nn.relu6(self.norm_head(self.conv_head(x)))
        return self.head(x.mean(axis=(1, 2)))


class _Block(nnx.Module):
    """1x1 to more channels, a kernel for each channel, 1x1 to few, and the shortcut."""

    def __init__(
        self,
        in_channels: int,
        features: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        rngs: nnx.Rngs,
    ):
        channels = expansion * in_channels
        self.has_expansion = expansion > 1
        if self.has_expansion:
            self.conv_expand = _conv(in_channels, channels, 1, 1, rngs)
            self.norm_expand = _norm(channels, rngs)
        self.conv_depthwise = _conv(channels, channels, kernel, stride, rngs, channels)
        self.norm_depthwise = _norm(channels, rngs)
        self.conv_project = _conv(channels, features, 1, 1, rngs)
        self.norm_project = _norm(features, rngs)
        self.has_shortcut = stride == 1 and in_channels == features

    def __call__(self, x: Float[Array, "M h w c"]) -> Float[Array, "M h2 w2 c2"]:
        y = x
        if self.has_expansion:
            y = jax.nn.relu6(self.norm_expand(self.conv_expand(y)))
        y = jax.nn.relu6(self.norm_depthwise(self.conv_depthwise(y)))
        y = self.norm_project(self.conv_project(y))
        return x + y if self.has_shortcut else y


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    rngs: nnx.Rngs,
    groups: int = 1,
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding="SAME",
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels, momentum=0.99, epsilon=1e-3, promote_dtype=keep_dtypes, rngs=rngs
    )
