"""CIFAR-10 by masks of pixels: a chain of two million parameters, double masking.

python train.py --config=configs/cifar10_masks.py --workdir=runs/cifar10_masks

The recipe of a prototype of 700 steps, three times as long, with the worst of two masks
and an optimizer that gave 4 points of clean accuracy in a short run
(docs/experiments.md). Not run to its end yet.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "cifar10"
    config.data.num_validation = 1000
    config.defence = "double_masking"
    config.masks.patch = (5, 5)
    config.masks.per_axis = 6  # 9x9 pixels
    config.model.name = "cnn"
    config.model.width = 64
    config.train.epochs = 21
    config.train.batch_size = 500
    config.train.optimizer.name = "muon"
    config.train.optimizer.learning_rate = 0.24
    config.train.optimizer.weight_decay = 0.12
    config.train.optimizer.momentum = 0.6
    config.train.optimizer.newton_schulz_steps = 3
    config.train.optimizer.schedule = "linear"
    config.train.optimizer.warmup_epochs = 1.0
    config.train.augment.shift = 2
    config.train.augment.flip = True
    config.train.hide.size = 9
    config.train.hide.none = 0.3
    config.train.hide.worst_of = 2
    config.train.loss.label_smoothing = 0.1
    # Once, at the end.
    config.validation.every_epochs = config.train.epochs
    config.validation.patch = (5, 5)
    return config
