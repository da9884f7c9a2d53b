"""How fast does the shipped classifier score, in more views and fewer, and others?

python -m benchmarks.shipped

256 images of random pixels in batches of 64, each row the best of five rounds in turns;
weights of the others are drawn at random. The accuracies beside these speeds are in
docs/experiments.md.
"""

import functools

import numpy as np

from benchmarks.common import best_times, machine
from benchmarks.programs import SHIPPED, random_scores, recipe
from dsmooth_jax import models
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.scoring import score
from dsmooth_jax.smoothed import restore_base

VIEWS = {
    "shipped, in three views": {},
    "shipped, in six views": {"mirror": True},
    "shipped, in one view": {"shift": 0},
}
OTHERS = {
    "one of its teachers": "cifar10_columns3_card_a",
    "the stage of two cores": "cifar10_columns3",
}
ROUNDS, BATCH = 5, 64


def main():
    _, variables, record = restore_base(SHIPPED)
    shape = tuple(record["image_shape"])
    images = np.random.default_rng(0).integers(0, 256, (256, *shape), np.uint8)
    rows = {}
    for name, views in VIEWS.items():
        classifier = models.build(
            {**record["model"], **views},
            ablation=ablation_from_json(record["ablation"]),
            image_shape=shape,
            num_classes=record["num_classes"],
        )
        rows[name] = classifier.scores_fn(variables)
    for name, config in OTHERS.items():
        config = recipe(config, mirror=False)
        rows[name] = random_scores(config, shape, record["num_classes"])
    calls = {
        name: functools.partial(score, scores_fn, images, batch_size=BATCH)
        for name, scores_fn in rows.items()
    }
    for name, seconds in best_times(calls, rounds=ROUNDS).items():
        print(f"{name:32} {len(images) / seconds:7.1f} images/s")
    print(machine())


if __name__ == "__main__":
    main()
