"""Column smoothing of Fashion-MNIST in one pass.

python train.py --config=configs/fashion_mnist_columns3.py --workdir=runs/fashion

Needs the TFDS data set fashion_mnist, or fashion_mnist_train.npz and
fashion_mnist_test.npz (--data_dir says where).

About 30 minutes on one shared core of an AMD EPYC. On the 10,000 test images double
masking has 88.6 % clean and 66.8 % certified at 5x5, 89.2 and 78.5 % at 2x2; graded
votes 88.6 % clean, 61.9 % at 5x5, 75.3 % at 2x2. On 5,000 validation images double
masking has 88.7 % clean, 66.4 % at 5x5. docs/benchmarks.md.
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
