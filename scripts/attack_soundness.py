"""Tries for long to break certificates: random networks, every kind of classifier.

    python -m scripts.attack_soundness --tries=1000000

Draws a network, an ablation or masks, a way to decide and a patch; certifies random
images, and attacks those that are certified, wherever the patch fits. A certificate
that falls ends it with an error, and all that reproduces it in unsound.npz. The first
100,000 tries of this are in `make test` (tests/test_attack.py).
"""

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import dsmooth_jax as ds

SHAPE, NUM_CLASSES, BATCH = (8, 9, 1), 4, 256


def conv_logits(weights, inputs):
    """[M, H, W, 2C] -> [M, K]: a convolution over the whole image, a dense layer."""
    features = jax.lax.conv_general_dilated(
        inputs,
        weights["conv"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.tanh(features).reshape(len(inputs), -1) @ weights["dense"]


def draw_network(rng):
    """Weights at a scale that makes it more or less sure."""
    size = SHAPE[0] * SHAPE[1] * 8
    scale = rng.choice([0.1, 0.2, 0.4])
    return {
        "conv": rng.normal(0, 1.0, (3, 3, 2, 8)).astype(np.float32),
        "dense": rng.normal(0, scale, (size, NUM_CLASSES)).astype(np.float32),
    }


def draw_classifier(rng):
    """(classifier, patch)."""
    logits_fn = Partial(conv_logits, draw_network(rng))
    patch = ds.Patch(*map(int, rng.integers(1, 3, 2)))
    kind = rng.integers(0, 8)
    if kind == 0:
        masks = ds.covering_masks(patch, SHAPE[:2], per_axis=3)
        confidence = float(rng.choice([0, 0.4, 0.6]))
        return ds.MaskedClassifier(logits_fn, masks, confidence=confidence), patch
    ablation = [
        ds.Columns(1),
        ds.Columns(2),
        ds.Rows(1),
        ds.Rows(3, stride=2),
        ds.Blocks(3, stride=2),
        ds.MultiColumns(3, 1),
        ds.MultiBlocks(1, 1),
    ][kind - 1]
    scores_fn = ds.masked_scores(logits_fn, ablation)
    if kind in (1, 3) and rng.integers(0, 2):
        try:
            ds.design_masks(ablation, patch, SHAPE[:2])
        except ValueError:
            patch = ds.Patch(1, 1)
        decision = {"decision": "double_masking", "patch": patch}
        return ds.SmoothedClassifier(scores_fn, ablation, **decision), patch
    voting = str(rng.choice(["threshold", "top_one", "graded"]))
    settings = {"threshold": float(rng.choice([0.3, 0.5])), "strength": 5.0}
    return ds.SmoothedClassifier(scores_fn, ablation, voting=voting, **settings), patch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=1_000_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started, tries, num_certified = time.monotonic(), 0, 0
    for number in itertools.count():
        rng = np.random.default_rng([given.seed, number])
        classifier, patch = draw_classifier(rng)
        images = rng.integers(0, 256, (256, *SHAPE), np.uint8)
        found = classifier.certify(images, patch, batch_size=BATCH)
        kept = np.flatnonzero(found.is_certified)[:64]
        num_certified += len(kept)
        try:
            attacked = ds.attack(
                classifier,
                images[kept],
                found.prediction[kept],
                patch,
                num_candidates=16,
                steps=64,
                num_restarts=2,
                attacks_certified=True,
                seed=number,
                batch_size=BATCH,
            )
        except ds.UnsoundError as error:
            np.savez("unsound.npz", **vars(error), seed=given.seed, number=number)
            raise
        tries += int(attacked.num_gradients.sum())
        print(
            f"{number + 1} classifiers, {num_certified:,} certified images, "
            f"{tries:,} tries, {time.monotonic() - started:.0f} s: none fell",
            flush=True,
        )
        if tries >= given.tries:
            return


if __name__ == "__main__":
    main()
