"""CIFAR-10 on columns of 3 pixels: at equal time they certify more than columns of 4.

python train.py --config=configs/cifar10_columns3.py --workdir=runs/cifar10_columns3

48 minutes on two AMD EPYC cores: 74.5 % clean,
52.4 % certified at 5x5 on 1,000 validation images (graded votes, placement rule; JPEGs
of CIFAR-10). docs/experiments.md.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "cifar10"
    config.data.num_validation = 1000
    config.ablation.width = 3
    config.ablation.stride = 1
    config.model.width = 80
    config.model.max_width = 320
    config.model.depth = 6
    config.model.crops = 2
    config.model.mirror = True
    config.train.epochs = 82.0
    config.train.batch_size = 512
    config.train.precision = "bfloat16"
    config.train.optimizer.name = "muon"
    config.train.optimizer.learning_rate = 0.08
    config.train.optimizer.weight_decay = 0.03
    config.train.optimizer.momentum = 0.95
    config.train.optimizer.newton_schulz_steps = 3
    config.train.optimizer.schedule = "linear"
    config.train.optimizer.warmup_epochs = 2.0
    config.train.augment.shift = 4
    config.train.augment.flip = True
    config.train.augment.color = 0.2
    config.validation.every_epochs = 10.25
    return config
