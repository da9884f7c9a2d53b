"""The paper's CIFAR-10 classifier: ResNet-18 on columns of 4 pixels, 350 epochs.

python train.py --config=configs/cifar10_columns4_resnet18.py --workdir=runs/cifar10

Needs the TFDS data set cifar10 (--data_dir says where). Not run here: the paper reports
83.8 % clean and 57.6 % certified accuracy at 5x5 after 15.4 hours on an RTX 2080 Ti.
One training step costs 0.43 TFLOP (128 images x 3 passes x 1.1 GFLOP), an epoch of
45,000 images 0.15 PFLOP and the whole run 53 PFLOP.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "cifar10"
    config.ablation.width = 4
    config.ablation.stride = 1
    config.model.name = "resnet18"
    config.model.stem = "cifar"
    config.train.epochs = 350
    config.train.optimizer.name = "sgd"
    config.train.optimizer.learning_rate = 0.1
    config.train.optimizer.schedule = "piecewise"
    config.train.optimizer.boundaries = (150, 250)
    config.train.augment.shift = 4
    config.train.augment.flip = True
    config.validation.every_epochs = 10
    return config
