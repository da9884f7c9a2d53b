"""Trains the base classifier of a smoothed classifier.

    python train.py --config=configs/mnist5k_columns.py --workdir=runs/mnist5k

Values of the config can be changed, for example --config.train.epochs=3. A run that was
killed goes on where its last checkpoint is when the same command is given again. The
workdir then holds config.json, metrics.jsonl, curve.png and checkpoints/; certify.py
takes it from there.
"""

import json
import math
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

import dsmooth_jax as ds
from dsmooth_jax import (
    augment,
    checkpoint,
    cli,
    data,
    losses,
    models,
    optimizers,
    provenance,
    report,
    training,
)
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.smoothed import BEST
from dsmooth_jax.voting import cast_votes

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "What to train: a file in configs/.")
flags.DEFINE_string("workdir", None, "Folder to write to, and to resume from.")
flags.DEFINE_string(
    "data_dir", None, "Where npz or TFDS data are; TFDS's own if unset."
)

LATEST = pathlib.Path("checkpoints", "latest")


def main(_):
    if FLAGS.config is None or FLAGS.workdir is None:
        raise ValueError(
            "--config and --workdir are needed; for example "
            "--config=configs/mnist5k_columns.py --workdir=runs/mnist5k"
        )
    config = json.loads(FLAGS.config.to_json())
    train(config, pathlib.Path(FLAGS.workdir), FLAGS.data_dir)


def train(config, workdir, data_dir=None):
    """Trains as a plain JSON config says; goes on with what lies in workdir."""
    for part, name in (
        ("train", "batch_size"),
        ("train", "epochs"),
        ("validation", "every_epochs"),
    ):
        if not config[part][name] > 0:
            raise ValueError(
                f"{part}.{name}={config[part][name]} must be positive, for example 1"
            )
    train_set, validation_set = (
        data.load(split=split, data_dir=data_dir, **config["data"])
        for split in ("train", "validation")
    )
    record = make_record(config, train_set, validation_set)
    ablation = ablation_from_json(config["ablation"])
    classifier = models.build(
        config["model"],
        ablation=ablation,
        image_shape=train_set.image_shape,
        num_classes=train_set.num_classes,
    )
    batch_size, epochs = config["train"]["batch_size"], config["train"]["epochs"]
    epoch = len(train_set) / batch_size  # steps, not always whole
    optimizer, schedule = optimizers.make_optimizer(
        optimizers.OptimizerConfig(**config["train"]["optimizer"]),
        num_epochs=epochs,
        steps_per_epoch=epoch,
    )
    loss = losses.LossConfig(**config["train"]["loss"])
    ema_decay = config["train"]["ema_decay"]
    train_step = training.make_train_step(
        classifier,
        optimizer,
        augment.AugmentConfig(**config["train"]["augment"]),
        loss,
        touched=(
            ds.touched(ablation, ds.Patch(*loss.patch), train_set.image_shape[:2])
            if loss.name == "certified_margin"
            else None
        ),
        ema_decay=ema_decay,
    )
    step_fn = jax.jit(train_step, donate_argnums=0)
    init_key, step_key = jax.random.split(jax.random.key(config["seed"]))
    given = None
    if config["train"]["init_from"]:
        folder = pathlib.Path(config["train"]["init_from"]) / BEST
        given, _ = checkpoint.restore(folder, jax.eval_shape(classifier.init, init_key))
        record["init_from"] = checkpoint.fingerprint(folder)
    state = training.init_state(
        classifier, optimizer, init_key, variables=given, has_average=ema_decay > 0
    )
    state, best = resume(workdir, state, record)
    first, last = int(state.step), round(epochs * epoch)
    if first >= last:
        print(f"{workdir} is finished; {describe(best)}")
        return

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    metrics = truncate_metrics(workdir / "metrics.jsonl", first)
    interval = config["validation"]["every_epochs"] * epoch  # steps, not always whole
    start = time.time()
    recent = []  # metrics since the last validation, on the device
    bar = tqdm(
        range(first, last),
        initial=first,
        total=last,
        unit="step",
        disable=not sys.stderr.isatty(),
    )
    for step in bar:
        batch = data.batch_indices(
            len(train_set), batch_size, seed=config["seed"], step=step
        )
        state, step_metrics = step_fn(
            state, train_set.images[batch], train_set.labels[batch], step_key
        )
        recent.append(step_metrics)
        done = step + 1
        if done // interval == step // interval and done != last:
            continue
        means = {k: float(np.mean([m[k] for m in recent])) for k in recent[0]}
        recent = []
        if not math.isfinite(means["loss"]):
            raise ValueError(
                f"the loss became {means['loss']} before step {done}, at learning rate "
                f"{float(schedule(step)):.3g}; the last good checkpoint is in "
                f"{workdir / LATEST}; lower "
                "--config.train.optimizer.learning_rate"
            )
        scores_fn = classifier.scores_fn(state.best_variables)
        choice = validate(scores_fn, config, validation_set)
        line = {"step": done, "epoch": done / epoch, **means, **choice}
        line["learning_rate"] = float(schedule(step))
        metrics.append(line)
        with open(workdir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        left = (time.time() - start) / (done - first) * (last - done)
        tqdm.write(
            f"epoch {line['epoch']:.0f}/{epochs}  loss {line['loss']:.3f}  "
            f"{describe(choice)}  ({left:.0f} s to go)"
        )
        # The best first: a kill before the latest is saved repeats this very step.
        if best is None or goodness(choice) >= goodness(best):
            best = {"step": done, **choice}
            if checkpoint.latest_step(workdir / BEST) != done:
                checkpoint.save(
                    workdir / BEST, done, state.best_variables, {**record, **best}
                )
        checkpoint.save(workdir / LATEST, done, state, {**record, "best": best})
    report.write_figure(report.curve_figure(metrics), workdir / "curve.png")
    print(f"best at step {best['step']}: {describe(best)}")
    print(f"trained in {time.time() - start:.0f} s; everything is in {workdir}")


def make_record(config, train_set, validation_set):
    """What every checkpoint says of itself, plain JSON."""
    return {
        "model": config["model"],
        "ablation": config["ablation"],
        "image_shape": list(train_set.image_shape),
        "num_classes": train_set.num_classes,
        "data": config["data"],
        "fingerprints": {s.split: s.fingerprint for s in (train_set, validation_set)},
        "config": config,
        "versions": provenance.versions(),
    }


def resume(workdir, state, record):
    """The newest checkpoint's state and best choice; the given state where none is."""
    if checkpoint.latest_step(workdir / LATEST) is None:
        return state, None
    state, saved = checkpoint.restore(workdir / LATEST, state)
    best = saved.pop("best")
    unlike = provenance.describe_difference(
        {k: saved[k] for k in ("config", "fingerprints")},
        {k: record[k] for k in ("config", "fingerprints")},
    )
    if unlike:
        raise ValueError(
            f"{workdir} holds a run with other settings ({unlike}); give another "
            "--workdir, or the settings of that run"
        )
    return state, best


def truncate_metrics(path, step):
    """Cuts off lines after the step that training resumes from; returns the rest."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # a kill while it was written: training repeats that step
        if record["step"] <= step:
            kept.append(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return kept


def validate(scores_fn, config, validation_set):
    """Chooses threshold, strength and voting on validation images."""
    patch = ds.Patch(*config["validation"]["patch"])
    ablation = ablation_from_json(config["ablation"])
    touched = ds.touched(ablation, patch, validation_set.image_shape[:2])
    scores = ds.score(scores_fn, validation_set.images)
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
                "patch": [patch.height, patch.width],
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
    cli.run("train.py", main)
