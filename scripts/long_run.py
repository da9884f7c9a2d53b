"""The long run of CIFAR-10 on a card, fitted into the time there is, in one command.

    python -m scripts.long_run --data_dir=DATA --out=runs/card --minutes=9

Trains the configs of --stages, one after the other, each in OUT/NAME; what one begins
with or is taught by (runs/NAME in its config) is taken from there, too. An ensemble is
put together of as many stages as it has members, those before it. Before it
begins, 100 steps of each stage are timed. What would take longer than --minutes is
shortened: all schedules by one factor, and the decay of the weights grows as they
shrink. What was decided is in OUT/FIRST.plan.json, FIRST the first stage: the same
command goes on from there. With --prepare it only decides, and with --prepare=compile
compiles what was decided, so that --minutes are all left for the same command without.

--scale and --width make a rehearsal of it: --scale=0.001 --width=8 takes minutes on
two cores.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import os
import pathlib
import time

import jax
import numpy as np

from dsmooth_jax import data, distributed
from dsmooth_jax.checks import check_installed
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.training import feeding, optimizers, run, teaching
from dsmooth_jax.training.config import from_json, to_json
from dsmooth_jax.training.step import init_state, with_teacher
from scripts.join import join

STAGES = (
    "cifar10_columns3_card_a,cifar10_columns3_card_b,cifar10_columns3_card_c,"
    "cifar10_columns3_card_all,cifar10_columns3_card,cifar10_columns3_card_masked,"
    "cifar10_masks_card"
)
PROBE = 100  # steps that are timed
RESERVE = 15.0  # seconds of a stage for loading, validation and saving
SAVE_EVERY = 10_000  # steps: some tens of seconds


def main():
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--data_dir", required=True)
    flags.add_argument("--out", type=pathlib.Path, required=True)
    flags.add_argument("--stages", type=lambda text: text.split(","), default=STAGES)
    flags.add_argument("--minutes", type=float, default=9.0)
    flags.add_argument("--prepare", nargs="?", const="decide")
    flags.add_argument("--scale", type=float, default=1.0)
    flags.add_argument("--width", type=int, default=None)
    flags = flags.parse_args()
    begun = time.monotonic()
    check_installed("matplotlib")  # of the curve
    out = flags.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    jax.config.update(
        "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
    )
    path = out / f"{flags.stages[0]}.plan.json"
    asked = {
        key: getattr(flags, key) for key in ("stages", "minutes", "scale", "width")
    }
    plan = read_plan(path, asked)
    if plan is None:
        plan = make_plan(asked, out, flags.data_dir, None if flags.prepare else begun)
        write_whole(path, (json.dumps(plan, indent=2) + "\n").encode())
    configs = {stage: from_json(plan["configs"][stage]) for stage in flags.stages}
    if flags.prepare:
        if flags.prepare == "compile":
            start_all(configs, flags.data_dir)
        print(f"prepared in {time.monotonic() - begun:.0f} s", flush=True)
        return
    for stage, config in configs.items():
        if is_joined(config):
            if not (out / stage).exists():
                first = list(configs).index(stage) - len(config.model.members)
                members = list(configs)[first:][: len(config.model.members)]
                join([str(out / member) for member in members], out / stage)
            continue
        outcome = run.train(
            config, out / stage, data_dir=flags.data_dir, save_every=SAVE_EVERY
        )
        if not outcome.is_finished:
            raise SystemExit("stopped and saved; give the same command again to go on")
        print(f"{stage}: {outcome.best} ({time.monotonic() - begun:.0f} s)", flush=True)


def read_plan(path, asked):
    """The plan of a run that is to go on; None where there is none."""
    if not path.exists():
        return None
    plan = json.loads(path.read_text())
    if plan["asked"] != asked:
        raise SystemExit(
            f"{path} was made for {plan['asked']}, not for {asked}; give the same "
            "command, or another --out"
        )
    return plan


def make_plan(asked, out, data_dir, begun):
    """Times all stages and shortens their schedules until they fit.

    `begun` is when the minutes began; None: they begin later, when all is compiled.
    """
    count, configs = max(3, round(PROBE * min(1, asked["scale"]))), {}
    for stage in asked["stages"]:
        made = importlib.import_module(f"configs.{stage}").get_config()
        config = shortened(from_json(json.loads(made.to_json())), asked["scale"])
        if asked["width"]:
            config = narrowed(config, asked["width"])
        configs[stage] = config
    started = start_all(configs, data_dir)
    times = {}
    for stages, *one in started:
        times |= dict.fromkeys(stages, time_stage(*one, count))
    steps = sum(t["steps"] * t["seconds"] for t in times.values())
    reserve = RESERVE * len(times)
    before = 0.0 if begun is None else 2 * (time.monotonic() - begun)
    left = 60 * asked["minutes"] - reserve - before
    factor = min(1.0, left / steps)
    print(json.dumps(times))
    print(
        f"estimated {before + steps + reserve:.0f} s, {left:.0f} s are left for "
        f"{steps:.0f} s of steps"
    )
    if factor * min(t["steps"] for t in times.values()) < 1:
        raise SystemExit(
            f"--minutes={asked['minutes']:g} are too few; give at least "
            f"{(steps + 60 * asked['minutes'] - left) / 60:.0f}"
        )
    print(f"all schedules are taken times {factor:.3f}", flush=True)
    plain = {s: placed(to_json(shortened(c, factor)), out) for s, c in configs.items()}
    return {"asked": asked, "times": times, "factor": factor, "configs": plain}


def narrowed(config, width):
    """The same run of a network of this width, or of several."""

    def narrow(model):
        limit = {"max_width": 4 * width} if model.get("max_width") else {}
        return {**model, "width": width, **limit}

    record = to_json(config)
    if is_joined(config):
        members = [narrow(model) for model in record["model"]["members"]]
        record["model"]["members"] = members
    else:
        record["model"] = narrow(record["model"])
    return from_json(record)


def is_joined(config):
    return config.model.name == "ensemble"


def shortened(config, factor):
    """The same run in fewer epochs, its weights decayed as much, if that can be."""
    train, optimizer = config.train, config.train.optimizer
    most = 0.5 / optimizer.learning_rate  # a step that halves them
    optimizer = dataclasses.replace(
        optimizer,
        weight_decay=min(optimizer.weight_decay / factor, most),
        warmup_epochs=optimizer.warmup_epochs * factor,
    )
    epochs = train.epochs * factor
    train = dataclasses.replace(train, epochs=epochs, optimizer=optimizer)
    validation = dataclasses.replace(config.validation, every_epochs=epochs)
    return dataclasses.replace(config, train=train, validation=validation)


def placed(config, out):
    """Runs that a config names, in OUT."""
    for part, key in (
        (config["train"], "init_from"),
        (config["train"]["teacher"], "workdir"),
    ):
        if part[key]:
            part[key] = os.path.relpath(out / pathlib.Path(part[key]).name)
    return config


def start_all(configs, data_dir):
    """[(stages, take, state, most steps of a call, steps)], compiled side by side.

    Stages that differ in nothing but their random numbers are one program.
    """
    alike = {}
    for stage, config in configs.items():
        if not is_joined(config):
            key = json.dumps({**to_json(config), "seed": 0}, sort_keys=True)
            alike.setdefault(key, []).append(stage)

    def start_first(stages):
        config = configs[stages[0]]
        return stages, *start(config, teacher_of(config, configs), data_dir)

    with concurrent.futures.ThreadPoolExecutor(len(alike)) as pool:
        return list(pool.map(start_first, alike.values()))


def teacher_of(config, configs):
    """The config of a stage's teacher, among the stages or in configs/; or None."""
    name = pathlib.Path(config.train.teacher.workdir).name
    if not name:
        return None
    if name in configs:
        return configs[name]
    made = importlib.import_module(f"configs.{name}").get_config()
    return from_json(json.loads(made.to_json()))


def start(config, teacher, data_dir):
    """Takes a step of a stage, its teacher one whose weights are drawn at random."""
    record = to_json(config)
    train_set, validation_set = (
        data.load(split=split, data_dir=data_dir, **record["data"])
        for split in ("train", "validation")
    )
    record = run.make_record(record, train_set, validation_set)
    classifier, _ = run.make_classifier(config, record, validation_set)
    plan = run.make_plan(config, len(train_set))
    optimizer, schedule = optimizers.make_optimizer(
        config.train.optimizer,
        num_epochs=config.train.epochs,
        steps_per_epoch=plan.steps_per_epoch,
    )
    size = train_set.image_shape[:2]
    step = run.make_step(config, classifier, optimizer, schedule, size)
    labels = train_set.labels
    if config.train.teacher.workdir:
        if teacher.defence == "smoothing":
            drawn = teaching.build_teacher(to_json(teacher)["model"], record)
            variables = drawn.init(jax.random.key(0))
            teach = teaching.teach(
                config.train.teacher,
                drawn,
                variables,
                precision=config.train.precision,
            )
            step = with_teacher(step, teach)
        else:
            labels = np.eye(train_set.num_classes, dtype=np.float32)[labels]
    mesh, key = distributed.batch_mesh(), jax.random.key(0)
    state = init_state(
        classifier, optimizer, key, has_average=config.train.ema_decay > 0
    )
    state = distributed.replicate(state, mesh)
    key_data = distributed.replicate(jax.random.key_data(key), mesh)
    feed = run.make_feed(config, train_set, labels)
    most = feeding.Pace(feed, None).most
    take = feed.start(step, mesh, key_data, range(plan.num_steps), most)
    state, measured = take(state, 0, 1)
    jax.block_until_ready(measured)
    return take, state, most, plan.num_steps


def time_stage(take, state, most, num_steps, count):
    """{"steps" of the stage, "seconds" of each}."""
    begun, done = time.monotonic(), 0
    while done < count:
        several = min(most, count - done)
        state, measured = take(state, done, several)
        done += several
    jax.block_until_ready((state, measured))
    return {"steps": num_steps, "seconds": (time.monotonic() - begun) / count}


if __name__ == "__main__":
    main()
