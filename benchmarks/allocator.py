"""What does it cost on CPUs that memory goes back to the kernel after every step?

python -m benchmarks.allocator

glibc returns large blocks as soon as they are free, and the kernel clears every page of
them when they are taken again. GLIBC_TUNABLES, an environment variable, has it keep
them. Processes with and without it take turns, each with a training step of
cifar10_columns3 (512 images, two windows each) and the scores of 256 images. Linux with
glibc; elsewhere the variable does nothing.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import best_times, show
from configs import cifar10_columns3
from dsmooth_jax import models
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.masking import to_unit
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.config import from_json, to_json
from dsmooth_jax.training.step import init_state, make_train_step

KEEP = ":".join(
    f"glibc.malloc.{name}"
    for name in (
        "mmap_max=0",
        "trim_threshold=20000000000",
        "top_pad=1000000000",
        "arena_max=1",
    )
)
SHAPE = (32, 32, 3)


def measure():
    config = to_json(from_json(cifar10_columns3.get_config().to_dict()))
    settings = config["train"]
    classifier = models.build(
        config["model"],
        ablation=ablation_from_json(config["ablation"]),
        image_shape=SHAPE,
        num_classes=10,
    )
    optimizer, _ = optimizers.make_optimizer(
        optimizers.OptimizerConfig(**settings["optimizer"]),
        num_epochs=settings["epochs"],
        steps_per_epoch=100,
    )
    step = jax.jit(
        make_train_step(
            classifier,
            optimizer,
            AugmentConfig(**settings["augment"]),
            precision=settings["precision"],
        )
    )
    rng = np.random.default_rng(0)
    size = settings["batch_size"]
    images = jnp.asarray(rng.integers(0, 256, (size, *SHAPE)), jnp.uint8)
    labels = jnp.asarray(rng.integers(0, 10, size), jnp.int32)
    key = jax.random.key(0)
    state = init_state(classifier, optimizer, key)
    scores_fn = jax.jit(classifier.scores_fn(state.variables))
    floats = to_unit(images[:256])
    jobs = {
        "training step": lambda: step(state, images, labels, key),
        "scores": lambda: scores_fn(floats),
    }
    print(json.dumps(best_times(jobs, rounds=6)))


def main():
    if len(sys.argv) > 1:
        measure()
        return
    best = {}
    for _ in range(3):
        for name, tunables in (("as it comes", ""), ("kept", KEEP)):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.allocator", "child"],
                env={**os.environ, "GLIBC_TUNABLES": tunables},
                capture_output=True,
                text=True,
                check=True,
            )
            for job, seconds in json.loads(done.stdout).items():
                key = job, name
                best[key] = min(best.get(key, float("inf")), seconds)
    rows = [
        {
            "job": job,
            "memory": name,
            "milliseconds": 1e3 * seconds,
            "times": best[job, "as it comes"] / seconds,
        }
        for (job, name), seconds in best.items()
    ]
    show(rows, GLIBC_TUNABLES=KEEP)


if __name__ == "__main__":
    main()
