"""Base classifiers: networks that score one ablation at a time.

`build` makes one from the plain JSON that a checkpoint carries. The networks are Flax
NNX modules (`resnet`, `small_cnn`, `bandnet`, `vit`, `efficientnet_lite`); `base` turns
them into functions of plain dicts, which is all that the rest of the package sees.
`weights` reads and writes what other libraries save.
"""

import inspect
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
from dsmooth_jax.models.efficientnet_lite import efficientnet_lite0
from dsmooth_jax.models.resnet import resnet
from dsmooth_jax.models.small_cnn import small_cnn
from dsmooth_jax.models.vit import ViTConfig, vit
from dsmooth_jax.models.weights import load_weights, save_weights

__all__ = [
    "BaseClassifier",
    "Network",
    "Variables",
    "ViTConfig",
    "bandnet",
    "build",
    "efficientnet_lite0",
    "load_weights",
    "masked_classifier",
    "network",
    "options",
    "resnet",
    "save_weights",
    "small_cnn",
    "vit",
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
        {"name": "efficientnet_lite0"},
        {"name": "vit", "size": "small", "patch": 16}: "tiny", "small", "base" or
          "large", or [features, blocks, heads]; and optionally "resize" (None) to
          [height, width] after ablation, and the other options of `ViTConfig`,
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
    settings = {key: value for key, value in spec.items() if key != "name"}
    name = spec.get("name")
    takes = options(name)
    for key, value in settings.items():
        if key not in takes:
            raise ValueError(
                f"model.{key}={value!r} is no setting of {name}, which takes "
                f"{', '.join(takes) or 'none'}; begin with a config of that network"
            )
    if name == "bandnet":
        return bandnet(
            ablation, image_shape=image_shape, num_classes=num_classes, **settings
        )
    if name == "small_cnn":
        net = small_cnn(image_shape=image_shape, num_classes=num_classes)
    elif name == "efficientnet_lite0":
        net = efficientnet_lite0(image_shape=image_shape, num_classes=num_classes)
    elif name == "vit":
        if "patch" not in settings:
            raise ValueError(
                "vit needs model.patch, the side of a token, for example 16"
            )
        resize = settings.pop("resize", None)
        net = vit(
            ViTConfig(**settings),
            ablation,
            image_shape=image_shape,
            num_classes=num_classes,
            resize=resize,
        )
    else:
        if "stem" not in settings:
            raise ValueError(f"{name} needs model.stem, 'cifar' or 'imagenet'")
        net = resnet(
            int(str(name).removeprefix("resnet")),
            image_shape=image_shape,
            num_classes=num_classes,
            **settings,
        )
    return masked_classifier(net, ablation, chunk_size=chunk_size)


def options(name: Any) -> dict[str, Any]:
    """What a network of this name takes in its spec: {key: default}.

    Raises:
      ValueError: there is no such network; the message lists them.
    """
    makers: dict[Any, Any] = {"bandnet": bandnet, "small_cnn": small_cnn}
    makers |= {f"resnet{depth}": resnet for depth in (18, 34, 50)}
    makers |= {"vit": vit, "efficientnet_lite0": efficientnet_lite0}
    if name not in makers:
        raise ValueError(
            f"model.name={name!r} must be one of {', '.join(map(repr, makers))}"
        )
    parameters = dict(inspect.signature(makers[name]).parameters)
    if name == "vit":  # its config's fields stand beside the rest
        del parameters["config"]
        parameters |= inspect.signature(ViTConfig).parameters
    task = {"ablation", "image_shape", "num_classes"}
    if makers[name] is resnet:
        task |= {"depth"}  # the name says it
    return {
        key: None if one.default is one.empty else one.default
        for key, one in parameters.items()
        if key not in task
    }
