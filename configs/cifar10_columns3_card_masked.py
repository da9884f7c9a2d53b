r"""cifar10_columns2_card_masked with columns of 3.

python -m scripts.long_run --data_dir=DATA --out=runs/card \
  --stages=cifar10_masks_card,cifar10_columns3_card,cifar10_columns3_card_masked
"""

from configs import cifar10_columns2_card_masked


def get_config():
    config = cifar10_columns2_card_masked.get_config()
    config.ablation.width = 3
    config.train.init_from = "runs/cifar10_columns3_card"
    return config
