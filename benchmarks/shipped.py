"""How fast does the shipped classifier score, its networks alone, and in more views?

python -m benchmarks.shipped

256 images of random pixels in batches of 64, each row the best of five rounds in turns.
The accuracies beside these speeds are in docs/experiments.md.
"""

import functools

import numpy as np

from benchmarks.common import best_times, machine
from benchmarks.programs import SHIPPED
from dsmooth_jax import models
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.models.ensemble import of_member
from dsmooth_jax.scoring import score
from dsmooth_jax.smoothed import restore_base

VIEWS = {
    "one view": {},
    "mirror": {"mirror": True},
    "six views": {"mirror": True, "shift": 3},
}
ROUNDS, BATCH = 5, 64


def main():
    whole, variables, record = restore_base(SHIPPED)
    shape = tuple(record["image_shape"])
    images = np.random.default_rng(0).integers(0, 256, (256, *shape), np.uint8)
    rows = {"both networks": whole.scores_fn(variables)}
    for index, member in enumerate(record["model"]["members"]):
        own = of_member(variables, index)
        for name, views in VIEWS.items():
            classifier = models.build(
                {**member, **views},
                ablation=ablation_from_json(record["ablation"]),
                image_shape=shape,
                num_classes=record["num_classes"],
            )
            row = f"width {member['width']}, {name}"
            rows[row] = classifier.scores_fn(own)
    jobs = {
        row: functools.partial(score, scores_fn, images, batch_size=BATCH)
        for row, scores_fn in rows.items()
    }
    best = best_times(jobs, rounds=ROUNDS)
    print(machine())
    for row, seconds in best.items():
        print(f"{row:<24}{len(images) / seconds:8.0f} images/s")


if __name__ == "__main__":
    main()
