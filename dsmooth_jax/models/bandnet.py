"""BandNet: a network whose receptive field is the window of the ablation.

Run over an image, it gives the logits of all ablations in one pass, because
neighbouring windows share their work; run over a crop of a few windows, it gives
theirs, which is how it trains; run over one window, it is an ordinary strided CNN. All
three are the same function of the same parameters.

Along an axis that the ablation cuts (columns: the width; rows: the height; blocks: both)
every convolution is valid, and `window_kernels` sizes the kernels so that together they
reach exactly across the window. They are those of a CNN that halves the window until the
layers left can take one pixel each: 25 -> 23, halved 12 -> 11, halved 6 -> 5 -> ... -> 1.
Where several windows are asked for nothing may be skipped, and dilation takes the place
of halving; `strides` says how little each reading can do. An axis that the ablation
keeps whole is padded and halved as usual, and pooled at the end.

Batch normalisation is local: over the batch in training, fixed in evaluation. So is the
position of a pixel along the cut axes, which every pixel carries.

Idea: Metzen & Yatsura, "Efficient Certified Defenses Against Patch Attacks on Image
Classifiers" (BagCert), ICLR 2021, arXiv:2102.04154; dilation in place of stride: the
algorithme a trous. The architecture is this library's.
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
"""(extent, dilation) of a convolution along one axis, at full resolution."""

Step: TypeAlias = tuple[int, int]
"""(stride, dilation) of a convolution along one axis of the grid that it gets."""


@dataclass(frozen=True)
class BandNetwork:
    """The readings of one network as pure functions, all traceable.

    Attributes:
      init: key -> variables (outside `jax.jit`, see `base.Network`).
      image_logits: (variables, images [B, H, W, C] float32 in [0, 1]) -> [B, P, K], the
        logits of every ablation, in the ablation's order.
      window_logits: (variables, windows [M, h, w, 2C] as `masking.crop` cuts them, starts
        int [M, 2], the first (row, column) of each) -> [M, K].
      train_logits: (variables, images, starts int [B, 2]) -> ([B, n, K], batch_stats), in
        training mode: the n = rows x columns windows of a crop of each image, row-major,
        the first at the given start, the others one stride of the ablation apart.
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

    It trains on `crops` neighbouring windows of each image, the first drawn uniformly
    from the ablations. (Where a stride does not divide the image, a neighbour across the
    edge is a window between two ablations: as good to train on.)

    Args:
      ablation: `Columns`, `Rows` or `Blocks`, of any stride.
      image_shape: (H, W, C) of the images, in pixels and colour channels.
      num_classes: K.
      width: channels of the first layer; they double in every second block.
      depth: residual blocks.
      crops: windows of each image in a training step; for blocks, a rectangle of
        windows as square as the number allows.

    Raises:
      TypeError: an ablation that keeps several windows.
      ValueError: an argument is out of range, the window does not fit into the image,
        or the depth cannot reach across the window.

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
    all_starts = masking.window_starts(ablation, (image_shape[0], image_shape[1]))

    def train_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "B n K"], dict[str, Any]]:
        drawn = jax.random.randint(key, (len(images),), 0, len(all_starts))
        return net.train_logits(variables, images, jnp.asarray(all_starts)[drawn])

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
    """The network of `bandnet`, reading by reading. Arguments and errors are the same."""
    check_task(image_shape, num_classes)
    for name, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value} must be >= 1")
    size = (image_shape[0], image_shape[1])
    is_cut = _cut_axes(ablation)
    window, stride = ablation.window_shape(size), ablation.stride
    all_windows = tuple(
        -(-length // stride) if cut else 1
        for length, cut in zip(size, is_cut, strict=True)
    )
    crop_windows = _crop_rectangle(crops, all_windows)
    net = network(
        lambda rngs: BandNet(
            tuple(w if cut else None for w, cut in zip(window, is_cut, strict=True)),
            stride=stride,
            in_channels=2 * (image_shape[2] + sum(is_cut)),
            num_classes=num_classes,
            width=width,
            depth=depth,
            rngs=rngs,
        )
    )

    def wrapped(axis: int, starts: Array, extent: int) -> Array:
        """[M, 2] starts -> int [M, extent], the pixels from there on along the axis."""
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

    def crop(images: Array, starts: Array, num_windows: tuple[int, int]) -> Array:
        """The inputs that hold this many windows along (height, width)."""
        extents = [
            (n - 1) * stride + w for n, w in zip(num_windows, window, strict=True)
        ]
        rows, columns = (wrapped(axis, starts, extents[axis]) for axis in (0, 1))
        pixels = jax.vmap(lambda image, r, c: image[r][:, c])(images, rows, columns)
        return with_position(masking.encode(pixels), starts)

    def image_logits(
        variables: Variables, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        starts = jnp.zeros((len(images), 2), jnp.int32)
        logits = net.logits(variables, crop(images, starts, all_windows))
        return logits.reshape(len(images), -1, num_classes)

    def window_logits(
        variables: Variables,
        windows: Float[Array, "M h w C2"],
        starts: Int[Array, "M 2"],
    ) -> Float[Array, "M K"]:
        logits = net.logits(variables, with_position(windows, starts))
        return logits.reshape(len(windows), num_classes)

    def train_logits(
        variables: Variables, images: Float[Array, "B H W C"], starts: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n K"], dict[str, Any]]:
        inputs = crop(images, starts, crop_windows)
        logits, batch_stats = net.train_logits(variables, inputs)
        return logits.reshape(len(images), -1, num_classes), batch_stats

    return BandNetwork(net.init, image_logits, window_logits, train_logits)


def window_kernels(window: int, num_layers: int) -> tuple[Kernel, ...]:
    """Kernels of layers that together see exactly ``window`` pixels of an axis.

    Extents are 2, or 3 where that makes the window even before it is halved; the layers
    that are left over have extent 1. Dilations are powers of two and never decrease.

    Args:
      window: pixels, >= 1.
      num_layers: layers that may be wider than a pixel, >= 1.

    Returns:
      (extent, dilation) of each layer; 1 + sum of (extent - 1) * dilation is window.

    Raises:
      ValueError: too few layers.

    >>> window_kernels(4, 5)
    ((2, 1), (2, 1), (2, 1), (1, 1), (1, 1))
    >>> window_kernels(25, 7)
    ((3, 1), (2, 2), (2, 4), (2, 4), (2, 4), (2, 4), (2, 4))
    """
    kernels = []
    reach, dilation = window - 1, 1  # what is left, in units of the dilation
    for layers_left in range(num_layers, 0, -1):
        if reach <= layers_left:
            kernels.append((2 if reach else 1, dilation))
            reach = max(reach - 1, 0)
        else:
            extent = 2 if reach % 2 else 3
            kernels.append((extent, dilation))
            reach, dilation = (reach - extent + 1) // 2, 2 * dilation
    if reach:
        raise ValueError(
            f"{num_layers} layers are too few for a window of {window} pixels"
        )
    assert receptive_field(kernels) == window
    return tuple(kernels)


def receptive_field(kernels: Sequence[Kernel]) -> int:
    """How many pixels of an axis the last of these layers sees at a position."""
    return 1 + sum((extent - 1) * dilation for extent, dilation in kernels)


def strides(kernels: Sequence[Kernel], step: int) -> tuple[Step, ...]:
    """The (stride, dilation) of each layer when only some outputs are asked for.

    A layer computes the positions that the layers after it look at, and no others.

    Args:
      kernels: (extent, dilation) of each layer at full resolution.
      step: the distance of the outputs, pixels; 0 where there is but one.

    >>> strides([(2, 1), (2, 2), (2, 4)], step=1)  # all outputs: dilation only
    ((1, 1), (1, 2), (1, 4))
    >>> strides([(2, 1), (2, 2), (2, 4)], step=0)  # one output: strides only
    ((2, 1), (2, 1), (1, 1))
    """
    taken = []
    spacing = 1  # of the positions that the layer gets, pixels
    for index, (_, dilation) in enumerate(kernels):
        later = [d for extent, d in kernels[index + 1 :] if extent > 1]
        wanted = math.gcd(step, *later) or spacing
        taken.append((wanted // spacing, dilation // math.gcd(dilation, spacing)))
        spacing = wanted
    return tuple(taken)


class BandNet(nnx.Module):
    """[M, h, w, in_channels] -> logits [M, rows, columns, K] of the windows in there.

    A convolution, residual blocks, and a dense layer that sees one window each. Along a
    cut axis h (or w) is window + n * stride, for any n >= 0; the other one is whole.

    Args:
      windows: along height and width the pixels of a window, None where kept whole.
      stride: of the windows, pixels.
      in_channels: colours, their complements and positions.
      num_classes: K.
      width: channels of the first layer.
      depth: residual blocks.
      rngs: draws the initial weights.
    """

    def __init__(
        self,
        windows: tuple[int | None, int | None],
        *,
        stride: int,
        in_channels: int,
        num_classes: int,
        width: int,
        depth: int,
        rngs: nnx.Rngs,
    ):
        self.windows, self.stride = windows, stride
        whole = tuple(window is None for window in windows)
        self.whole_axes = tuple(1 + axis for axis in (0, 1) if whole[axis])
        self.kernels = tuple(
            ((3, 1),) * (depth + 1)
            if window is None
            else window_kernels(window, depth + 1)
            for window in windows
        )
        stem, *blocks = (
            tuple(extent for extent, _ in layer)
            for layer in zip(*self.kernels, strict=True)
        )
        self.stem_conv = _Conv(stem, in_channels, width, whole, rngs)
        self.stem_norm = _norm(width, rngs)
        self.block_names: tuple[str, ...] = ()
        channels = width
        for index, extents in enumerate(blocks):
            # Every second block doubles the channels, beginning with the second.
            features = width * 2 ** ((index + 1) // 2)
            name = f"block{index + 1:02d}"
            block = _Block(extents, channels, features, whole, index % 2, rngs)
            setattr(self, name, block)
            self.block_names += (name,)
            channels = features
        pooled = 2 * channels if self.whole_axes else channels
        self.head = nnx.Linear(pooled, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M h w c"]) -> Float[Array, "M rows columns K"]:
        per_axis = [self._steps(axis, x.shape[1 + axis]) for axis in (0, 1)]
        stem, *blocks = zip(*per_axis, strict=True)
        x = jax.nn.relu(self.stem_norm(self.stem_conv(x, stem)))
        for name, steps in zip(self.block_names, blocks, strict=True):
            x = getattr(self, name)(x, steps)
        if self.whole_axes:
            mean = x.mean(self.whole_axes, keepdims=True)
            x = jnp.concatenate([mean, x.max(self.whole_axes, keepdims=True)], axis=-1)
        return self.head(x)

    def _steps(self, axis: int, length: int) -> tuple[Step, ...]:
        """(stride, dilation) of the stem and of each block, for this input."""
        window, kernels = self.windows[axis], self.kernels[axis]
        if window is None:
            return _halvings(length, len(kernels))
        assert length >= window and (length - window) % self.stride == 0, length
        return strides(kernels, 0 if length == window else self.stride)


class _Block(nnx.Module):
    """Two convolutions, the second one pixel wide along cut axes, and the shortcut."""

    def __init__(
        self,
        extents: tuple[int, int],
        in_channels: int,
        features: int,
        whole: tuple[bool, bool],
        parity: int,
        rngs: nnx.Rngs,
    ):
        # The shortcut continues the middle of the kernel, or of its two middles the
        # first and the second in turn. Where the axis is whole, padding has centred it.
        self.middle = tuple(
            0 if is_whole else (extent - 1 + parity) // 2
            for extent, is_whole in zip(extents, whole, strict=True)
        )
        narrow = tuple(3 if is_whole else 1 for is_whole in whole)
        self.conv1 = _Conv(extents, in_channels, features, whole, rngs)
        self.norm1 = _norm(features, rngs)
        self.conv2 = _Conv(narrow, features, features, whole, rngs)
        self.norm2 = _norm(features, rngs)
        self.has_projection = in_channels != features
        if self.has_projection:
            self.shortcut_conv = _Conv((1, 1), in_channels, features, whole, rngs)
            self.shortcut_norm = _norm(features, rngs)

    def __call__(
        self, x: Float[Array, "M h w c"], steps: tuple[Step, Step]
    ) -> Float[Array, "M h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(self.conv1(x, steps)))
        y = self.norm2(self.conv2(y))
        for axis, (stride, dilation) in enumerate(steps, start=1):
            first = self.middle[axis - 1] * dilation
            stop = first + (y.shape[axis] - 1) * stride + 1
            x = jax.lax.slice_in_dim(x, first, stop, stride, axis)
        if self.has_projection:
            x = self.shortcut_norm(self.shortcut_conv(x))
        return jax.nn.relu(x + y)


class _Conv(nnx.Module):
    """A convolution, without bias, that is told stride and dilation when it is called.

    Valid, except along whole axes, where zeros keep the extent.
    """

    def __init__(
        self,
        extents: tuple[int, int],
        in_channels: int,
        features: int,
        whole: tuple[bool, bool],
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.he_normal()
        shape = (*extents, in_channels, features)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.padding = tuple(
            (extent // 2,) * 2 if is_whole else (0, 0)
            for extent, is_whole in zip(extents, whole, strict=True)
        )

    def __call__(
        self,
        x: Float[Array, "M h w c"],
        steps: tuple[Step, Step] = ((1, 1), (1, 1)),
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


def _halvings(length: int, num_layers: int) -> tuple[Step, ...]:
    """(stride, dilation) along a whole axis: every block halves it, down to 2."""
    steps: list[Step] = [(1, 1)]
    for _ in range(num_layers - 1):
        steps.append((2 if length > 2 else 1, 1))
        length = -(-length // steps[-1][0])
    return tuple(steps)


def _cut_axes(ablation: Ablation) -> tuple[bool, bool]:
    """Whether the ablation keeps less than the whole (height, width)."""
    if not isinstance(ablation, SingleWindow):
        raise TypeError(
            f"ablation={ablation!r} keeps several windows, and the receptive field of a "
            "bandnet is one; use Columns, Rows or Blocks, or a network that sees the "
            "masked image (resnet, small_cnn)"
        )
    return not isinstance(ablation, Columns), not isinstance(ablation, Rows)


def _crop_rectangle(crops: int, num_windows: tuple[int, int]) -> tuple[int, int]:
    """The most square (rows, columns) of windows with this product that exists."""
    fits = (
        [
            (rows, crops // rows)
            for rows in range(1, num_windows[0] + 1)
            if crops % rows == 0 and crops // rows <= num_windows[1]
        ]
        if crops >= 1
        else []
    )
    if not fits:
        raise ValueError(
            f"crops={crops} must be a rectangle of the {num_windows[0]} x "
            f"{num_windows[1]} windows of an image (rows x columns)"
        )
    return min(fits, key=lambda grid: abs(grid[0] - grid[1]))
