"""The main job in seconds, on a fraction of the data's epochs: for CI, not for results.

python train.py --config=configs/mnist5k_smoke.py --workdir=runs/smoke
"""

from configs import mnist5k_columns


def get_config():
    config = mnist5k_columns.get_config()
    config.train.epochs = 2
    config.train.optimizer.warmup_epochs = 0.5
    config.validation.every_epochs = 1
    return config
