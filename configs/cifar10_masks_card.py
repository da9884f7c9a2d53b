"""cifar10_masks in a size for a card: wider, 150 epochs, in bfloat16.

python -m scripts.long_run --data_dir=DATA --out=runs/card --stages=cifar10_masks_card

Each step forgets more than that of a run before, which learnt its images: 88.8 %
clean and 41.1 certified (9 masks) after 74 epochs of width 64 and decay 0.008.
"""

from configs import cifar10_masks


def get_config():
    config = cifar10_masks.get_config()
    config.masks.per_axis = 7  # 8x8 pixels; training hides a little more
    config.masks.confidence = 0.5
    config.model.width = 96
    config.train.epochs = 150.0
    config.train.precision = "bfloat16"
    config.train.optimizer.learning_rate = 0.05
    config.train.optimizer.weight_decay = 0.03
    config.train.optimizer.momentum = 0.95
    config.train.ema_decay = 0.999
    config.train.augment.shift = 4
    config.validation.every_epochs = config.train.epochs
    return config
