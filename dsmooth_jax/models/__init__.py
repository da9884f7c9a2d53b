"""Networks: base classifiers of ablations, and classifiers of images with parts hidden.

`build` and `build_image_classifier` make them from the plain JSON that a checkpoint
carries. The networks are Flax NNX modules (`resnet`, `small_cnn`, `cnn`, `bandnet`,
`vit`, `efficientnet_lite`); `base` turns them into functions of plain dicts, which is
all that the rest of the package sees. `weights` reads and writes what other libraries
save.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from dsmooth_jax.ablation import Ablation
from dsmooth_jax.hiding import HidingConfig
from dsmooth_jax.models.bandnet import bandnet
from dsmooth_jax.models.base import (
    BaseClassifier,
    ImageClassifier,
    Network,
    Variables,
    image_classifier,
    masked_classifier,
    network,
)
from dsmooth_jax.models.cnn import cnn
from dsmooth_jax.models.efficientnet_lite import efficientnet_lite0
from dsmooth_jax.models.ensemble import ensemble, ensemble_of_networks
from dsmooth_jax.models.resnet import resnet
from dsmooth_jax.models.small_cnn import small_cnn
from dsmooth_jax.models.vit import SIZES, ViTConfig, vit
from dsmooth_jax.models.weights import load_weights, save_weights

__all__ = [
    "BaseClassifier",
    "ImageClassifier",
    "Network",
    "Variables",
    "ViTConfig",
    "bandnet",
    "build",
    "build_image_classifier",
    "cnn",
    "efficientnet_lite0",
    "ensemble",
    "ensemble_of_networks",
    "image_classifier",
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

        - ``{"name": "resnet18", "stem": "cifar"}``: "resnet18", "resnet34" or
          "resnet50", stem "cifar" or "imagenet", and optionally "width" (64);
        - ``{"name": "small_cnn"}``;
        - ``{"name": "cnn"}`` and optionally "width" (64);
        - ``{"name": "efficientnet_lite0"}``;
        - ``{"name": "vit_small", "patch": 16}``: "vit_tiny", "vit_small", "vit_base",
          "vit_large", or "vit" with "width", "depth" and "heads"; and optionally
          "resize" (None) to [height, width] after ablation, and the other options of
          `ViTConfig`;
        - ``{"name": "bandnet"}`` and optionally "width" (32), "max_width" (None),
          "depth" (6), "halve" (None), "crops" (4), "mirror" (False), "shift" (0), see
          `bandnet`: all ablations in one pass;
        - ``{"name": "ensemble", "members": [...]}``, each of them one of these: the
          mean of what several say, see `ensemble`.

      ablation: what is kept of an image.
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.
      chunk_size: ablations of each image, or a bandnet's views of it, scored at a
        time; bounds memory, see `scoring.masked_scores` and `bandnet`.

    Raises:
      ValueError: the name or a key is unknown, a key is missing, or a value is out of
        range.
    """
    if spec.get("name") == "bandnet":
        return bandnet(
            ablation,
            image_shape=image_shape,
            num_classes=num_classes,
            chunk_size=chunk_size,
            **_settings(spec),
        )
    if spec.get("name") == "ensemble":
        members = _settings(spec).get("members") or ()
        return ensemble(
            [
                build(
                    member,
                    ablation=ablation,
                    image_shape=image_shape,
                    num_classes=num_classes,
                    chunk_size=chunk_size,
                )
                for member in members
            ]
        )
    net = _build_network(spec, ablation, image_shape, num_classes)
    return masked_classifier(net, ablation, chunk_size=chunk_size)


def build_image_classifier(
    spec: Mapping[str, Any],
    hiding: HidingConfig,
    *,
    image_shape: Sequence[int],
    num_classes: int,
) -> ImageClassifier:
    """The classifier of whole images, with parts hidden, that `spec` describes.

    Args:
      spec: as of `build`, of any network but "bandnet"; an "ensemble" of such.
      hiding: what is hidden in training.
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.

    Raises:
      ValueError: as `build`; "bandnet", which sees no whole image.
    """

    def whole(spec: Mapping[str, Any]) -> Network:
        if spec.get("name") == "ensemble":
            members = _settings(spec).get("members") or ()
            return ensemble_of_networks([whole(member) for member in members])
        if spec.get("name") == "bandnet":
            raise ValueError(
                "model.name='bandnet' is of ablations; masks of pixels need a network "
                "of whole images, for example 'cnn'"
            )
        return _build_network(spec, None, image_shape, num_classes)

    return image_classifier(whole(spec), hiding)


def _build_network(
    spec: Mapping[str, Any],
    ablation: Ablation | None,
    image_shape: Sequence[int],
    num_classes: int,
) -> Network:
    name, settings = spec.get("name"), _settings(spec)
    task: Any = {"image_shape": image_shape, "num_classes": num_classes}
    if name == "small_cnn":
        return small_cnn(**task)
    if name == "cnn":
        return cnn(**task, **settings)
    if name == "efficientnet_lite0":
        return efficientnet_lite0(**task)
    if name == "vit" or name in SIZES:
        if "patch" not in settings:
            raise ValueError(f"{name} needs model.patch, for example 16")
        resize = settings.pop("resize", None)
        config = ViTConfig(**settings, **SIZES.get(name, {}))
        return vit(config, ablation, resize=resize, **task)
    if "stem" not in settings:
        raise ValueError(f"{name} needs model.stem, 'cifar' or 'imagenet'")
    return resnet(int(str(name).removeprefix("resnet")), **task, **settings)


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec sets, all of it known to its network."""
    settings = {key: value for key, value in spec.items() if key != "name"}
    takes = options(spec.get("name"))
    for key, value in settings.items():
        if key not in takes:
            raise ValueError(
                f"model.{key}={value!r} is no setting of {spec.get('name')}, which "
                f"takes {', '.join(takes) or 'none'}; begin with a config of that "
                "network"
            )
    return settings


def options(name: Any) -> dict[str, Any]:
    """What a network of this name takes in its spec: {key: default}.

    Raises:
      ValueError: there is no such network; the message lists them.
    """
    makers: dict[Any, Any] = {
        "bandnet": bandnet,
        "cnn": cnn,
        "small_cnn": small_cnn,
        "ensemble": ensemble,
    }
    makers |= {f"resnet{depth}": resnet for depth in (18, 34, 50)}
    makers |= {"efficientnet_lite0": efficientnet_lite0, "vit": vit}
    makers |= dict.fromkeys(SIZES, vit)
    if name not in makers:
        raise ValueError(
            f"model.name={name!r} must be one of {', '.join(map(repr, makers))}"
        )
    parameters = dict(inspect.signature(makers[name]).parameters)
    task = {"ablation", "image_shape", "num_classes", "chunk_size"}
    if makers[name] is vit:  # its config's fields stand beside the rest
        parameters |= inspect.signature(ViTConfig).parameters
        task |= {"config", *SIZES.get(name, {})}
    if makers[name] is resnet:
        task |= {"depth"}  # the name says it
    return {
        key: None if one.default is one.empty else one.default
        for key, one in parameters.items()
        if key not in task
    }
