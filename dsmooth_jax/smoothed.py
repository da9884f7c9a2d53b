"""The smoothed classifier: base classifier, ablation and voting in one value."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
from jaxtyping import Array

from dsmooth_jax import checkpoint, models
from dsmooth_jax.ablation import Ablation, ablation_from_json, check_ablation
from dsmooth_jax.certificate import Certificate, Rule, certify, predict_votes
from dsmooth_jax.masking import check_images
from dsmooth_jax.scoring import ScoresFn, score
from dsmooth_jax.threat import Patch, touched
from dsmooth_jax.types import Levels, PerImage, Scores
from dsmooth_jax.voting import (
    Voting,
    cast_votes,
    check_strength,
    check_threshold,
    check_voting,
)
from dsmooth_jax.wording import counted

BEST = pathlib.Path("checkpoints", "best")
"""Where in a workdir the checkpoint that `load_smoothed` reads lies."""


@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedClassifier:
    """A classifier whose predictions can be certified against patches.

    Attributes:
      scores_fn: the base classifier, images [B, H, W, C] -> scores [B, P, K].
      ablation: what each of its P ablations keeps.
      voting: "threshold", "top_one" or "graded".
      threshold: least score that is a vote, in (0, 1]; for threshold voting.
      strength: levels per score of graded voting, in [1, 100].
      image_shape: (H, W, C) that the base classifier was made for; others are refused.
        None: any.
    """

    scores_fn: ScoresFn
    ablation: Ablation
    _: dataclasses.KW_ONLY
    voting: Voting = "threshold"
    threshold: float = 0.3
    strength: float = 5.0
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not callable(self.scores_fn):
            raise TypeError(
                f"scores_fn={self.scores_fn!r} must be a function of images"
            )
        check_ablation(self.ablation)
        check_voting(self.voting)
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        object.__setattr__(self, "strength", check_strength(self.strength))

    def score(self, images: Array | np.ndarray, *, batch_size: int = 32) -> Scores:
        """Scores every ablation of every image: `dsmooth_jax.score`, shapes checked."""
        images = check_images(images)
        shape = images.shape[1:]
        if self.image_shape is not None and shape != tuple(self.image_shape):
            raise ValueError(
                f"images have shape {shape}; this classifier takes "
                f"{tuple(self.image_shape)}"
            )
        scores = score(self.scores_fn, images, batch_size=batch_size)
        num_ablations = self.ablation.num_ablations(shape[:2])
        if scores.shape[1] != num_ablations:
            raise ValueError(
                f"scores_fn returned {counted(scores.shape[1], 'ablation')}; "
                f"{self.ablation} has {num_ablations} on an image of {shape[:2]}"
            )
        return scores

    def vote(self, scores: np.ndarray) -> tuple[Levels, int | None]:
        """Turns scores [N, P, K] into votes or levels [N, P, K], and their limit."""
        return cast_votes(
            scores, self.voting, threshold=self.threshold, strength=self.strength
        )

    def predict(self, images: Array | np.ndarray, *, batch_size: int = 32) -> PerImage:
        """Predicts the class of each image.

        Args:
          images: [N, H, W, C], floating in [0, 1] or uint8.
          batch_size: images at a time; it only runs faster or slower.

        Returns:
          int64 [N], exactly the predictions that `certify` certifies.
        """
        votes, limit = self.vote(self.score(images, batch_size=batch_size))
        return predict_votes(votes, limit=limit)

    def certify(
        self,
        images: Array | np.ndarray,
        patch: Patch,
        *,
        rule: Rule = "placement",
        batch_size: int = 32,
    ) -> Certificate:
        """Predicts, and certifies the predictions against every placement of the patch.

        Args:
          images: [N, H, W, C], floating in [0, 1] or uint8, as the attacker sees them.
          patch: in pixels of these images.
          rule: "placement" or "margin", as in `dsmooth_jax.certify`.
          batch_size: images at a time; it only runs faster or slower.

        Returns:
          A `Certificate`, one entry for each image.

        Raises:
          TypeError, ValueError: as `score`, `touched` and `dsmooth_jax.certify`.

        Guarantee:
          Where ``is_certified``, no patch of this size, at any place wholly inside the
          image, with any content, changes what `predict` returns on this machine,
          provided that scores_fn keeps its contract (see `dsmooth_jax.check_locality`).
        """
        votes, limit = self.vote(self.score(images, batch_size=batch_size))
        sets = touched(self.ablation, patch, images.shape[1:3])
        return certify(votes, sets, rule=rule, limit=limit)


def load_smoothed(
    workdir: str | os.PathLike[str], *, chunk_size: int = 8
) -> SmoothedClassifier:
    """Loads the smoothed classifier that train.py left in a workdir.

    Args:
      workdir: the folder given to train.py.
      chunk_size: ablations of each image run at a time, where the model has no better
        way; it only runs faster or slower.

    Returns:
      The classifier of the run's best checkpoint on validation data, with the voting
      chosen there.

    Raises:
      CheckpointError: nothing is there, or what is there is damaged.
    """
    base, variables, record = restore_base(workdir, chunk_size=chunk_size)
    return SmoothedClassifier(
        base.scores_fn(variables),
        ablation_from_json(record["ablation"]),
        voting=record["voting"],
        threshold=record["threshold"],
        strength=record["strength"],
        image_shape=tuple(record["image_shape"]),
    )


def restore_base(
    workdir: str | os.PathLike[str], *, chunk_size: int = 8
) -> tuple[models.BaseClassifier, models.Variables, dict]:
    """The base classifier of a run's best checkpoint, its variables, what it records.

    Arguments and errors as of `load_smoothed`.
    """
    folder = pathlib.Path(workdir) / BEST
    record = checkpoint.read_metadata(folder)
    base = models.build(
        record["model"],
        ablation=ablation_from_json(record["ablation"]),
        image_shape=tuple(record["image_shape"]),
        num_classes=record["num_classes"],
        chunk_size=chunk_size,
    )
    target = jax.eval_shape(base.init, jax.random.key(0))
    variables, _ = checkpoint.restore(folder, target)
    return base, variables, record
