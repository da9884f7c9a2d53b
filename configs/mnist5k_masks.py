"""The other defence on 5,000 real MNIST images: masks of pixels, double masking.

python train.py --config=configs/mnist5k_masks.py --workdir=runs/mnist5k_masks

135 seconds of processor time on an AMD EPYC (a shared machine; two cores). With its 36
masks, on every fourth validation image (125): 97.6 % clean, 88.0 % detected, 55.2 %
certified at 5x5, 95 % interval 46 to 64. So few images say little; the test images were
not read.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.defence = "double_masking"
    config.masks.patch = (5, 5)
    config.masks.per_axis = 6  # 8x8 pixels
    config.model.name = "cnn"
    config.model.width = 16
    config.train.epochs = 12
    config.train.optimizer.name = "muon"
    config.train.optimizer.learning_rate = 0.03
    config.train.optimizer.weight_decay = 0.01
    config.train.optimizer.momentum = 0.95
    config.train.optimizer.newton_schulz_steps = 3
    config.train.optimizer.schedule = "linear"
    config.train.optimizer.warmup_epochs = 1.0
    config.train.augment.shift = 2
    config.train.hide.size = 8
    config.train.hide.none = 0.1
    config.train.hide.worst_of = 4
    config.train.loss.label_smoothing = 0.05
    # Once, at the end.
    config.validation.every_epochs = config.train.epochs
    config.validation.patch = (5, 5)
    return config
