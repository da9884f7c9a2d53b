"""Trains the base classifier of a smoothed classifier.

    python train.py --config=configs/mnist5k_columns.py --workdir=runs/mnist5k

Values of the config can be changed, for example --config.train.epochs=3. A run that was
killed goes on where its last checkpoint is when the same command is given again, and
ends as if it had not been killed; SIGTERM saves and leaves. The workdir then holds
config.json, validation_ids.txt, metrics.jsonl, curve.png and checkpoints/; certify.py
takes it from there. All devices are used; docs/scaling.md is about several machines.
"""

import functools
import hashlib
import json
import signal
import sys
import time

import jax
from absl import flags
from ml_collections import config_flags

import dsmooth_jax as ds
from dsmooth_jax import data, distributed, distributed_scoring, models
from dsmooth_jax.ablation import ablation_from_json, thinned
from dsmooth_jax.checks import user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.report import figures, plot_style
from dsmooth_jax.storage import checkpoint, files, provenance
from dsmooth_jax.storage.workdir import BEST, CONFIG, CURVE, VALIDATION_IDS
from dsmooth_jax.training import augment, loop, losses, optimizers
from dsmooth_jax.training.config import check_flags, from_json, to_json
from dsmooth_jax.training.ownership import check_free, locked
from dsmooth_jax.training.step import init_state, make_train_step
from dsmooth_jax.voting import cast_votes

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "What to train: a file in configs/.")
flags.DEFINE_string("workdir", None, "Folder to write to, and to resume from.")
flags.DEFINE_string("data_dir", None, "Where the data are; TFDS's own folder if unset.")
flags.DEFINE_bool("tensorboard", False, "Log for TensorBoard, too (tensorboardX).")
flags.DEFINE_integer("save_every", 1000, "Steps between checkpoints; safety only.")
cli.define_peers()
flags.adopt_module_key_flags(cli)


def main(_):
    if FLAGS.config is None or FLAGS.workdir is None:
        raise ValueError(
            "--config and --workdir are needed; for example "
            "--config=configs/mnist5k_columns.py --workdir=runs/mnist5k"
        )
    config = to_json(from_json(json.loads(FLAGS.config.to_json())))
    workdir = user_path("--workdir", FLAGS.workdir)
    with distributed.session(distributed.Peers(**cli.peer_flags())):
        distributed.check_devices()
        train(config, workdir)


def train(config, workdir):
    """Trains as a plain JSON config says; goes on with what lies in workdir.

    Whatever cannot be is refused before anything is written.
    """
    settings, epochs = config["train"], config["train"]["epochs"]
    distributed.check_batch_size(settings["batch_size"])
    cli.check_installed("matplotlib", *["tensorboardX"] * FLAGS.tensorboard)
    train_set, validation_set = (
        data.load(split=split, data_dir=cli.data_dir(), **config["data"])
        for split in ("train", "validation")
    )
    if distributed.is_first():
        print(train_set, flush=True)
    record = make_record(config, train_set, validation_set)
    check_free(workdir, record)
    epoch = len(train_set) / settings["batch_size"]  # steps, not always whole
    if not (num_steps := round(epochs * epoch)):
        raise ValueError(
            f"train.epochs={epochs} of {len(train_set)} images is no step of "
            f"train.batch_size={settings['batch_size']}; train longer"
        )
    plan = loop.Plan(
        num_steps=num_steps,
        steps_per_epoch=epoch,
        validate_every=config["validation"]["every_epochs"] * epoch,
        save_every=FLAGS.save_every,
        tensorboard=FLAGS.tensorboard,
    )
    classifier = models.build(
        config["model"],
        ablation=ablation_from_json(config["ablation"]),
        image_shape=train_set.image_shape,
        num_classes=train_set.num_classes,
    )
    optimizer, schedule = optimizers.make_optimizer(
        optimizers.OptimizerConfig(**settings["optimizer"]),
        num_epochs=epochs,
        steps_per_epoch=epoch,
    )
    image_size = train_set.image_shape[:2]
    train_step = make_step(config, classifier, optimizer, image_size)
    touched = sets_for(config["validation"], config["ablation"], image_size)
    init_key, step_key = jax.random.split(jax.random.key(config["seed"]))
    given = None
    if settings["init_from"]:
        given, record["init_from"] = first_variables(settings, classifier)
    start = time.time()
    with locked("--workdir", workdir, "train.lock"):
        is_first = distributed.is_first()
        if is_first:
            ids = "".join(f"{i}\n" for i in validation_set.ids)
            for path, text in (
                (workdir / CONFIG, json.dumps(config, indent=2) + "\n"),
                (workdir / VALIDATION_IDS, ids),
            ):
                files.write_whole(path, text.encode())
        distributed.check_shared(workdir / CONFIG)
        outcome = loop.run(
            workdir,
            plan,
            record,
            init_state(
                classifier,
                optimizer,
                init_key,
                variables=given,
                has_average=settings["ema_decay"] > 0,
            ),
            train_step,
            functools.partial(read_batches, config, train_set),
            lambda variables: validate(
                classifier.scores_fn(variables), config, validation_set, touched
            ),
            key=step_key,
            learning_rate=schedule,
            goodness=goodness,
            describe=describe,
        )
    if not is_first:
        return
    if outcome.lines:
        figure = figures.curve_figure(outcome.lines)
        plot_style.write_figure(figure, workdir / CURVE)
    best = outcome.best
    if best is not None:
        print(f"best at step {best['step']}: {describe(best)}")
    if not outcome.num_taken:
        print(f"{workdir} is finished")
        return
    if outcome.is_finished:
        seconds = time.time() - start
        print(f"trained in {seconds:.0f} s; everything is in {workdir}")
        return
    print(
        f"stopped by SIGTERM and saved at step {outcome.step} of {plan.num_steps}; "
        "give the same command again to go on"
    )
    sys.exit(128 + signal.SIGTERM)


def make_step(config, classifier, optimizer, image_size):
    """The pure train_step that a config describes."""
    settings = config["train"]
    loss = losses.LossConfig(**settings["loss"])
    sets = None
    if loss.name != "cross_entropy":
        make = ds.design_masks if loss.name == "double_masked" else ds.touched
        ablation = config["ablation"]
        sets = sets_for(settings["loss"], ablation, image_size, loss.every, make)
    return make_train_step(
        classifier,
        optimizer,
        augment.AugmentConfig(**settings["augment"]),
        loss,
        sets=sets,
        ema_decay=settings["ema_decay"],
        precision=settings["precision"],
        num_accumulated=settings["num_accumulated"],
    )


def read_batches(config, train_set, start, stop):
    """This process's part of the batches of steps start..stop-1."""
    return data.batches(
        train_set,
        config["train"]["batch_size"],
        seed=config["seed"],
        start=start,
        stop=stop,
        share=distributed.share(),
    )


def make_record(config, train_set, validation_set):
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


def sets_for(settings, ablation, image_size, every=1, make=ds.touched):
    """The touched sets or the masks, as `make`, of the patch that settings name."""
    ablation = thinned(ablation_from_json(ablation), every)
    patch = ds.Patch(*settings["patch"])
    try:
        return make(ablation, patch, image_size)
    except ValueError as error:
        part = "train.loss" if "target" in settings else "validation"
        raise ValueError(f"{part}.patch={settings['patch']}: {error}") from None


def first_variables(settings, classifier):
    """Variables to begin with, of another run or of a file, and a checksum of them."""
    path = user_path("train.init_from", settings["init_from"])
    if path.is_file():
        names = ("mean", "std")
        normal = {n: settings[f"init_{n}"] for n in names if f"init_{n}" in settings}
        try:
            given = ds.load_weights(
                path, classifier, has_head=settings["init_head"], **normal
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


def validate(scores_fn, config, validation_set, touched):
    """Chooses threshold, strength and voting on validation images."""
    scores = distributed_scoring.score_together(scores_fn, validation_set.images)
    labels = validation_set.labels
    chosen = {
        "threshold": ds.choose_threshold(scores, labels, touched),
        "strength": ds.choose_strength(scores, labels, touched),
    }
    base_accuracy = ds.base_accuracy(scores, labels)
    choices = []
    for voting in ("threshold", "graded"):
        votes, limit = cast_votes(scores, voting, **chosen)
        result = ds.evaluate(ds.certify(votes, touched, limit=limit), labels)
        choices.append(
            {
                "voting": voting,
                **chosen,
                "patch": list(config["validation"]["patch"]),
                "clean_accuracy": result.clean.value,
                "certified_accuracy": result.certified.value,
                "base_accuracy": base_accuracy,
            }
        )
    return max(choices, key=goodness)


def goodness(choice):
    return choice["certified_accuracy"], choice["clean_accuracy"]


def describe(choice):
    patch = "x".join(map(str, choice["patch"]))
    setting = "strength" if choice["voting"] == "graded" else "threshold"
    return (
        f"validation: clean {100 * choice['clean_accuracy']:.1f} %, "
        f"certified {100 * choice['certified_accuracy']:.1f} % at {patch} "
        f"({choice['voting']}, {setting} {choice[setting]:g})"
    )


if __name__ == "__main__":
    cli.run("train.py", main, check_flags)
