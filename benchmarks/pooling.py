"""Is `cnn` right not to pool as Flax does?

python -m benchmarks.pooling

Logits and gradient of 250 images by the network of `pretrained/cifar10_masks`, with the
maximum over 2x2 pixels as `flax.nnx.max_pool` and as ours, in turns; the best of five.
"""

import functools
import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import best_times, machine
from dsmooth_jax import compiling

NUM_IMAGES = 250
ROUNDS = 5
module = importlib.import_module("dsmooth_jax.models.cnn")  # the function is `cnn`, too
WAYS = {
    "Flax": lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)),
    "ours": module.largest_of_four,
}


def main():
    network = module.cnn(image_shape=(32, 32, 3), num_classes=10, width=96)
    variables = network.init(jax.random.key(0))
    shape = (NUM_IMAGES, 32, 32, 6)
    images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))

    def gradient(variables, images):
        def total(params):
            given = {**variables, "params": params}
            return network.train_logits(given, images)[0][:, 0].sum()

        return jax.grad(total)(variables["params"])

    calls = {}
    for way, pool in WAYS.items():
        for what, fn in (("logits", network.logits), ("gradient", gradient)):
            program = compiling.jit(functools.partial(fn))  # each its own trace
            with mock.patch.object(module, "largest_of_four", pool):
                jax.block_until_ready(program(variables, images))
            calls[f"{what}, {way}"] = functools.partial(program, variables, images)
    for name, seconds in best_times(calls, rounds=ROUNDS).items():
        print(f"{name:16} {NUM_IMAGES / seconds:8.0f} images/s")
    print(machine())


if __name__ == "__main__":
    main()
