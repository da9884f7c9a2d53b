"""ImageNet in one pass: bandnet on columns of 25 of 299 pixels.

python train.py --config=configs/imagenet_columns25_bandnet.py --workdir=runs/bandnet

Needs what `configs/imagenet_columns25_resnet50.py` needs. Not run here, and nobody has
published numbers of this network: a relative, BagCert, reports 45.3 % clean and 22.7 %
certified accuracy at a patch of 2 %. docs/scaling.md has the arithmetic: an image is
certified by one pass instead of 299.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "imagenet2012"
    config.data.num_validation = 1000
    # The labels of its test images are secret.
    config.data.test_split = "validation"
    config.data.size = (299, 299)
    config.data.channels = 3
    config.ablation.width = 25
    config.ablation.stride = 1
    config.model.width = 64
    config.model.depth = 6
    config.model.crops = 4
    config.train.epochs = 60
    config.train.batch_size = 256
    config.train.optimizer.weight_decay = 5e-2
    config.train.optimizer.warmup_epochs = 2.0
    config.train.augment.flip = True
    config.validation.every_epochs = 10
    config.validation.patch = (42, 42)
    return config
