"""The paper's ImageNet classifier: ResNet-50 on columns of 25 of 299 pixels, 60 epochs.

python train.py --config=configs/imagenet_columns25_resnet50.py --workdir=runs/imagenet

Needs the TFDS data set imagenet2012, or folders of JPEGs, imagenet2012/train/CLASS and
imagenet2012/validation/CLASS (--data_dir says where). Not run here: the paper reports
44.4 % clean and 14.0 % certified accuracy at 42x42, 2 % of the image (as quoted by
others). docs/scaling.md has the arithmetic. The data source resizes to 299 x 299, so
that is the image that the attacker sees; certify.py says so.
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
    config.model.name = "resnet50"
    config.model.stem = "imagenet"
    config.train.epochs = 60
    config.train.batch_size = 196
    config.train.optimizer.name = "sgd"
    config.train.optimizer.learning_rate = 0.1
    config.train.optimizer.schedule = "piecewise"
    config.train.optimizer.boundaries = (20, 40)
    config.train.augment.flip = True
    # 1,000 images take 299,000 passes each time.
    config.validation.every_epochs = 10
    config.validation.patch = (42, 42)
    return config
