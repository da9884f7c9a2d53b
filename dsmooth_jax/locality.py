"""Does a base classifier keep its contract? A test that tries to break it.

A certificate rests on one thing that the votes cannot show: the score of ablation p
depends on no pixel that p hides, and on no other image. Networks leak in ways that are
easy to miss (a padding, a kernel one too wide, a normalisation over the image, batch
statistics), so the compiled function that will be certified is fed poison.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dsmooth_jax.ablation import Ablation, check_ablation
from dsmooth_jax.checks import check_count
from dsmooth_jax.scoring import (
    ScoresFn,
    padded_batch_size,
    score_batch,
)
from dsmooth_jax.types import ImageShape

_POISONS = (float("nan"), 1e30, -1e30, None)
"""What hidden pixels are set to; None: other pixels in [0, 1], drawn at random.

NaN finds almost every leak; ``jnp.where(x > 0, x, 0)`` swallows NaN, hence the
extremes; a network may saturate at those, hence the ordinary pixels."""


def check_locality(
    scores_fn: ScoresFn,
    ablation: Ablation,
    image_shape: ImageShape,
    *,
    ablations: Sequence[int] | None = None,
    batch_size: int = 32,
) -> None:
    """Raises if a score depends on a hidden pixel or on another image of the batch.

    Random images are scored, then again with every pixel that ablation p hides set to
    NaN, to +1e30 and -1e30, and to other ordinary pixels; the scores of p must be
    finite and stay the same to the last bit. Likewise with other images of the batch
    poisoned.

    Args:
      scores_fn: the base classifier, images [B, H, W, C] -> scores [B, P, K].
      ablation: what its P ablations keep.
      image_shape: (H, W, C).
      ablations: which of them to try, in 0..P-1; None: all, which takes 4 P /
        batch_size batches. For `masked_scores`, whose batches cost P passes, take few.
      batch_size: as it will be given to `score`: what is tested is that very program.

    Raises:
      ValueError: a leak; the message names the ablation and the pixel, or the image.

    Guarantee:
      It is a test, not a proof: it finds every dependence that one of the four poisons
      shows on random images, at each of the ablations tried.
    """
    check_count("batch_size", batch_size)
    check_ablation(ablation)
    batch_size = padded_batch_size(batch_size)
    keep = ablation.keep_masks(image_shape[:2])  # [P, H, W]
    tried = np.arange(len(keep)) if ablations is None else np.asarray(ablations)
    if not (tried.size and tried.min() >= 0 and tried.max() < len(keep)):
        raise ValueError(f"ablations={ablations!r} must be some of 0..{len(keep) - 1}")
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return rng.random((batch_size, *image_shape), np.float32)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(score_batch(scores_fn, images))

    images = draw()
    clean = run(images)
    if clean.shape[:2] != (batch_size, len(keep)):
        raise ValueError(
            f"scores_fn returned shape {clean.shape}; for {ablation} it must be "
            f"[{batch_size}, {len(keep)}, K]"
        )
    if not np.isfinite(clean).all():
        bad = np.argwhere(~np.isfinite(clean))[0]
        raise ValueError(
            f"the score of ablation {bad[1]} is {clean[tuple(bad)]} for an ordinary "
            "image; scores must be finite"
        )
    for poison in _POISONS:
        value = draw() if poison is None else np.full_like(images, poison)
        for is_poisoned in _bit_patterns(batch_size):
            mixed = np.where(is_poisoned[:, None, None, None], value, images)
            changed = _differs(run(mixed), clean).any(axis=1) & ~is_poisoned
            if changed.any():
                raise ValueError(
                    f"the scores of image {changed.argmax()} of a batch depend on the "
                    f"other images (found by setting those to {_name(poison)}); no "
                    "certificate would hold; use fixed statistics when certifying"
                )
        for start in range(0, len(tried), batch_size):
            # A slot of the batch for each ablation; the last chunk repeats some.
            which = np.resize(tried[start : start + batch_size], batch_size)
            mixed = np.where(keep[which][..., None], images, value)
            found = _differs(run(mixed), clean)[np.arange(batch_size), which]
            if found.any():
                slot = int(found.argmax())
                p = int(which[slot])
                same = np.repeat(images[slot : slot + 1], batch_size, axis=0)
                pixel = _leaking_pixel(run, same, value[slot], keep[p], p)
                raise ValueError(
                    f"the score of ablation {p} depends on {pixel}, which {ablation} "
                    f"hides (found by setting it to {_name(poison)}); no certificate "
                    "would hold; look for padding, a kernel that is too wide, or "
                    "pooling and normalisation across windows"
                )


def _leaking_pixel(
    run: Callable[[np.ndarray], np.ndarray],
    same: np.ndarray,
    value: np.ndarray,
    keep: np.ndarray,
    p: int,
) -> str:
    """Narrows a leak down to one hidden pixel, a batch of groups of pixels at a time.

    Args:
      run: the compiled function, [B, H, W, C] -> [B, P, K].
      same: [B, H, W, C], one image B times.
      value: [H, W, C], the poison.
      keep: bool [H, W], what ablation p keeps.
      p: the ablation that leaks.
    """
    clean = run(same)[:, p]
    pixels = np.argwhere(~keep)
    while len(pixels) > 1:
        groups = np.array_split(pixels, min(len(same), len(pixels)))
        mixed = same.copy()
        for slot, group in enumerate(groups):
            rows, columns = group.T
            mixed[slot, rows, columns] = value[rows, columns]
        found = (run(mixed)[:, p] != clean).any(axis=1)
        if not found.any():
            return f"several of {len(pixels)} pixels together, from {_at(pixels[0])} on"
        pixels = groups[int(found.argmax())]
    return f"the pixel at {_at(pixels[0])}"


def _bit_patterns(batch_size: int) -> Iterator[np.ndarray]:
    """Bool [batch_size] patterns that put every pair of images on different sides."""
    index = np.arange(batch_size)
    for bit in range((batch_size - 1).bit_length()):
        ones = (index >> bit & 1).astype(bool)
        yield ones
        yield ~ones


def _differs(scores: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """[B, P, K] twice -> bool [B, P]; NaN differs from everything."""
    return (scores != clean).any(axis=2)


def _name(poison: float | None) -> str:
    return "other pixels in [0, 1]" if poison is None else str(poison)


def _at(pixel: np.ndarray) -> str:
    return f"row {pixel[0]}, column {pixel[1]}"
