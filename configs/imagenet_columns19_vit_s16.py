"""Fine-tunes timm's ViT-Small on columns of 19 of 224 pixels of ImageNet.

python train.py --config=configs/imagenet_columns19_vit_s16.py \
    --config.train.init_from=vit_small.safetensors --workdir=runs/imagenet_vit

The setting of "Certified Patch Robustness via Smoothed Vision Transformers" (CVPR 2022,
arXiv:2110.07719), of whose 196 tokens 42 are computed. The file is timm's
vit_small_patch16_224 (docs/own_model.md). Data as for imagenet_columns25_resnet50. Not
run here, for want of the file and of the images.
"""

from dsmooth_jax.training.config import template


def get_config():
    config = template()
    config.data.name = "imagenet2012"
    config.data.num_validation = 1000
    # The labels of its test images are secret.
    config.data.test_split = "validation"
    config.data.size = (224, 224)
    config.data.channels = 3
    config.ablation.width = 19
    config.ablation.stride = 1
    config.model.name = "vit_small"
    config.model.patch = 16
    config.train.epochs = 30
    config.train.batch_size = 256
    config.train.init_mean = (0.5, 0.5, 0.5)
    config.train.init_std = (0.5, 0.5, 0.5)
    config.train.optimizer.name = "adamw"
    config.train.optimizer.learning_rate = 1e-4
    config.train.optimizer.weight_decay = 0.05
    config.train.optimizer.warmup_epochs = 1.0
    config.train.augment.flip = True
    # 1,000 images take 224,000 passes each time.
    config.validation.every_epochs = 10
    config.validation.patch = (32, 32)
    return config
