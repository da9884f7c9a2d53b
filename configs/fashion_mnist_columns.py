"""Column smoothing of Fashion-MNIST in one pass.

python train.py --config=configs/fashion_mnist_columns.py --workdir=runs/fashion

Needs the TFDS data set fashion_mnist, or fashion_mnist_train.npz and
fashion_mnist_test.npz (--data_dir says where).
"""

from configs import mnist5k_columns


def get_config():
    config = mnist5k_columns.get_config()
    config.data = {"name": "fashion_mnist", "num_validation": 5000}
    config.ablation.width = 3
    config.train.epochs = 40
    config.train.augment.flip = True
    config.train.optimizer.warmup_epochs = 1.0
    config.validation.every_epochs = 2
    config.validation.patch = (5, 5)
    return config
