"""Decodes the images of NAME_train.npz once, for many starts to come.

python -m scripts.unpack FROM TO NAME
"""

import pathlib
import sys

import numpy as np

from dsmooth_jax import data


def main(source, target, name):
    images = data.load(name=name, split="train", data_dir=source, num_validation=0)
    pathlib.Path(target).mkdir(parents=True, exist_ok=True)
    np.savez(
        pathlib.Path(target, f"{name}_train.npz"),
        images=images.images[:],
        labels=images.labels,
        ids=images.ids,
        **{"class_names": np.array(images.class_names)} if images.class_names else {},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
