"""Processes of their own, for tests: forked where all imports are done already."""

import functools
import gc
import multiprocessing
import os
import pathlib
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What nearly every program of ours imports; none of it starts a thread or JAX's
# devices, nor defines a flag.
PRELOADED = [
    "absl.app",
    "jax",
    "flax.nnx",
    "optax",
    "orbax.checkpoint.v1",
    "jinja2",
    "matplotlib.figure",
    "ml_collections.config_flags",
    "dsmooth_jax.data",
    "dsmooth_jax.report.write",
    "dsmooth_jax.training.loop",
]


def collect_rarely():
    """What tracing makes lives on: to look for cycles in it as often as usual takes a
    twentieth of the time of all tests."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@dataclass(frozen=True)
class Forked:
    """As `python ARGUMENTS` would run, without the seconds that imports take."""

    arguments: list[str]
    process: multiprocessing.Process
    folder: pathlib.Path

    def wait_for(self, text, *, within=60):
        """Until it has printed the text."""
        deadline = time.monotonic() + within
        while text not in (self.folder / "out").read_text():
            assert self.process.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)

    def finish(self, *, within=300):
        """What `subprocess.run` gives; a hang is an error."""
        self.process.join(within)
        is_late = self.process.is_alive()
        if is_late:
            self.process.kill()
            self.process.join()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        if is_late:
            raise subprocess.TimeoutExpired(self.arguments, within, out, err)
        return subprocess.CompletedProcess(
            self.arguments, self.process.exitcode, out, err
        )


def fork(*arguments, **jax_settings):
    """Starts SCRIPT, -m MODULE or -c CODE, each with its arguments, in ROOT.

    JAX's settings (`jax_platforms="cpu"`) are also put into its environment.
    """
    arguments = [str(argument) for argument in arguments]
    folder = pathlib.Path(tempfile.mkdtemp())
    for name in ("out", "err"):
        (folder / name).touch()
    process = _context().Process(
        target=_run, args=(arguments, folder, jax_settings), daemon=True
    )
    process.start()
    return Forked(arguments, process, folder)


def _run(arguments, folder, jax_settings):
    import jax

    collect_rarely()
    os.chdir(ROOT)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    for name, value in jax_settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(code, process_id, *, port, num_processes=2, timeout=60):
    """A process that joins the others, then runs the code."""
    program = f"""
from dsmooth_jax import distributed
peers = distributed.Peers(
    coordinator="127.0.0.1:{port}",
    num_processes={num_processes},
    process_id={process_id},
    timeout={timeout},
)
with distributed.session(peers):
    print("joined", flush=True)
"""
    program += "".join(f"    {line}\n" for line in code.splitlines())
    return fork("-c", program)


def finish(process, *, within=300):
    """(status, stdout, last line of stderr); a hang is an error."""
    done = process.finish(within=within)
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]
