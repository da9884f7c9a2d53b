"""A training run, from a config to a workdir: data, classifier, step, validation."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import Partial

from dsmooth_jax import data, distributed, distributed_scoring, models
from dsmooth_jax.ablation import Ablation, ablation_from_json, thinned
from dsmooth_jax.checks import check_installed, user_path
from dsmooth_jax.data import Batch, Dataset
from dsmooth_jax.data.sampling import stream_indices
from dsmooth_jax.evaluation import (
    Evaluation,
    base_accuracy,
    choose_voting,
    evaluate,
)
from dsmooth_jax.evidence import certify_masked, log_levels
from dsmooth_jax.leaving_out import covering_touched, design_masks
from dsmooth_jax.models import BaseClassifier, ImageClassifier, Variables
from dsmooth_jax.models.weights import load_weights
from dsmooth_jax.report import figures, plot_style
from dsmooth_jax.smoothed import Decision
from dsmooth_jax.storage import checkpoint, files, provenance
from dsmooth_jax.storage.files import PathLike
from dsmooth_jax.storage.workdir import BEST, CONFIG, CURVE, VALIDATION_IDS
from dsmooth_jax.threat import Patch, touched
from dsmooth_jax.training import feeding, loop, masked, optimizers, teaching
from dsmooth_jax.training.choice import Choice
from dsmooth_jax.training.config import Config, TrainConfig, to_json
from dsmooth_jax.training.feeding import Resident, Streamed
from dsmooth_jax.training.ownership import check_free, locked
from dsmooth_jax.training.step import init_state, make_train_step, with_teacher
from dsmooth_jax.types import ImageSize


def train(
    config: Config,
    workdir: PathLike,
    *,
    data_dir: str | None = None,
    save_every: int = 1000,
    has_tensorboard: bool = False,
    steps_per_call: int | None = None,
) -> loop.Outcome:
    """Trains a classifier; goes on with what lies in the workdir.

    Whatever cannot be is refused before anything is written. All processes of a run
    call this; the first one prints and writes.

    Args:
      config: what to train.
      workdir: where to; made if missing.
      data_dir: where the data are; TFDS's own folder if None.
      save_every: steps between checkpoints; it changes nothing but what a kill costs.
      has_tensorboard: whether to log for TensorBoard, too.
      steps_per_call: steps that the device takes before it asks the host for more;
        None: what suits it. It only runs faster.

    Returns:
      How far it got; not finished where SIGTERM asked to stop.

    Raises:
      ModuleNotFoundError: what draws the curve, or logs, is not installed.
      CheckpointError: a checkpoint cannot be read or written.
      TypeError, ValueError: data, patches or a batch that do not fit; a workdir of
        another run; a loss that is no longer finite.
    """
    workdir, record_of_config = pathlib.Path(workdir), to_json(config)
    distributed.check_batch_size(config.train.batch_size)
    check_installed("matplotlib", *["tensorboardX"] * has_tensorboard)
    train_set, validation_set = (
        data.load(split=split, data_dir=data_dir, **record_of_config["data"])
        for split in ("train", "validation")
    )
    if distributed.is_first():
        print(train_set, flush=True)
    record = make_record(record_of_config, train_set, validation_set)
    if config.defence == "double_masking":
        record |= masked.masks_record(config, train_set.image_shape[:2])
    check_free(workdir, record)
    plan = make_plan(
        config,
        len(train_set),
        save_every=save_every,
        tensorboard=has_tensorboard,
        steps_per_call=steps_per_call,
    )
    classifier, validate = make_classifier(config, record, validation_set)
    optimizer, schedule = optimizers.make_optimizer(
        config.train.optimizer,
        num_epochs=config.train.epochs,
        steps_per_epoch=plan.steps_per_epoch,
    )
    image_size = train_set.image_shape[:2]
    train_step = make_step(config, classifier, optimizer, schedule, image_size)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    begin = functools.partial(
        init_state,
        classifier,
        optimizer,
        init_key,
        has_average=config.train.ema_decay > 0,
    )
    drawn = jax.eval_shape(classifier.init, init_key)
    state = jax.eval_shape(lambda variables: begin(variables=variables), drawn)
    distributed.check_memory(state)
    given = None
    if config.train.init_from:
        given, record["init_from"] = first_variables(config.train, classifier)
    labels, teach, taught_by = teaching_of(config.train, record, train_set)
    record |= {"teacher": taught_by} if taught_by else {}
    train_step = train_step if teach is None else with_teacher(train_step, teach)

    with locked("--workdir", workdir, "train.lock"):
        if distributed.is_first():
            ids = "".join(f"{i}\n" for i in validation_set.ids)
            for path, text in (
                (workdir / CONFIG, json.dumps(record_of_config, indent=2) + "\n"),
                (workdir / VALIDATION_IDS, ids),
            ):
                files.write_whole(path, text.encode())
        distributed.check_shared(workdir / CONFIG)
        outcome = loop.run(
            workdir,
            plan,
            record,
            begin(variables=given),
            train_step,
            make_feed(config, train_set, labels),
            validate,
            key=step_key,
        )
    if distributed.is_first() and outcome.lines:
        plot_style.write_figure(figures.curve_figure(outcome.lines), workdir / CURVE)
    return outcome


def make_classifier(
    config: Config, record: Mapping[str, Any], validation_set: Dataset
) -> tuple[BaseClassifier | ImageClassifier, Callable[[Variables], Choice]]:
    """What a config trains, and how it is validated, by its defence."""
    shape, num_classes = validation_set.image_shape, validation_set.num_classes
    if config.defence == "double_masking":
        whole = masked.build(config, shape, num_classes)
        return whole, lambda variables: masked.validate(
            whole.logits_fn(variables), config, validation_set
        )
    classifier = models.build(
        record["model"],
        ablation=ablation_from_json(record["ablation"]),
        image_shape=shape,
        num_classes=num_classes,
    )
    patch = config.validation.patch
    sets = sets_for("validation", patch, record, shape[:2])
    masks = masks_for(patch, record, shape[:2])

    def validate(variables: Variables) -> Choice:
        scores_fn = classifier.scores_fn(variables)
        scores = distributed_scoring.score_together(scores_fn, validation_set.images)
        return choose(scores, validation_set.labels, patch, sets, masks)

    return classifier, validate


def make_plan(config: Config, num_images: int, **options: Any) -> loop.Plan:
    """How long the run is; options as of `loop.Plan`."""
    settings = config.train
    epoch = num_images / settings.batch_size  # steps, not always whole
    if not (num_steps := round(settings.epochs * epoch)):
        raise ValueError(
            f"train.epochs={settings.epochs} of {num_images} images is no step of "
            f"train.batch_size={settings.batch_size}; train longer"
        )
    return loop.Plan(
        num_steps=num_steps,
        steps_per_epoch=epoch,
        validate_every=config.validation.every_epochs * epoch,
        **options,
    )


def make_record(
    config: Mapping[str, Any], train_set: Dataset, validation_set: Dataset
) -> dict[str, Any]:
    """What every checkpoint says of itself, plain JSON."""
    return {
        "model": config["model"],
        "ablation": config["ablation"],
        "image_shape": list(train_set.image_shape),
        "num_classes": train_set.num_classes,
        "class_names": list(train_set.class_names),
        "data": config["data"],
        "fingerprints": {s.split: s.fingerprint for s in (train_set, validation_set)},
        "config": config,
        "versions": provenance.versions(),
    }


def make_step(
    config: Config,
    classifier: BaseClassifier | ImageClassifier,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    image_size: ImageSize,
) -> Partial:
    """The pure step that a config describes."""
    settings, loss = config.train, config.train.loss
    sets = None
    if loss.name != "cross_entropy":
        make = design_masks if loss.name == "double_masked" else touched
        record = to_json(config)
        sets = sets_for("train.loss", loss.patch, record, image_size, loss.every, make)
    return make_train_step(
        classifier,
        optimizer,
        settings.augment,
        loss,
        sets=sets,
        ema_decay=settings.ema_decay,
        precision=settings.precision,
        num_accumulated=settings.num_accumulated,
        schedule=schedule,
    )


def sets_for(
    part: str,
    patch: Sequence[int],
    record: Mapping[str, Any],
    image_size: ImageSize,
    every: int = 1,
    make: Callable[[Ablation, Patch, ImageSize], np.ndarray] = touched,
) -> np.ndarray:
    """The touched sets or the masks, as `make`, of the patch that a part names."""
    ablation = thinned(ablation_from_json(record["ablation"]), every)
    try:
        return make(ablation, Patch(*patch), image_size)
    except ValueError as error:
        raise ValueError(f"{part}.patch={list(patch)}: {error}") from None


def masks_for(
    patch: Sequence[int], record: Mapping[str, Any], image_size: ImageSize
) -> np.ndarray | None:
    """The masks made for a patch; None where it is too large for double masking."""
    ablation = ablation_from_json(record["ablation"])
    try:
        return design_masks(ablation, Patch(*patch), image_size)
    except ValueError:
        return None


def teaching_of(
    settings: TrainConfig, record: Mapping[str, Any], train_set: Dataset
) -> tuple[np.ndarray, teaching.Teach | None, str]:
    """The labels to train on, what makes soft ones of them, and the teacher's checksum.

    Raises:
      ValueError: soft labels for images that do not fit, or of no such teacher.
    """
    config = settings.teacher
    if not config.workdir:
        return train_set.labels, None, ""
    if teaching.is_of_ablations(config):
        teacher, variables, checksum = teaching.restore_teacher(config, record)
        teach = teaching.teach(config, teacher, variables, precision=settings.precision)
        return train_set.labels, teach, checksum
    if _resident(train_set) is None:
        raise ValueError(
            f"train.teacher.workdir={settings.teacher.workdir!r}: soft labels are of "
            f"images that fit on the device, and these do not ({train_set}); leave it "
            "empty"
        )
    soft, checksum = teaching.soft_labels(
        config, train_set, mirror=settings.augment.flip
    )
    return soft, None, checksum


def make_feed(
    config: Config, train_set: Dataset, labels: np.ndarray
) -> Resident | Streamed:
    """Where the images of each step come from: the device itself, if they fit there."""
    batch_size, seed = config.train.batch_size, config.seed

    def rows(start: int, stop: int) -> np.ndarray:
        positions = np.arange(start * batch_size, stop * batch_size)
        found = stream_indices(positions, len(train_set), seed=seed)
        return found.reshape(-1, batch_size)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return data.batches(
            train_set,
            batch_size,
            seed=seed,
            start=start,
            stop=stop,
            share=distributed.share(),
        )

    images = _resident(train_set)
    if images is not None:
        return Resident(images, labels, rows)
    return Streamed(batches)


def _resident(train_set: Dataset) -> np.ndarray | None:
    """The images, where they are in memory and fit on every device."""
    images = train_set.images
    return images if isinstance(images, np.ndarray) and feeding.fits(images) else None


def first_variables(
    settings: TrainConfig, classifier: BaseClassifier | ImageClassifier
) -> tuple[Variables, str]:
    """Variables to begin with, of another run or of a file, and a checksum of them."""
    path = user_path("train.init_from", settings.init_from)
    if path.is_file():
        normal = {
            name: value
            for name in ("mean", "std")
            if (value := getattr(settings, f"init_{name}")) is not None
        }
        try:
            given = load_weights(
                path, classifier, has_head=settings.init_head, **normal
            )
        except ValueError as error:
            raise ValueError(f"train.init_from: {error}") from None
        return given, hashlib.sha256(path.read_bytes()).hexdigest()
    folder = path / BEST
    target = jax.eval_shape(classifier.init, jax.random.key(0))
    try:
        return checkpoint.restore(folder, target)[0], checkpoint.fingerprint(folder)
    except checkpoint.CheckpointError as error:
        raise ValueError(f"train.init_from={path}: {error}") from None


def choose(
    scores: np.ndarray,
    labels: np.ndarray,
    patch: Sequence[int],
    sets: np.ndarray,
    masks: np.ndarray | None,
) -> Choice:
    """Chooses decision, voting, threshold and strength on validation images.

    Args:
      scores: floating [N, P, K] of these images.
      labels: integers [N].
      patch: (height, width), pixels.
      sets: bool [L, P], what it touches.
      masks: bool [M, P], made for it; None where it is too large for double masking.
    """
    chosen = choose_voting(scores, labels, sets)

    def choice(decision: Decision, found: Evaluation) -> Choice:
        return Choice(
            voting=chosen.voting,
            threshold=chosen.threshold,
            strength=chosen.strength,
            patch=tuple(patch),
            clean_accuracy=found.clean.value,
            certified_accuracy=found.certified.value,
            base_accuracy=base_accuracy(scores, labels),
            decision=decision,
        )

    votes = choice("votes", chosen.evaluation)
    if masks is None:
        return votes
    covering = covering_touched(masks, sets)
    certificate = certify_masked(log_levels(scores), masks, covering)
    masked = choice("double_masking", evaluate(certificate, labels))
    return votes if votes.is_at_least(masked) else masked
