"""The paper's column smoothing and network on 5,000 real MNIST images.

python train.py --config=configs/mnist5k_columns_small_cnn.py --workdir=runs/small_cnn
"""

from configs import mnist5k_columns


def get_config():
    config = mnist5k_columns.get_config()
    config.model = {"name": "small_cnn"}
    config.train.optimizer.learning_rate = 1e-3
    config.train.optimizer.weight_decay = 5e-4
    config.train.optimizer.warmup_epochs = 0.0
    config.validation.every_epochs = 10
    return config
