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

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dsmooth_jax import masking, scoring
from dsmooth_jax.ablation import Ablation, Columns, Rows, SingleWindow, thinned
from dsmooth_jax.models.band_layers import BandNet, window_kernels
from dsmooth_jax.models.band_views import (
    mirror_images,
    over_run_views,
    over_views,
    whole_axis,
)
from dsmooth_jax.models.base import BaseClassifier, Variables, check_task, network

_WIDEST = 2**15
"""Channels of a layer; one of 2**16 has 52 GB of parameters in a 3x3 convolution."""


@dataclass(frozen=True)
class BandNetwork:
    """One network, read in three ways: pure functions, all traceable.

    Attributes:
      init: key -> variables, see `base.Network`.
      image_logits: (variables, images [B, H, W, C] float32 in [0, 1]) -> [B, P, K], the
        logits of every ablation, in evaluation mode.
      window_logits: (variables, windows [M, h, w, 2C] as `masking.crop` cuts them, and
        int [M, 2], the (row, column) at which each starts) -> [M, K], likewise.
      train_logits: (variables, images, int [B, 2]) -> ([B, n, K], batch_stats), in
        training mode: the logits of a rectangle of n windows of each image, row-major,
        the first at the given (row, column), neighbours one stride apart.
      drawn_logits: (variables, images, int [B, 2]) -> [B, n, K]: the same rectangle, in
        evaluation mode.
      train_image_logits: (variables, images) -> ([B, P, K], batch_stats), in training
        mode: the logits of every ablation.
      run_logits: (variables, images, first int [B], count) -> [B, count, K], in
        evaluation mode: those of ``count`` ablations of each image, one after the other
        around the edge; None where neighbours are not one stride apart.
    """

    init: Callable[[Array], Variables]
    image_logits: Callable[[Variables, Array], Array]
    window_logits: Callable[[Variables, Array, Array], Array]
    train_logits: Callable[[Variables, Array, Array], tuple[Array, dict[str, Any]]]
    drawn_logits: Callable[[Variables, Array, Array], Array]
    train_image_logits: Callable[[Variables, Array], tuple[Array, dict[str, Any]]]
    run_logits: Callable[[Variables, Array, Array, int], Array] | None


def bandnet(
    ablation: Ablation,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    max_width: int | None = None,
    depth: int = 6,
    halve: Sequence[int] | None = None,
    crops: int = 4,
    mirror: bool = False,
    shift: int = 0,
    chunk_size: int = 8,
) -> BaseClassifier:
    """A base classifier that scores all ablations of an image in one pass.

    It trains on `crops` neighbouring windows of each image, the first of them drawn
    uniformly. (Where the stride does not divide the image, neighbours across the edge
    are windows between two ablations: as good to train on.)

    Args:
      ablation: `Columns`, `Rows` or `Blocks`, of any stride.
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.
      width: channels of the first layer; they double in every second block,
        up to `max_width`.
      max_width: the most channels a layer has, >= width; None for no limit.
      depth: residual blocks.
      halve: the numbers, from 1, of the blocks that halve an axis that the ablation
        keeps whole, until 2 pixels are left; None for all of them. A block that does
        not costs twice the work of one that does.
      crops: windows of each image in a training step; for blocks, a rectangle of
        windows, as square as the number allows.
      mirror: whether scores are those of the mean logits of each window and of its
        mirror image, which the same pixels make: twice the work. It wants a network
        trained on flipped images.
      shift: pixels, >= 0; if not 0, scores are those of the mean logits of each window
        as it is and moved by so many pixels both ways along the axis that the ablation
        keeps whole (zeros take the place of what moves out): three times the work. It
        wants a network trained on shifted images.
      chunk_size: on an accelerator these views, up to 6, are read as one batch if they
        are no more than this, else one after the other; it bounds memory.

    Raises:
      TypeError: an ablation that keeps several windows.
      ValueError: an argument is out of range, or the window does not fit the image, or
        a window's mirror image is none of the ablation's (strides only), or a shift for
        blocks, which keep no axis whole.

    Guarantee:
      In evaluation mode the scores of ablation p depend on no pixel that p hides, on no
      other image and not on the batch size.
    """
    make = functools.partial(
        band_network,
        image_shape=image_shape,
        num_classes=num_classes,
        width=width,
        max_width=max_width,
        depth=depth,
        halve=halve,
    )
    net = make(ablation, crops=crops)
    size = (image_shape[0], image_shape[1])
    ablation = _check_ablation(ablation)
    starts = masking.window_starts(ablation, size)
    image_logits, run_logits = net.image_logits, net.run_logits
    if shift or mirror:
        axis = whole_axis(ablation, size, shift) if shift else 1
        mirrors = mirror_images(ablation, size) if mirror else None
        image_logits = over_views(image_logits, axis, shift, mirrors, chunk_size)
        if run_logits is not None:
            run_logits = over_run_views(run_logits, axis, shift, mirrors)

    def draw(key: Key[Array, ""], count: int) -> Int[Array, "B 2"]:
        return jnp.asarray(starts)[jax.random.randint(key, (count,), 0, len(starts))]

    def train_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "B n K"], dict[str, Any]]:
        return net.train_logits(variables, images, draw(key, len(images)))

    def drawn_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> Float[Array, "B n K"]:
        return net.drawn_logits(variables, images, draw(key, len(images)))

    def train_all_logits(
        variables: Variables, images: Float[Array, "B H W C"], every: int
    ) -> tuple[Float[Array, "B P K"], dict[str, Any]]:
        thin_net = make(thinned(ablation, every), crops=1)
        return thin_net.train_image_logits(variables, images)

    def scores_fn(variables: Variables) -> scoring.ScoresFn:
        logits_fn = Partial(image_logits, variables)
        run_fn = None if run_logits is None else Partial(run_logits, variables)
        return scoring.one_pass_scores(logits_fn, ablation, run_logits_fn=run_fn)

    return BaseClassifier(
        net.init, train_logits, drawn_logits, train_all_logits, scores_fn
    )


def band_network(
    ablation: Ablation,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    max_width: int | None = None,
    depth: int = 6,
    halve: Sequence[int] | None = None,
    crops: int = 4,
) -> BandNetwork:
    """The network of `bandnet`, reading by reading; arguments and errors as there."""
    check_task(image_shape, num_classes)
    for name, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value} must be >= 1")
    if max_width is not None and max_width < width:
        raise ValueError(f"max_width={max_width} must be >= width, {width}, or None")
    if max_width is None and width * 2 ** (depth // 2) > _WIDEST:
        raise ValueError(
            f"depth={depth} doubles width={width} in every second block, to more than "
            f"{_WIDEST:,} channels, which no memory holds; set max_width, for example "
            "512, or lower one of them"
        )
    if halve is not None and not {*halve} <= {*range(1, depth + 1)}:
        raise ValueError(
            f"halve={list(halve)} must be numbers of blocks, in 1..{depth}, or None, "
            "for all of them"
        )
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
            max_width=max_width,
            depth=depth,
            halve=halve,
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

    def whole(images: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        """The inputs that hold every window."""
        return crop(images, jnp.zeros((len(images), 2), jnp.int32), num_windows)

    def image_logits(
        variables: Variables, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        logits = net.logits(variables, whole(images))
        return logits.reshape(len(images), -1, num_classes)

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

    def drawn_logits(
        variables: Variables, images: Float[Array, "B H W C"], starts: Int[Array, "B 2"]
    ) -> Float[Array, "B n K"]:
        logits = net.quick_logits(variables, crop(images, starts, rectangle))
        return logits.reshape(len(images), crops, num_classes)

    def train_image_logits(
        variables: Variables, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B P K"], dict[str, Any]]:
        logits, batch_stats = net.train_logits(variables, whole(images))
        return logits.reshape(len(images), -1, num_classes), batch_stats

    def run_logits(
        variables: Variables,
        images: Float[Array, "B H W C"],
        first: Int[Array, " B"],
        count: int,
    ) -> Float[Array, "B n K"]:
        starts = jnp.asarray(masking.window_starts(ablation, size))[first]
        counts = tuple(count if is_cut[a] else 1 for a in (0, 1))
        logits = net.logits(variables, crop(images, starts, counts))
        return logits.reshape(len(images), count, num_classes)

    # Along one axis, and the last window's neighbour is the first.
    is_ring = sum(is_cut) == 1 and size[is_cut.index(True)] % stride == 0
    return BandNetwork(
        net.init,
        image_logits,
        window_logits,
        train_logits,
        drawn_logits,
        train_image_logits,
        run_logits if is_ring else None,
    )


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
