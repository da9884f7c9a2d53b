"""cifar10_columns3_card_a with other random numbers.

python -m scripts.long_run --data_dir=DATA --out=runs/card
"""

from configs import cifar10_columns3_card_a


def get_config():
    config = cifar10_columns3_card_a.get_config()
    config.seed = 2
    return config
