"""What does a certificate cost, once the votes are there?

python -m benchmarks.certificate

Random threshold votes, and for double masking random evidence, the winners with each
pair of masks out; 10,000 images with CIFAR-10 columns, fewer of the larger tables,
scaled to 10,000. NumPy on the host; beside each time of the placement rule the
floating-point rate of the matrix products inside, and the machine's own.
"""

import numpy as np

import dsmooth_jax as ds
from benchmarks.common import best_times, matmul_job, show

CASES = {
    "CIFAR-10, columns 4, 5x5": (ds.Columns(4), ds.Patch(5, 5), 32, 10, 10_000),
    "CIFAR-10, blocks 12, 5x5": (ds.Blocks(12), ds.Patch(5, 5), 32, 10, 500),
    "ImageNet, columns 25, 42x42": (ds.Columns(25), ds.Patch(42, 42), 299, 1000, 50),
}


def main():
    rng = np.random.default_rng(0)
    matmul, cost = matmul_job()
    jobs, products, num_masks = {("matmul", ""): matmul}, {}, {}
    for name, (ablation, patch, side, num_classes, n) in CASES.items():
        touched = ds.touched(ablation, patch, (side, side))
        votes = rng.random((n, touched.shape[1], num_classes)) > 0.8
        products[name] = 2 * touched.size * num_classes
        for rule in ("placement", "margin"):
            jobs[name, rule] = lambda v=votes, t=touched, r=rule: (
                ds.certify(v, t, rule=r).margin
            )
        masks = ds.design_masks(ablation, patch, (side, side))
        levels = rng.integers(-9210, 1, votes.shape, np.int16)
        jobs[name, "masking"] = lambda v=levels, m=masks: ds.mask_table(v, m)
        num_masks[name] = len(masks)
    seconds = best_times(jobs, rounds=5)
    rows = [
        {
            "case": name,
            "seconds_per_10000_placement": seconds[name, "placement"] / n * 10_000,
            "seconds_per_10000_margin": seconds[name, "margin"] / n * 10_000,
            "masks": num_masks[name],
            "seconds_per_10000_masking": seconds[name, "masking"] / n * 10_000,
            "gflop_per_second": products[name] * n / seconds[name, "placement"] / 1e9,
        }
        for name, (*_, n) in CASES.items()
    ]
    show(rows, matmul_gflop_per_second=cost / seconds["matmul", ""] / 1e9)


if __name__ == "__main__":
    main()
