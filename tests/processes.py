"""Several processes of one run on this machine, for tests."""

import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, *, within=300):
    """(status, last line of stderr); a hang is an error."""
    try:
        out, error = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, (error.strip().splitlines() or [""])[-1]
