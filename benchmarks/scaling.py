"""The arithmetic of docs/scaling.md: what ImageNet costs on machines that are not here.

python -m benchmarks.scaling [CONFIG ...]

FLOP and bytes are XLA's own cost analysis of programs compiled for this device: what
two more images add, so that weights that are read once are not counted for each image
(loops are counted once: where scoring loops over ablations, single ablated images are
compiled). Minutes are computed from published peaks and the share of them that is
assumed below. Nothing is run, nothing is timed.
"""

import dataclasses
import importlib
import json
import sys

import jax
import jax.numpy as jnp

import dsmooth_jax as ds
from benchmarks.common import show
from dsmooth_jax import models
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.scoring import is_masked
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.config import from_json, to_json
from dsmooth_jax.training.step import init_state, make_train_step

CONFIGS = ("imagenet_columns25_resnet50", "imagenet_columns25_bandnet")
NUM_TRAIN, NUM_TEST, NUM_CLASSES, SHAPE = 1_280_167, 50_000, 1000, (299, 299, 3)
SHARE = 0.4  # of the peak rates that is assumed to be reached


@dataclasses.dataclass(frozen=True)
class Machine:
    """Published peaks: FLOP/s in bfloat16, FLOP/s of float32 at the highest precision
    (no TF32 on a GPU, six bfloat16 passes on a TPU), and bytes/s of memory."""

    name: str
    bfloat16: float
    float32: float
    bandwidth: float


MACHINES = (
    Machine("H200", 989e12, 67e12, 4.8e12),
    Machine("v5e-64", 64 * 197e12, 64 * 197e12 / 6, 64 * 0.819e12),
)


def cost(fn, first, *shaped):
    """(FLOP, bytes) that an image adds; `shaped` are (shape, dtype) of one image."""
    totals = []
    for batch in (2, 4):
        arguments = [jax.ShapeDtypeStruct((batch, *s), dtype) for s, dtype in shaped]
        found = jax.jit(fn).lower(first, *arguments).compile().cost_analysis()
        totals.append((found["flops"], found["bytes accessed"]))
    return tuple((more - less) / 2 for less, more in zip(*totals, strict=True))


def minutes(work, images, machine, peak):
    """Minutes by the FLOP and by the bytes; the truth is at least the longer one."""
    flop, moved = work
    by_flop, by_bytes = flop / peak, moved / machine.bandwidth
    return [round(images * rate / SHARE / 60, 1) for rate in (by_flop, by_bytes)]


def analyse(name):
    made = importlib.import_module(f"configs.{name}").get_config()
    config = to_json(from_json(json.loads(made.to_json())))
    settings, ablation = config["train"], ablation_from_json(config["ablation"])
    classifier = models.build(
        config["model"], ablation=ablation, image_shape=SHAPE, num_classes=NUM_CLASSES
    )
    optimizer, _ = optimizers.make_optimizer(
        optimizers.OptimizerConfig(**settings["optimizer"]),
        num_epochs=settings["epochs"],
        steps_per_epoch=1000,
    )
    key = jax.random.key(0)
    variables = jax.eval_shape(classifier.init, key)
    state = jax.eval_shape(
        lambda v: init_state(classifier, optimizer, key, variables=v),
        variables,
    )
    step = make_train_step(
        classifier,
        optimizer,
        AugmentConfig(**settings["augment"]),
        precision="bfloat16",
    )
    train = cost(
        lambda state, images, labels: step(state, images, labels, key),
        state,
        (SHAPE, jnp.uint8),
        ((), jnp.int32),
    )
    num_ablations = ablation.num_ablations(SHAPE[:2])
    scores_fn = jax.eval_shape(classifier.scores_fn, variables)
    if is_masked(scores_fn):
        # Its loop is over ablations; what it repeats is the network on one of them.
        (logits_fn,) = scores_fn.args
        inputs = (*SHAPE[:2], 2 * SHAPE[2])
        one = cost(lambda fn, x: fn(x), logits_fn, (inputs, jnp.float32))
        score = tuple(num_ablations * value for value in one)
    else:
        score = cost(lambda fn, x: fn(x), scores_fn, (SHAPE, jnp.float32))
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {
        "config": name,
        "parameters_million": size / 1e6,
        "ablations": num_ablations,
        "train_gflop_per_image": train[0] / 1e9,
        "train_megabytes_per_image": train[1] / 1e6,
        "train_exaflop": train[0] * NUM_TRAIN * settings["epochs"] / 1e18,
        "certify_gflop_per_image": score[0] / 1e9,
        "certify_megabytes_per_image": score[1] / 1e6,
        "certify_exaflop": score[0] * NUM_TEST / 1e18,
        "minutes_by_flop_and_by_bytes": {
            machine.name: {
                "train": minutes(
                    train, NUM_TRAIN * settings["epochs"], machine, machine.bfloat16
                ),
                "certify": minutes(score, NUM_TEST, machine, machine.float32),
            }
            for machine in MACHINES
        },
    }


def main():
    rows = [analyse(name) for name in sys.argv[1:] or CONFIGS]
    show(rows, share_of_peak=SHARE, version=ds.__version__)


if __name__ == "__main__":
    main()
