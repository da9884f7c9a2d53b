"""One patch for many images, wherever it lies: what one could print and put somewhere.

Trained on some images, it is judged on others: `apply_patch` puts it there, and the
classifier's `predict` says what becomes of them.

Source: Brown et al., "Adversarial Patch" (arXiv:1712.09665): the expectation over
images, places, light and scale. What decides is climbed as in `attack`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from dsmooth_jax import compiling
from dsmooth_jax.attacks.attack import check_attack
from dsmooth_jax.attacks.candidates import MOMENTUM, run_batch, step_length
from dsmooth_jax.attacks.patching import cut, paste, shrunk
from dsmooth_jax.attacks.victims import Attackable, victim_of
from dsmooth_jax.checks import check_count, check_range
from dsmooth_jax.masking import to_unit
from dsmooth_jax.scoring import dealt
from dsmooth_jax.threat import Patch


def universal_patch(
    classifier: Attackable,
    images: np.ndarray,
    labels: np.ndarray,
    patch: Patch,
    *,
    target: int,
    steps: int = 200,
    brightness: float = 0.0,
    least_scale: float = 1.0,
    printable: tuple[int, int] = (0, 255),
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Trains one content that is to make any image, anywhere, the target class.

    Args:
      classifier: as of `attack`.
      images: uint8 [N, H, W, C], to train on; others are to judge by.
      labels: int [N], the right classes. Images of the target are left out.
      patch: pixels.
      target: the class that is to win.
      steps: gradients, each of a batch of images at places drawn anew.
      brightness: in [0, 1), by how much the light may change: each time the content is
        multiplied by a number drawn from 1 - brightness to 1 + brightness.
      least_scale: in (0, 1]; each time the content is shrunk to a share of its height
        and width drawn from least_scale to 1, and lies somewhere in the rectangle: it
        may be seen from further away, and it never is larger than the patch.
      printable: (least, largest) value that a pixel of the content may have.
      seed: of what is drawn.
      batch_size: images of a step.

    Returns:
      uint8 [height, width, C], for `apply_patch`.

    Raises:
      TypeError, ValueError: as `attack`; a target that is no class of these, or that
        all labels are; a brightness, scale or values out of range.
    """
    pixels, truth, size = check_attack(images, labels, patch)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_range("brightness", brightness, least=0, below=1)
    check_range("least_scale", least_scale, above=0, most=1)
    low, high = printable
    if not 0 <= low < high <= 255:
        raise ValueError(f"printable={printable} must be two values, in 0..255")
    victim = victim_of(classifier, patch, size, batch_size=batch_size)
    study = victim.study(pixels, None)
    num_classes = study.num_classes
    if not 0 <= target < num_classes:
        raise ValueError(f"target={target} must be in 0..{num_classes - 1}, a class")
    others = np.flatnonzero(truth != target)
    if not len(others):
        raise ValueError(
            f"labels are all target={target}; give images of other classes"
        )
    rng = np.random.default_rng(seed)
    shape = (patch.height, patch.width, pixels.shape[3])
    content = rng.uniform(low, high, shape).astype(np.float32) / 255
    velocity = np.zeros_like(content)
    for step in range(steps):
        image = rng.choice(others, batch_size)
        corner = np.stack([rng.integers(0, n, batch_size) for n in study.row.shape], 1)
        light = rng.uniform(1 - brightness, 1 + brightness, batch_size)
        scale = rng.uniform(least_scale, 1, (batch_size, 1))
        sizes = np.maximum(1, np.rint(scale * shape[:2])).astype(int)
        batch = (
            pixels[image],
            np.repeat(content[None], batch_size, axis=0),
            light.astype(np.float32),
            sizes,
            rng.integers(0, np.array(shape[:2]) - sizes + 1),
            corner,
            truth[image],
            np.full(batch_size, target),
            *study.known(image, study.row[corner[:, 0], corner[:, 1]]),
        )
        gradient = run_batch(_gradients, victim.margin_fn, batch, batch_size).mean(0)
        velocity = MOMENTUM * velocity + gradient / max(np.abs(gradient).mean(), 1e-20)
        content = content + step_length(step / steps) * np.sign(velocity)
        content = np.clip(content, low / 255, high / 255).astype(np.float32)
    return np.rint(255 * content).astype(np.uint8)


@compiling.jit
def _gradients(margin_fn: Partial, *batch: Array) -> Array:
    """[B, h, w, C], of the margin of each image by the content."""

    def share(
        margin_fn: Partial,
        images: Array,
        contents: Array,
        light: Array,
        sizes: Array,
        starts: Array,
        corners: Array,
        *others: Array,
    ) -> Array:
        plain = to_unit(images)
        height, width = contents.shape[1:3]
        behind = cut(plain, corners, (height, width))

        def total(contents: Array) -> Array:
            lit = jnp.clip(contents * light[:, None, None, None], 0, 1)
            seen = shrunk(lit, sizes, starts, behind)
            return margin_fn(paste(plain, seen, corners), *others).sum()

        return jax.grad(total)(contents)

    return dealt(share, margin_fn, *batch)
