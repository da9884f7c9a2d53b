"""The paper's column smoothing and network on 5,000 real MNIST images.

python train.py --config=configs/mnist5k_columns_small_cnn.py --workdir=runs/small_cnn
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.ablation.width = 2
    config.ablation.stride = 1
    config.model.name = "small_cnn"
    config.train.epochs = 150
    config.train.optimizer.learning_rate = 1e-3
    config.train.augment.shift = 2
    config.validation.every_epochs = 10
    config.validation.patch = (3, 3)
    return config
