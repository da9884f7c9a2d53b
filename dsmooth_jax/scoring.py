"""Scores of every ablation of every image, for any base classifier.

A base classifier is a function ``scores_fn(images [B, H, W, C]) -> scores [B, P, K]``:
float32 images in [0, 1] to the softmax of each ablation. The contract on which every
certificate rests: the score of ablation p depends on no pixel that p hides, on no other
image and not on the batch size. There are three ways to make one: `masked_scores` (of
any image classifier; P passes), `cropped_scores` (of a classifier of windows; P small
passes) and `one_pass_scores` (of a network whose receptive field is the window).
`score` runs one over many images. This module knows no labels.

A function that closes over its weights works, but JAX compiles them into the program as
constants. ``jax.tree_util.Partial(fn, weights)`` makes them arguments: the same result,
and a large model compiles as fast as a small one. Functions made here are Partials.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dsmooth_jax import compiling
from dsmooth_jax.ablation import (
    Ablation,
    SingleWindow,
    check_ablation,
    check_single_window,
)
from dsmooth_jax.checks import check_count
from dsmooth_jax.masking import (
    ablate_at,
    check_images,
    crop_at,
    to_unit,
    window_starts,
)
from dsmooth_jax.types import Scores
from dsmooth_jax.wording import counted

ScoresFn = Callable[[Array], Array]
"""float32 images [B, H, W, C] -> scores [B, P, K]; pure and traceable."""

MATMUL_PRECISION = "highest"
"""Scores are computed in full float32; accelerators would default to less."""


def masked_scores(
    logits_fn: Callable[[Array], Array], ablation: Ablation, *, chunk_size: int = 8
) -> ScoresFn:
    """Makes a base classifier of any classifier of NULL-encoded images.

    Args:
      logits_fn: [M, H, W, 2C] -> [M, K], any JAX function; row m of its result must
        depend on row m of its argument only (so: batch statistics fixed).
      ablation: the ablation.
      chunk_size: ablations of each image run at a time. It bounds memory and changes no
        score beyond float rounding.

    Returns:
      A scores_fn: images [B, H, W, C] -> scores [B, P, K].

    Raises:
      ValueError: chunk_size < 1.

    Guarantee:
      Ablated images are selected, not multiplied, so score p depends on no pixel that
      ablation p hides, for every logits_fn that keeps to the above.
    """
    check_count("chunk_size", chunk_size)
    check_ablation(ablation)
    return Partial(_MaskedScores(ablation, chunk_size), bound("logits_fn", logits_fn))


def cropped_scores(
    logits_fn: Callable[[Array, Array], Array],
    ablation: SingleWindow,
    *,
    chunk_size: int = 8,
) -> ScoresFn:
    """Makes a base classifier of a classifier of windows that is told where they start.

    Args:
      logits_fn: (windows [M, h, w, 2C], starts int [M, 2]) -> [M, K], any JAX function;
        row m of its result must depend on row m of its arguments only.
      ablation: `Columns`, `Rows` or `Blocks`.
      chunk_size: as in `masked_scores`.

    Returns:
      A scores_fn: images [B, H, W, C] -> scores [B, P, K].

    Raises:
      TypeError: an ablation that keeps several windows.
      ValueError: chunk_size < 1.

    Guarantee:
      logits_fn never gets a pixel that the ablation hides. `check_locality` tests that
      it keeps the rows of its arguments apart.
    """
    check_count("chunk_size", chunk_size)
    check_single_window(ablation)
    return Partial(_CroppedScores(ablation, chunk_size), bound("logits_fn", logits_fn))


def one_pass_scores(
    logits_fn: Callable[[Array], Array],
    ablation: Ablation,
    *,
    run_logits_fn: Callable[[Array, Array, int], Array] | None = None,
) -> ScoresFn:
    """Makes a base classifier of a network that gives all P logits in a single pass.

    Args:
      logits_fn: [B, H, W, C] -> [B, P, K], a JAX function of float32 images in [0, 1];
        entry p must depend only on the pixels that ablation p keeps.
      ablation: the ablation, whose order the P logits follow.
      run_logits_fn: the same network, for few ablations: (images, first int [B],
        count) -> [B, count, K], those of ``count`` ablations from the first on, around
        the end. It makes `some_scores` faster; no certificate uses it.

    Returns:
      A scores_fn: images [B, H, W, C] -> scores [B, P, K].

    Guarantee:
      None by construction: all rests on the receptive field of logits_fn. Prove it with
      `check_locality` before certifying anything, as certify.py does.
    """
    check_ablation(ablation)
    run_fn = None if run_logits_fn is None else bound("run_logits_fn", run_logits_fn)
    return Partial(_OnePassScores(ablation), bound("logits_fn", logits_fn), run_fn)


def some_scores(
    scores_fn: ScoresFn,
    images: Float[Array, "B H W C"],
    index: Int[Array, "B m"],
    *,
    is_run: bool = False,
) -> Float[Array, "B m K"]:
    """Scores of some ablations of each image: for attacks, not for certificates.

    Traceable and differentiable. What the functions of this module make computes no
    more than is asked; of others all scores are computed, and some taken.

    Args:
      scores_fn: the base classifier.
      images: float32 [B, H, W, C] in [0, 1].
      index: int [B, m], ablations in 0..P-1.
      is_run: whether they follow one another in each row, the first after the last.

    Returns:
      float32 [B, m, K], those of ``scores_fn(images)`` up to float rounding.
    """
    fn = bound("scores_fn", scores_fn)
    made: Any = fn.func
    if hasattr(made, "some"):
        return made.some(*fn.args, images, index, is_run)
    return jnp.take_along_axis(fn(images), index[:, :, None], axis=1)


def is_masked(scores_fn: ScoresFn) -> bool:
    """Whether `masked_scores` made it: no hidden pixel can reach its classifier."""
    return isinstance(scores_fn, Partial) and isinstance(scores_fn.func, _MaskedScores)


# The static halves of the three. Equal values are equal to JAX: one compilation. `some`
# is what `some_scores` asks.


@dataclasses.dataclass(frozen=True)
class _MaskedScores:
    ablation: Ablation
    chunk_size: int

    def __call__(
        self, logits_fn: Partial, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        def chunk_logits(chunk):  # int [size] -> [B size, K]
            inputs = ablate_at(images, self.ablation, chunk)
            return logits_fn(inputs.reshape(-1, *inputs.shape[2:]))

        num_ablations = self.ablation.num_ablations(images.shape[1:3])
        return _in_chunks(chunk_logits, len(images), num_ablations, self.chunk_size)

    def some(
        self, logits_fn: Partial, images: Array, index: Array, is_run: bool
    ) -> Array:
        def chunk_logits(chunk):  # places in index, int [size] -> [B size, K]
            ablated = jax.vmap(lambda x, p: ablate_at(x[None], self.ablation, p)[0])
            inputs = ablated(images, index[:, chunk])
            return logits_fn(inputs.reshape(-1, *inputs.shape[2:]))

        return _in_chunks(chunk_logits, len(index), index.shape[1], self.chunk_size)


@dataclasses.dataclass(frozen=True)
class _CroppedScores:
    ablation: SingleWindow
    chunk_size: int

    def __call__(
        self, logits_fn: Partial, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        starts = jnp.asarray(window_starts(self.ablation, images.shape[1:3]))

        def chunk_logits(chunk):  # int [size] -> [B size, K]
            windows = crop_at(images, self.ablation, starts[chunk])
            where = jnp.tile(starts[chunk], (len(images), 1))
            return logits_fn(windows.reshape(-1, *windows.shape[2:]), where)

        return _in_chunks(chunk_logits, len(images), len(starts), self.chunk_size)

    def some(
        self, logits_fn: Partial, images: Array, index: Array, is_run: bool
    ) -> Array:
        starts = jnp.asarray(window_starts(self.ablation, images.shape[1:3]))

        def chunk_logits(chunk):  # places in index, int [size] -> [B size, K]
            where = starts[index[:, chunk]]
            cropped = jax.vmap(lambda x, s: crop_at(x[None], self.ablation, s)[0])
            windows = cropped(images, where)
            flat = windows.reshape(-1, *windows.shape[2:])
            return logits_fn(flat, where.reshape(-1, 2))

        return _in_chunks(chunk_logits, len(index), index.shape[1], self.chunk_size)


@dataclasses.dataclass(frozen=True)
class _OnePassScores:
    ablation: Ablation

    def __call__(
        self, logits_fn: Partial, _: Partial | None, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B P K"]:
        logits = logits_fn(images)
        expected = (len(images), self.ablation.num_ablations(images.shape[1:3]))
        if logits.ndim != 3 or logits.shape[:2] != expected or logits.shape[2] < 2:
            raise ValueError(
                f"logits_fn returned shape {logits.shape}; it must be [{expected[0]}, "
                f"{expected[1]}, K], one for each ablation of {self.ablation}"
            )
        return softmax(logits)

    def some(
        self,
        logits_fn: Partial,
        run_fn: Partial | None,
        images: Array,
        index: Array,
        is_run: bool,
    ) -> Array:
        if is_run and run_fn is not None:
            return softmax(run_fn(images, index[:, 0], index.shape[1]))
        scores = self(logits_fn, run_fn, images)
        return jnp.take_along_axis(scores, index[:, :, None], axis=1)


def _in_chunks(
    chunk_logits: Callable[[Array], Array],
    batch: int,
    num_ablations: int,
    chunk_size: int,
) -> Float[Array, "B P K"]:
    """Softmax of all ablations, ``chunk_size`` of each image at a time."""
    size = min(chunk_size, num_ablations)
    num_chunks = -(-num_ablations // size)
    # The last chunk is filled up by repeating ablations, which are cut off again.
    index = jnp.arange(num_chunks * size) % num_ablations

    def chunk_scores(chunk):  # int [size] -> [B, size, K]
        logits = chunk_logits(chunk)
        if logits.ndim != 2 or len(logits) != batch * size or logits.shape[1] < 2:
            raise ValueError(
                f"logits_fn returned shape {logits.shape} for {batch * size} ablated "
                f"images; it must be [{batch * size}, K] with K >= 2 classes"
            )
        return softmax(logits).reshape(batch, size, -1)

    # Where it is differentiated, a chunk is computed again, not kept.
    chunk_scores = jax.checkpoint(chunk_scores)
    chunks = jax.lax.map(chunk_scores, index.reshape(num_chunks, size))
    scores = jnp.moveaxis(chunks, 0, 1)  # [B, num_chunks, size, K]
    return scores.reshape(batch, num_chunks * size, -1)[:, :num_ablations]


def softmax(logits: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """The softmax in float32, never above 1 (rounding could put it there)."""
    return jnp.minimum(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), 1)


def score(
    scores_fn: ScoresFn, images: Array | np.ndarray, *, batch_size: int = 32
) -> Scores:
    """Scores every ablation of every image.

    Batches are padded to one size and dealt over all local devices; the function is
    compiled once for each (scores_fn, image shape, batch size), also across calls.

    Args:
      scores_fn: the base classifier; reuse one function object to reuse its
        compilation.
      images: [N, H, W, C], floating in [0, 1] or uint8. N = 0 works.
      batch_size: images at a time, rounded up to a multiple of the device count. It
        only runs faster or slower.

    Returns:
      NumPy float32 [N, P, K].

    Raises:
      TypeError, ValueError: images or batch_size are not as above, or scores_fn does
        not return [B, P, K].

    Guarantee:
      What is certified is this function as executed, at full float32 precision.
      Padding, neighbours and batch_size change an image's scores by float rounding at
      most (about 1e-6; votes within that of the threshold may differ).
    """
    images = check_images(images)
    check_count("batch_size", batch_size)
    batch_size = padded_batch_size(batch_size)
    batch_shape = (batch_size, *images.shape[1:])
    num_images = len(images)
    run = functools.partial(score_batch, scores_fn)
    dtype = jax.dtypes.canonicalize_dtype(images.dtype)
    shape = jax.eval_shape(run, jax.ShapeDtypeStruct(batch_shape, dtype)).shape
    if len(shape) != 3 or shape[0] != batch_size or shape[1] < 1 or shape[2] < 2:
        raise ValueError(
            f"scores_fn returned shape {shape} for {counted(batch_size, 'image')}; "
            "it must be [B, P, K] with K >= 2"
        )
    scores = np.empty((num_images, *shape[1:]), np.float32)
    running: list[tuple[int, Array]] = []
    for start in range(0, num_images, batch_size):
        batch = np.asarray(images[start : start + batch_size], dtype)
        padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
        running.append((start, run(np.pad(batch, padding))))
        # JAX does not wait for a result: the device has the next batch before the last
        # one's scores are fetched, so it never waits for the host.
        if len(running) > 1:
            _fetch(*running.pop(0), scores)
    for start, result in running:
        _fetch(start, result, scores)
    return scores


def _fetch(start: int, result: Array, scores: Scores) -> None:
    """Waits for the scores of a batch and puts them in their place, unpadded."""
    place = scores[start : start + len(result)]
    place[:] = np.asarray(result)[: len(place)]


def padded_batch_size(batch_size: int) -> int:
    """The multiple of the device count that batches are padded to."""
    num_devices = jax.local_device_count()
    return -(-batch_size // num_devices) * num_devices


def score_batch(scores_fn: ScoresFn, batch: Array | np.ndarray) -> Array:
    """Scores one padded batch by the compiled program of `score`; checks nothing."""
    return _score_batch(bound("scores_fn", scores_fn), batch)


@compiling.jit
def _score_batch(scores_fn: Partial, batch: Array) -> Array:
    def share(scores_fn, images):
        return scores_fn(to_unit(images)).astype(jnp.float32)

    return dealt(share, scores_fn, batch)


def dealt(fn: Callable[..., Any], kept: Any, *batches: Array) -> Any:
    """``fn(kept, *batches)``, each device its share of them, without communication."""
    mesh = jax.make_mesh(
        (jax.local_device_count(),),
        ("batch",),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices(),
    )
    shares = PartitionSpec("batch")

    def share(kept, *batches):
        with jax.default_matmul_precision(MATMUL_PRECISION):
            return fn(kept, *batches)

    specs = (PartitionSpec(), *(shares for _ in batches))
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=shares)(
        kept, *batches
    )


def bound(name: str, fn: Callable) -> Partial:
    """The function as a PyTree: its bound arrays are leaves, the rest is static."""
    if not callable(fn):
        raise TypeError(f"{name}={fn!r} must be a function of arrays")
    return fn if isinstance(fn, Partial) else Partial(fn)
