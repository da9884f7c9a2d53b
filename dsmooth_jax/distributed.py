"""Several processes and devices as one run: joining, sharing out, leaving.

A process joins the others with `session`, before JAX is used. Whatever keeps them from
one another (nobody at the coordinator's address, one too few, a peer that died) ends
every process within a time limit, and its last line says so. Alone, all of this does
nothing.
"""

import contextlib
import hashlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dsmooth_jax.checks import check_count

PyTree = Any


@dataclass(frozen=True)
class Peers:
    """How a process finds the others of its run.

    Attributes:
      distributed: "auto" finds them on a TPU pod, under Slurm, Kubernetes or Open MPI;
        None: by the three below, or alone where these are None, too.
      coordinator: "HOST:PORT" of process 0, which listens there.
      num_processes: of the run, >= 1.
      process_id: which of them this is, in 0..num_processes - 1.
      timeout: seconds, >= 1, after which who does not come or answer is given up.

    Raises:
      ValueError: values that do not fit together; the message names them.
    """

    distributed: Literal["auto"] | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 120

    def __post_init__(self) -> None:
        check_count("--peer_timeout", self.timeout)
        if self.distributed not in (None, "auto"):
            raise ValueError(
                f"--distributed={self.distributed} must be auto; to name processes "
                "give --coordinator, --num_processes and --process_id"
            )
        explicit = (self.coordinator, self.num_processes, self.process_id)
        if explicit == (None, None, None):
            return
        if None in explicit or self.distributed is not None:
            raise ValueError(
                f"--coordinator={self.coordinator}, --num_processes="
                f"{self.num_processes} and --process_id={self.process_id} must be "
                "given together, and without --distributed"
            )
        host, _, port = str(self.coordinator).rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(
                f"--coordinator={self.coordinator} must be HOST:PORT of process 0, for "
                "example 10.0.0.1:8476"
            )
        check_count("--num_processes", self.num_processes)
        if not 0 <= int(self.process_id or 0) < int(self.num_processes or 1):
            raise ValueError(
                f"--process_id={self.process_id} must be in 0.."
                f"{int(self.num_processes or 1) - 1}, one less than --num_processes"
            )


@contextlib.contextmanager
def session(peers: Peers, *, is_preemptible: bool = True) -> Iterator[None]:
    """Joins the other processes; leaves at once, and by itself, on an error.

    Args:
      peers: How to find them. By default there are none, and nothing happens.
      is_preemptible: Whether `stop_requested` will be asked; if not, SIGTERM ends this
        process as usual.

    Raises:
      ValueError: nothing was found for "auto".
    """
    if peers.distributed is None and peers.coordinator is None:
        yield
        return
    jax.config.update("jax_enable_preemption_service", is_preemptible)
    with _last_words(peers) as say:
        _join(peers, say)
        try:
            yield
            barrier("end")
        # Not to be raised further: on its way out Python would wait for the peers.
        except KeyboardInterrupt:
            say("interrupted; give the same command again to go on", status=130)
        except SystemExit as stop:
            say("", status=stop.code if isinstance(stop.code, int) else 1)
        except Exception as error:
            if "DSMOOTH_TRACEBACK" in os.environ:
                sys.excepthook(type(error), error, error.__traceback__)
            text = " ".join(str(error).split())
            # What JAX raises for a lost connection names sockets, not processes.
            if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text:
                text = f"another process of this run died or is out of reach ({text})"
            say(f"error: {text}", status=1)


def check_devices() -> None:
    """Raises ValueError where JAX finds none of the devices that it is told to use."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split()) or "no such device, or no JAX for it"
        raise ValueError(
            f"JAX_PLATFORMS={wanted} is not to be had here ({text}); unset "
            "JAX_PLATFORMS, or set it to cpu"
        ) from None


def check_memory(state: PyTree) -> None:
    """Raises ValueError where a training state cannot fit into a device's memory.

    A lower bound: the state and a gradient, no activations.

    Args:
      state: shapes and dtypes, with `variables`.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    params = jax.tree.leaves(state.variables["params"])
    needed = sum(x.size * x.dtype.itemsize for x in [*jax.tree.leaves(state), *params])
    if needed > limit:
        count = sum(leaf.size for leaf in params)
        raise ValueError(
            f"the network has {count:,} parameters, and training it needs more than "
            f"{needed / 1e9:,.0f} GB; {device.device_kind} has {limit / 1e9:,.0f} GB: "
            "lower model.depth, model.width or model.max_width"
        )


def is_first() -> bool:
    """Whether this is the process that prints, and writes what all know."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_same(what: str, text: str) -> None:
    """Raises ValueError in every process unless all have the same text."""
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32)
    everyone = multihost_utils.process_allgather(mine)
    if (everyone != everyone[0]).any():
        raise ValueError(
            f"the processes of this run have different {what}; here it is "
            f"{text[:200]}: all need the same command, the same data, and a --workdir "
            "that they share"
        )


def agreed(answer: bool) -> bool:
    """The first process's answer, in all of them."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def check_shared(path: pathlib.Path) -> None:
    """Raises ValueError in every process unless all see what the first one wrote."""
    barrier(f"{path.name} written")
    check_same(f"files at {path}", f"exists: {path.exists()}")


def share() -> tuple[int, int]:
    """(which process this is, of how many)."""
    return jax.process_index(), jax.process_count()


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[int], bool]]:
    """Takes SIGTERM as a request to save and leave.

    Yields:
      A function: step -> whether to stop there; all processes stop at the same step. It
      is to be asked at each step, with rising numbers.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(1))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def batch_mesh() -> Mesh:
    """All devices of all processes in one line, along which a batch is spread."""
    return jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless a training batch divides over all devices."""
    num_devices = jax.device_count()
    if batch_size % num_devices:
        nearest = max(1, round(batch_size / num_devices)) * num_devices
        raise ValueError(
            f"train.batch_size={batch_size} must be divisible by {num_devices}, the "
            f"devices; for example --config.train.batch_size={nearest}"
        )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device; all processes have the same values."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    shared = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            everywhere, np.asarray(leaf), np.shape(leaf)
        ),
        tree,
    )
    # Copies of JAX's own: what may share memory with NumPy must not be donated.
    copy = jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=everywhere)
    return copy(shared)


def spread(batch: PyTree, mesh: Mesh) -> PyTree:
    """Arrays [B / processes, ...] of each process to arrays [B, ...] over all devices.

    B is divisible by the number of devices, see `check_batch_size`.
    """
    shares = NamedSharding(mesh, PartitionSpec("batch"))
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(shares, part), batch
    )


def _join(peers: Peers, say: Callable[..., None]) -> None:
    """Initialises JAX's own runtime, and gives up before it would abort."""
    joined = threading.Event()

    def give_up_in_time() -> None:
        deadline = time.monotonic() + peers.timeout
        is_reached = not peers.process_id  # 0 is the coordinator; None: not known
        while not joined.wait(1) and time.monotonic() < deadline:
            is_reached = is_reached or _answers(str(peers.coordinator))
        if joined.is_set():
            return
        where = f"the coordinator at {peers.coordinator}"
        what = f"{where} waits for some of --num_processes={peers.num_processes} "
        what += "processes; start them all, each with its own --process_id"
        if peers.coordinator is None:
            what = "some processes of this run did not come; start them all"
        elif not is_reached:
            what = f"nothing answers at {where}; start process 0 there, look for a "
            what += "firewall, or correct --coordinator"
        say(f"error: {what} (gave up after --peer_timeout={peers.timeout} s)", status=1)

    threading.Thread(target=give_up_in_time, daemon=True).start()
    host = str(peers.coordinator).rpartition(":")[0]
    is_local = host in ("localhost", "127.0.0.1", "::1")
    try:
        jax.distributed.initialize(
            peers.coordinator,
            peers.num_processes,
            peers.process_id,
            initialization_timeout=peers.timeout + 60,
            heartbeat_timeout_seconds=peers.timeout,
            shutdown_timeout_seconds=peers.timeout,
            # By default the coordinator listens to every network.
            coordinator_bind_address=peers.coordinator if is_local else None,
        )
    except ValueError as error:
        if peers.distributed is None:
            raise
        raise ValueError(
            "--distributed=auto found no TPU pod, Slurm, Kubernetes or Open MPI; give "
            f"--coordinator, --num_processes and --process_id ({error})"
        ) from error
    finally:
        joined.set()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except OSError:
        return False


# JAX ends a process whose peer is gone from a thread of its own, with a stack trace of
# C++. A child that outlives it says what that means.
_WATCHER = """
import sys
if not sys.stdin.buffer.read(1):
    print(sys.argv[1], file=sys.stderr)
"""


@contextlib.contextmanager
def _last_words(peers: Peers) -> Iterator[Callable[..., None]]:
    """Yields a function that prints a line and ends the process at once."""
    me = "" if peers.process_id is None else f"process {peers.process_id}: "
    program = os.path.basename(sys.argv[0] or "python")
    message = (
        f"{program}: error: {me}ended before it was done: it was killed, or another "
        "process of this run died or is out of reach (see above); give the same "
        "command again to every process, it goes on"
    )
    watcher = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _WATCHER, message],
        stdin=subprocess.PIPE,
        start_new_session=True,  # what ends this process group must not end it
    )

    def dismiss() -> None:
        with contextlib.suppress(OSError):
            watcher.communicate(b".")

    def say(text: str, *, status: int) -> None:
        dismiss()
        sys.stdout.flush()
        if text:
            print(f"{program}: {me}{text}", file=sys.stderr, flush=True)
        os._exit(status)

    try:
        yield say
    finally:
        dismiss()
