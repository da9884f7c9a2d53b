"""The paper's block smoothing of CIFAR-10: ResNet-18 on blocks of 12 x 12 pixels.

python train.py --config=configs/cifar10_blocks12_resnet18.py --workdir=runs/blocks

Needs the TFDS data set cifar10, or its npz files (--data_dir says where). Not run here.
A training step costs what it costs for columns (0.43 TFLOP); scoring an image takes
1,024 passes instead of 32.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "cifar10"
    # 5,000 validation images would take 5 million passes each time.
    config.data.num_validation = 1000
    config.ablation.kind = "Blocks"
    config.ablation.height = 12
    config.ablation.width = 12
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
    config.validation.every_epochs = 50
    return config
