"""Trains the model of cifar10_columns3 on, on the certificate itself.

python train.py --config=configs/cifar10_columns3_margin.py --workdir=runs/margin

Begins with the best variables in runs/cifar10_columns3. MINUTES on two AMD EPYC cores.
Validated once, at the end: the best is the last. docs/training.md.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.model.shift = 3
    config.train.init_from = "runs/cifar10_columns3"
    config.train.epochs = 9.0
    config.train.batch_size = 64
    config.train.ema_decay = 0.998
    config.train.loss.name = "certified_margin"
    config.train.loss.every = 2
    config.train.loss.temperature = 1.0
    config.train.optimizer.learning_rate = 0.008
    config.train.optimizer.adam_learning_rate = 8e-4
    config.train.optimizer.warmup_epochs = 0.1
    config.validation.every_epochs = config.train.epochs
    return config
