"""cifar10_columns2_card with columns of 3.

python -m scripts.long_run --stages=... --data_dir=DATA --out=runs/card
"""

from configs import cifar10_columns2_card


def get_config():
    config = cifar10_columns2_card.get_config()
    config.ablation.width = 3
    return config
