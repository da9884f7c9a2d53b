"""What does a training step of the one-pass network cost, and where does it go?

python -m benchmarks.train_step [WIDTH]

256 CIFAR-10 images, columns of 4 pixels, 4 ablations each. Each part is compiled on its
own; backward is the gradient less the forward pass, optimizer the step less the rest.
Run it again with the flag that docs name for CPUs (unknown flags end the process):

XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-individual_convolution
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dsmooth_jax as ds
from benchmarks.common import best_times, flops, matmul_job, show
from dsmooth_jax import models
from dsmooth_jax.masking import to_unit
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig, augment
from dsmooth_jax.training.step import init_state, make_train_step

SHAPE = (32, 32, 3)


def main():
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (256, *SHAPE)), jnp.uint8)
    labels = jnp.asarray(rng.integers(0, 10, 256), jnp.int32)
    key = jax.random.key(0)
    classifier = models.build(
        {"name": "bandnet", "width": width},
        ablation=ds.Columns(4),
        image_shape=SHAPE,
        num_classes=10,
    )
    optimizer, _ = optimizers.make_optimizer(
        optimizers.OptimizerConfig(), num_epochs=1, steps_per_epoch=100
    )
    state = init_state(classifier, optimizer, key)
    config = AugmentConfig(shift=4, flip=True)
    step = make_train_step(classifier, optimizer, config)

    def loss(params):
        variables = {**state.variables, "params": params}
        logits, _ = classifier.train_logits(variables, to_unit(images), key)
        targets = jnp.broadcast_to(labels[:, None], logits.shape[:2])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    params = state.variables["params"]
    parts = {
        "augmentation": (lambda x: augment(key, to_unit(x), config), images),
        "forward": (loss, params),
        "forward and backward": (jax.value_and_grad(loss), params),
        "step": (lambda s: step(s, images, labels, key), state),
    }
    matmul, cost = matmul_job()
    jobs = {"matmul": matmul}
    for name, (fn, argument) in parts.items():
        compiled = jax.jit(fn)
        jobs[name] = lambda f=compiled, x=argument: f(x)
    seconds = best_times(jobs, rounds=6)
    limit = cost / seconds["matmul"]
    rows = []
    for name, (fn, argument) in parts.items():
        cost = flops(fn, argument)
        rows.append(
            {
                "part": name,
                "milliseconds": 1e3 * seconds[name],
                "gflop": cost / 1e9,
                "gflop_per_second": cost / seconds[name] / 1e9,
                "share_of_matmul": cost / seconds[name] / limit,
            }
        )
    forward, gradient = seconds["forward"], seconds["forward and backward"]
    split = {
        "augmentation": seconds["augmentation"],
        "forward": forward,
        "backward": gradient - forward,
        "optimizer": seconds["step"] - gradient - seconds["augmentation"],
    }
    split = {name: round(1e3 * s, 1) for name, s in split.items()}
    show(rows, matmul_gflop_per_second=limit / 1e9, width=width, milliseconds=split)


if __name__ == "__main__":
    main()
