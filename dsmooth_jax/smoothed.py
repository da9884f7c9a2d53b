"""The smoothed classifier: base classifier, ablation and decision in one value."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

from dsmooth_jax import models
from dsmooth_jax.ablation import Ablation, ablation_from_json, check_ablation
from dsmooth_jax.certificate import RULES, Certificate, Rule, certify, predict_votes
from dsmooth_jax.checks import check_choice, user_path
from dsmooth_jax.double_masking import MaskedCertificate, double_masking_predict
from dsmooth_jax.evidence import (
    certify_masked,
    levels_and_doubts,
    log_levels,
    mask_table,
)
from dsmooth_jax.leaving_out import covering_touched, design_masks
from dsmooth_jax.masking import check_images
from dsmooth_jax.scoring import ScoresFn, score
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.workdir import BEST
from dsmooth_jax.threat import Patch, touched
from dsmooth_jax.types import AblationMasks, ImageSize, PerImage, Scores, Votes
from dsmooth_jax.voting import (
    STRENGTH,
    THRESHOLD,
    TOLERANCE,
    GradedVotes,
    Voting,
    cast_doubts,
    cast_votes,
    check_strength,
    check_threshold,
    check_tolerance,
    check_voting,
)
from dsmooth_jax.wording import counted

Decision = Literal["votes", "double_masking"]
DECISIONS: tuple[Decision, ...] = ("votes", "double_masking")


@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedClassifier:
    """A classifier whose predictions can be certified against patches.

    Attributes:
      scores_fn: the base classifier, images [B, H, W, C] -> scores [B, P, K].
      ablation: what each of its P ablations keeps.
      decision: "votes", or "double_masking", which leaves out what a patch can touch.
      patch: of double masking, the largest patch that is to be certified: the masks are
        made for it (`design_masks`), and another one makes another classifier.
      voting: of votes, "threshold", "top_one" or "graded".
      threshold: least score that is a vote, in (0, 1]; for threshold voting.
      strength: levels per score of graded voting, in [1, 100].
      image_shape: (H, W, C) that the base classifier was made for; others are refused.
        None: any.
    """

    scores_fn: ScoresFn
    ablation: Ablation
    _: dataclasses.KW_ONLY
    decision: Decision = "votes"
    patch: Patch | None = None
    voting: Voting = "threshold"
    threshold: float = THRESHOLD
    strength: float = STRENGTH
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not callable(self.scores_fn):
            raise TypeError(
                f"scores_fn={self.scores_fn!r} must be a function of images"
            )
        check_ablation(self.ablation)
        check_choice("decision", self.decision, DECISIONS)
        if (self.decision == "double_masking") != isinstance(self.patch, Patch):
            raise ValueError(
                f"decision={self.decision!r} with patch={self.patch!r}: double masking "
                "needs the Patch that it is made for, for example ds.Patch(5, 5); "
                "votes have none"
            )
        check_voting(self.voting)
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        object.__setattr__(self, "strength", check_strength(self.strength))

    def settings(self) -> dict[str, Any]:
        """How it decides, as plain JSON: what checkpoints and stores say of it."""
        patch = None if self.patch is None else [self.patch.height, self.patch.width]
        return {
            "decision": self.decision,
            "patch": patch,
            "voting": self.voting,
            "threshold": self.threshold,
            "strength": self.strength,
        }

    def score(self, images: Array | np.ndarray, *, batch_size: int = 32) -> Scores:
        """Scores every ablation of every image: `dsmooth_jax.score`, shapes checked."""
        images = self._check_images(images)
        size = images.shape[1:3]
        scores = score(self.scores_fn, images, batch_size=batch_size)
        num_ablations = self.ablation.num_ablations(size)
        if scores.shape[1] != num_ablations:
            raise ValueError(
                f"scores_fn returned {counted(scores.shape[1], 'ablation')}; "
                f"{self.ablation} has {num_ablations} on an image of {size}"
            )
        return scores

    def _check_images(self, images: Array | np.ndarray) -> Array | np.ndarray:
        images = check_images(images)
        shape = images.shape[1:]
        if self.image_shape is not None and shape != tuple(self.image_shape):
            raise ValueError(
                f"images have shape {shape}; this classifier takes "
                f"{tuple(self.image_shape)}"
            )
        return images

    def vote(self, scores: np.ndarray) -> Votes | GradedVotes:
        """Turns scores [N, P, K] into votes, as `dsmooth_jax.certify` takes them."""
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

        Raises:
          TypeError, ValueError: as `score`; for double masking, an image too small for
            the patch.
        """
        scores = self.score(images, batch_size=batch_size)
        if self.patch is not None:
            masks = self._masks(images.shape[1:3])
            return double_masking_predict(mask_table(log_levels(scores), masks))
        return predict_votes(self.vote(scores))

    def certify(
        self,
        images: Array | np.ndarray,
        patch: Patch,
        *,
        rule: Rule = "placement",
        tolerance: float = TOLERANCE,
        batch_size: int = 32,
    ) -> Certificate | MaskedCertificate:
        """Predicts, and certifies the predictions against every placement of the patch.

        Args:
          images: [N, H, W, C], floating in [0, 1] or uint8, as the attacker sees them.
          patch: in pixels of these images.
          rule: of votes, "placement" or "margin", as in `dsmooth_jax.certify`.
          tolerance: by how much the scores may differ on another machine, or where the
            attacked image is scored in another batch; votes that this would cast
            otherwise count for the attacker. 0: for this very program alone.
          batch_size: images at a time; it only runs faster or slower.

        Returns:
          A `Certificate`, or for double masking a `MaskedCertificate`, one entry for
          each image.

        Raises:
          TypeError, ValueError: as `score`, `touched` and `dsmooth_jax.certify`; for
            double masking, a patch that is not inside the one it is made for.

        Guarantee:
          Where ``is_certified``, no patch of this size, at any place wholly inside the
          image, with any content, changes what `predict` returns, here or wherever
          scores differ by no more than the tolerance, provided that scores_fn keeps its
          contract (see `dsmooth_jax.check_locality`).
        """
        images = self._check_images(images)
        certify_scores = self._certifier(patch, images.shape[1:3], rule, tolerance)
        return certify_scores(self.score(images, batch_size=batch_size))

    def certify_scores(
        self,
        scores: np.ndarray,
        patch: Patch,
        image_size: ImageSize,
        *,
        rule: Rule = "placement",
        tolerance: float = TOLERANCE,
    ) -> Certificate | MaskedCertificate:
        """`certify`, of scores that are there: nothing is scored again.

        Args:
          scores: floating [N, P, K], what `score` returned.
          patch: in pixels of the images that were scored.
          image_size: (H, W) of these.
          rule: as in `certify`.
          tolerance: likewise.

        Returns:
          What `certify` returns of the images.

        Raises:
          TypeError, ValueError: as `certify`; scores of another number of ablations.

        Guarantee:
          That of `certify`, if the scores are this classifier's, of images of this
          size.
        """
        return self._certifier(patch, image_size, rule, tolerance)(scores)

    def _certifier(
        self, patch: Patch, size: ImageSize, rule: Rule, tolerance: float
    ) -> Callable[[np.ndarray], Certificate | MaskedCertificate]:
        """What is asked of scores; what cannot be is refused before there are any."""
        check_tolerance(tolerance)
        check_choice("rule", rule, RULES)
        if self.image_shape is not None and tuple(size) != self.image_shape[:2]:
            raise ValueError(
                f"image_size={tuple(size)} must be {self.image_shape[:2]}, of the "
                "images that this classifier takes"
            )
        sets = touched(self.ablation, patch, size)

        def certify_votes(scores: np.ndarray) -> Certificate:
            settings = {"threshold": self.threshold, "strength": self.strength}
            doubt = cast_doubts(scores, self.voting, tolerance, **settings)
            return certify(self.vote(scores), sets, rule=rule, uncertain=doubt)

        if self.patch is None:
            return certify_votes
        if rule != "placement":
            raise ValueError(f"rule={rule!r} is for votes; double masking has none")
        if patch.height > self.patch.height or patch.width > self.patch.width:
            raise ValueError(
                f"patch {patch} is not inside {self.patch}, which the masks of this "
                "classifier are made for; make one with patch=, which answers otherwise"
            )
        masks = self._masks(size)
        covering = covering_touched(masks, sets)

        def certify_evidence(scores: np.ndarray) -> MaskedCertificate:
            levels, doubt = levels_and_doubts(scores, tolerance)
            return certify_masked(levels, masks, covering, uncertain=doubt)

        return certify_evidence

    def _masks(self, image_size: ImageSize) -> AblationMasks:
        assert self.patch is not None
        return design_masks(self.ablation, self.patch, image_size)


def load_smoothed(workdir: PathLike, *, chunk_size: int = 8) -> SmoothedClassifier:
    """Loads the smoothed classifier that train.py left in a workdir.

    Args:
      workdir: the folder given to train.py.
      chunk_size: ablations of each image run at a time, where the model has no better
        way; it only runs faster or slower.

    Returns:
      The classifier of the run's best checkpoint on validation data, with the decision
      and the voting chosen there.

    Raises:
      CheckpointError: nothing is there, or what is there is damaged.
    """
    base, variables, record = restore_base(workdir, chunk_size=chunk_size)
    return SmoothedClassifier(
        base.scores_fn(variables),
        ablation_from_json(record["ablation"]),
        **_decision(record),
        voting=record["voting"],
        threshold=record["threshold"],
        strength=record["strength"],
        image_shape=tuple(record["image_shape"]),
    )


def _decision(record: dict) -> dict[str, Any]:
    """What a checkpoint says of the decision; the first ones knew only votes."""
    if record.get("decision", "votes") == "votes":
        return {}
    return {"decision": record["decision"], "patch": Patch(*record["patch"])}


def restore_base(
    workdir: PathLike, *, chunk_size: int = 8
) -> tuple[models.BaseClassifier, models.Variables, dict]:
    """The base classifier of a run's best checkpoint, its variables, what it records.

    Arguments and errors as of `load_smoothed`.
    """
    folder = user_path("workdir", workdir) / BEST
    record = checkpoint.read_metadata(folder)
    if "masks" in record:
        raise checkpoint.CheckpointError(
            f"{workdir} holds a classifier for double masking of pixels, which sees "
            "whole images; load it with ds.load_masked"
        )
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
