"""Columns of 2 in a size for a card: 800 epochs of soft labels, one view.

python -m scripts.long_run --data_dir=DATA --out=runs/card   # teacher, this, margin

Of columns of 3 a network as wide scores 234 images/s on two cores, in one view
(`python -m benchmarks.shipped`). The decay lies between that of cifar10_columns3 and
that over the number of steps. docs/experiments.md says what came out.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.ablation.width = 2
    config.model.mirror = False
    config.model.width = 96
    config.model.max_width = 384
    config.train.epochs = 800.0
    config.train.optimizer.weight_decay = 0.01
    config.train.ema_decay = 0.999
    config.train.teacher.workdir = "runs/cifar10_masks_card"
    config.train.teacher.temperature = 2.0
    config.validation.every_epochs = config.train.epochs
    return config
