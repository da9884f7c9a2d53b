"""Trains the model of cifar10_columns4 on, on the certificate itself.

python train.py --config=configs/cifar10_columns4_margin.py --workdir=runs/margin

Begins with the best variables in runs/cifar10_columns4. 27 minutes on two shared Intel
Xeon cores: 77.6 % clean, 46.3 % certified at 5x5 on 5,000 validation images (graded
votes, placement rule; JPEGs of CIFAR-10). docs/training.md.
"""

from configs import cifar10_columns4


def get_config():
    config = cifar10_columns4.get_config()
    config.model.mirror = True
    config.train.init_from = "runs/cifar10_columns4"
    config.train.epochs = 2.5
    config.train.batch_size = 64
    config.train.loss.name = "certified_margin"
    config.train.optimizer.learning_rate = 0.008
    config.train.optimizer.adam_learning_rate = 8e-4
    config.train.optimizer.warmup_epochs = 0.1
    config.train.augment.colour = 0.15
    config.validation.every_epochs = 0.5
    return config
