"""Soft labels: what another classifier thinks of the training images.

A window of an image is ambiguous, and so should be its label. A teacher of whole images
says which classes are alike, once for each image. A teacher of the same ablation, a
larger network or several, says what can be known of each window, and sees what the
student sees: the changed image, at every step.

Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015
(arXiv:1503.02531), section 2.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Float32, Int, Key

from dsmooth_jax import masking, models, scoring
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.checks import check_range, user_path
from dsmooth_jax.data import Dataset
from dsmooth_jax.masked import restore_network
from dsmooth_jax.models import BaseClassifier, Variables
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST

Teach = Callable[
    [Float[Array, "B H W C"], Int[Array, " B"], Key[Array, ""]], Float[Array, "B n K"]
]
"""(images, labels, key) -> soft labels of the ablations that a student draws with this
key; a PyTree."""


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Whose probabilities take the place of labels.

    Attributes:
      workdir: of a run with defence="double_masking", whose network says what each
        image is; or of one of the same ablation, whose network says what each ablation
        is, changed images as they are; "": no teacher.
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
    with _workdir(config) as path:
        teacher, variables, record = restore_network(path)
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


def is_of_ablations(config: TeacherConfig) -> bool:
    """Whether the teacher says what each ablation is, not what each image is.

    Raises:
      ValueError: no teacher is there.
    """
    with _workdir(config) as path:
        return "masks" not in checkpoint.read_metadata(path / BEST)


def restore_teacher(
    config: TeacherConfig, student: Mapping[str, Any]
) -> tuple[BaseClassifier, Variables, str]:
    """A teacher of ablations, its variables, and the checksum of its arrays.

    Args:
      config: which teacher.
      student: what the student's checkpoints record.

    Raises:
      ValueError: no teacher is there, or it is of other ablations or images.
    """
    with _workdir(config) as path:
        record = checkpoint.read_metadata(path / BEST)
        for key in ("ablation", "image_shape", "num_classes"):
            if record[key] != student[key]:
                raise ValueError(
                    f"train.teacher.workdir={path} has {key} {record[key]}, and the "
                    f"student {student[key]}; take a teacher of the same"
                )
        teacher = build_teacher(record["model"], student)
        target = jax.eval_shape(teacher.init, jax.random.key(0))
        variables, _ = checkpoint.restore(path / BEST, target)
    return teacher, variables, checkpoint.fingerprint(path / BEST)


def build_teacher(
    model: Mapping[str, Any], student: Mapping[str, Any]
) -> BaseClassifier:
    """The teacher that reads, of each image, what the student reads in a step.

    Args:
      model: the teacher's, plain JSON.
      student: what the student's checkpoints record.

    Raises:
      ValueError: networks read in one pass draw other ablations than masked ones.
    """
    own = student["model"]
    members = model["members"] if model["name"] == "ensemble" else [model]
    for one in members:
        if (one["name"] == "bandnet") != (own["name"] == "bandnet"):
            raise ValueError(
                f"train.teacher.workdir has a {one['name']}, which cannot teach a "
                f"{own['name']}: either both or neither must be a bandnet"
            )
    crops = {"crops": own["crops"]} if "crops" in own else {}
    members = [{**one, **crops} for one in members]
    is_one = model["name"] != "ensemble"
    return models.build(
        members[0] if is_one else {"name": "ensemble", "members": members},
        ablation=ablation_from_json(student["ablation"]),
        image_shape=student["image_shape"],
        num_classes=student["num_classes"],
    )


def teach(
    config: TeacherConfig,
    teacher: BaseClassifier,
    variables: Variables,
    *,
    precision: str,
) -> Teach:
    """What makes soft labels of each ablation, for `make_train_step`.

    Args:
      config: how much of the teacher is in them.
      teacher: as `build_teacher` makes it.
      variables: the teacher's.
      precision: "float32" or "bfloat16", in which it computes.
    """
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.dtype(precision)), variables["params"]
    )
    return Partial(
        functools.partial(_soften, teacher.drawn_logits, config),
        {**variables, "params": params},
    )


def _soften(
    drawn_logits: Callable,
    config: TeacherConfig,
    variables: Variables,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, ""],
) -> Float[Array, "B n K"]:
    logits = drawn_logits(variables, images, key).astype(jnp.float32)
    soft = jax.nn.softmax(logits / config.temperature)
    hard = jax.nn.one_hot(labels, logits.shape[-1])[:, None]
    return config.weight * soft + (1 - config.weight) * hard


@contextlib.contextmanager
def _workdir(config: TeacherConfig) -> Iterator[pathlib.Path]:
    """The teacher's folder; what cannot be read there is named by the setting."""
    path = user_path("train.teacher.workdir", config.workdir)
    try:
        yield path
    except checkpoint.CheckpointError as error:
        raise ValueError(f"train.teacher.workdir={path}: {error}") from None
