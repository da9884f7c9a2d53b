"""What does it give on CPUs to say how programs are compiled?

python -m benchmarks.compiling

The scores of 64 images by the shipped classifier, and the gradient of its second stage
on 16, each compiled as JAX would and as `dsmooth_jax.compiling` says, in
turns; the best of five rounds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import best_times, machine
from benchmarks.programs import SHIPPED
from dsmooth_jax import compiling
from dsmooth_jax.smoothed import restore_base

ROUNDS = 5


def main():
    classifier, variables, record = restore_base(SHIPPED)
    shape = (64, *record["image_shape"])
    images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))

    def scores(variables, images):
        return classifier.scores_fn(variables)(images)

    def gradient(variables, images):
        def total(params):
            given = {**variables, "params": params}
            return classifier.train_all_logits(given, images, 1)[0].sum()

        return jax.grad(total)(variables["params"])

    calls = {}
    for name, fn, num in (("scores", scores, 64), ("gradient", gradient, 16)):
        for how, jit in (("as JAX would", jax.jit), ("as we say", compiling.jit)):
            program = jit(fn)
            calls[f"{name}, {how}"] = functools.partial(
                program, variables, images[:num]
            )
    for name, seconds in best_times(calls, rounds=ROUNDS).items():
        print(f"{name:24} {1000 * seconds:8.1f} ms")
    print(machine())


if __name__ == "__main__":
    main()
