"""Fine-tunes timm's ViT-Tiny on columns of 4 pixels of CIFAR-10, resized to 224 inside.

python train.py --config=configs/cifar10_columns4_vit_t16.py \
    --config.train.init_from=vit_tiny.safetensors --workdir=runs/cifar10_vit

The file is timm's vit_tiny_patch16_224 (docs/own_model.md says how it is saved); the
head is new. The patch is counted in pixels of the 32 x 32 image: resizing comes after
ablation. Needs the TFDS data set cifar10. Not run here, for want of the file.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "cifar10"
    config.ablation.width = 4
    config.ablation.stride = 1
    config.model.name = "vit_tiny"
    config.model.patch = 16
    config.model.resize = (224, 224)
    config.train.epochs = 30
    config.train.batch_size = 128
    config.train.init_head = False
    config.train.init_mean = (0.5, 0.5, 0.5)
    config.train.init_std = (0.5, 0.5, 0.5)
    config.train.optimizer.name = "adamw"
    config.train.optimizer.learning_rate = 1e-4
    config.train.optimizer.weight_decay = 0.05
    config.train.optimizer.warmup_epochs = 1.0
    config.train.augment.shift = 4
    config.train.augment.flip = True
    config.validation.every_epochs = 5
    return config
