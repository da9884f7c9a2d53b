"""Trains the model of cifar10_columns3 on, on the certificate itself.

python train.py --config=configs/cifar10_columns3_margin.py --workdir=runs/margin

Begins with the best variables in runs/cifar10_columns3. 31 minutes on two Intel Xeon
cores, then still with a shift of 2. With 3: 81.5 % clean, 52.5 % certified at 5x5 on
5,000 validation images (graded votes, placement rule; JPEGs of CIFAR-10).
docs/training.md.
"""

from configs import cifar10_columns3


def get_config():
    config = cifar10_columns3.get_config()
    config.model.shift = 3
    config.train.init_from = "runs/cifar10_columns3"
    config.train.epochs = 4.2
    config.train.batch_size = 64
    config.train.ema_decay = 0.998
    config.train.loss.name = "certified_margin"
    config.train.optimizer.learning_rate = 0.006
    config.train.optimizer.adam_learning_rate = 6e-4
    config.train.optimizer.newton_schulz_steps = 3
    config.train.optimizer.warmup_epochs = 0.1
    config.validation.every_epochs = 2.1
    return config
