"""Where an attack begins, and how it climbs: placements, rivals, contents.

A candidate is a placement of the patch in an image, a class that is to win there, and a
content. `first_candidates` chooses them by what the certificate leaves open and by the
gradient; `climb` improves contents, many candidates at once, on the grid of 8-bit
pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array
from numpy.lib.stride_tricks import sliding_window_view

from dsmooth_jax import compiling
from dsmooth_jax.attacks.patching import paste
from dsmooth_jax.attacks.study import Study
from dsmooth_jax.masking import to_unit
from dsmooth_jax.scoring import dealt, padded_batch_size
from dsmooth_jax.threat import Patch

_LARGEST_STEP, _SMALLEST_STEP = 0.15, 0.01
"""Of a climb, in units of the pixels' range; linear in between."""

MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Q placements with rivals and contents, in the order of their images.

    Attributes:
      image: int64 [Q], of the images that are attacked together.
      row: int64 [Q], the kind of placement, as in `Study`.
      corner: int64 [Q, 2], (row, column) of the patch's upper left pixel.
      rival: int64 [Q], the class that is to win.
      contents: uint8 [Q, h, w, C].
      margin: float32 [Q], what they reach; -inf where nothing was tried.
    """

    image: np.ndarray
    row: np.ndarray
    corner: np.ndarray
    rival: np.ndarray
    contents: np.ndarray
    margin: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def of(self, which: np.ndarray) -> "Candidates":
        """Some of them."""
        fields = dataclasses.fields(self)
        return Candidates(*(getattr(self, field.name)[which] for field in fields))

    def is_among_best(self, num: int) -> np.ndarray:
        """Bool [Q]: one of the so many of its image that reach most."""
        order = np.lexsort((-self.margin, self.image))
        begin = np.searchsorted(self.image, self.image)  # where its image begins
        is_best = np.empty(len(order), bool)
        is_best[order] = np.arange(len(order)) - begin < num
        return is_best


def first_candidates(
    margin_fn: Partial,
    study: Study,
    images: np.ndarray,
    active: np.ndarray,
    patch: Patch,
    *,
    ranks: range,
    tries_closed: bool,
    draw: Callable[[int, int], np.ndarray],
    batch_size: int,
) -> Candidates:
    """The candidates of these ranks, of each active image.

    Kinds of placement, each with its few nearest rivals, are ranked by what they
    promise, those that the certificate leaves open first; in each, corners by the
    gradient that the patch would cover, those first that beat their neighbours. After
    the last pair the first comes again, with its next corner.

    Args:
      margin_fn: of the victim.
      study: likewise.
      images: uint8 [N, H, W, C].
      active: int64 [n], the images to attack, increasing.
      patch: pixels.
      ranks: which ones.
      tries_closed: whether those that the certificate rules out come too, last.
      draw: (image, rank) -> uint8 [h, w, C], a content to begin with.
      batch_size: candidates at a time.
    """
    num_rivals = study.rival.shape[2]
    kinds, rivals, places = [], [], []
    for i in active:
        is_open = study.is_open[i]
        allowed = is_open | tries_closed | ~is_open.any()
        closed = ~np.repeat(is_open, num_rivals)
        order = np.lexsort((-study.promise[i].ravel(), closed))
        order = order[np.repeat(allowed, num_rivals)[order]]
        place, pair = np.divmod(np.array(ranks), len(order))
        kinds.append(order[pair] // num_rivals)
        rivals.append(study.rival[i].ravel()[order[pair]])
        places.append(place)
    if not len(active):
        none = np.zeros(0, np.int64)
        kinds = rivals = places = [none]
    image = np.repeat(active, len(ranks))
    row, rival, place = (np.concatenate(x) for x in (kinds, rivals, places))
    corner = np.zeros((len(image), 2), np.int64)
    for part in _batches(len(image), batch_size):
        known = study.known(image[part], row[part])
        own = study.prediction[image[part]]
        batch = (images[image[part]], own, rival[part], *known)
        covered = run_batch(_saliency, margin_fn, batch, batch_size)
        for q, gradient in zip(range(len(image))[part], covered, strict=True):
            is_mine = study.row == row[q]
            corner[q] = _corner(gradient, is_mine, patch, int(place[q]))
    contents = np.stack(
        [draw(i, rank) for i in active.tolist() for rank in ranks]
        or [np.zeros((patch.height, patch.width, images.shape[3]), np.uint8)]
    )[: len(image)]
    margin = np.full(len(image), -np.inf, np.float32)
    return Candidates(image, row, corner, rival, contents, margin)


def climb(
    margin_fn: Partial,
    study: Study,
    images: np.ndarray,
    candidates: Candidates,
    steps: int,
    *,
    batch_size: int,
) -> Candidates:
    """Improves contents by so many steps; the best on the way is kept.

    Args:
      margin_fn: of the victim.
      study: likewise.
      images: uint8 [N, H, W, C].
      candidates: what to begin with.
      steps: gradients; the content after the last step is judged, too.
      batch_size: candidates at a time.

    Returns:
      The candidates, with their best contents and what these reach.
    """
    contents = candidates.contents.copy()
    margin = candidates.margin.copy()
    fn = Partial(margin_fn), jnp.int32(steps)
    for part in _batches(len(candidates), batch_size):
        image = candidates.image[part]
        batch = (
            images[image],
            contents[part],
            margin[part],
            candidates.corner[part],
            study.prediction[image],
            candidates.rival[part],
            *study.known(image, candidates.row[part]),
        )
        contents[part], margin[part] = run_batch(_climb, fn, batch, batch_size)
    return dataclasses.replace(candidates, contents=contents, margin=margin)


def step_length(done: Any) -> Any:
    """How far each pixel moves, of the pixels' range, when so much is done, 0 to 1."""
    return _LARGEST_STEP + (_SMALLEST_STEP - _LARGEST_STEP) * done


def _corner(
    gradient: np.ndarray, is_mine: np.ndarray, patch: Patch, place: int
) -> np.ndarray:
    """The corner of this rank, int64 [2], of those that are marked in [Dh, Dw]."""
    windows = sliding_window_view(gradient, (patch.height, patch.width))
    covered = np.where(is_mine, windows.sum(axis=(2, 3)), -np.inf)
    reach = (patch.height // 2, patch.width // 2)
    padded = np.pad(covered, [(r, r) for r in reach], constant_values=-np.inf)
    nearby = sliding_window_view(padded, tuple(2 * r + 1 for r in reach))
    is_peak = covered >= nearby.max(axis=(2, 3))
    order = np.lexsort((-covered.ravel(), ~is_peak.ravel(), ~is_mine.ravel()))
    chosen = order[place % int(is_mine.sum())]
    return np.array(np.unravel_index(chosen, covered.shape))


def _batches(num: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, num, batch_size):
        yield slice(start, min(start + batch_size, num))


def run_batch(
    fn: Callable, kept: Any, batch: tuple[np.ndarray, ...], batch_size: int
) -> Any:
    """Runs a compiled function of a batch, filled up to one size and cut off again."""
    num, size = len(batch[0]), padded_batch_size(batch_size)
    filled = [np.resize(array, (size, *array.shape[1:])) for array in batch]
    filled = [x.astype(np.int32) if x.dtype == np.int64 else x for x in filled]
    return jax.tree.map(lambda x: np.asarray(x)[:num], fn(kept, *filled))


@compiling.jit
def _saliency(margin_fn: Partial, *batch: Array) -> Array:
    """[B, H, W], the size of the gradient at each pixel of the clean images."""

    def share(margin_fn: Partial, images: Array, *others: Array) -> Array:
        def total(pixels: Array) -> Array:
            return margin_fn(pixels, *others).sum()

        return jnp.abs(jax.grad(total)(to_unit(images))).sum(axis=3)

    return dealt(share, margin_fn, *batch)


@compiling.jit
def _climb(kept: tuple[Partial, Array], *batch: Array) -> tuple[Array, Array]:
    return dealt(_climb_share, kept, *batch)


def _climb_share(
    kept: tuple[Partial, Array],
    images: Array,  # uint8 [B, H, W, C]
    contents: Array,  # uint8 [B, h, w, C]
    reached: Array,  # float32 [B], by these contents
    corners: Array,
    *others: Array,
) -> tuple[Array, Array]:
    """(uint8 [B, h, w, C], float32 [B]): the best contents, what they reach."""
    margin_fn, steps = kept
    pixels = to_unit(images)

    def margins(contents: Array) -> tuple[Array, Array]:
        each = margin_fn(paste(pixels, contents, corners), *others)
        return each.sum(), each

    def keep_best(contents: Array, margin: Array, best: tuple) -> tuple:
        is_better = margin > best[1]
        kept = jnp.where(is_better[:, None, None, None], contents, best[0])
        return kept, jnp.maximum(margin, best[1])

    def step(i: Array, carry: tuple) -> tuple:
        contents, velocity, best = carry
        gradient, margin = jax.grad(margins, has_aux=True)(contents)
        best = keep_best(contents, margin, best)
        size = jnp.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
        velocity = MOMENTUM * velocity + gradient / jnp.maximum(size, 1e-20)
        length = step_length(i.astype(jnp.float32) / steps.astype(jnp.float32))
        contents = jnp.clip(contents + length * jnp.sign(velocity), 0, 1)
        return jnp.round(255 * contents) / 255, velocity, best

    begin = to_unit(contents)
    carry = (begin, jnp.zeros_like(begin), (begin, reached))
    last, _, best = jax.lax.fori_loop(0, steps, step, carry)
    contents, margin = keep_best(last, margins(last)[1], best)
    return jnp.round(255 * contents).astype(jnp.uint8), margin
