"""Vision transformers that skip the tokens that see nothing.

The network is timm's `VisionTransformer`, layer for layer, with its options: class
token or mean pooling, registers, query-key-value biases, layer scale, a norm before the
blocks, quick GELU. What differs is where an image is NULL. A token whose patch is
wholly NULL says nothing, so no other token attends to it; and what nobody attends to
need not be computed. The network finds in its input the tokens that see something and
runs on these alone. How many there are at most is known from the ablation: of 14 x 14
tokens of 16 pixels, columns of 19 pixels meet 3 x 14. Where a window meets fewer, the
number is filled up with tokens that see nothing, and these are masked out.

The result is that of masked attention over all tokens, to float rounding, and depends
on no hidden pixel for the plainest of reasons: the network is given none.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021
(arXiv:2010.11929); Salman et al., "Certified Patch Robustness via Smoothed Vision
Transformers", CVPR 2022 (arXiv:2110.07719), for dropping tokens and for resizing after
ablation. Written from the papers and from timm's documented options.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from dsmooth_jax.ablation import Ablation, check_ablation
from dsmooth_jax.checks import check_choice, check_count
from dsmooth_jax.models.base import Network, check_task, network
from dsmooth_jax.types import ImageSize

SIZES: dict[str, dict[str, Any]] = {
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
}
"""What the field's names of sizes mean."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Which of the vision transformers it is.

    Attributes:
      patch: side of a token's square, pixels.
      width: features of a token.
      depth: blocks.
      heads: of each block's attention; they divide the width.
      pool: "token", the class token's features, or "avg", the mean of the tokens that
        see something, normalised after the mean.
      class_token: needed where pooling is "token".
      registers: further tokens that see no pixel (Darcet et al. 2024).
      qkv_bias: biases of queries, keys and values.
      layer_scale: a learned factor for each feature of each branch.
      pre_norm: a norm before the blocks, and no bias of the patch embedding (CLIP).
      activation: "gelu" or "quick_gelu".
      epsilon: of the layer norms; CLIP has 1e-5.
    """

    patch: int
    width: int = 384
    depth: int = 12
    heads: int = 6
    pool: str = "token"
    class_token: bool = True
    registers: int = 0
    qkv_bias: bool = True
    layer_scale: bool = False
    pre_norm: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads"):
            check_count(name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        check_choice("pool", self.pool, ("token", "avg"))
        check_choice("activation", self.activation, tuple(_ACTIVATIONS))
        if self.registers < 0:
            raise ValueError(f"registers={self.registers} must be >= 0")
        if self.pool == "token" and not self.class_token:
            raise ValueError("pool='token' needs class_token=True; or use 'avg'")


def vit(
    config: ViTConfig,
    ablation: Ablation | None,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    resize: Sequence[int] | None = None,
) -> Network:
    """A vision transformer for NULL-encoded images, fast where little is visible.

    Args:
      config: which one.
      ablation: of the images that it will be given: at most so many tokens as the
        widest of its windows meets are computed. None for images of any kind; then all
        tokens are computed. An image that shows more than the ablation does loses the
        tokens that come last.
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.
      resize: (height, width) to which the network resizes, bilinearly, what it is
        given, so after ablation: the patch is counted in pixels of the image.

    Returns:
      The network, from [M, H, W, 2C] to logits [M, K].

    Raises:
      ValueError: an argument is out of range, or the patch does not divide the image.

    Guarantee:
      Where the ablation is the one that made the inputs, the logits are those of
      `ablation=None` (attention over all tokens, those that see nothing masked) to
      float rounding.
    """
    check_task(image_shape, num_classes)
    image_size = (image_shape[0], image_shape[1])
    inner_size = image_size if resize is None else (resize[0], resize[1])
    for name, extent in zip(("height", "width"), inner_size, strict=True):
        if extent < config.patch or extent % config.patch:
            raise ValueError(
                f"patch={config.patch} must divide the image's {name}, {extent} (give "
                "resize=(height, width) to resize inside the network)"
            )
    grid = (inner_size[0] // config.patch, inner_size[1] // config.patch)
    num_tokens = grid[0] * grid[1]
    if ablation is not None:
        num_tokens = int(
            visible_tokens(ablation, image_size, inner_size, grid).sum((1, 2)).max()
        )
    return network(
        lambda rngs: ViT(
            config,
            grid=grid,
            num_tokens=num_tokens,
            resize=None if resize is None else inner_size,
            in_channels=2 * image_shape[2],
            num_classes=num_classes,
            rngs=rngs,
        )
    )


def visible_tokens(
    ablation: Ablation, image_size: ImageSize, inner_size: ImageSize, grid: ImageSize
) -> Bool[np.ndarray, "P gh gw"]:
    """Which tokens of each ablation see a pixel that it keeps.

    Args:
      ablation: the ablation.
      image_size: (H, W), pixels.
      inner_size: (height, width) that images are resized to, pixels.
      grid: tokens along height and width.
    """
    check_ablation(ablation)
    windows = ablation.windows(image_size)
    rows, columns = (
        _bands_of_tokens(bands, length, count)
        for bands, length, count in zip(
            (windows.rows, windows.columns), inner_size, grid, strict=True
        )
    )
    r, s = np.divmod(windows.choices, len(columns))  # [P, k]
    return (rows[r][:, :, :, None] & columns[s][:, :, None, :]).any(1)


class ViT(nnx.Module):
    """[M, H, W, in_channels] -> logits [M, num_classes].

    Args:
      config: which one.
      grid: tokens along height and width.
      num_tokens: how many of them are computed; those that see something come first.
      resize: (height, width) to resize to, or None.
      in_channels: colors and their complements.
      num_classes: K.
      rngs: draws the initial weights.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        grid: ImageSize,
        num_tokens: int,
        resize: ImageSize | None,
        in_channels: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        features = config.width
        self.config, self.grid, self.num_tokens = config, grid, num_tokens
        self.resize = resize
        normal = nnx.initializers.truncated_normal(0.02)

        def parameter(*shape: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), shape, jnp.float32))

        patch = (config.patch, config.patch)
        self.patch_embed = _Patches(
            patch, in_channels, features, not config.pre_norm, rngs
        )
        self.pos_embed = parameter(*grid, features)
        if config.class_token:
            self.class_token = parameter(1, features)
        if config.registers:
            self.registers = parameter(config.registers, features)
        self.num_prefix = config.class_token + config.registers
        norm = functools.partial(
            nnx.LayerNorm, features, epsilon=config.epsilon, rngs=rngs
        )
        if config.pre_norm:
            self.norm_pre = norm()
        self.block_names = tuple(
            f"block{index + 1:02d}" for index in range(config.depth)
        )
        for name in self.block_names:
            setattr(self, name, _Block(config, norm, rngs))
        if config.pool == "token":
            self.norm = norm()
        else:
            self.fc_norm = norm()
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M H W C2"]) -> Float[Array, "M K"]:  # noqa: D102
        if self.resize is not None:
            x = _resized(x, (len(x), *self.resize, x.shape[3]))
        patches = _cut(x, self.grid)  # [M, N, p * p * C2]
        # A visible pixel is (x, 1 - x) and never (0, 0), what NULL is.
        seen = (patches != 0).any(-1)
        # Those that see something, in their order; then, if need be, some others.
        seen, index = jax.lax.top_k(seen.astype(jnp.int32), self.num_tokens)
        seen = seen > 0
        patches = jnp.take_along_axis(patches, index[:, :, None], axis=1)
        positions = jnp.asarray(self.pos_embed[...])
        positions = positions.reshape(-1, positions.shape[-1])
        x = self.patch_embed(patches) + positions[index]
        for name in ("registers", "class_token"):  # the last comes first
            if hasattr(self, name):
                tokens = getattr(self, name)[...][None]
                tokens = jnp.broadcast_to(tokens, (len(x), *tokens.shape[1:]))
                x = jnp.concatenate([tokens, x], axis=1)
        seen = jnp.pad(seen, ((0, 0), (self.num_prefix, 0)), constant_values=True)
        if self.config.pre_norm:
            x = self.norm_pre(x)
        for name in self.block_names:
            x = getattr(self, name)(x, seen)
        if self.config.pool == "token":
            return self.head(self.norm(x[:, 0]))
        tokens, seen = x[:, self.num_prefix :], seen[:, self.num_prefix :]
        mean = jnp.mean(tokens, axis=1, where=seen[:, :, None])
        return self.head(self.fc_norm(mean))


class _Patches(nnx.Module):
    """The patch embedding: a convolution whose stride is its extent, as a product."""

    def __init__(
        self,
        patch: tuple[int, int],
        in_channels: int,
        features: int,
        use_bias: bool,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.lecun_normal()
        shape = (*patch, in_channels, features)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.use_bias = use_bias
        if use_bias:
            self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, patches: Float[Array, "M T i"]) -> Float[Array, "M T o"]:
        kernel = self.kernel[...]
        x = patches @ kernel.reshape(-1, kernel.shape[-1])
        return x + self.bias[...][None, None] if self.use_bias else x


class _Block(nnx.Module):
    """Attention and a layer of four times the width, each normalised, added."""

    def __init__(
        self,
        config: ViTConfig,
        norm: Callable[[], nnx.LayerNorm],
        rngs: nnx.Rngs,
    ):
        features = config.width
        self.heads, self.layer_scale = config.heads, config.layer_scale
        self.activation = config.activation
        linear = functools.partial(
            nnx.Linear, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
        )
        self.norm1 = norm()
        self.qkv = linear(features, 3 * features, use_bias=config.qkv_bias)
        self.proj = linear(features, features)
        self.norm2 = norm()
        self.fc1 = linear(features, 4 * features)
        self.fc2 = linear(4 * features, features)
        if config.layer_scale:
            self.scale1 = nnx.Param(jnp.full(features, 1e-5))
            self.scale2 = nnx.Param(jnp.full(features, 1e-5))

    def __call__(
        self, x: Float[Array, "M T d"], seen: Bool[Array, "M T"]
    ) -> Float[Array, "M T d"]:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(shape), 2, 0)
        y = self.proj(_attention(q, k, v, seen).reshape(x.shape))
        x = x + (y * self.scale1[...][None, None] if self.layer_scale else y)
        y = self.fc2(_ACTIVATIONS[self.activation](self.fc1(self.norm2(x))))
        return x + (y * self.scale2[...][None, None] if self.layer_scale else y)


def _attention(
    q: Float[Array, "M T h e"],
    k: Float[Array, "M T h e"],
    v: Float[Array, "M T h e"],
    seen: Bool[Array, "M T"],
) -> Float[Array, "M T h e"]:
    """Attention to the tokens that see something; the softmax is float32."""
    products = jnp.einsum("mqhe,mkhe->mhqk", q, k / math.sqrt(q.shape[3]))
    products = products.astype(jnp.float32)
    products = jnp.where(seen[:, None, None, :], products, -jnp.inf)
    weights = jax.nn.softmax(products, axis=-1).astype(v.dtype)
    return jnp.einsum("mhqk,mkhe->mqhe", weights, v)


def _cut(x: Float[Array, "M H W c"], grid: ImageSize) -> Float[Array, "M N i"]:
    """The patches of a grid, row-major, each flat: rows, columns, channels."""
    num, height, width, channels = x.shape
    rows, columns = grid
    x = x.reshape(num, rows, height // rows, columns, width // columns, channels)
    return jnp.swapaxes(x, 2, 3).reshape(num, rows * columns, -1)


def _bands_of_tokens(
    bands: Bool[np.ndarray, "n L"], length: int, count: int
) -> Bool[np.ndarray, "n count"]:
    """Which of the tokens along an axis see something of each band of pixels."""
    with jax.ensure_compile_time_eval():  # on the host's side of any trace
        pixels = np.asarray(_resized(bands.astype(np.float32), (len(bands), length)))
    return np.any(pixels.reshape(len(bands), count, -1) > 0, axis=2)


def _resized(x: Array | np.ndarray, shape: tuple[int, ...]) -> Array:
    """Bilinear; unchanged along axes that keep their length."""
    return jax.image.resize(x, shape, "linear") if x.shape != shape else jnp.asarray(x)
