"""CIFAR-10 on columns of 4 pixels, all ablations in one pass.

python train.py --config=configs/cifar10_columns4.py --workdir=runs/cifar10_columns4

The recipe of cifar10_columns3, where it was measured; for columns of 4 it was not run.
docs/experiments.md.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.ablation.width = 4
    return config
