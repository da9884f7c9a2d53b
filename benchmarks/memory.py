"""Does the memory that certifying takes grow with the number of images?

python -m benchmarks.memory

Each number of images gets a process of its own, which scores random 32 x 32 images with
the one-pass network (columns of 4), a shard at a time into a store, asks the store for
a certificate, and reports its peak resident memory. The images themselves, 3 kB each,
are drawn shard by shard.
"""

import json
import resource
import subprocess
import sys
import tempfile

import jax
import numpy as np

import dsmooth_jax as ds
from benchmarks.common import show
from dsmooth_jax import models
from dsmooth_jax.storage.score_store import ScoreStore

SHAPE = (32, 32, 3)


def certify(num_images):
    ablation = ds.Columns(4)
    classifier = models.build(
        {"name": "bandnet"}, ablation=ablation, image_shape=SHAPE, num_classes=10
    )
    scores_fn = classifier.scores_fn(classifier.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    touched = ds.touched(ablation, ds.Patch(5, 5), SHAPE[:2])
    with tempfile.TemporaryDirectory() as folder:
        scores = ScoreStore.create(
            f"{folder}/scores",
            ablation=ablation,
            image_shape=SHAPE,
            num_classes=10,
            labels=np.zeros(num_images, np.int64),
            ids=np.arange(num_images),
            made_by={},
        )
        for shard in scores.missing:
            span = scores.span(shard)
            images = rng.random((span.stop - span.start, *SHAPE), np.float32)
            scores = scores.put(shard, ds.score(scores_fn, images))
        for _, part in ds.open_scores(f"{folder}/scores"):
            ds.certify(ds.threshold_votes(part, 0.3), touched)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"num_images": num_images, "peak_mib": peak}))


def main():
    if len(sys.argv) > 1:
        certify(int(sys.argv[1]))
        return
    rows = []
    for num_images in (128, 1_000, 10_000):
        command = [sys.executable, "-m", "benchmarks.memory", str(num_images)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    show(rows)


if __name__ == "__main__":
    main()
