"""The folder of a run that `join`, `calibrate` or `ship` makes of others."""

import json
import pathlib
import shutil

from dsmooth_jax.commands.label_certification import is_masked_run
from dsmooth_jax.masked import restore_network
from dsmooth_jax.smoothed import restore_base
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.workdir import BEST, CONFIG


def check_new(out):
    """Raises where something is there already."""
    if out.exists():
        raise ValueError(f"--out={out} exists already; give another or remove it")


def restore(workdir):
    """(classifier, variables, record) of a run, of ablations or of masks of pixels."""
    is_masked = is_masked_run(pathlib.Path(workdir))
    return restore_network(workdir) if is_masked else restore_base(workdir)


def write(out, variables, record, *, like):
    """Writes variables, what they record, and the measurements of the run `like`."""
    checkpoint.save(out / BEST, record["step"], variables, record)
    config = json.dumps(record["config"], indent=2)
    write_whole(out / CONFIG, f"{config}\n".encode())
    for name in ("metrics.jsonl", "curve.png"):
        shutil.copy(like / name, out / name)
