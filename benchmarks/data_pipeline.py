"""Does the data pipeline keep up with the training step?

python -m benchmarks.data_pipeline [FOLDER]

Three numbers: CIFAR-10-size images a second out of memory, as train.py takes them;
images a second that one training step consumes on this device, of the ResNet-18 of
`configs/cifar10_columns4_resnet18.py` and of a bandnet; and ImageNet-size photographs
decoded and resized to 299 x 299, by one thread and by all, and as grain streams them.
The photographs are the files in FOLDER, or without it made up (smooth noise, 500 x 375,
JPEG quality 90).
"""

import concurrent.futures
import io
import os
import pathlib
import sys
import time

import jax
import numpy as np
import PIL.Image

import dsmooth_jax as ds
from benchmarks.common import best_times, show
from dsmooth_jax import data, models
from dsmooth_jax.data.images import decode
from dsmooth_jax.training.step import AugmentConfig, init_state, make_train_step

SHAPE = (32, 32, 3)
BATCH = 128
MODELS = {
    "resnet18": {"name": "resnet18", "stem": "cifar"},
    "bandnet": {"name": "bandnet", "width": 48},
}


def photographs(folder):
    """Image files as bytes."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.iterdir())]
    rng = np.random.default_rng(0)
    files = []
    for _ in range(16):
        small = PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((500, 375)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def dataset(images):
    labels = np.arange(len(images)) % 2
    ids = np.arange(len(images)).astype(str)
    return data.Dataset("benchmark", "train", images, labels, ids, num_classes=2)


def images_per_second(batches):
    """Of an iterator of batches, the first one aside: it starts threads."""
    next(batches)
    start = time.perf_counter()
    count = sum(len(images) for images, _ in batches)
    return count / (time.perf_counter() - start)


def step_rate(spec):
    """Images a second that a training step consumes."""
    classifier = models.build(
        spec, ablation=ds.Columns(4), image_shape=SHAPE, num_classes=10
    )
    optimizer, _ = training.make_optimizer(
        training.OptimizerConfig(), num_epochs=1, steps_per_epoch=100
    )
    augment = AugmentConfig(shift=4, flip=True)
    step = jax.jit(make_train_step(classifier, optimizer, augment))
    key = jax.random.key(0)
    state = init_state(classifier, optimizer, key)
    images, labels = np.zeros((BATCH, *SHAPE), np.uint8), np.zeros(BATCH, np.int64)
    seconds = best_times({"step": lambda: step(state, images, labels, key)}, rounds=4)
    return BATCH / seconds["step"]


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (45_000, *SHAPE), dtype=np.uint8)
    in_memory = images_per_second(
        data.batches(dataset(pixels), BATCH, seed=0, start=0, stop=2000)
    )
    rows = [{"what": "batches out of memory", "images_per_second": in_memory}]
    for name, spec in MODELS.items():
        rate = step_rate(spec)
        rows.append(
            {
                "what": f"training step, {name}",
                "images_per_second": rate,
                "pipeline_is_faster": in_memory / rate,
            }
        )

    files = photographs(folder)
    megapixels = [np.prod(PIL.Image.open(io.BytesIO(f)).size) / 1e6 for f in files]

    def decode_all(threads):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            read = lambda content: decode(content, "", size=(299, 299), channels=3)  # noqa: E731
            return list(pool.map(read, files * 4))

    cores = os.cpu_count()
    for threads in sorted({1, cores}):
        seconds = best_times({"": lambda t=threads: decode_all(t)}, rounds=3)[""]
        rate = 4 * len(files) / seconds
        rows.append(
            {
                "what": f"photographs decoded and resized, {threads} threads",
                "images_per_second": rate,
                "per_thread": rate / threads,
            }
        )
    stored = data.StoredImages(
        content=lambda row: files[row],
        rows=np.arange(len(files)),
        ids=np.arange(len(files)).astype(str),
        size=(299, 299),
        channels=3,
    )
    rate = images_per_second(
        data.batches(dataset(stored), 16, seed=0, start=0, stop=40)
    )
    rows.append({"what": "photographs by grain", "images_per_second": rate})
    show(
        rows,
        photographs={
            "files": len(files),
            "real": folder is not None,
            "mean_kilobytes": float(np.mean([len(f) for f in files])) / 1e3,
            "mean_megapixels": float(np.mean(megapixels)),
        },
    )


if __name__ == "__main__":
    main()
