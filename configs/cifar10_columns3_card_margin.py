"""Trains the model of cifar10_columns3_card on, on the certificate itself.

python -m scripts.long_run --data_dir=DATA --out=runs/card

The margin over all 32 windows of each image (`cifar10_columns3_margin` took every
second), 40 epochs. Not run yet: there was no card.
"""

from configs import cifar10_columns3_card


def get_config():
    config = cifar10_columns3_card.get_config()
    config.train.init_from = "runs/cifar10_columns3_card"
    config.train.epochs = 40.0
    config.train.batch_size = 128
    config.train.loss.name = "certified_margin"
    config.train.loss.every = 1
    config.train.loss.temperature = 1.0
    config.train.optimizer.learning_rate = 0.008
    config.train.optimizer.adam_learning_rate = 8e-4
    config.train.optimizer.weight_decay = 0.03
    config.train.optimizer.warmup_epochs = 0.1
    config.validation.every_epochs = config.train.epochs
    return config
