"""The other defence on 5,000 real MNIST images: masks of pixels, double masking.

python train.py --config=configs/mnist5k_masks.py --workdir=runs/mnist5k_masks

170 seconds of processor time on an AMD EPYC (two cores, shared). certify.py with
--split=validation --num_images=100: 100.0 % clean, 90.0 % detected, 60.0 % certified at
5x5 (95 % interval 50 to 69), 573 passes an image; at 1x1 81.0 %, where unanimity of all
pairs has 60.0 %. So few images say little; the test images were not read.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.defence = "double_masking"
    config.masks.patch = (5, 5)
    config.masks.per_axis = 6  # 8x8 pixels
    config.model.name = "cnn"
    config.model.width = 16
    config.train.epochs = 20
    config.train.optimizer.name = "muon"
    config.train.optimizer.learning_rate = 0.05
    config.train.optimizer.weight_decay = 0.01
    config.train.optimizer.momentum = 0.95
    config.train.optimizer.newton_schulz_steps = 3
    config.train.optimizer.schedule = "linear"
    config.train.optimizer.warmup_epochs = 1.0
    config.train.augment.shift = 2
    config.train.hide.size = 8
    config.train.hide.none = 0.1
    config.train.hide.worst_of = 3
    config.train.loss.label_smoothing = 0.05
    # Once, at the end.
    config.validation.every_epochs = config.train.epochs
    config.validation.patch = (5, 5)
    return config
