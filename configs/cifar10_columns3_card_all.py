r"""The three large networks as one, which is put together and not trained.

python -m scripts.join runs/card/cifar10_columns3_card_{a,b,c} \
  --out=runs/card/cifar10_columns3_card_all
"""

from configs import cifar10_columns3_card_a
from dsmooth_jax.training.config import template


def get_config():
    config = cifar10_columns3_card_a.get_config()
    model = {k: v for k, v in config.model.to_dict().items() if v is not None}
    config.model = template().model
    config.model.name = "ensemble"
    config.model.members = (model,) * 3
    return config
