"""Trains the base classifier of a smoothed classifier.

    python train.py --config=configs/mnist5k_columns.py --workdir=runs/mnist5k

Values of the config can be changed, for example --config.train.epochs=3. A run that was
killed goes on where its last checkpoint is when the same command is given again, and
ends as if it had not been killed; SIGTERM saves and leaves. The workdir then holds
config.json, validation_ids.txt, metrics.jsonl, curve.png and checkpoints/; certify.py
takes it from there. All devices are used; docs/scaling.md is about several machines.
A config of this library's is found by its name, too: --config=mnist5k_columns.
"""

import json
import pathlib
import re
import signal
import sys
import time
import types

from absl import flags
from ml_collections import config_flags

from dsmooth_jax import distributed
from dsmooth_jax.checks import user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.training.config import check_flags, from_json
from dsmooth_jax.training.run import train

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """The command."""
    _define_flags()
    cli.explain(__doc__, __name__)
    cli.run(cli.program(), _main, _prepare)


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "What to train: a file, or the name of one in configs/."
    )
    flags.DEFINE_string("workdir", None, "Folder to write to, and to resume from.")
    cli.define_data_dir()
    flags.DEFINE_bool("tensorboard", False, "Log for TensorBoard, too (tensorboardX).")
    flags.DEFINE_integer("save_every", 1000, "Steps between checkpoints; safety only.")
    flags.DEFINE_integer(
        "steps_per_call", None, "Steps in one call to the device; speed only."
    )
    cli.define_peers()


def _main(_: list[str]) -> None:
    given = flags.FLAGS
    if given.config is None or given.workdir is None:
        raise ValueError(
            "--config and --workdir are needed; for example "
            "--config=configs/mnist5k_columns.py --workdir=runs/mnist5k"
        )
    config = from_json(json.loads(given.config.to_json()))
    workdir = user_path("--workdir", given.workdir)
    with distributed.session(distributed.Peers(**cli.peer_flags())):
        distributed.check_devices()
        start = time.time()
        outcome = train(
            config,
            workdir,
            data_dir=cli.data_dir(),
            save_every=given.save_every,
            has_tensorboard=given.tensorboard,
            steps_per_call=given.steps_per_call,
        )
        if not distributed.is_first():
            return
        if outcome.best is not None:
            print(f"best at step {outcome.best.step}: {outcome.best}")
        if not outcome.num_taken:
            print(f"{workdir} is finished")
        elif outcome.is_finished:
            seconds = time.time() - start
            print(f"trained in {seconds:.0f} s; everything is in {workdir}")
        else:
            print(
                f"stopped by SIGTERM and saved at step {outcome.step} of "
                f"{outcome.num_steps}; give the same command again to go on"
            )
            sys.exit(128 + signal.SIGTERM)


def _prepare(argv: list[str]) -> list[str]:
    """The command line, with a config's name made its path."""
    check_flags(argv)
    found: list[str] = []
    for argument in argv:
        if found and found[-1] in ("--config", "-config"):  # its value
            argument = f"{found.pop()}={argument}"
        match = re.fullmatch(r"(--?config=)(.*)", argument, re.DOTALL)
        found.append(match[1] + find_config(match[2]) if match else argument)
    return found


def find_config(name: str) -> str:
    """The path of a config.

    Args:
      name: of a file of this library, without folder and ending; or any path.

    Raises:
      ValueError: there is no config of this name; the message says which there are.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name) or pathlib.Path(name).exists():
        # A shell expands no ~ behind a =.
        return str(user_path("--config", name)) if name.startswith("~") else name
    # In an installed package, and in the repository.
    folders = [path / "configs" for path in (_PACKAGE, _PACKAGE.parent)]
    folder = next((path for path in folders if path.is_dir()), folders[0])
    path = folder / f"{name}.py"
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.py")))
        raise ValueError(
            f"--config={name} is neither a file nor a config of this library; these "
            f"are {known}"
        )
    # Configs import each other as they do in the repository.
    siblings = types.ModuleType("configs")
    siblings.__path__ = [str(folder)]
    sys.modules.setdefault("configs", siblings)
    return str(path)
