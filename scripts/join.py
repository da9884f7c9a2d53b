"""Makes one classifier of several trained runs, as a run that `scripts.ship` takes.

    python -m scripts.join RUN [RUN ...] --out=runs/joined [--one_view]

Each RUN is a workdir, or FIRST:SECOND:SHARE, whose weights lie between those of a stage
and of the one that went on from it: (1 - SHARE) of the first, SHARE of the second.
Several are an ensemble: the mean of what they say. With --one_view every window is read
once, whatever the runs did. What decides, and its settings, `scripts.ship` chooses.
"""

import argparse
import json
import pathlib
import shutil

import jax
import numpy as np

from dsmooth_jax.models.ensemble import joined
from dsmooth_jax.smoothed import restore_base
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.workdir import BEST, CONFIG
from dsmooth_jax.training.config import canonical

ALIKE = ("ablation", "image_shape", "num_classes", "data")  # in all members


def main():
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("runs", nargs="+")
    flags.add_argument("--out", type=pathlib.Path, required=True)
    flags.add_argument("--one_view", action="store_true")
    flags = flags.parse_args()
    if flags.out.exists():
        raise SystemExit(f"--out={flags.out} exists already; give another or remove it")
    members = [member(run) for run in flags.runs]
    variables, records = zip(*members, strict=True)
    record, models = dict(records[-1]), [dict(r["model"]) for r in records]
    for key in ALIKE:
        found = [canonical(r["config"]).get(key, r[key]) for r in records]
        if any(other != found[-1] for other in found):
            raise SystemExit(f"the runs differ in {key!r}: {found}")
    if flags.one_view:
        models = [{**m, "mirror": False, "shift": 0} for m in models]
    arrays, model = variables[0], models[0]
    if len(members) > 1:
        arrays, model = joined(variables), {"name": "ensemble", "members": models}
    config = canonical(record["config"]) | {"model": model}
    # Folders are known on the machine that made them alone.
    init_from = pathlib.Path(config["train"].get("init_from") or "").name
    config["train"] |= {"init_from": init_from}
    names = [
        ":".join(pathlib.Path(p).name for p in run.split(":")) for run in flags.runs
    ]
    record |= {"model": model, "config": config, "joined": names}
    checkpoint.save(flags.out / BEST, record["step"], arrays, record)
    write_whole(flags.out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    last = pathlib.Path(flags.runs[-1].split(":")[0])
    for name in ("metrics.jsonl", "curve.png"):
        shutil.copy(last / name, flags.out / name)


def member(text):
    """(variables, record) of a run, or of what lies between two."""
    first, *more = text.split(":")
    _, variables, record = restore_base(first)
    if more:
        second, share = more
        _, others, record = restore_base(second)
        part = float(share)
        variables = jax.tree.map(
            lambda a, b: (1 - part) * np.asarray(a) + part * np.asarray(b),
            variables,
            others,
        )
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables), record


if __name__ == "__main__":
    main()
