"""ImageNet in one pass: bandnet on columns of 25 of 299 pixels.

python train.py --config=configs/imagenet_columns25_bandnet.py --workdir=runs/bandnet

Needs what `configs/imagenet_columns25_resnet50.py` needs. Not run here, and nobody has
published numbers of this network: a relative, BagCert, reports 45.3 % clean and 22.7 %
certified accuracy at a patch of 2 %. docs/scaling.md has the arithmetic: an image is
certified by one pass instead of 299.
"""

from configs import imagenet_columns25_resnet50


def get_config():
    config = imagenet_columns25_resnet50.get_config()
    config.model = {"name": "bandnet", "width": 64, "depth": 6, "crops": 4}
    config.train.batch_size = 256
    config.train.optimizer.name = "adamw"
    config.train.optimizer.learning_rate = 1e-3
    config.train.optimizer.weight_decay = 5e-2
    config.train.optimizer.schedule = "cosine"
    config.train.optimizer.warmup_epochs = 2.0
    config.train.optimizer.boundaries = ()
    return config
