"""The paper's MNIST classifier: its small CNN on columns of 2 pixels, 400 epochs.

python train.py --config=configs/mnist_columns2.py --workdir=runs/mnist

Needs the TFDS data set mnist, or mnist_train.npz and mnist_test.npz (--data_dir says
where). Not run here: somebody else's run of the paper's method reports 96.5 % clean and
49.4 % certified accuracy at 5x5. `configs/mnist5k_columns_small_cnn.py` is the same
network on the 5,000 images that need no download.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "mnist"
    config.ablation.width = 2
    config.ablation.stride = 1
    config.model.name = "small_cnn"
    config.train.epochs = 400
    config.train.optimizer.name = "sgd"
    config.train.optimizer.learning_rate = 0.01
    config.train.optimizer.schedule = "piecewise"
    config.train.optimizer.boundaries = (200,)
    config.validation.every_epochs = 10
    return config
