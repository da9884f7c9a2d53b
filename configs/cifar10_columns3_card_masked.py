r"""Trains the model of cifar10_columns3_card on, on what double masking decides by.

python -m scripts.long_run --data_dir=DATA --out=runs/card \
  --stages=cifar10_columns3_card,cifar10_columns3_card_masked

The margin of every pair of masks over all 32 windows of each image: 8 epochs. In
48, a network before learnt its images by heart.
"""

from configs import cifar10_columns3_card


def get_config():
    config = cifar10_columns3_card.get_config()
    config.train.init_from = "runs/cifar10_columns3_card"
    config.train.teacher.workdir = ""
    config.train.epochs = 8.0
    config.train.batch_size = 128
    config.train.loss.name = "double_masked"
    config.train.loss.every = 1
    config.train.loss.target = 2.0
    config.train.loss.temperature = 4.0
    config.train.optimizer.learning_rate = 0.008
    config.train.optimizer.adam_learning_rate = 8e-4
    config.train.optimizer.warmup_epochs = 0.1
    config.validation.every_epochs = config.train.epochs
    return config
