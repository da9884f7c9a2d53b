"""What an attacker is given of a classifier: one form, whatever decides.

A `Victim` predicts, says what a certificate leaves open (`study`), and has a margin to
climb: (images, own class, rival, what the study knows) -> positive where the rival
wins. `victim_of` makes one of a smoothed classifier, a masked one, or any function of
images. Everything else of an attack is the same for all.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from dsmooth_jax import compiling
from dsmooth_jax.ablation import Ablation
from dsmooth_jax.attacks.objectives import (
    at,
    double_masking_margin,
    guided,
    lead,
    logits_margin,
    soft_sign,
    two_rounds,
    votes_margin,
)
from dsmooth_jax.attacks.study import Study, nearest_rivals, spans
from dsmooth_jax.attacks.undefended import Shown
from dsmooth_jax.double_masking import certify_double_masking, nominal
from dsmooth_jax.duels import after_each_placement, check_levels, preference
from dsmooth_jax.evidence import log_levels
from dsmooth_jax.labeling import LogitsFn
from dsmooth_jax.leaving_out import covering_touched, design_masks
from dsmooth_jax.masked import MaskedClassifier
from dsmooth_jax.masking import encode, to_unit
from dsmooth_jax.masks import Masks, covered_placements
from dsmooth_jax.scoring import (
    bound,
    dealt,
    padded_batch_size,
    softmax,
    some_scores,
)
from dsmooth_jax.smoothed import SmoothedClassifier
from dsmooth_jax.threat import Patch, placements
from dsmooth_jax.types import ImageSize, PerImage
from dsmooth_jax.voting import Voting
from dsmooth_jax.winners import leads_fn

_MOST_LOG = 9_210
"""The least of `log_levels`, in size: what one ablation can say against a class."""


@dataclasses.dataclass(frozen=True, eq=False)
class Victim:
    """A classifier as an attacker sees it.

    Attributes:
      predict: uint8 images [N, H, W, C] -> int64 [N].
      study: images, and their scores or None, where they have some -> `Study`. Each
        image is scored once, or not at all where its scores are there.
      margin_fn: float32 images [B, H, W, C], own int [B], rival int [B], and what
        `Study.known` returns -> float32 [B], positive where the rival wins.
    """

    predict: Callable[[np.ndarray], PerImage]
    study: Callable[[np.ndarray, np.ndarray | None], Study]
    margin_fn: Partial


Attackable: TypeAlias = SmoothedClassifier | MaskedClassifier | LogitsFn
"""What can be attacked; a function takes plain images [B, H, W, C] in [0, 1]."""


def victim_of(
    classifier: Attackable, patch: Patch, image_size: ImageSize, *, batch_size: int
) -> Victim:
    """The victim that a classifier is for a patch, asked so many images at a time."""
    if isinstance(classifier, SmoothedClassifier):
        kind: Any = _Smoothed(classifier, patch, image_size, batch_size)
    elif isinstance(classifier, MaskedClassifier):
        kind = _Masked(classifier, patch, batch_size)
    else:
        kind = _Plain(bound("classifier", classifier), patch, batch_size)
    return Victim(kind.predict, kind.study, kind.margin_fn)


# Smoothing.


@dataclasses.dataclass(frozen=True, eq=False)
class _Smoothed:
    classifier: SmoothedClassifier
    against: Patch
    image_size: ImageSize
    batch_size: int

    def predict(self, images: np.ndarray) -> PerImage:
        return self.classifier.predict(images, batch_size=self.batch_size)

    def study(self, images: np.ndarray, scores: np.ndarray | None) -> Study:
        mine, size = self.classifier, self.image_size
        sets, row = placements(mine.ablation, self.against, size)
        index = touched_index(sets)
        if scores is None:
            scores = mine.score(images, batch_size=self.batch_size)
        certificate = mine.certify_scores(scores, self.against, size)
        own, num_classes = certificate.prediction, scores.shape[2]
        parts = [
            self._standing(scores[span], own[span], sets)
            for span in spans(len(images), max(sets.shape) * num_classes)
        ]
        is_open, rival, promise = map(np.concatenate, zip(*parts, strict=True))
        return Study(
            prediction=own,
            is_certified=certificate.is_certified,
            row=row,
            is_open=is_open,
            rival=rival,
            promise=promise,
            num_classes=num_classes,
            known=lambda i, r: (scores[i], index[r]),
        )

    def _standing(
        self, scores: np.ndarray, own: PerImage, sets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`Study.is_open`, ``rival`` and ``promise`` of few images."""
        mine = self.classifier
        if mine.patch is None:
            levels, most, _ = check_levels(mine.vote(scores))
        else:
            levels, most = log_levels(scores).astype(np.int32), _MOST_LOG
        left = after_each_placement(
            preference(levels, levels, own, most), sets, most
        ).transpose(1, 0, 2)  # [n, L, K]
        if mine.patch is None:
            is_open = (left <= 0).sum(axis=2) > 1  # the own class is one of them
        else:
            masks = design_masks(mine.ablation, mine.patch, self.image_size)
            agrees = _agreeing_rows(levels, masks, own)
            is_open = ~_has_any(agrees, covering_touched(masks, sets))
        return is_open, *nearest_rivals(-left, own)

    @property
    def margin_fn(self) -> Partial:
        mine = self.classifier
        settings = (mine.voting, mine.threshold, mine.strength)
        sets, _ = placements(mine.ablation, self.against, self.image_size)
        index, num_ablations = touched_index(sets), sets.shape[1]
        is_run = bool((np.diff(index) % num_ablations == 1).all())
        fn = _SmoothedMargin(is_run, mine.ablation, mine.patch, *settings)
        return Partial(fn, bound("scores_fn", mine.scores_fn))


@dataclasses.dataclass(frozen=True)
class _SmoothedMargin:
    """The static half. Equal values are equal to JAX: one compilation."""

    is_run: bool  # of the index below
    ablation: Ablation
    patch: Patch | None
    voting: Voting
    threshold: float
    strength: float

    def __call__(
        self,
        scores_fn: Partial,
        images: Array,  # [B, H, W, C]
        own: Array,
        rival: Array,
        clean: Array,  # [B, P, K], scores of the clean image
        index: Array,  # [B, m], the ablations that the patch touches
    ) -> Array:
        attacked = some_scores(scores_fn, images, index, is_run=self.is_run)
        scores = clean.at[jnp.arange(len(images))[:, None], index].set(attacked)
        if self.patch is None:
            return votes_margin(
                scores,
                own,
                rival,
                voting=self.voting,
                threshold=self.threshold,
                strength=self.strength,
            )
        masks = design_masks(self.ablation, self.patch, images.shape[1:3])
        left = ~(masks[:, None] | masks[None])
        return double_masking_margin(scores, own, rival, jnp.asarray(left, jnp.float32))


def touched_index(sets: np.ndarray) -> np.ndarray:
    """Int64 [L, m], the touched ablations of each set, around the end of them.

    Rows begin behind a gap, so that what follows one another is a run; the first
    ablation fills up the shorter ones.
    """
    num_ablations = sets.shape[1]
    begins = sets & ~np.roll(sets, 1, axis=1)
    begin = begins.argmax(axis=1)[:, None]  # 0 where all are touched
    around = (begin + np.arange(num_ablations)) % num_ablations
    is_touched = np.take_along_axis(sets, around, axis=1)
    count = is_touched.sum(axis=1)
    order = np.argsort(~is_touched, axis=1, kind="stable")[:, : count.max()]
    found = np.take_along_axis(around, order, axis=1)
    return np.where(np.arange(count.max()) < count[:, None], found, found[:, :1])


def _agreeing_rows(levels: np.ndarray, masks: np.ndarray, own: PerImage) -> np.ndarray:
    """Bool [N, M]: the own class wins without mask i and any other one."""
    leads, left = leads_fn(levels, own), ~masks
    rows = [(leads(left & left[i])[0] >= 0).all(axis=1) for i in range(len(masks))]
    return np.stack(rows, axis=1)


def _has_any(agrees: np.ndarray, covers: np.ndarray) -> np.ndarray:
    """Bool [N, M], [L, M] -> [N, L]: some covering row agrees."""
    return agrees.astype(np.float32) @ covers.T.astype(np.float32) > 0


# Masks of pixels.


@dataclasses.dataclass(frozen=True, eq=False)
class _Masked:
    classifier: MaskedClassifier
    against: Patch
    batch_size: int

    def predict(self, images: np.ndarray) -> PerImage:
        return self.classifier.predict(images, batch_size=self._passes(images))

    def _passes(self, images: np.ndarray) -> int:
        return self.batch_size * self.classifier.masks.num_masks(images.shape[1:3])

    def _num_classes(self, images: np.ndarray) -> int:
        shown = Partial(Shown(self.classifier.fill), self.classifier.logits_fn)
        inputs = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
        return jax.eval_shape(shown, inputs).shape[1]

    def study(self, images: np.ndarray, scores: np.ndarray | None) -> Study:
        mine, batch_size = self.classifier, self._passes(images)
        covers, row = covered_placements(mine.masks, self.against, images.shape[1:3])
        table = mine.label(images, until="complete", batch_size=batch_size)
        certificate = certify_double_masking(table, covers)
        own = certificate.prediction
        classes = nominal(table)
        differs = classes != own[:, None, None]  # [N, M, M]
        agrees = ~differs.any(axis=2)
        num_classes = self._num_classes(images)

        def nearest(span: slice) -> tuple[np.ndarray, np.ndarray]:
            is_class = classes[span][..., None] == np.arange(num_classes)
            seen = is_class.sum(axis=2).astype(np.float32)  # [n, M, K]
            return nearest_rivals(covers.astype(np.float32) @ seen, own[span])

        entries = max(classes.shape[1] ** 2, len(covers)) * num_classes
        parts = [nearest(span) for span in spans(len(images), entries)]
        rival, promise = map(np.concatenate, zip(*parts, strict=True))
        # In each kind of placement one covering mask, and what it fails together with.
        first = covers.argmax(axis=1)
        partner = differs.argmax(axis=2)  # [N, M]
        return Study(
            prediction=own,
            is_certified=certificate.is_certified,
            row=row,
            is_open=~_has_any(agrees, covers),
            rival=rival,
            promise=promise,
            num_classes=num_classes,
            known=lambda i, r: (partner[i, first[r]].astype(np.int32),),
        )

    @property
    def margin_fn(self) -> Partial:
        mine = self.classifier
        fn = _MaskedMargin(mine.masks, mine.fill, mine.confidence)
        return Partial(fn, bound("logits_fn", mine.logits_fn))


@dataclasses.dataclass(frozen=True)
class _MaskedMargin:
    """The static half, as `_SmoothedMargin`."""

    masks: Masks
    fill: float | None
    confidence: float

    def __call__(
        self,
        logits_fn: Partial,
        images: Array,  # [B, H, W, C]
        own: Array,
        rival: Array,
        partner: Array,  # [B], the mask beside which the covering one fails
    ) -> Array:
        """Of all single masks, and of each beside the partner: 2 M passes, not M^2."""
        hidden = jnp.asarray(self.masks.hide_masks(images.shape[1:3]))
        shown = images if self.fill is not None else encode(images)
        nothing = jnp.float32(self.fill or 0)

        @jax.checkpoint
        def logs(is_hidden: Array) -> Array:  # bool [B, H, W] -> [B, K]
            inputs = jnp.where(is_hidden[..., None], nothing, shown)
            return jnp.log(jnp.maximum(softmax(logits_fn(inputs)), 1e-30))

        def rows(mask: Array) -> tuple[Array, Array]:
            alone = jnp.broadcast_to(mask[None], (len(images), *mask.shape))
            return logs(alone), logs(alone | hidden[partner])

        both = jnp.stack(jax.lax.map(rows, hidden), axis=2)  # [M, B, 2, K]
        both = jnp.moveaxis(both, 1, 0)  # [B, M, 2, K]
        ratio = at(both, rival) - at(both, own)  # [B, M, 2]
        leads = [lead(both, chosen) for chosen in (own, rival)]
        alone = [x[:, :, 0] for x in leads]
        if self.confidence:  # under two masks a class must lead, and be sure
            is_one = jnp.arange(len(hidden))[None] == partner[:, None]
            least = jnp.where(is_one, -jnp.inf, math.log(self.confidence))
            leads = [
                x.at[:, :, 1].min(at(both, chosen)[:, :, 1] - least)
                for x, chosen in zip(leads, (own, rival), strict=True)
            ]
        value = two_rounds(*leads, *alone)
        return guided(value, soft_sign(ratio).mean(axis=(1, 2)))


# Any function of whole images.


@dataclasses.dataclass(frozen=True, eq=False)
class _Plain:
    logits_fn: Partial
    against: Patch
    batch_size: int

    def predict(self, images: np.ndarray) -> PerImage:
        return self._logits(images).argmax(axis=1).astype(np.int64)

    def study(self, images: np.ndarray, scores: np.ndarray | None) -> Study:
        logits = self._logits(images)
        prediction = logits.argmax(axis=1).astype(np.int64)
        rival, promise = nearest_rivals(logits[:, None], prediction)
        num, (height, width) = len(images), images.shape[1:3]
        shape = (height - self.against.height + 1, width - self.against.width + 1)
        return Study(
            prediction=prediction,
            is_certified=np.zeros(num, bool),
            row=np.zeros(shape, np.int64),
            is_open=np.ones((num, 1), bool),
            rival=rival,
            promise=promise,
            num_classes=logits.shape[1],
            known=lambda i, r: (),
        )

    def _logits(self, images: np.ndarray) -> np.ndarray:
        size = padded_batch_size(self.batch_size)
        found = []
        for start in range(0, max(len(images), 1), size):
            batch = images[start : start + size]
            padding = [(0, size - len(batch))] + [(0, 0)] * 3
            logits = _logits_batch(self.logits_fn, np.pad(batch, padding))
            found.append(np.asarray(logits)[: len(batch)])
        return np.concatenate(found)

    @property
    def margin_fn(self) -> Partial:
        return Partial(_plain_margin, self.logits_fn)


@compiling.jit
def _logits_batch(logits_fn: Partial, batch: Array) -> Array:
    return dealt(lambda fn, images: fn(to_unit(images)), logits_fn, batch)


def _plain_margin(logits_fn: Partial, images: Array, own: Array, rival: Array) -> Array:
    return logits_margin(logits_fn(images), own, rival)
