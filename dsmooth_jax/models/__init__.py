"""Base classifiers: networks that score one ablation at a time.

`build` makes one from the plain JSON that a checkpoint carries. The networks are Flax
NNX modules (`resnet`, `small_cnn`, `bandnet`); `base` turns them into functions of
plain dicts, which is all that the rest of the package sees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.models.bandnet import bandnet
from dsmooth_jax.models.base import (
    BaseClassifier,
    Network,
    Variables,
    masked_classifier,
    network,
)
from dsmooth_jax.models.resnet import resnet
from dsmooth_jax.models.small_cnn import small_cnn

__all__ = [
    "BaseClassifier",
    "Network",
    "Variables",
    "bandnet",
    "build",
    "masked_classifier",
    "network",
    "resnet",
    "small_cnn",
]


def build(
    spec: Mapping[str, Any],
    *,
    ablation: Ablation,
    image_shape: Sequence[int],
    num_classes: int,
    chunk_size: int = 8,
) -> BaseClassifier:
    """The base classifier that `spec` describes.

    Args:
      spec: plain JSON, one of
        {"name": "resnet18", "stem": "cifar"}: "resnet18", "resnet34" or "resnet50",
          stem "cifar" or "imagenet", and optionally "width" (64);
        {"name": "small_cnn"},
        {"name": "bandnet"} and optionally "width" (32), "max_width" (None), "depth"
          (6), "crops" (4), "mirror" (False), "shift" (0), see `bandnet`: all ablations
          in one pass.
      ablation: what is kept of an image.
      image_shape: (H, W, C) of the images, in pixels and colour channels.
      num_classes: K.
      chunk_size: ablations of each image scored at a time; bounds memory, see
        `scoring.masked_scores`.

    Raises:
      ValueError: the name or a key is unknown, a key is missing, or a value is out of
        range.
    """
    options = dict(spec)
    name = options.pop("name", None)
    match name:
        case "resnet18" | "resnet34" | "resnet50":
            _check_keys(spec, required={"name", "stem"}, optional={"width"})
            net = resnet(
                int(name.removeprefix("resnet")),
                image_shape=image_shape,
                num_classes=num_classes,
                **options,
            )
        case "small_cnn":
            _check_keys(spec, required={"name"}, optional=set())
            net = small_cnn(image_shape=image_shape, num_classes=num_classes)
        case "bandnet":
            optional = {"width", "max_width", "depth", "crops", "mirror", "shift"}
            _check_keys(spec, required={"name"}, optional=optional)
            return bandnet(
                ablation, image_shape=image_shape, num_classes=num_classes, **options
            )
        case _:
            raise ValueError(
                f"name={name!r} in the model's spec must be one of 'resnet18', "
                "'resnet34', 'resnet50', 'small_cnn', 'bandnet'"
            )
    return masked_classifier(net, ablation, chunk_size=chunk_size)


def _check_keys(
    spec: Mapping[str, Any], *, required: set[str], optional: set[str]
) -> None:
    if not required <= spec.keys() <= required | optional:
        raise ValueError(
            f"model spec {dict(spec)!r} must have the keys {sorted(required)} and may "
            f"have {sorted(optional)}, nothing else"
        )
