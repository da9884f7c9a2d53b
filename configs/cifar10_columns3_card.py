r"""Columns of 3 taught window by window by three large networks, on a card.

python -m scripts.long_run --data_dir=DATA --out=runs/card \
  --stages=cifar10_columns3_card,cifar10_columns3_card_masked

Nearly as fast to score as the network of cifar10_columns3: its first block keeps the
height, and it is narrower. docs/experiments.md says what came out.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.model.width = 64
    config.model.max_width = 256
    config.model.halve = (2, 3, 4, 5)
    config.model.mirror = False
    config.train.epochs = 420.0
    config.train.optimizer.weight_decay = 0.01
    config.train.ema_decay = 0.999
    config.train.teacher.workdir = "runs/cifar10_columns3_card_all"
    config.validation.every_epochs = config.train.epochs
    return config
