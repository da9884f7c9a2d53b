"""Kills a training again and again, and compares its end with one left alone.

    python -m scripts.kill_training --config=configs/fashion_mnist_columns3.py \\
        --data_dir=DATA --out=runs/fashion

trains in OUT/alone, then again in OUT/killed, where train.py gets SIGKILL at random
moments spread over the run (3 times, see --kills) and is started again each time. Both
are certified on the test images. Parameters, optimizer state, average, metrics, choices
and certificates must be the same, bit for bit. OUT/kill_log.txt says what happened;
exit status 0 says that all were equal. An OUT/alone that is finished is used again.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

from dsmooth_jax.checks import user_path
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST, CERTIFIED, LATEST, METRICS

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Log:
    """Says what happens, to the terminal and to a file."""

    def __init__(self, path: pathlib.Path):
        self.file = open(path, "w")  # noqa: SIM115, open as long as the script runs
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.started:7.1f} s  {text}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def start(arguments: argparse.Namespace, workdir: pathlib.Path) -> subprocess.Popen:
    """Starts train.py on a workdir."""
    command = [sys.executable, "train.py", f"--config={arguments.config}"]
    command += [f"--workdir={workdir}", f"--save_every={arguments.save_every}"]
    if arguments.data_dir is not None:
        command.append(f"--data_dir={arguments.data_dir}")
    return subprocess.Popen(command, cwd=ROOT)


def finish(process: subprocess.Popen) -> None:
    """Waits for a command that is left alone."""
    if process.wait():
        raise RuntimeError(f"status {process.returncode}; see its error above")


def kill_at(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> int | None:
    """Kills once a checkpoint of this step or a later one is there.

    Returns:
      The newest checkpoint it left; None if it ended before.
    """
    while (checkpoint.latest_step(workdir / LATEST) or 0) < step:
        if process.poll() is not None:
            return None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return checkpoint.latest_step(workdir / LATEST)


def certify(arguments: argparse.Namespace, workdir: pathlib.Path) -> None:
    """Certifies the test images with certify.py."""
    command = [sys.executable, "certify.py", f"--workdir={workdir}"]
    command.append(f"--patches={arguments.patches}")
    if arguments.data_dir is not None:
        command.append(f"--data_dir={arguments.data_dir}")
    finish(subprocess.Popen(command, cwd=ROOT))


def ending(workdir: pathlib.Path) -> dict[str, object]:
    """Everything that a run leaves, as values that can be compared."""
    record = checkpoint.read_metadata(workdir / BEST)
    out = workdir / CERTIFIED / "test"
    certificates = json.loads((out / "summary.json").read_text())["certificates"]
    chosen = ("step", "voting", "threshold", "strength", "certified_accuracy")
    return {
        "parameters, optimizer and average": checkpoint.fingerprint(workdir / LATEST),
        "best parameters": checkpoint.fingerprint(workdir / BEST),
        "steps": checkpoint.latest_step(workdir / LATEST),
        "choices": {name: record[name] for name in chosen},
        "metrics": (workdir / METRICS).read_text(),
        "certificates": certificates,
        "rows": (out / "rows.csv").read_text(),
    }


def run(arguments: argparse.Namespace) -> bool:
    """Trains twice, kills one of them, and compares; returns whether all is equal."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "kill_log.txt")
    alone, killed = out / "alone", out / "killed"
    begun = time.monotonic()
    finish(start(arguments, alone))
    num_steps = checkpoint.latest_step(alone / LATEST)
    assert num_steps is not None
    log.say(f"alone: {num_steps} steps in {time.monotonic() - begun:.0f} s")

    rng = random.Random(arguments.seed)
    for kill in range(arguments.kills):
        # One random moment in each of as many equal parts of the run.
        target = int((kill + rng.uniform(0.2, 0.9)) * num_steps / arguments.kills)
        process = start(arguments, killed)
        seen = kill_at(process, killed, target)
        if seen is None:
            raise RuntimeError("it ended before it was killed; lower --save_every")
        log.say(f"kill {kill + 1}: SIGKILL past step {target}, left checkpoint {seen}")
    finish(start(arguments, killed))
    log.say(f"killed: finished at step {checkpoint.latest_step(killed / LATEST)}")
    for workdir in (alone, killed):
        certify(arguments, workdir)
    endings = ending(alone), ending(killed)
    is_equal = True
    for name in endings[0]:
        same = endings[0][name] == endings[1][name]
        is_equal &= same
        log.say(f"{name}: {'equal' if same else 'DIFFERENT'}")
    log.say("all equal, bit for bit" if is_equal else "THE RUNS DIFFER")
    return is_equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a file in configs/")
    parser.add_argument("--out", required=True, help="a folder")
    parser.add_argument("--data_dir", help="as of train.py")
    parser.add_argument("--kills", type=int, default=3, help="how many; default 3")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--save_every", type=int, default=500, help="as of train.py")
    parser.add_argument("--patches", default="2x2,5x5", help="as of certify.py")
    arguments = parser.parse_args()
    arguments.out = user_path("--out", arguments.out)
    return 0 if run(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
