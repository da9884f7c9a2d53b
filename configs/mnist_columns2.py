"""The paper's MNIST classifier: its small CNN on columns of 2 pixels, 400 epochs.

python train.py --config=configs/mnist_columns2.py --workdir=runs/mnist

Needs the TFDS data set mnist, or mnist_train.npz and mnist_test.npz (--data_dir says
where). Not run here: somebody else's run of the paper's method reports 96.5 % clean and
49.4 % certified accuracy at 5x5. `configs/mnist5k_columns_small_cnn.py` is the same
network on the 5,000 images that need no download.
"""

from configs import cifar10_columns4_resnet18


def get_config():
    config = cifar10_columns4_resnet18.get_config()
    config.data.name = "mnist"
    config.ablation.width = 2
    config.model = {"name": "small_cnn"}
    config.train.epochs = 400
    config.train.optimizer.learning_rate = 0.01
    config.train.optimizer.boundaries = (200,)
    config.train.augment.shift = 0
    config.train.augment.flip = False
    return config
