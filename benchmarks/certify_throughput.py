"""How many CIFAR-10 images a second does each way to score all ablations manage?

python -m benchmarks.certify_throughput

Masked ResNet-18 (the paper's: P full-size passes), the one-pass network read window by
window, and in one pass; columns of 4 pixels and blocks of 12 x 12. Weights are random:
they do not change the cost. GFLOP/s is beside this machine's own matmul rate. The
masked network is timed on 64 ablated images and scaled by P, the passes of its loop.
"""

import jax
import numpy as np
from jax.tree_util import Partial

import dsmooth_jax as ds
from benchmarks.common import best_times, flops, matmul_job, show
from dsmooth_jax.models import resnet
from dsmooth_jax.models.bandnet import band_network
from dsmooth_jax.scoring import score_batch

SHAPE = (32, 32, 3)
ABLATIONS = {"columns 4": ds.Columns(4), "blocks 12": ds.Blocks(12)}
BATCH = {"columns 4": 32, "blocks 12": 2}  # the best of 1..128 here
WIDTHS = (32, 48, 64)
IMAGENET = "one pass, columns 25 of 299 x 299, 1,000 classes, width 64"


def main():
    rng = np.random.default_rng(0)
    jobs, costs, images_of = {}, {}, {}  # per job: FLOPs of a call, images in it

    def add(name, fn, cost, num_images):
        jobs[name], costs[name], images_of[name] = fn, cost, num_images

    matmul, cost = matmul_job()
    add("matmul", matmul, cost, None)
    net = resnet(18, image_shape=SHAPE, num_classes=10, stem="cifar")
    variables = net.init(jax.random.key(0))
    ablated = rng.random((64, 32, 32, 6), np.float32)
    logits = jax.jit(net.logits)
    cost = flops(net.logits, variables, ablated)
    add("masked", lambda: logits(variables, ablated), cost, None)
    parameters = {}
    for name, ablation in ABLATIONS.items():
        num_ablations = ablation.num_ablations(SHAPE[:2])
        for width in WIDTHS:
            band = band_network(
                ablation, image_shape=SHAPE, num_classes=10, width=width
            )
            weights = band.init(jax.random.key(0))
            images = rng.random((BATCH[name], *SHAPE), np.float32)
            one_pass = ds.one_pass_scores(Partial(band.image_logits, weights), ablation)
            key = f"one pass, {name}, width {width}"
            parameters[key] = sum(x.size for x in jax.tree.leaves(weights["params"]))
            cost = flops(band.image_logits, weights, images)
            add(key, lambda f=one_pass, x=images: score_batch(f, x), cost, len(images))
        # The middle width, window by window: the same scores without shared work.
        few = images[:2]
        cropped = ds.cropped_scores(
            Partial(band.window_logits, weights), ablation, chunk_size=32
        )
        windows = rng.random((1, *ablation.window_shape(SHAPE[:2]), 6), np.float32)
        starts = np.zeros((1, 2), np.int32)
        cost = flops(band.window_logits, weights, windows, starts)
        cost *= num_ablations * len(few)
        key = f"cropped, {name}, width {width}"
        add(key, lambda f=cropped, x=few: score_batch(f, x), cost, len(few))

    ablation, shape = ds.Columns(25), (299, 299, 3)
    band = band_network(ablation, image_shape=shape, num_classes=1000, width=64)
    weights = band.init(jax.random.key(0))
    one_pass = ds.one_pass_scores(Partial(band.image_logits, weights), ablation)
    image = rng.random((1, *shape), np.float32)
    cost = flops(band.image_logits, weights, image)
    add(IMAGENET, lambda: score_batch(one_pass, image), cost, 1)

    seconds = best_times(jobs, rounds=6)
    limit = costs["matmul"] / seconds["matmul"]
    passes_per_second = 64 / seconds["masked"]
    rows = []
    for name, ablation in ABLATIONS.items():
        num_ablations = ablation.num_ablations(SHAPE[:2])
        masked = passes_per_second / num_ablations
        rows.append(
            row(f"masked ResNet-18, {name}", masked, masked, costs["masked"] / 64)
        )
        rows[-1]["gflop_per_image"] = costs["masked"] / 64 * num_ablations / 1e9
        rows[-1]["gflop_per_second"] = costs["masked"] / seconds["masked"] / 1e9
        rows[-1]["share_of_matmul"] = costs["masked"] / seconds["masked"] / limit
        for key in jobs:
            if name in key:
                rate = images_of[key] / seconds[key]
                rows.append(row(key, rate, masked, costs[key] / images_of[key]))
                rows[-1]["share_of_matmul"] = costs[key] / seconds[key] / limit
                rows[-1]["parameters"] = parameters.get(key)
    cost = costs[IMAGENET]
    rows.append(
        {
            "model": IMAGENET,
            "images_per_second": 1 / seconds[IMAGENET],
            "gflop_per_image": cost / 1e9,
            "gflop_per_second": cost / seconds[IMAGENET] / 1e9,
            "share_of_matmul": cost / seconds[IMAGENET] / limit,
        }
    )
    show(rows, matmul_gflop_per_second=limit / 1e9)


def row(name, images_per_second, masked, cost):
    return {
        "model": name,
        "images_per_second": images_per_second,
        "times_masked": images_per_second / masked,
        "gflop_per_image": cost / 1e9,
        "gflop_per_second": cost * images_per_second / 1e9,
    }


if __name__ == "__main__":
    main()
