"""Column smoothing of 5,000 real MNIST images in one pass: what `make demo` trains.

python train.py --config=configs/mnist5k_columns.py --workdir=runs/mnist5k
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.ablation.width = 2
    config.ablation.stride = 1
    config.model.width = 32
    config.model.depth = 4
    config.model.crops = 4
    config.train.epochs = 150
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.weight_decay = 5e-2
    config.train.optimizer.warmup_epochs = 4.0
    config.train.augment.shift = 2
    config.validation.every_epochs = 5
    # What threshold and checkpoint are chosen for.
    config.validation.patch = (3, 3)
    return config
