"""How long does a report of ImageNet's size take, and how much memory?

python -m benchmarks.many_classes
python -m benchmarks.many_classes 100      # fewer images

Random scores, 1,000 classes and 299 ablations (columns of 25) of 2,000 images, 2.4 GB
in a temporary folder (TMPDIR says where), and of 100 validation images beside; then

    certify.py --patches=1%,2%,3% --top_k=5 --alarms=1%

in a process of its own, with figures and page.
"""

import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

import dsmooth_jax as ds
from benchmarks.common import show
from dsmooth_jax.storage.score_store import ScoreStore

ABLATION, SIDE, NUM_CLASSES = ds.Columns(25), 299, 1000


def fill(path, num_images, seed):
    """Scores in which the label leads, in some images by much, in some not at all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, num_images)
    store = ScoreStore.create(
        path,
        ablation=ABLATION,
        image_shape=(SIDE, SIDE, 3),
        num_classes=NUM_CLASSES,
        labels=labels,
        ids=np.arange(num_images),
        made_by={},
    )
    for shard in store.missing:
        span = store.span(shard)
        here = labels[span]
        shape = (len(here), SIDE, NUM_CLASSES)
        scores = rng.random(shape, np.float32) ** 30  # few of the classes matter
        lead = 40 * rng.random((len(here), 1), np.float32)
        scores[np.arange(len(here)), :, here] += lead * rng.random(
            shape[:2], np.float32
        )
        scores /= scores.sum(axis=2, keepdims=True)
        store = store.put(shard, scores)


def main():
    num_images = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder)
        fill(run / "test" / "scores", num_images, seed=0)
        fill(run / "validation" / "scores", min(num_images, 100), seed=1)
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "certify.py",
                f"--scores={run / 'test' / 'scores'}",
                "--patches=1%,2%,3%",
                "--top_k=5",
                "--alarms=1%",
            ],
            check=True,
        )
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "num_images": num_images,
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
    }
    show([row])


if __name__ == "__main__":
    main()
