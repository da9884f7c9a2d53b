"""BandNet: a network whose receptive field is the window of the ablation.

Run over an image, it gives the logits of all ablations in one pass, because
neighbouring windows share their work. Run over a crop that holds a few windows, it
gives theirs: so it is trained. Run over one window, it is an ordinary strided CNN. All
three are the same function of the same parameters.

Along an axis that the ablation cuts (columns: the width; rows: the height; blocks:
both) convolutions are valid, and `window_kernels` makes them reach exactly across the
window. They are those of a CNN that halves the window for as long as it has more
pixels than the layers left can take off one by one. That CNN looks at one window. For
many, nothing may be skipped, and dilation takes the place of halving; `strides` finds
how little each reading has to compute. An axis that the ablation keeps whole is padded
and halved as usual, and pooled at the end, mean and maximum.

Nothing else carries anything from one place to another: batch normalisation is fixed
in evaluation, and where a pixel is along the cut axes is no secret of the image.

Idea: Metzen & Yatsura, "Efficient Certified Defenses Against Patch Attacks on Image
Classifiers", ICLR 2021, arXiv:2102.04154 (BagCert). The architecture is our own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dsmooth_jax import masking, scoring
from dsmooth_jax.ablation import Ablation, Columns, Rows, SingleWindow
from dsmooth_jax.models.base import BaseClassifier, Variables, check_task, network

Kernel: TypeAlias = tuple[int, int]
"""(extent, dilation) of a convolution along one axis, in pixels of the image."""

Step: TypeAlias = tuple[int, int]
"""(stride, dilation) of a convolution along one axis of the grid that it is given."""


@dataclass(frozen=True)
class BandNetwork:
    """One network, read in three ways: pure functions, all traceable.

    Attributes:
      init: key -> variables (outside `jax.jit`, see `base.Network`).
      image_logits: (variables, images [B, H, W, C] float32 in [0, 1]) -> [B, P, K], the
        logits of every ablation, in evaluation mode.
      window_logits: (variables, windows [M, h, w, 2C] as `masking.crop` cuts them, and
        int [M, 2], the (row, column) at which each starts) -> [M, K], likewise.
      train_logits: (variables, images, int [B, 2]) -> ([B, n, K], batch_stats), in
        training mode: the logits of a rectangle of n windows of each image, row-major,
        the first at the given (row, column), neighbours one stride apart.
    """

    init: Callable[[Array], Variables]
    image_logits: Callable[[Variables, Array], Array]
    window_logits: Callable[[Variables, Array, Array], Array]
    train_logits: Callable[[Variables, Array, Array], tuple[Array, dict[str, Any]]]


def bandnet(
    ablation: Ablation,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    depth: int = 6,
    crops: int = 4,
) -> BaseClassifier:
    """A base classifier that scores all ablations of an image in one pass.

    It trains on `crops` neighbouring windows of each image, the first of them drawn
    uniformly. (Where the stride does not divide the image, neighbours across the edge
    are windows between two ablations: as good to train on.)

    Args:
      ablation: `Columns`, `Rows` or `Blocks`, of any stride.
      image_shape: (H, W, C) of the images, in pixels and colour channels.
      num_classes: K.
      width: channels of the first layer; they double in every second block.
      depth: residual blocks.
      crops: windows of each image in a training step; for blocks, a rectangle of
        windows, as square as the number allows.

    Raises:
      TypeError: an ablation that keeps several windows.
      ValueError: an argument is out of range, or the window does not fit the image.

    Guarantee:
      In evaluation mode the scores of ablation p depend on no pixel that p hides, on no
      other image and not on the batch size.
    """
    net = band_network(
        ablation,
        image_shape=image_shape,
        num_classes=num_classes,
        width=width,
        depth=depth,
        crops=crops,
    )
    size = (image_shape[0], image_shape[1])
    starts = masking.window_starts(_check_ablation(ablation), size)

    def train_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "B n K"], dict[str, Any]]:
        drawn = jax.random.randint(key, (len(images),), 0, len(starts))
        return net.train_logits(variables, images, jnp.asarray(starts)[drawn])

    def scores(
        variables: Variables, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        return scoring.softmax(net.image_logits(variables, images))

    def scores_fn(variables: Variables) -> scoring.ScoresFn:
        return Partial(scores, variables)

    return BaseClassifier(net.init, train_logits, scores_fn)


def band_network(
    ablation: Ablation,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    depth: int = 6,
    crops: int = 4,
) -> BandNetwork:
    """The network of `bandnet`, reading by reading; arguments and errors as there."""
    check_task(image_shape, num_classes)
    for name, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value} must be >= 1")
    size = (image_shape[0], image_shape[1])
    ablation = _check_ablation(ablation)
    is_cut = (not isinstance(ablation, Columns), not isinstance(ablation, Rows))
    window, stride = ablation.window_shape(size), ablation.stride
    num_windows = tuple(-(-size[a] // stride) if is_cut[a] else 1 for a in (0, 1))
    rectangle = _crop_rectangle(crops, num_windows)
    kernels = tuple(
        window_kernels(window[a], depth) if is_cut[a] else None for a in (0, 1)
    )
    net = network(
        lambda rngs: BandNet(
            kernels,
            stride=stride,
            in_channels=2 * (image_shape[2] + sum(is_cut)),
            num_classes=num_classes,
            width=width,
            depth=depth,
            rngs=rngs,
        )
    )

    def wrapped(axis: int, starts: Array, extent: int) -> Array:
        """[M, 2] starts -> [M, extent], the pixels from there on along the axis."""
        return (starts[:, axis, None] + jnp.arange(extent)[None]) % size[axis]

    def with_position(pixels: Array, starts: Array) -> Array:
        """Adds sin and cos of where each pixel is along the cut axes."""
        channels = [pixels]
        for axis in (0, 1):
            if is_cut[axis]:
                index = wrapped(axis, starts, pixels.shape[1 + axis])
                angle = 2 * math.pi / size[axis] * index.astype(jnp.float32)
                angle = jnp.expand_dims(angle, (2 - axis, 3))
                angle = jnp.broadcast_to(angle, (*pixels.shape[:3], 1))
                channels += [jnp.sin(angle), jnp.cos(angle)]
        return jnp.concatenate(channels, axis=-1)

    def crop(images: Array, starts: Array, counts: tuple[int, ...]) -> Array:
        """The inputs that hold this many windows along (height, width)."""
        extents = [(counts[a] - 1) * stride + window[a] for a in (0, 1)]
        rows, columns = (wrapped(a, starts, extents[a]) for a in (0, 1))
        pixels = jax.vmap(lambda image, r, c: image[r][:, c])(images, rows, columns)
        return with_position(masking.encode(pixels), starts)

    def image_logits(
        variables: Variables, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        starts = jnp.zeros((len(images), 2), jnp.int32)
        logits = net.logits(variables, crop(images, starts, num_windows))
        return logits.reshape(len(images), math.prod(num_windows), num_classes)

    def window_logits(
        variables: Variables,
        windows: Float[Array, "M h w C2"],
        starts: Int[Array, "M 2"],
    ) -> Float[Array, "M K"]:
        return net.logits(variables, with_position(windows, starts))

    def train_logits(
        variables: Variables, images: Float[Array, "B H W C"], starts: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n K"], dict[str, Any]]:
        inputs = crop(images, starts, rectangle)
        logits, batch_stats = net.train_logits(variables, inputs)
        return logits.reshape(len(images), crops, num_classes), batch_stats

    return BandNetwork(net.init, image_logits, window_logits, train_logits)


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
      in_channels: colours, their complements and positions.
      num_classes: K.
      width: channels of the first layer.
      depth: residual blocks.
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
        depth: int,
        rngs: nnx.Rngs,
    ):
        self.kernels, self.stride, self.depth = kernels, stride, depth
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
            return _halvings(length, self.depth)
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
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


def _halvings(length: int, depth: int) -> tuple[Step, ...]:
    """Steps along a whole axis: every block halves it (rounding up), down to 2."""
    steps = [(1, 1)]
    for _ in range(depth):
        steps.append((2, 1) if length > 2 else (1, 1))
        length = -(-length // steps[-1][0])
    return tuple(steps)


def _check_ablation(ablation: Ablation) -> SingleWindow:
    if not isinstance(ablation, SingleWindow):
        raise TypeError(
            f"ablation={ablation!r} keeps several windows, but a bandnet sees one; "
            "use Columns, Rows or Blocks, or a resnet, which sees masked images"
        )
    return ablation


def _crop_rectangle(crops: int, num_windows: tuple[int, ...]) -> tuple[int, int]:
    """The most square (rows, columns) of windows with rows * columns = crops."""
    fitting = [
        (rows, crops // rows)
        for rows in range(1, num_windows[0] + 1)
        if crops % rows == 0 and 1 <= crops // rows <= num_windows[1]
    ]
    if not fitting:
        raise ValueError(
            f"crops={crops} must be rows * columns of a rectangle of windows; an image "
            f"has {num_windows[0]} x {num_windows[1]}"
        )
    return min(fitting, key=lambda rectangle: abs(rectangle[0] - rectangle[1]))
