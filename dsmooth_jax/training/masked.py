"""Training a classifier of whole images for double masking: what a run needs of it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from dsmooth_jax import models
from dsmooth_jax.data.dataset import Dataset
from dsmooth_jax.distributed_scoring import compute_together
from dsmooth_jax.double_masking import certify_double_masking, nominal
from dsmooth_jax.evaluation import evaluate
from dsmooth_jax.labeling import mask_labels
from dsmooth_jax.masks import Masks, covering, covering_masks, masks_to_json
from dsmooth_jax.models import ImageClassifier
from dsmooth_jax.threat import Patch
from dsmooth_jax.training.choice import Choice
from dsmooth_jax.training.config import Config, to_json
from dsmooth_jax.types import ImageShape, ImageSize


def masks_record(config: Config, image_size: ImageSize) -> dict[str, Any]:
    """What a checkpoint says of the masks that a classifier is certified with.

    Raises:
      ValueError: they do not fit the images, named by their settings.
    """
    settings = config.masks
    masks = _masks("masks", settings.patch, settings.per_axis, image_size)
    return {"masks": masks_to_json(masks), "confidence": settings.confidence}


def build(config: Config, image_shape: ImageShape, num_classes: int) -> ImageClassifier:
    """The classifier that a config trains.

    Raises:
      ValueError: settings that cannot be, of these images.
    """
    size, hide = image_shape[:2], config.train.hide
    if hide.size > min(size):
        raise ValueError(
            f"train.hide.size={hide.size} must be in 0..{min(size)}, for images of "
            f"{size[0]}x{size[1]}"
        )
    _validation_masks(config, size)
    return models.build_image_classifier(
        to_json(config)["model"],
        hide,
        image_shape=image_shape,
        num_classes=num_classes,
    )


def validate(
    logits_fn: Callable[[Array], Array], config: Config, validation_set: Dataset
) -> Choice:
    """What is reached on validation images, with the masks that validation names."""
    size = validation_set.image_shape[:2]
    masks, labels = _validation_masks(config, size), validation_set.labels
    table = compute_together(
        lambda images: mask_labels(
            logits_fn,
            masks,
            images,
            early_exit=True,
            confidence=config.masks.confidence,
        ),
        validation_set.images,
    )
    patch = tuple(config.validation.patch)
    found = certify_double_masking(table, covering(masks, Patch(*patch), size))
    result = evaluate(found, labels)
    is_right = found.prediction == labels
    singles = np.diagonal(nominal(table), axis1=1, axis2=2)
    return Choice(
        voting=None,
        threshold=None,
        strength=None,
        patch=patch,
        clean_accuracy=result.clean.value,
        certified_accuracy=result.certified.value,
        base_accuracy=float((singles == labels[:, None]).mean()),
        decision="double_masking",
        detected_accuracy=float((found.is_detected & is_right).mean()),
    )


def _validation_masks(config: Config, image_size: ImageSize) -> Masks:
    settings = config.validation
    return _masks("validation", settings.patch, settings.per_axis, image_size)


def _masks(
    part: str, patch: Sequence[int], per_axis: int, image_size: ImageSize
) -> Masks:
    try:
        return covering_masks(Patch(*patch), image_size, per_axis=per_axis)
    except ValueError as error:
        raise ValueError(
            f"{part}.patch={list(patch)} and {part}.per_axis={per_axis}: {error}"
        ) from None
