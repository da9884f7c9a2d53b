"""What does the host add to training and scoring?

python -m benchmarks.overhead

Training: `loop.run`, as train.py calls it, of a bandnet of width 8 on 8 CIFAR-10 size
images a step. The host's share of a step is the CPU time of the thread that drives the
run (other work on the machine disturbs it least), the median over some hundred steps;
beside it that of a bare loop over the compiled step, which is JAX's own.

Scoring: `score` of the same network, beside the same batches when each is fetched
before the next is sent, and beside the compiled program alone on a batch that is there;
they take turns, and what is above the last is time in which the device is idle.
"""

import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

import dsmooth_jax as ds
from benchmarks.common import best_times, show
from dsmooth_jax import models
from dsmooth_jax.scoring import score_batch
from dsmooth_jax.training import loop, optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.choice import Choice
from dsmooth_jax.training.feeding import Resident
from dsmooth_jax.training.step import init_state, make_train_step

SHAPE, BATCH, NUM_IMAGES = (32, 32, 3), 8, 512
BLOCK, NUM_BLOCKS = 100, 10  # steps


def main():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, *SHAPE), np.uint8)
    labels = rng.integers(0, 10, NUM_IMAGES)
    classifier = models.build(
        {"name": "bandnet", "width": 8, "depth": 2},
        ablation=ds.Columns(3),
        image_shape=SHAPE,
        num_classes=10,
    )
    rows = training(classifier, images, labels) + scoring(classifier, images)
    show(rows)


def training(classifier, images, labels):
    """Milliseconds a step, of the host's thread and on the clock."""
    optimizer, schedule = optimizers.make_optimizer(
        optimizers.OptimizerConfig(), num_epochs=1, steps_per_epoch=1000
    )
    step = make_train_step(
        classifier, optimizer, AugmentConfig(shift=4, flip=True), schedule=schedule
    )
    key, stamps = jax.random.key(0), []

    def rows_of(start, stop):
        stamps.append((time.thread_time(), time.perf_counter()))
        every = np.arange(start * BATCH, stop * BATCH) % len(images)
        return every.reshape(-1, BATCH)

    num_steps = BLOCK * (NUM_BLOCKS + 1) + 1
    feed = Resident(images, labels, rows_of)
    plan = loop.Plan(num_steps, 1000, num_steps, save_every=num_steps)
    record = {"config": {}, "fingerprints": {}}
    nothing = Choice("graded", 0.5, 1.0, (2, 2), 0.0, 0.0, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        state = init_state(classifier, optimizer, key)
        workdir = pathlib.Path(folder)
        loop.run(workdir, plan, record, state, step, feed, lambda _: nothing, key=key)
    whole = stamps

    program = jax.jit(step, donate_argnums=0)
    state = init_state(classifier, optimizer, key)
    batch = jax.device_put((images[:BATCH], labels[:BATCH].astype(np.int32), key))
    stamps = []
    for _ in range(num_steps):
        stamps.append((time.thread_time(), time.perf_counter()))
        state, _ = program(state, *batch)
    jax.block_until_ready(state)
    return [
        {"what": what, **per_step(found)}
        for what, found in (("step of a run", whole), ("compiled step", stamps))
    ]


def per_step(stamps):
    """Medians over blocks of steps, without the first, in which programs compile."""
    blocks = np.diff(np.array(stamps)[BLOCK::BLOCK], axis=0) / BLOCK
    host, clock = (1e3 * statistics.median(column) for column in blocks.T)
    return {"host_ms": host, "clock_ms": clock}


def scoring(classifier, images):
    """Seconds of all images, over those of the compiled program."""
    scores_fn = classifier.scores_fn(classifier.init(jax.random.key(0)))
    size, starts = 32, range(0, NUM_IMAGES, 32)
    there = jax.device_put(images[:size])

    def alone():
        return [score_batch(scores_fn, there) for _ in starts][-1]

    def one_by_one():
        for start in starts:
            np.asarray(score_batch(scores_fn, images[start : start + size]))

    jobs = {
        "score": lambda: ds.score(scores_fn, images, batch_size=size),
        "score, each batch fetched before the next is sent": one_by_one,
        "compiled scoring": alone,
    }
    seconds = best_times(jobs, rounds=10)
    least = seconds["compiled scoring"]
    return [
        {"what": what, "seconds": spent, "times_compiled": spent / least}
        for what, spent in seconds.items()
    ]


if __name__ == "__main__":
    main()
