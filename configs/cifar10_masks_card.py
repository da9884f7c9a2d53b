"""cifar10_masks in a size for a card: 150 epochs, in bfloat16, on hard labels.

python -m scripts.long_run --data_dir=DATA --out=runs/card   # this, then columns of 2

It is the teacher of cifar10_columns2_card, too: smoothed labels would teach it that all
other classes are alike.
"""

from configs import cifar10_masks


def get_config():
    config = cifar10_masks.get_config()
    config.train.epochs = 150.0
    config.train.precision = "bfloat16"
    config.train.optimizer.weight_decay = 0.004
    config.train.augment.shift = 4
    config.train.loss.label_smoothing = 0.0
    config.validation.every_epochs = config.train.epochs
    return config
