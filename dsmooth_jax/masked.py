"""The masked classifier: an image classifier and the masks it is asked under."""

import dataclasses
import pathlib

import jax
import numpy as np
from jaxtyping import Array

from dsmooth_jax import models
from dsmooth_jax.double_masking import (
    MaskedCertificate,
    certify_double_masking,
    double_masking_predict,
)
from dsmooth_jax.hiding import HidingConfig
from dsmooth_jax.labeling import LogitsFn, Until, check_settings, fill_table
from dsmooth_jax.masking import check_images
from dsmooth_jax.masks import Masks, covering, masks_from_json
from dsmooth_jax.scoring import bound
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.workdir import BEST
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import PerImage, Table
from dsmooth_jax.voting import TOLERANCE


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedClassifier:
    """A classifier whose predictions can be certified against patches, by masks.

    Attributes:
      logits_fn: the classifier, as in `mask_labels`: NULL-encoded images
        [B, H, W, 2C], or with a fill plain ones [B, H, W, C], to logits [B, K].
      masks: the masks.
      fill: what hidden pixels become, None for NULL.
      confidence: the least score of a class under two masks that is believed, in
        [0, 1), as in `mask_labels`.
      tolerance: by how much a score may differ elsewhere; a class that this could
        change certifies nothing.
      image_shape: (H, W, C) that the classifier was made for; others are refused. None:
        any.
    """

    logits_fn: LogitsFn
    masks: Masks
    _: dataclasses.KW_ONLY
    fill: float | None = None
    confidence: float = 0.0
    tolerance: float = TOLERANCE
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        bound("logits_fn", self.logits_fn)
        check_settings(self.fill, self.confidence, self.tolerance)
        if not isinstance(self.masks, Masks):
            raise TypeError(
                f"masks={self.masks!r} must be ds.Masks, or of ds.covering_masks"
            )

    def label(
        self,
        images: Array | np.ndarray,
        *,
        until: Until = "certified",
        batch_size: int = 256,
    ) -> Table:
        """Classifies every image under pairs of masks: `mask_labels`, shapes checked.

        Args:
          images: [N, H, W, C], floating in [0, 1] or uint8.
          until: when an image stops: once it is "predicted"; once it is also
            "certified", or cannot be any more, against each patch that the masks cover;
            or when its table is "complete".
          batch_size: passes at a time; it only runs faster or slower.

        Returns:
          int16 [N, M, M], `NOT_COMPUTED` where an image stopped.
        """
        images = check_images(images)
        shape = images.shape[1:]
        if self.image_shape is not None and shape != tuple(self.image_shape):
            raise ValueError(
                f"images have shape {shape}; this classifier takes "
                f"{tuple(self.image_shape)}"
            )
        return fill_table(
            self.logits_fn,
            self.masks,
            images,
            until=until,
            fill=self.fill,
            confidence=self.confidence,
            tolerance=self.tolerance,
            batch_size=batch_size,
        )

    def predict(self, images: Array | np.ndarray, *, batch_size: int = 256) -> PerImage:
        """Predicts the class of each image: M passes, and more where they disagree.

        Args:
          images: [N, H, W, C], floating in [0, 1] or uint8.
          batch_size: passes at a time; it only runs faster or slower.

        Returns:
          int64 [N], exactly the predictions that `certify` certifies.
        """
        table = self.label(images, until="predicted", batch_size=batch_size)
        return double_masking_predict(table)

    def certify(
        self,
        images: Array | np.ndarray,
        patch: Patch,
        *,
        batch_size: int = 256,
    ) -> MaskedCertificate:
        """Predicts, and certifies the predictions against every placement of the patch.

        Args:
          images: [N, H, W, C], floating in [0, 1] or uint8, as the attacker sees them.
          patch: in pixels of these images.
          batch_size: passes at a time; it only runs faster or slower.

        Returns:
          A `MaskedCertificate`, one entry for each image.

        Raises:
          TypeError, ValueError: as `mask_labels`; a patch that the masks do not cover.

        Guarantee:
          Where ``is_certified``, no patch of this size, at any place wholly inside the
          image, with any content, changes what `predict` returns on this machine,
          provided that logits_fn keeps the images of a batch apart.
        """
        covers = covering(self.masks, patch, check_images(images).shape[1:3])
        table = self.label(images, batch_size=batch_size)
        return certify_double_masking(table, covers)


def load_masked(workdir: PathLike) -> MaskedClassifier:
    """Loads the classifier for double masking that train.py left in a workdir.

    Args:
      workdir: the folder given to train.py.

    Returns:
      The classifier of the run's best checkpoint on validation data, with the masks of
      its config.

    Raises:
      CheckpointError: nothing is there, what is there is damaged, or it is of ablations
        (`load_smoothed`).
    """
    network, variables, record = restore_network(workdir)
    return MaskedClassifier(
        network.logits_fn(variables),
        masks_from_json(record["masks"]),
        confidence=record.get("confidence", 0.0),
        image_shape=tuple(record["image_shape"]),
    )


def restore_network(
    workdir: PathLike,
) -> tuple[models.ImageClassifier, models.Variables, dict]:
    """The network of a run's best checkpoint, its variables, what it records.

    Arguments and errors as of `load_masked`.
    """
    folder = pathlib.Path(workdir) / BEST
    record = checkpoint.read_metadata(folder)
    if "masks" not in record:
        raise checkpoint.CheckpointError(
            f"{workdir} holds a classifier of ablations; load it with ds.load_smoothed"
        )
    network = models.build_image_classifier(
        record["model"],
        HidingConfig(),
        image_shape=tuple(record["image_shape"]),
        num_classes=record["num_classes"],
    )
    target = jax.eval_shape(network.init, jax.random.key(0))
    variables, _ = checkpoint.restore(folder, target)
    return network, variables, record
