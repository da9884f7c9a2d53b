"""The long run of CIFAR-10 on a card, fitted into the time there is, in one command.

    python -m scripts.long_run --data_dir=DATA --out=runs/card --minutes=9

Stage 1 and the margin stage (configs/cifar10_columns3_card*.py), the export
(`scripts.ship`), its validation images with and without views, and their certificates.
Before it begins, 100 steps of each stage are timed. What would take longer than
--minutes is shortened: both schedules by one factor, and the decay of the weights grows
as they shrink. What was decided is in OUT/plan.json: the same command goes on from
there. With --prepare it only decides and compiles, so that --minutes are all left for
the same command without it. OUT/model is what to keep; no file of it is above 16 MiB.

--scale and --width make a rehearsal of it: --scale=0.001 --width=8 takes minutes on
two cores.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import time

import jax

from dsmooth_jax import data, distributed, models
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.checks import check_installed
from dsmooth_jax.commands.certification import ask, certify_workdir
from dsmooth_jax.scoring import score
from dsmooth_jax.smoothed import restore_base
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.training import feeding, optimizers, run
from dsmooth_jax.training.config import from_json, to_json
from dsmooth_jax.training.step import init_state
from scripts import ship

STAGES = ("cifar10_columns3_card", "cifar10_columns3_card_margin")
PROBE = 100  # steps that are timed
RESERVE = 60.0  # seconds for loading, validation, export and certificates
VIEWS = {"mirror": True, "shift": 3}  # of the shipped classifier


def main():
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--data_dir", required=True)
    flags.add_argument("--out", type=pathlib.Path, required=True)
    flags.add_argument("--minutes", type=float, default=9.0)
    flags.add_argument("--prepare", action="store_true")
    flags.add_argument("--scale", type=float, default=1.0)
    flags.add_argument("--width", type=int, default=None)
    flags = flags.parse_args()
    begun = time.monotonic()
    check_installed("matplotlib", "jinja2")  # of the curve, and of the last report
    out = flags.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    jax.config.update(
        "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
    )
    asked = {"minutes": flags.minutes, "scale": flags.scale, "width": flags.width}
    plan = read_plan(out / "plan.json", asked)
    if plan is None:
        plan = make_plan(asked, out, flags.data_dir, None if flags.prepare else begun)
        write_whole(out / "plan.json", (json.dumps(plan, indent=2) + "\n").encode())
    if flags.prepare:
        for config in plan["configs"].values():
            time_stage(from_json(config), flags.data_dir, 1)  # compiles, for the run
        print(f"prepared in {time.monotonic() - begun:.0f} s")
        return
    for stage in STAGES:
        config = from_json(plan["configs"][stage])
        outcome = run.train(config, out / stage, data_dir=flags.data_dir)
        if not outcome.is_finished:
            raise SystemExit("stopped and saved; give the same command again to go on")
        print(f"{stage}: {outcome.best} ({time.monotonic() - begun:.0f} s)", flush=True)
    model = out / "model"
    if not model.exists():
        ship.ship(out / STAGES[-1], model, flags.data_dir)
    print(json.dumps(compare_views(model, flags.data_dir)), flush=True)
    certify_workdir(
        model,
        functools.partial(ask, patches="5x5"),
        split="validation",
        data_dir=flags.data_dir,
        batch_size=128,
    )
    largest = max(f.stat().st_size for f in model.rglob("*") if f.is_file())
    seconds = time.monotonic() - begun
    print(f"largest file {largest / 2**20:.1f} MiB; {seconds:.0f} s in all")


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
    """Times both stages and shortens their schedules until they fit.

    `begun` is when the minutes began; None: they begin later, when all is compiled.
    """
    configs, times, probe = {}, {}, max(3, round(PROBE * min(1, asked["scale"])))
    for stage in STAGES:
        made = importlib.import_module(f"configs.{stage}").get_config()
        configs[stage] = shortened(
            from_json(json.loads(made.to_json())), asked["scale"]
        )
        if asked["width"]:
            model = dataclasses.replace(
                configs[stage].model,
                width=asked["width"],
                max_width=4 * asked["width"],
            )
            configs[stage] = dataclasses.replace(configs[stage], model=model)
        times[stage] = time_stage(configs[stage], data_dir, probe)
    startup = sum(t["startup"] for t in times.values())
    steps = sum(t["steps"] * t["seconds"] for t in times.values())
    before = 0.0 if begun is None else time.monotonic() - begun + startup
    left = 60 * asked["minutes"] - RESERVE - before
    factor = min(1.0, left / steps)
    print(f"{STAGES}: {times}")
    print(
        f"estimated {before + steps + RESERVE:.0f} s, {left:.0f} s are left for "
        f"{steps:.0f} s of steps"
    )
    if factor * min(t["steps"] for t in times.values()) < 1:
        raise SystemExit(
            f"--minutes={asked['minutes']:g} are too few; give at least "
            f"{(steps + 60 * asked['minutes'] - left) / 60:.0f}"
        )
    print(f"both schedules are taken times {factor:.3f}", flush=True)
    plain = {s: to_json(shortened(c, factor)) for s, c in configs.items()}
    plain[STAGES[1]]["train"]["init_from"] = os.path.relpath(out / STAGES[0])
    return {"asked": asked, "times": times, "factor": factor, "configs": plain}


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
    train = dataclasses.replace(train, epochs=epochs, optimizer=optimizer, init_from="")
    validation = dataclasses.replace(config.validation, every_epochs=epochs)
    return dataclasses.replace(config, train=train, validation=validation)


def time_stage(config, data_dir, count):
    """{"steps", "seconds" of each, "startup": seconds until the first is done}."""
    begun = time.monotonic()
    record = to_json(config)
    train_set = data.load(split="train", data_dir=data_dir, **record["data"])
    classifier = models.build(
        record["model"],
        ablation=ablation_from_json(record["ablation"]),
        image_shape=train_set.image_shape,
        num_classes=train_set.num_classes,
    )
    plan = run.make_plan(config, len(train_set))
    optimizer, schedule = optimizers.make_optimizer(
        config.train.optimizer,
        num_epochs=config.train.epochs,
        steps_per_epoch=plan.steps_per_epoch,
    )
    size = train_set.image_shape[:2]
    step = run.make_step(config, classifier, optimizer, schedule, size)
    mesh, key = distributed.batch_mesh(), jax.random.key(0)
    state = init_state(
        classifier, optimizer, key, has_average=config.train.ema_decay > 0
    )
    state = distributed.replicate(state, mesh)
    key_data = distributed.replicate(jax.random.key_data(key), mesh)
    feed = run.make_feed(config, train_set)
    most = feeding.Pace(feed, None).most
    take = feed.start(step, mesh, key_data, range(plan.num_steps), most)
    state, measured = take(state, 0, 1)
    jax.block_until_ready(measured)
    startup, start, done = time.monotonic() - begun, time.monotonic(), 0
    while done < count:
        several = min(most, count - done)
        state, measured = take(state, done, several)
        done += several
    jax.block_until_ready((state, measured))
    seconds = (time.monotonic() - start) / count
    return {"steps": plan.num_steps, "seconds": seconds, "startup": startup}


def compare_views(model, data_dir):
    """Accuracies on validation images, read once and read six times."""
    _, variables, record = restore_base(model)
    images = data.load(split="validation", data_dir=data_dir, **record["data"])
    patch, size = record["patch"], images.image_shape[:2]
    sets = run.sets_for("patch", patch, record, size)
    masks = run.masks_for(patch, record, size)
    found = {}
    for name, views in (("one view", {}), ("six views", VIEWS)):
        changed = models.build(
            {**record["model"], **views},
            ablation=ablation_from_json(record["ablation"]),
            image_shape=images.image_shape,
            num_classes=images.num_classes,
        )
        start = time.monotonic()
        scores = score(changed.scores_fn(variables), images.images, batch_size=128)
        choice = run.choose(scores, images.labels, patch, sets, masks)
        seconds = time.monotonic() - start
        found[name] = {"seconds": round(seconds, 1), "chosen": str(choice)}
    return found


if __name__ == "__main__":
    main()
