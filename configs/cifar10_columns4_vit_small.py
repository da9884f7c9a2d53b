"""A small vision transformer on columns of 4 pixels of CIFAR-10, from scratch.

python train.py --config=configs/cifar10_columns4_vit_small.py --workdir=runs/vit

0.8 million parameters, 16 of 64 tokens computed. 70 minutes of one AMD EPYC core: 62.4
% clean, 37.8 % certified at 5x5 on 1,000 validation images (double masking; JPEGs of
CIFAR-10). bandnet has 74.5 % and 52.4 % after as long. docs/experiments.md.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "cifar10"
    config.data.num_validation = 1000
    config.ablation.width = 4
    config.ablation.stride = 1
    config.model.name = "vit"
    config.model.patch = 4
    config.model.width = 128
    config.model.depth = 4
    config.model.heads = 4
    config.model.pool = "avg"
    config.model.class_token = False
    config.train.epochs = 48
    config.train.batch_size = 256
    config.train.optimizer.name = "muon"
    config.train.optimizer.learning_rate = 0.02
    config.train.optimizer.weight_decay = 0.03
    config.train.optimizer.momentum = 0.95
    config.train.optimizer.newton_schulz_steps = 3
    config.train.optimizer.schedule = "linear"
    config.train.optimizer.warmup_epochs = 1.0
    config.train.augment.shift = 4
    config.train.augment.flip = True
    config.validation.every_epochs = 12
    return config
