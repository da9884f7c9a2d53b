"""Soft labels: what a classifier of whole images thinks of the training images.

A window of an image is ambiguous, and so should be its label: the classes that a
teacher finds alike are those that a window cannot tell apart.

Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015
(arXiv:1503.02531), section 2.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Float32

from dsmooth_jax import masking, scoring
from dsmooth_jax.checks import check_range, user_path
from dsmooth_jax.data import Dataset
from dsmooth_jax.masked import restore_network
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Whose probabilities take the place of labels.

    Attributes:
      workdir: of a run with defence="double_masking", whose network sees whole images;
        "": no teacher.
      weight: in [0, 1], the teacher's part of the soft labels; the rest is the label's.
      temperature: > 0, by which the teacher's logits are divided.
    """

    workdir: str = ""
    weight: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_range("train.teacher.weight", self.weight, least=0, most=1)
        check_range("train.teacher.temperature", self.temperature, above=0)


def soft_labels(
    config: TeacherConfig, train_set: Dataset, *, mirror: bool
) -> tuple[Float32[np.ndarray, "N K"], str]:
    """The soft labels of a training set, and the checksum of the teacher's arrays.

    Args:
      config: which teacher, and how much of it.
      train_set: images in memory, of the teacher's shape and classes.
      mirror: whether the probabilities are the mean of those of each image and of its
        mirror image; for training on both.

    Raises:
      ValueError: no teacher is there, or it is one of other images.
    """
    path = user_path("train.teacher.workdir", config.workdir)
    try:
        teacher, variables, record = restore_network(path)
    except checkpoint.CheckpointError as error:
        raise ValueError(f"train.teacher.workdir={path}: {error}") from None
    task = (*train_set.image_shape, train_set.num_classes)
    if task != (*record["image_shape"], record["num_classes"]):
        raise ValueError(
            f"train.teacher.workdir={path} is of images {record['image_shape']} and "
            f"{record['num_classes']} classes, and {train_set} is not"
        )

    def probabilities(
        logits_fn: Callable[[Array], Array], images: Float[Array, "B H W C"]
    ) -> Float[Array, "B 1 K"]:
        sides = [images, images[:, :, ::-1]] if mirror else [images]
        logits = [logits_fn(masking.encode(side)) for side in sides]
        soft = [jax.nn.softmax(one / config.temperature) for one in logits]
        return jnp.stack(soft).mean(0)[:, None]

    scores_fn = Partial(probabilities, teacher.logits_fn(variables))
    images = np.asarray(train_set.images[:])
    found = scoring.score(scores_fn, images, batch_size=256)[:, 0]
    hard = np.eye(train_set.num_classes, dtype=np.float32)[train_set.labels]
    soft = config.weight * found + (1 - config.weight) * hard
    return soft.astype(np.float32), checkpoint.fingerprint(path / BEST)
