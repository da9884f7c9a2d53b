"""Makes one classifier of several trained runs, as a run that `scripts.ship` takes.

    python -m scripts.join RUN [RUN ...] --out=runs/joined [--shift=2]

Each RUN is a workdir, or WORKDIR:SHARE+WORKDIR:SHARE..., the mean of the weights of a
stage and of those that went on from it; shares add up to 1.
Several are an ensemble: the mean of what they say. With --shift, and never mirrored, is
how windows are read, whatever the runs did; 0: once, as they are. What decides, and its
settings, `scripts.ship` chooses; masks of pixels are those of the last RUN.
"""

import argparse
import math
import pathlib

import jax
import numpy as np

from dsmooth_jax.models.ensemble import joined
from dsmooth_jax.training.config import canonical
from scripts import run_folder

ALIKE = ("defence", "ablation", "image_shape", "num_classes", "data")  # in all members


def main():
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("runs", nargs="+")
    flags.add_argument("--out", type=pathlib.Path, required=True)
    flags.add_argument("--shift", type=int)
    flags = flags.parse_args()
    try:
        run_folder.check_new(flags.out)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    join(flags.runs, flags.out, shift=flags.shift)


def join(runs, out, *, shift=None):
    """Writes the run; each of `runs` is text, as above."""
    members = [member(run) for run in runs]
    variables, records = zip(*members, strict=True)
    record, models = dict(records[-1]), [dict(r["model"]) for r in records]
    for key in ALIKE:
        found = [(r | canonical(r["config"]))[key] for r in records]
        if any(other != found[-1] for other in found):
            raise SystemExit(f"the runs differ in {key!r}: {found}")
    if shift is not None:
        models = [{**m, "mirror": False, "shift": shift} for m in models]
    arrays, model = variables[0], models[0]
    if len(members) > 1:
        arrays, model = joined(variables), {"name": "ensemble", "members": models}
    config = canonical(record["config"]) | {"model": model}
    # Folders are known on the machine that made them alone.
    init_from = pathlib.Path(config["train"].get("init_from") or "").name
    config["train"] |= {"init_from": init_from}
    names = [
        "+".join(part.rpartition("/")[2] for part in run.split("+")) for run in runs
    ]
    record |= {"model": model, "config": config, "joined": names}
    last = pathlib.Path(parts(runs[-1])[-1][0])
    run_folder.write(out, arrays, record, like=last)


def member(text):
    """(variables, record) of a run, or of the mean of several."""
    runs, shares = zip(*parts(text), strict=True)
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise SystemExit(f"{text}: shares must add up to 1, not {sum(shares):g}")
    _, each, records = zip(*map(run_folder.restore, runs), strict=True)

    def mean(*leaves):
        total = sum(
            s * np.asarray(x, np.float64) for s, x in zip(shares, leaves, strict=True)
        )
        return total.astype(np.float32)

    return jax.tree.map(mean, *each), records[-1]


def parts(text):
    """[(workdir, share)]."""
    found = [part.partition(":") for part in text.split("+")]
    return [(run, float(share or 1)) for run, _, share in found]


if __name__ == "__main__":
    main()
