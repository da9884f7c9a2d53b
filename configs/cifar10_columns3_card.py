"""The shipped recipe in a size for a card: twice as wide, 400 epochs, one view.

python -m scripts.long_run --data_dir=DATA --out=runs/card   # this, then the margin

Not run yet: there was no card. The decay is that of cifar10_columns3 over the number of
steps, so that the whole run decays the weights as much.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    before = config.train.epochs
    config.model.mirror = False
    config.model.width = 160
    config.model.max_width = 640
    config.train.epochs = 400.0
    config.train.optimizer.weight_decay *= before / config.train.epochs
    config.train.ema_decay = 0.999
    config.validation.every_epochs = config.train.epochs
    return config
