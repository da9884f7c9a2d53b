"""CIFAR-10 on blocks of 12x12 pixels, one pass: for patches of any shape.

python train.py --config=configs/cifar10_blocks12.py --workdir=runs/cifar10_blocks12

Sized for half an hour of one core. docs/experiments.md.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.ablation.kind = "Blocks"
    config.ablation.width = 12
    config.ablation.height = 12
    config.model.mirror = False
    config.model.width = 48
    config.model.max_width = 192
    config.train.epochs = 36.0
    config.train.batch_size = 256
    config.train.optimizer.weight_decay = 0.03
    config.train.optimizer.warmup_epochs = 0.5
    config.validation.every_epochs = config.train.epochs
    return config
