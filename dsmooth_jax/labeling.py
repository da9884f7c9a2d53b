"""The class of every image under every pair of masks, for any image classifier.

A classifier is a function ``logits_fn(inputs [B, H, W, 2C]) -> logits [B, K]`` of
NULL-encoded images: hidden pixels are (0, 0), see `masking`. One that was made for
plain colors takes a constant in their place (``fill``). The contract on which every
certificate rests: row b of its result depends on row b of its argument only.

Pixels are hidden by selection, so the class under masks i and j depends on no pixel
that either hides. Passes are dealt in batches of one size over all local devices, by
one compiled program, whichever image and pair they belong to. That lets an image stop
as soon as nothing more is worth asking.

Source: the order of the passes is PatchCleanser's two rounds (Xiang et al., USENIX
Security 2022, arXiv:2108.09135, section 3.2).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from dsmooth_jax import compiling
from dsmooth_jax.checks import check_count, check_range
from dsmooth_jax.double_masking import (
    MOST_CLASSES,
    NOT_COMPUTED,
    UNSURE,
    double_masking_predict,
    in_doubt,
    nominal,
)
from dsmooth_jax.masking import check_images, encode, to_unit
from dsmooth_jax.masks import Masks, covering
from dsmooth_jax.scoring import bound, dealt, padded_batch_size, softmax
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import Table
from dsmooth_jax.voting import TOLERANCE, check_tolerance

LogitsFn = Callable[[Array], Array]
"""Inputs [B, H, W, 2C] -> logits [B, K]; with a fill, of [B, H, W, C]."""

Until = Literal["predicted", "certified", "complete"]

_PAIRS_AT_A_TIME = 8  # of one image, before it is looked at again


def mask_labels(
    logits_fn: LogitsFn,
    masks: Masks,
    images: Array | np.ndarray,
    *,
    fill: float | None = None,
    early_exit: bool = False,
    confidence: float = 0.0,
    tolerance: float = TOLERANCE,
    batch_size: int = 256,
) -> Table:
    """Classifies every image under every pair of masks.

    Args:
      logits_fn: [B, H, W, 2C] -> [B, K], any JAX function of NULL-encoded images; with
        a fill [B, H, W, C] -> [B, K]. Row b must depend on row b only.
      masks: the masks, for example of `covering_masks`.
      images: [N, H, W, C], floating in [0, 1] or uint8. N = 0 works.
      fill: None hides pixels as NULL, (0, 0). A number in [0, 1] is the value that all
        channels of a hidden pixel get, for a classifier of plain colors.
      early_exit: whether an image stops that cannot be certified any more, against any
        patch that the masks cover. What is left is `NOT_COMPUTED`; predictions and
        certificates are those of the whole table.
      confidence: in [0, 1). Under two masks a class whose score is lower is `UNSURE`,
        and agrees with none. More of it is more clean accuracy for less certified: rows
        are believed against the majority, rightly or not, only where all are sure.
      tolerance: by how much a score may differ elsewhere, in [0, 1). A class that this
        could change is marked as in doubt, and certifies nothing.
      batch_size: passes at a time, rounded up to a multiple of the device count. It
        only runs faster or slower.

    Returns:
      NumPy int16 [N, M, M], symmetric, as `certify_double_masking` takes it. Entry
      (i, j) is the class with masks i and j hidden, (i, i) with mask i alone; of equal
      scores the smaller class.

    Raises:
      TypeError, ValueError: arguments that are none of these; logits_fn does not return
        [B, K], or returns NaN.

    Guarantee:
      Entry (i, j) depends on no pixel that mask i or mask j hides, whatever is in it,
      if logits_fn keeps its rows apart. Neighbours and batch_size change a score by
      rounding at most, and so the entry only where it is in doubt or `UNSURE`.
    """
    return fill_table(
        logits_fn,
        masks,
        images,
        until="certified" if early_exit else "complete",
        fill=fill,
        confidence=confidence,
        tolerance=tolerance,
        batch_size=batch_size,
    )


def fill_table(
    logits_fn: LogitsFn,
    masks: Masks,
    images: Array | np.ndarray,
    *,
    until: Until,
    fill: float | None,
    confidence: float,
    tolerance: float,
    batch_size: int,
) -> Table:
    """As `mask_labels`; ``until`` says when an image stops.

    "predicted": once the prediction is that of the whole table, whatever follows;
    "certified": once certificates are, too, against every patch that the masks cover;
    "complete": never.
    """
    images = check_images(images)
    check_count("batch_size", batch_size)
    check_settings(fill, confidence, tolerance)
    size = images.shape[1:3]
    # Whatever a mask covers, it covers each pixel of: an image that is lost against one
    # pixel is lost against every patch.
    covers = covering(masks, Patch(1, 1), size)
    settings = _Label(fill, float(confidence), float(tolerance))
    label = Partial(settings, bound("logits_fn", logits_fn))
    batch_size = padded_batch_size(batch_size)
    hidden = jnp.asarray(masks.hide_masks(size))
    pixels = np.asarray(images, jax.dtypes.canonicalize_dtype(images.dtype))
    num_images, num_masks = len(images), covers.shape[1]
    table = np.full((num_images, num_masks, num_masks), NOT_COMPUTED, np.int16)
    image = np.arange(num_images).repeat(num_masks)
    first = second = np.tile(np.arange(num_masks), num_images)
    _check_classifier(label, hidden, pixels, batch_size)
    active = np.arange(num_images)
    while len(image):
        found = _label_all(label, hidden, pixels, (image, first, second), batch_size)
        table[image, first, second] = table[image, second, first] = found
        row = _next_rows(table[active], covers, until)
        active, row = active[row >= 0], row[row >= 0]
        is_asked = table[active, row] == NOT_COMPUTED
        if until != "complete":
            # A batch costs what it costs: few images fill it with more pairs of each.
            most = max(_PAIRS_AT_A_TIME, batch_size // max(1, len(active)))
            is_asked &= is_asked.cumsum(axis=1) <= most
        index, second = np.nonzero(is_asked)
        image, first = active[index], row[index]
    return table


def check_settings(fill: float | None, confidence: float, tolerance: float) -> None:
    """Raises unless they are as `mask_labels` takes them."""
    check_tolerance(tolerance)
    check_range("confidence", confidence, least=0, below=1)
    if fill is not None:
        check_range("fill", fill, least=0)
        if fill > 1:
            raise ValueError(f"fill={fill} must be in [0, 1], or None for NULL")


def _next_rows(table: Table, covers: np.ndarray, until: Until) -> np.ndarray:
    """int64 [N], the row to go on with, or -1 where an image stops."""
    is_known = table != NOT_COMPUTED
    is_open = ~is_known.all(axis=2)  # [N, M]
    if until == "complete":
        return _first(is_open)
    # Second round of the prediction. A row whose single class is not the prediction may
    # still be believed: it must be refuted, or known wholly. Then it is the prediction.
    classes = nominal(table)
    singles = np.diagonal(classes, axis1=1, axis2=2)
    prediction = double_masking_predict(table)
    is_refuted = (is_known & (classes != singles[:, :, None])).any(axis=2)
    is_rival = is_open & ~is_refuted & (singles != prediction[:, None])
    if until == "predicted":
        return _first(is_rival)
    # Rows that may yet agree on the prediction; lost where a pixel has none left.
    is_dead = (is_known & (table != prediction[:, None, None])).any(axis=2)
    num_left = np.logical_not(is_dead).astype(np.float32) @ covers.T.astype(np.float32)
    is_lost = (num_left == 0).any(axis=1)
    is_wanted = is_open & ~is_dead & ~is_lost[:, None]
    return np.where(is_rival.any(axis=1), _first(is_rival), _first(is_wanted))


def _first(flags: np.ndarray) -> np.ndarray:
    """Bool [N, M] -> int64 [N]: the first that is True, -1 where none is."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1), -1)


@dataclasses.dataclass(frozen=True)
class _Label:
    """The static half. Equal values are equal to JAX: one compilation."""

    fill: float | None
    confidence: float
    tolerance: float

    def __call__(
        self,
        logits_fn: Partial,
        hidden: Array,  # bool [M, H, W]
        images: Array,  # [B, H, W, C]
        first: Array,  # int [B]
        second: Array,
    ) -> Array:
        """int32 [B], as in a table; `NOT_COMPUTED` where a score is NaN."""
        is_hidden = (hidden[first] | hidden[second])[..., None]
        pixels = to_unit(images)
        if self.fill is None:
            inputs = jnp.where(is_hidden, jnp.float32(0), encode(pixels))
        else:
            inputs = jnp.where(is_hidden, jnp.float32(self.fill), pixels)
        logits = logits_fn(inputs)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"logits_fn returned shape {logits.shape} for {len(images)} images; it "
                f"must be [{len(images)}, K]"
            )
        if not 2 <= logits.shape[1] <= MOST_CLASSES:
            raise ValueError(
                f"logits_fn returned {logits.shape[1]} classes; it must be "
                f"2..{MOST_CLASSES}"
            )
        scores = softmax(logits)
        best, next_best = jax.lax.top_k(scores, 2)[0].T
        classes = scores.argmax(axis=1).astype(jnp.int32)
        # One mask alone is always believed, as far as it is firm.
        least = jnp.where(first == second, 0.0, self.confidence)
        is_firm = best - next_best > 2 * self.tolerance
        is_firm &= best > least + self.tolerance
        classes = jnp.where(is_firm, classes, in_doubt(classes))
        classes = jnp.where(best < least, UNSURE, classes)
        is_nan = jnp.isnan(scores).any(axis=1)
        return jnp.where(is_nan, NOT_COMPUTED, classes)


@compiling.jit
def _label_batch(label: Partial, hidden: Array, *batch: Array) -> Array:
    return dealt(lambda kept, *share: kept[0](kept[1], *share), (label, hidden), *batch)


def _check_classifier(
    label: Partial, hidden: Array, images: np.ndarray, batch_size: int
) -> None:
    """Raises what the classifier's shapes give reason for, also where N = 0."""
    index = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), images.dtype)
    jax.eval_shape(label, hidden, batch, index, index)


def _label_all(
    label: Partial,
    hidden: Array,
    images: np.ndarray,
    passes: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """int16 [Q], the entries of Q passes (image, first mask, second mask)."""
    found = np.empty(len(passes[0]), np.int16)
    for start in range(0, len(found), batch_size):
        part = slice(start, start + batch_size)
        image, first, second = (index[part] for index in passes)
        padding = (0, batch_size - len(image))
        batch = np.pad(images[image], [padding, (0, 0), (0, 0), (0, 0)])
        pair = (np.pad(index.astype(np.int32), padding) for index in (first, second))
        found[part] = _label_batch(label, hidden, batch, *pair)[: len(image)]
    if (found == NOT_COMPUTED).any():
        wrong = int((found == NOT_COMPUTED).argmax())
        raise ValueError(
            f"logits_fn returned NaN for image {passes[0][wrong]} under masks "
            f"{passes[1][wrong]} and {passes[2][wrong]}"
        )
    return found
