"""The first of three large networks that teach a small one, for a card.

python -m scripts.long_run --data_dir=DATA --out=runs/card

Eight blocks, two for each halving of the height, as a ResNet-18 has them: 8 million
parameters. The other two differ in their random numbers. docs/experiments.md.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.model.width = 128
    config.model.max_width = 512
    config.model.depth = 8
    config.model.halve = (3, 5, 7)
    config.model.mirror = False
    config.train.epochs = 100.0
    config.train.optimizer.weight_decay = 0.03
    config.train.ema_decay = 0.999
    config.validation.every_epochs = config.train.epochs
    return config
