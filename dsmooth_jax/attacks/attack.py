"""Attacks on classifiers with patches: the other side of the proof.

Between *certified* (no attack can) and *attacked* (this attack did) lies what nobody
knows. The attack here is as strong as we can make it: it climbs what decides, through
every ablation or mask that the patch touches (`objectives`); it begins where the
certificate leaves most open; and it goes on where that pays. Contents stay on the grid
of 8-bit pixels, so what is found is what can be saved. Nothing counts as broken unless
the classifier's own `predict` answers otherwise on the uint8 image.

An attack that fails proves nothing.

Source: signed gradient steps with momentum are Dong et al., CVPR 2018
(arXiv:1710.06081); placements as part of the attack, Karmon et al., ICML 2018
(arXiv:1801.02608); halving the candidates while doubling their steps is Jamieson &
Talwalkar, AISTATS 2016 (arXiv:1502.07943).
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsmooth_jax.ablation import check_num_ablations
from dsmooth_jax.attacks.candidates import climb, first_candidates
from dsmooth_jax.attacks.patching import apply_patch
from dsmooth_jax.attacks.victims import Attackable, Victim, victim_of
from dsmooth_jax.checks import check_count
from dsmooth_jax.evaluation import check_labels
from dsmooth_jax.masking import check_images
from dsmooth_jax.smoothed import SmoothedClassifier
from dsmooth_jax.threat import Patch, check_patch
from dsmooth_jax.types import Corners, ImageSize, PerImage, PerImageFlag
from dsmooth_jax.voting import check_scores

_KEPT = 4
"""Of so many candidates one goes on to the next round, of more steps."""

_GROUP = 128
"""Images attacked together: enough to fill batches, few enough to hold."""


class UnsoundError(RuntimeError):
    """A certified image fell: a bug of this library, with all that reproduces it.

    Attributes:
      index: of the image, among those given.
      corner: (row, column) of the patch's upper left pixel.
      content: uint8 [h, w, C].
      image: uint8 [H, W, C], clean.
      prediction: of the clean image.
      attacked: the prediction of the image with the patch.
    """

    def __init__(self, **found: Any):
        self.index: int = found["index"]
        self.corner: tuple[int, int] = found["corner"]
        self.content: np.ndarray = found["content"]
        self.image: np.ndarray = found["image"]
        self.prediction: int = found["prediction"]
        self.attacked: int = found["attacked"]
        super().__init__(
            f"image {self.index} is certified as class {self.prediction} and falls to "
            f"class {self.attacked} by a patch of {self.content.shape} at "
            f"{self.corner}: a certificate of this library is wrong; please report it"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack reached on N images.

    Attributes:
      images: uint8 [N, H, W, C], with the patch that came nearest; clean where no
        attack was made.
      corners: int64 [N, 2], (row, column) of the patch's upper left pixel; -1 where no
        attack was made.
      clean: int64 [N], predictions of the images as they were.
      predictions: int64 [N], those of ``images``.
      is_broken: bool [N], right as they were, and wrong with the patch.
      is_certified: bool [N], what the classifier's `certify` says of them.
      num_gradients: int64 [N], gradients that the attack of each image took.
      seconds: of the whole attack.
    """

    images: np.ndarray
    corners: Corners
    clean: PerImage
    predictions: PerImage
    is_broken: PerImageFlag
    is_certified: PerImageFlag
    num_gradients: PerImage
    seconds: float


def attack(
    classifier: Attackable,
    images: np.ndarray,
    labels: np.ndarray,
    patch: Patch,
    *,
    num_candidates: int = 16,
    steps: int = 96,
    num_restarts: int = 1,
    attacks_certified: bool = False,
    seed: int = 0,
    scores: np.ndarray | None = None,
    batch_size: int = 32,
) -> Attacked:
    """Looks for a patch, placement and content, that makes each image misclassified.

    Candidates are placements and rivals: those first that the certificate leaves most
    open, at the pixels that the gradient favours. All climb for few steps, the best
    fourth of an image's for twice as many more, and so on to the last one, which climbs
    for all. An image that falls is done.

    Args:
      classifier: a `SmoothedClassifier`, a `MaskedClassifier`, or any JAX function of
        float32 images [B, H, W, C] in [0, 1] that returns logits [B, K].
      images: uint8 [N, H, W, C].
      labels: int [N], the right classes; to attack predictions, give those.
      patch: pixels.
      num_candidates: of each image and restart, >= 1.
      steps: of the last candidate of an image, >= 1.
      num_restarts: >= 1; each takes further candidates, and new contents to begin with.
      attacks_certified: whether to attack also what is certified, and where the
        certificate rules placements out. It must fail, or raises `UnsoundError`.
      seed: of the contents to begin with. Equal seeds find equal patches on one
        machine.
      scores: floating [N, P, K], what a `SmoothedClassifier` scores the images, where
        they are there: it does not score them again.
      batch_size: candidates at a time. It bounds memory and only runs faster or slower.

    Returns:
      An `Attacked`. Images that are wrong as they are, or (unless ``attacks_certified``
      asks for them) certified, are not attacked.

    Raises:
      TypeError, ValueError: images that are not uint8, labels that are not theirs, a
        patch that does not fit, counts below 1; scores that are not theirs, or of no
        smoothed classifier; as the classifier's `certify`.
      UnsoundError: a certified image fell.

    Guarantee:
      An image is broken only if ``predict`` of the classifier, on the uint8 image that
      is returned, is not its label, and was before. That an image is not broken says
      nothing: a better attack may break it, unless it is certified.
    """
    pixels, truth, size = check_attack(images, labels, patch)
    for name, value in (
        ("num_candidates", num_candidates),
        ("steps", steps),
        ("num_restarts", num_restarts),
        ("batch_size", batch_size),
    ):
        check_count(name, value)
    if scores is not None:
        scores = _check_scores(scores, classifier, len(pixels), size)
    victim = victim_of(classifier, patch, size, batch_size=batch_size)
    settings = _Settings(
        num_candidates, steps, num_restarts, attacks_certified, seed, batch_size
    )
    parts = []
    for start in range(0, max(len(pixels), 1), _GROUP):
        span = slice(start, start + _GROUP)
        group = pixels[span], truth[span], None if scores is None else scores[span]
        parts.append(_attack_group(victim, *group, patch, start, settings))
    return join_attacked(parts)


def check_attack(
    images: Any, labels: Any, patch: Any
) -> tuple[np.ndarray, np.ndarray, ImageSize]:
    """Returns images, labels and (H, W), or raises the error of what is wrong."""
    pixels = np.asarray(check_images(images))
    if pixels.dtype != np.uint8:
        raise TypeError(
            f"images have dtype {pixels.dtype}; an attack needs uint8, the pixels that "
            "can be saved; round 255 times floating ones"
        )
    truth = check_labels(labels, len(pixels), None)
    return pixels, truth, check_patch(patch, pixels.shape[1:3])


def _check_scores(
    scores: Any, classifier: Attackable, num_images: int, size: ImageSize
) -> np.ndarray:
    if not isinstance(classifier, SmoothedClassifier):
        raise TypeError(
            f"scores are of a SmoothedClassifier, not of {type(classifier).__name__}; "
            "leave them out"
        )
    checked = check_scores(scores)
    check_num_ablations("scores", checked.shape[1], classifier.ablation, size)
    if len(checked) != num_images:
        raise ValueError(
            f"scores have shape {checked.shape}; it must be [{num_images}, P, K], of "
            "the images"
        )
    return checked


def join_attacked(parts: Sequence[Attacked]) -> Attacked:
    """Attacks on one after the other sets of images, one or more, as one."""
    names = [field.name for field in dataclasses.fields(Attacked)]
    values = {name: [getattr(part, name) for part in parts] for name in names}
    seconds = sum(values.pop("seconds"))
    joined = {name: np.concatenate(arrays) for name, arrays in values.items()}
    return Attacked(**joined, seconds=seconds)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The arguments of `attack` that say how."""

    num_candidates: int
    steps: int
    num_restarts: int
    attacks_certified: bool
    seed: int
    batch_size: int

    @property
    def rounds(self) -> list[tuple[int, int]]:
        """(candidates of an image, steps of each), round after round."""
        sizes = [self.num_candidates]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // _KEPT))
        last = len(sizes) - 1
        return [(n, -(-self.steps // 2 ** (last - i))) for i, n in enumerate(sizes)]


def _attack_group(
    victim: Victim,
    images: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    patch: Patch,
    start: int,
    settings: _Settings,
) -> Attacked:
    """Attacks images that are held at once, of which the first is number ``start``."""
    began = time.monotonic()
    study = victim.study(images, scores)
    is_active = study.prediction == labels
    if not settings.attacks_certified:
        is_active &= ~study.is_certified
    attacked, predictions = images.copy(), study.prediction.copy()
    corners = np.full((len(images), 2), -1)
    nearest = np.full(len(images), -np.inf)
    num_gradients = np.zeros(len(images), np.int64)

    def draw(image: int, rank: int) -> np.ndarray:
        rng = np.random.default_rng([settings.seed, start + image, rank])
        shape = (patch.height, patch.width, images.shape[3])
        return rng.integers(0, 256, shape, np.uint8)

    for restart in range(settings.num_restarts):
        first = restart * settings.num_candidates
        candidates = first_candidates(
            victim.margin_fn,
            study,
            images,
            np.flatnonzero(is_active),
            patch,
            ranks=range(first, first + settings.num_candidates),
            tries_closed=settings.attacks_certified,
            draw=draw,
            batch_size=settings.batch_size,
        )
        num_gradients += np.bincount(candidates.image, minlength=len(images))
        for num, steps in settings.rounds:
            is_left = is_active[candidates.image] & candidates.is_among_best(num)
            candidates = climb(
                victim.margin_fn,
                study,
                images,
                candidates.of(is_left),
                steps,
                batch_size=settings.batch_size,
            )
            num_gradients += steps * np.bincount(
                candidates.image, minlength=len(images)
            )
            # The classifier is asked about what should have won, and about the best.
            tried = candidates.of((candidates.margin > 0) | candidates.is_among_best(1))
            patched = apply_patch(images[tried.image], tried.contents, tried.corner)
            answers = victim.predict(patched)
            is_changed = answers != study.prediction[tried.image]
            for q in np.flatnonzero(is_changed & study.is_certified[tried.image]):
                i = tried.image[q]
                raise UnsoundError(
                    index=start + int(i),
                    corner=tuple(tried.corner[q].tolist()),
                    content=tried.contents[q],
                    image=images[i],
                    prediction=int(study.prediction[i]),
                    attacked=int(answers[q]),
                )
            score = np.where(is_changed, np.inf, tried.margin)
            for q in np.argsort(score, kind="stable"):  # the last of an image stands
                i = tried.image[q]
                if score[q] > nearest[i]:
                    attacked[i], corners[i] = patched[q], tried.corner[q]
                    predictions[i], nearest[i] = answers[q], score[q]
            is_active[tried.image[is_changed]] = False
    return Attacked(
        images=attacked,
        corners=corners,
        clean=study.prediction,
        predictions=predictions,
        is_broken=(study.prediction == labels) & (predictions != labels),
        is_certified=study.is_certified,
        num_gradients=num_gradients,
        seconds=time.monotonic() - began,
    )
