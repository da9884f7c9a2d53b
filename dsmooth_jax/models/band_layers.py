"""The layers of BandNet, whose receptive field along an axis is exactly a window.

`window_kernels` sizes the kernels, `strides` says how little of each layer a reading
needs, `BandNet` is the network. `bandnet` turns it into the readings of an ablation.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dsmooth_jax.models.base import keep_dtypes

Kernel: TypeAlias = tuple[int, int]
"""(extent, dilation) of a convolution along one axis, in pixels of the image."""

Step: TypeAlias = tuple[int, int]
"""(stride, dilation) of a convolution along one axis of the grid that it is given."""


def window_kernels(window: int, depth: int) -> tuple[Kernel, ...]:
    """The kernels of a stem and `depth` blocks that see exactly `window` pixels.

    Extents are 2, or 3 where an even number of pixels must remain to be halved; layers
    that are left over have extent 1. Dilations are powers of two and never decrease.

    Args:
      window: pixels along this axis, >= 1.
      depth: residual blocks, >= 1.

    Returns:
      (extent, dilation) for the stem and for each block.

    Raises:
      ValueError: the depth is too small.

    >>> window_kernels(4, depth=4)
    ((2, 1), (2, 1), (2, 1), (1, 1), (1, 1))
    >>> window_kernels(25, depth=6)  # 25 -> 23, halved 12 -> 11, halved 6 -> 5 ... -> 1
    ((3, 1), (2, 2), (2, 4), (2, 4), (2, 4), (2, 4), (2, 4))
    """
    least = max(1, window.bit_length() - 2)
    if depth < least:
        raise ValueError(f"depth={depth} must be >= {least} to see {window} pixels")
    kernels = []
    reach, dilation = window - 1, 1  # what is left to see, in units of the dilation
    for layers_left in range(depth + 1, 0, -1):
        if reach <= layers_left:
            kernels.append((2 if reach else 1, dilation))
            reach = max(reach - 1, 0)
        else:
            extent = 2 if reach % 2 else 3
            kernels.append((extent, dilation))
            reach, dilation = (reach - extent + 1) // 2, 2 * dilation
    assert receptive_field(kernels) == window, (window, kernels)
    return tuple(kernels)


def receptive_field(kernels: Sequence[Kernel]) -> int:
    """How many pixels along an axis the last of these layers sees from one position."""
    return 1 + sum((extent - 1) * dilation for extent, dilation in kernels)


def strides(kernels: Sequence[Kernel], step: int) -> tuple[Step, ...]:
    """What each layer does so that none computes a position that no output sees.

    Args:
      kernels: (extent, dilation) of each layer.
      step: the distance of two outputs, pixels; 0 where there is only one.

    Returns:
      (stride, dilation) of each layer on the grid that the layers before it leave.

    >>> strides([(2, 1), (2, 2), (2, 4)], step=1)  # every position: dilation
    ((1, 1), (1, 2), (1, 4))
    >>> strides([(2, 1), (2, 2), (2, 4)], step=0)  # one window: a strided network
    ((2, 1), (2, 1), (1, 1))
    """
    steps = []
    spacing = 1  # of the grid, pixels
    for layer, (_, dilation) in enumerate(kernels):
        later = [d for extent, d in kernels[layer + 1 :] if extent > 1]
        needed = math.gcd(step, *later) or spacing
        steps.append((needed // spacing, max(1, dilation // spacing)))
        spacing = needed
    return tuple(steps)


class BandNet(nnx.Module):
    """[M, h, w, in_channels] -> [M, n * K], the logits of the n windows in there.

    A convolution, residual blocks, and a dense layer that sees one window each; windows
    come row-major. Along a cut axis h (or w) is the window and any number of strides.

    Args:
      kernels: along height and width the `window_kernels`, None where kept whole.
      stride: of the windows, pixels.
      in_channels: colors, their complements and positions.
      num_classes: K.
      width: channels of the first layer.
      max_width: of any layer, or None.
      depth: residual blocks.
      halve: the numbers, from 1, of the blocks that halve a whole axis; None for all.
      rngs: draws the initial weights.
    """

    def __init__(
        self,
        kernels: tuple[tuple[Kernel, ...] | None, ...],
        *,
        stride: int,
        in_channels: int,
        num_classes: int,
        width: int,
        max_width: int | None,
        depth: int,
        halve: Sequence[int] | None,
        rngs: nnx.Rngs,
    ):
        self.kernels, self.stride, self.depth = kernels, stride, depth
        self.halve = tuple(range(1, depth + 1) if halve is None else halve)
        whole = tuple(axis_kernels is None for axis_kernels in kernels)
        self.whole_axes = tuple(1 + axis for axis in (0, 1) if whole[axis])
        all_kernels = (
            axis_kernels or ((3, 1),) * (depth + 1) for axis_kernels in kernels
        )
        stem, *blocks = (
            (rows[0], columns[0]) for rows, columns in zip(*all_kernels, strict=True)
        )
        self.stem_conv = _Conv(stem, in_channels, width, whole, rngs)
        self.stem_norm = _norm(width, rngs)
        channels = width
        for index, extents in enumerate(blocks):
            # Every second block doubles the channels, beginning with the second.
            features = width * 2 ** ((index + 1) // 2)
            features = min(features, max_width or features)
            block = _Block(extents, channels, features, whole, index % 2, rngs)
            setattr(self, f"block{index + 1:02d}", block)
            channels = features
        num_features = 2 * channels if self.whole_axes else channels
        self.head = nnx.Linear(num_features, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M h w c"]) -> Float[Array, "M nK"]:
        """The logits of the windows in x."""
        stem, *blocks = zip(*(self._steps(axis, x) for axis in (0, 1)), strict=True)
        x = jax.nn.relu(self.stem_norm(self.stem_conv(x, stem)))
        for index, steps in enumerate(blocks):
            x = getattr(self, f"block{index + 1:02d}")(x, steps)
        if self.whole_axes:
            x = jnp.concatenate([x.mean(self.whole_axes), x.max(self.whole_axes)], -1)
        return self.head(x).reshape(len(x), -1)

    def _steps(self, axis: int, x: Array) -> tuple[Step, ...]:
        """(stride, dilation) of the stem and of each block along an axis of x."""
        kernels, length = self.kernels[axis], x.shape[1 + axis]
        if kernels is None:
            return _halvings(length, self.depth, self.halve)
        beyond = length - receptive_field(kernels)
        assert beyond >= 0 and beyond % self.stride == 0, (length, kernels, self.stride)
        return strides(kernels, self.stride if beyond else 0)


class _Block(nnx.Module):
    """Two convolutions, the second one pixel wide along cut axes, and the shortcut."""

    def __init__(
        self,
        extents: tuple[int, int],
        in_channels: int,
        features: int,
        whole: tuple[bool, ...],
        parity: int,
        rngs: nnx.Rngs,
    ):
        narrow = tuple(3 if is_whole else 1 for is_whole in whole)
        self.conv1 = _Conv(extents, in_channels, features, whole, rngs)
        self.norm1 = _norm(features, rngs)
        self.conv2 = _Conv(narrow, features, features, whole, rngs)
        self.norm2 = _norm(features, rngs)
        # The shortcut continues the middle of the valid kernel; where that lies between
        # two pixels, one block takes the first and the next block the second.
        self.middle = tuple(
            0 if is_whole else (extent - 1 + parity) // 2
            for extent, is_whole in zip(extents, whole, strict=True)
        )
        self.has_projection = in_channels != features
        if self.has_projection:
            self.shortcut = nnx.Linear(in_channels, features, use_bias=False, rngs=rngs)
            self.shortcut_norm = _norm(features, rngs)

    def __call__(
        self, x: Float[Array, "M h w c"], steps: tuple[Step, ...]
    ) -> Float[Array, "M h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(self.conv1(x, steps)))
        y = self.norm2(self.conv2(y))
        for axis, (stride, dilation) in enumerate(steps, start=1):
            first = self.middle[axis - 1] * dilation
            end = first + (y.shape[axis] - 1) * stride + 1
            x = jax.lax.slice_in_dim(x, first, end, stride, axis)
        if self.has_projection:
            x = self.shortcut_norm(self.shortcut(x))
        return jax.nn.relu(x + y)


class _Conv(nnx.Module):
    """A convolution that is told stride and dilation only when it is called.

    Valid, except along whole axes, where zeros outside the image keep the extent.
    """

    def __init__(
        self,
        extents: tuple[int, ...],
        in_channels: int,
        features: int,
        whole: tuple[bool, ...],
        rngs: nnx.Rngs,
    ):
        shape = (*extents, in_channels, features)
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.padding = tuple(
            (extent // 2, extent // 2) if is_whole else (0, 0)
            for extent, is_whole in zip(extents, whole, strict=True)
        )

    def __call__(
        self, x: Float[Array, "M h w c"], steps: tuple[Step, ...] = ((1, 1), (1, 1))
    ) -> Float[Array, "M h2 w2 c2"]:
        stride, dilation = zip(*steps, strict=True)
        return jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            stride,
            self.padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, promote_dtype=keep_dtypes, rngs=rngs
    )


def _halvings(length: int, depth: int, halve: Sequence[int]) -> tuple[Step, ...]:
    """Steps along a whole axis: these blocks halve it (rounding up), down to 2."""
    steps = [(1, 1)]
    for block in range(1, depth + 1):
        steps.append((2, 1) if length > 2 and block in halve else (1, 1))
        length = -(-length // steps[-1][0])
    return tuple(steps)
