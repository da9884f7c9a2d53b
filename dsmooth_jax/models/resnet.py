"""ResNet-18, -34 and -50 (He, Zhang, Ren & Sun, "Deep Residual Learning", CVPR 2016).

Layer for layer the networks that torchvision calls resnet18, resnet34 and resnet50:
symmetric padding, biases in the last layer only, and in the bottleneck blocks the
stride on the 3x3 convolution (the original has it on the first 1x1).
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from dsmooth_jax.models.base import Network, check_task, keep_dtypes, network

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STEMS = ("cifar", "imagenet")


def resnet(
    depth: int,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    stem: str,
    width: int = 64,
) -> Network:
    """A ResNet for NULL-encoded images, which have twice the image's channels.

    Args:
      depth: 18, 34 or 50.
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.
      stem: "cifar" (3x3 convolution, stride 1) or "imagenet" (7x7 convolution and
        3x3 max pooling, both stride 2: the stages see a quarter of the size).
      width: channels of the first stage, doubled by each of the three after it.

    Returns:
      The network, from [M, H, W, 2C] to logits [M, K].

    Raises:
      ValueError: an argument is none of these.
    """
    check_task(image_shape, num_classes)
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"depth={depth} must be one of {list(BLOCKS_PER_STAGE)}")
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r} must be one of {list(STEMS)}")
    if width < 1:
        raise ValueError(f"width={width} must be >= 1")
    in_channels = 2 * image_shape[2]
    return network(
        lambda rngs: ResNet(
            depth,
            num_classes=num_classes,
            in_channels=in_channels,
            stem=stem,
            width=width,
            rngs=rngs,
        )
    )


class ResNet(nnx.Module):
    """[M, H, W, in_channels] -> logits [M, num_classes]. Arguments as in `resnet`."""

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int,
        stem: str,
        width: int = 64,
        rngs: nnx.Rngs,
    ):
        block = _Bottleneck if depth == 50 else _BasicBlock
        self.has_pool = stem == "imagenet"
        kernel, stride = (7, 2) if self.has_pool else (3, 1)
        self.stem_conv = _conv(in_channels, width, kernel, stride, rngs)
        self.stem_norm = _norm(width, rngs)

        # Blocks are attributes with names, in the order in which they are applied: the
        # children of an nnx.List are numbered, and numbers read back from a file as
        # strings sort as 0, 1, 10, 2.
        self.block_names: tuple[str, ...] = ()
        channels = width
        for stage, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
            for index in range(num_blocks):
                name = f"stage{stage + 1}_block{index + 1:02d}"
                stride = 2 if stage > 0 and index == 0 else 1
                features = width * 2**stage
                setattr(self, name, block(channels, features, stride, rngs))
                self.block_names += (name,)
                channels = features * block.expansion
        self.head = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M H W C2"]) -> Float[Array, "M K"]:  # noqa: D102
        x = jax.nn.relu(self.stem_norm(self.stem_conv(x)))
        if self.has_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for name in self.block_names:
            x = getattr(self, name)(x)
        return self.head(x.mean(axis=(1, 2)))


class _BasicBlock(nnx.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, features: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = _conv(in_channels, features, 3, stride, rngs)
        self.norm1 = _norm(features, rngs)
        self.conv2 = _conv(features, features, 3, 1, rngs)
        self.norm2 = _norm(features, rngs)
        self.has_projection = stride != 1 or in_channels != features
        if self.has_projection:
            self.shortcut_conv = _conv(in_channels, features, 1, stride, rngs)
            self.shortcut_norm = _norm(features, rngs)

    def __call__(self, x: Float[Array, "M h w c"]) -> Float[Array, "M h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.has_projection:
            x = self.shortcut_norm(self.shortcut_conv(x))
        return jax.nn.relu(x + y)


class _Bottleneck(nnx.Module):
    """1x1 to fewer channels, 3x3, 1x1 to four times as many, and the shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, features: int, stride: int, rngs: nnx.Rngs):
        out_channels = self.expansion * features
        self.conv1 = _conv(in_channels, features, 1, 1, rngs)
        self.norm1 = _norm(features, rngs)
        self.conv2 = _conv(features, features, 3, stride, rngs)
        self.norm2 = _norm(features, rngs)
        self.conv3 = _conv(features, out_channels, 1, 1, rngs)
        self.norm3 = _norm(out_channels, rngs)
        self.has_projection = stride != 1 or in_channels != out_channels
        if self.has_projection:
            self.shortcut_conv = _conv(in_channels, out_channels, 1, stride, rngs)
            self.shortcut_norm = _norm(out_channels, rngs)

    def __call__(self, x: Float[Array, "M h w c"]) -> Float[Array, "M h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = jax.nn.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.has_projection:
            x = self.shortcut_norm(self.shortcut_conv(x))
        return jax.nn.relu(x + y)


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    # PyTorch writes the same momentum as 0.1.
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, promote_dtype=keep_dtypes, rngs=rngs
    )
