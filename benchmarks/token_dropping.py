"""What does a vision transformer gain where the tokens that see nothing are dropped?

python -m benchmarks.token_dropping [SIZE]

Columns of 19 of 224 pixels, tokens of 16: 42 of 196 are computed. Scoring is 8
ablations of an image, from the image to the softmax; training is the gradient of the
loss on 8 images, each under a random ablation. The dense way runs over all tokens and
masks those that see nothing. Weights are random: they do not change the cost. Also
what scoring spends before the first block, which is what computing the patch embedding
once for an image could save at most.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dsmooth_jax as ds
from benchmarks.common import best_times, flops, matmul_job, show
from dsmooth_jax.masking import ablate_at, random_ablate
from dsmooth_jax.models import ViTConfig, vit
from dsmooth_jax.models.vit import SIZES
from dsmooth_jax.scoring import softmax

SHAPE = (224, 224, 3)
COLUMNS = ds.Columns(19)
NUM = 8


def main():
    size = sys.argv[1] if len(sys.argv) > 1 else "vit_small"
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((NUM, *SHAPE), np.float32))
    labels = jnp.asarray(rng.integers(0, 1000, NUM), jnp.int32)
    index = jnp.arange(0, 224, 224 // NUM)
    config = ViTConfig(patch=16, **SIZES[size])
    # The same with a single block tells what a block costs, and so what the rest does.
    shallow = dataclasses.replace(config, depth=1)

    def parts_of(config, ablation):
        net = vit(config, ablation, image_shape=SHAPE, num_classes=1000)
        variables = net.init(jax.random.key(0))

        def score(variables):
            ablated = ablate_at(images[:1], COLUMNS, index)[0]
            return softmax(net.logits(variables, ablated))

        def gradient(variables):
            def loss(variables):
                ablated = random_ablate(jax.random.key(1), images, COLUMNS)
                logits, _ = net.train_logits(variables, ablated)
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, labels
                ).mean()

            return jax.grad(loss)(variables)

        return {"scoring": (score, variables), "training": (gradient, variables)}

    ways = {"dropped": parts_of(config, COLUMNS), "dense": parts_of(config, None)}
    ways["dropped, one block"] = {"scoring": parts_of(shallow, COLUMNS)["scoring"]}
    matmul, cost = matmul_job()
    jobs, costs = {"matmul": matmul}, {}
    for way, parts in ways.items():
        for part, (fn, variables) in parts.items():
            compiled = jax.jit(fn)
            jobs[way, part] = lambda f=compiled, v=variables: f(v)
            costs[way, part] = flops(fn, variables)
    seconds = best_times(jobs, rounds=6)
    limit = cost / seconds["matmul"]
    rows = [
        {
            "way": way,
            "part": part,
            "milliseconds": 1e3 * seconds[way, part],
            "gflop": costs[way, part] / 1e9,
            "share_of_matmul": costs[way, part] / seconds[way, part] / limit,
        }
        for way, part in costs
    ]
    gains = {
        part: seconds["dense", part] / seconds["dropped", part]
        for part in ("scoring", "training")
    }
    whole, one = (seconds[way, "scoring"] for way in ("dropped", "dropped, one block"))
    outside = one - (whole - one) / (config.depth - 1)
    show(
        rows,
        matmul_gflop_per_second=limit / 1e9,
        size=size,
        times_faster=gains,
        share_outside_blocks=outside / whole,
    )


if __name__ == "__main__":
    main()
