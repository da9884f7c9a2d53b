"""The arithmetic of docs/scaling.md: what ImageNet costs on machines that are not here.

python -m benchmarks.scaling [CONFIG ...]

FLOP and bytes are XLA's own cost analysis of the programs compiled for this device, for
batches of 2, divided by 2 (loops are counted once: where scoring loops over ablations,
a single ablated image is compiled). Minutes are computed from published peaks and the
share of them that is assumed below. Nothing is run, nothing is timed.
"""

import dataclasses
import importlib
import json
import sys

import jax
import jax.numpy as jnp

import dsmooth_jax as ds
from benchmarks.common import show
from dsmooth_jax import models, optimizers, training
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.augment import AugmentConfig
from dsmooth_jax.scoring import is_masked

CONFIGS = ("imagenet_columns25_resnet50", "imagenet_columns25_bandnet")
NUM_TRAIN, NUM_TEST, NUM_CLASSES, SHAPE = 1_280_167, 50_000, 1000, (299, 299, 3)
BATCH = 2
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


def cost(fn, *arguments):
    """(FLOP, bytes) for each of the BATCH images."""
    found = jax.jit(fn).lower(*arguments).compile().cost_analysis()
    return found["flops"] / BATCH, found["bytes accessed"] / BATCH


def minutes(work, peak, bandwidth, images):
    """Whichever takes longer, computing or moving bytes."""
    flop, bytes_moved = work
    seconds = images * max(flop / peak, bytes_moved / bandwidth) / SHARE
    return round(seconds / 60, 1)


def analyse(name):
    config = json.loads(
        importlib.import_module(f"configs.{name}").get_config().to_json()
    )
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
        lambda v: training.init_state(classifier, optimizer, key, variables=v),
        variables,
    )
    step = training.make_train_step(
        classifier,
        optimizer,
        AugmentConfig(**settings["augment"]),
        precision="bfloat16",
    )
    images = jax.ShapeDtypeStruct((BATCH, *SHAPE), jnp.uint8)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    train = cost(step, state, images, labels, key)

    num_ablations = ablation.num_ablations(SHAPE[:2])
    floats = jax.ShapeDtypeStruct((BATCH, *SHAPE), jnp.float32)
    scores_fn = jax.eval_shape(classifier.scores_fn, variables)
    passes = 1
    if is_masked(scores_fn):
        # Its loop is over ablations; what it repeats is the network on one of them.
        passes = num_ablations
        (logits_fn,) = scores_fn.args
        floats = jax.ShapeDtypeStruct((BATCH, *SHAPE[:2], 2 * SHAPE[2]), jnp.float32)
        score = cost(lambda fn, x: fn(x), logits_fn, floats)
    else:
        score = cost(lambda fn, x: fn(x), scores_fn, floats)
    score = tuple(passes * value for value in score)
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
        "minutes": {
            machine.name: {
                "train": minutes(
                    train,
                    machine.bfloat16,
                    machine.bandwidth,
                    NUM_TRAIN * settings["epochs"],
                ),
                "certify": minutes(score, machine.float32, machine.bandwidth, NUM_TEST),
            }
            for machine in MACHINES
        },
    }


def main():
    rows = [analyse(name) for name in sys.argv[1:] or CONFIGS]
    show(rows, share_of_peak=SHARE, version=ds.__version__)


if __name__ == "__main__":
    main()
