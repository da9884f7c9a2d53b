"""Column smoothing of Fashion-MNIST in one pass.

python train.py --config=configs/fashion_mnist_columns3.py --workdir=runs/fashion

Needs the TFDS data set fashion_mnist, or fashion_mnist_train.npz and
fashion_mnist_test.npz (--data_dir says where).

12 minutes on two shared Intel Xeon cores. On the 10,000 test images 88.5 % clean,
75.3 % certified at 2x2 and 62.0 % at 5x5 (graded votes, placement rule; threshold
votes: 87.9, 74.3, 60.6 %). On 5,000 validation images 89.2 % clean, 63.6 % at 5x5.
"""

from configs import mnist5k_columns


def get_config():
    config = mnist5k_columns.get_config()
    config.data.name = "fashion_mnist"
    config.ablation.width = 3
    config.train.epochs = 40
    config.train.augment.flip = True
    config.train.optimizer.warmup_epochs = 1.0
    config.validation.every_epochs = 2
    config.validation.patch = (5, 5)
    return config
