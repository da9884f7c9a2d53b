"""What does the device at hand do, and how near to its limits?

python -m benchmarks.accelerator [--size=card|small] [--seconds=240] [--out=FILE.json]

The rates of the device (matrix products, copy), then training steps in bfloat16 and
scoring in full float32: milliseconds, images a second, both limits (FLOP over the
matmul rate, bytes over the copy rate) in milliseconds and the share of the nearer one.
Masked networks are timed on a batch of ablated images, an image being P of them. Where
PyTorch is installed its steps take turns with ours (`benchmarks.torch_twins`).

Compiling takes longer than running: what is not compiled in time is left out, named.
--size=small, for CPUs, is the same of narrow networks.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax

from benchmarks.common import machine
from benchmarks.programs import SIZES, jobs_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
ROUNDS, ROUND_SECONDS = 3, 0.2
SHARE = 0.65  # of the time that compiling may take
LONG = 20  # seconds that a compilation may take: none is begun later
CHILD_SECONDS = 45  # kept for the process with deterministic operations


def main():
    # PyTorch, and a process with other flags, want memory, too.
    os.environ.setdefault(MEMORY, "0.5")
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = "small" if jax.default_backend() == "cpu" else "card"
    flags.add_argument("--size", choices=sorted(SIZES), default=default)
    flags.add_argument("--seconds", type=float, default=240.0)
    flags.add_argument("--out", type=pathlib.Path, default=None)
    flags.add_argument("--only", default="", help="rows that begin with one of these")
    flags.add_argument(
        "--after", type=pathlib.Path, help="time nothing before this file is there"
    )
    flags = flags.parse_args()
    begun = time.monotonic()
    deadline = begun + SHARE * flags.seconds
    programs, missing = compile_all(SIZES[flags.size], flags.only.split(","), deadline)
    print(f"compiled in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    while flags.after and not flags.after.exists():
        time.sleep(0.1)  # until then the device is another program's
    seconds = time_in_turns(programs, missing)
    result = {
        "machine": machine(),
        "size": flags.size,
        "rates": rates(programs, seconds),
        "rows": [],
        "missing": missing,
    }
    if not flags.only:
        left = flags.seconds - (time.monotonic() - begun)
        row, found = deterministic(flags.size, min(left, CHILD_SECONDS))
        result["deterministic"] = {"row": row, **found}
    for name, spent in seconds.items():
        if not name.startswith("rate "):
            result["rows"].append(row_of(name, programs[name], spent, result["rates"]))
    result["ratios"] = ratios(result["rows"])
    memory = jax.local_devices()[0].memory_stats()  # None of CPUs
    if memory:
        result["process_peak_gb"] = memory["peak_bytes_in_use"] / 1e9
    result["seconds"] = time.monotonic() - begun
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if flags.only else table(result), flush=True)
    os._exit(0)  # threads may still be compiling


def compile_all(size, beginnings, deadline):
    """({row: Program}, {row: why there is none}); several at once where cores allow.

    What is still compiling at the deadline is abandoned: its thread goes on.
    """

    def timely(make):
        if time.monotonic() > deadline - LONG:
            raise TimeoutError
        return make()

    def chosen(jobs):
        return {row: jobs[row] for row in jobs if row.startswith(tuple(beginnings))}

    made, missing, twins, jobs = {}, {}, {}, chosen(jobs_of(size))
    pool = concurrent.futures.ThreadPoolExecutor(4 if (os.cpu_count() or 1) >= 8 else 1)
    pending = {row: pool.submit(timely, make) for row, make in jobs.items()}
    if importlib.util.find_spec("torch"):
        from benchmarks import torch_twins

        twins = chosen(torch_twins.jobs_of(size))
    for row, make in twins.items():
        with interrupted_at(deadline):
            keep(row, lambda m=make: timely(m), made, missing, deadline)
    for row, job in pending.items():
        left = max(0, deadline - time.monotonic())
        keep(row, lambda j=job, s=left: j.result(s), made, missing, deadline)
    pool.shutdown(wait=False, cancel_futures=True)
    return {row: made[row] for row in [*jobs, *twins] if row in made}, missing


@contextlib.contextmanager
def interrupted_at(deadline):
    """TimeoutError in the main thread, wherever it then is."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def keep(row, make, made, missing, deadline):
    """What cannot be (too little memory, say) is one row less, not the end."""
    try:
        made[row] = make()
    except Exception as error:
        missing[row] = f"{type(error).__name__}: {str(error)[:200]}"
        # PyTorch wraps what interrupts it.
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            missing[row] = "not compiled in time"
    print(f"  {row}: {missing.get(row, 'compiled')}", file=sys.stderr, flush=True)


def time_in_turns(programs, missing):
    """Seconds of one call of each, the best of some rounds in which they take turns."""
    repeats, best = {}, {}
    for row, program in list(programs.items()):
        try:
            program.wait(program.call())
            once = timed(program, 1)
        except Exception as error:
            missing[row] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        repeats[row] = max(1, min(200, round(ROUND_SECONDS / once)))
        best[row] = once
    for _ in range(ROUNDS):
        for row, count in repeats.items():
            best[row] = min(best[row], timed(programs[row], count))
    return best


def timed(program, count):
    """Seconds of a call; calls wait for one another on the device, not on the host."""
    start = time.perf_counter()
    for _ in range(count):
        result = program.call()
    program.wait(result)
    return (time.perf_counter() - start) / count


def rates(programs, seconds):
    """FLOP/s by type, bytes/s of a copy (read and written)."""
    found = {}
    for row, spent in seconds.items():
        if row.startswith("rate "):
            work = programs[row].flop or programs[row].moved
            found[row.removeprefix("rate ")] = work / spent
    return found


def row_of(name, program, spent, measured):
    row = {"what": name, "ms": 1e3 * spent}
    if program.images:
        row["images_per_second"] = program.images / spent
    limits = {}
    if program.flop and program.rate in measured:
        limits["flop"] = 1e3 * program.flop / measured[program.rate]
    if program.moved and "copy" in measured:
        limits["bytes"] = 1e3 * program.moved / measured["copy"]
    row["limits_ms"] = limits
    if limits:
        row["nearer"] = max(limits, key=limits.get)
        row["share"] = max(limits.values()) / row["ms"]
    row |= {"gflop": program.flop / 1e9, "gigabytes": program.moved / 1e9}
    return row | {"memory_gb": program.memory / 1e9}


def ratios(rows):
    """Our time over PyTorch's, and one pass over their masked passes."""
    of = {row["what"]: row for row in rows}
    found = {}
    for what, row in of.items():
        if what.startswith("torch ") and what.removeprefix("torch ") in of:
            ours = of[what.removeprefix("torch ")]
            found[f"time of ours over {what}"] = ours["ms"] / row["ms"]
    theirs = of.get("torch score masked ResNet-18")
    if theirs and (ours := of.get("score shipped")):
        found["images/s of shipped, over torch's masked ResNet-18"] = (
            ours["images_per_second"] / theirs["images_per_second"]
        )
    return found


def deterministic(size, seconds):
    """The shipped recipe's step in a process whose results are the same bits again."""
    row = f"step bandnet {SIZES[size].widths[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--size={size}"]
    try:
        done = subprocess.run(
            [*command, f"--only={row}"],
            env={**os.environ, "XLA_FLAGS": flags, MEMORY: "0.3"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(seconds, 1),
        )
        (found,) = json.loads(done.stdout)["rows"]
    except (subprocess.TimeoutExpired, ValueError) as error:
        return row, {"missing": f"{type(error).__name__} with {DETERMINISTIC}"}
    return row, {"ms": found["ms"]}


def table(result):
    """The same as text."""
    lines = [f"{result['machine']['device']}, JAX {result['machine']['jax']}", ""]
    for name, rate in result["rates"].items():
        unit = "TB/s read and written" if name == "copy" else "TFLOP/s, matrix product"
        lines.append(f"{name:<10}{rate / 1e12:10.3f} {unit}")
    lines += ["", f"{'':<44}{'ms':>9}{'images/s':>11}  by FLOP  by bytes  share     GB"]
    for row in result["rows"]:
        flop, moved = (row["limits_ms"].get(key) for key in ("flop", "bytes"))
        cells = [
            f"{row['what']:<44}{row['ms']:9.3f}",
            f"{row.get('images_per_second', 0):11,.1f}",
            f"{flop:9.3f}" if flop else f"{'-':>9}",
            f"{moved:10.3f}" if moved else f"{'-':>10}",
            f"{row['share']:7.0%}" if "share" in row else f"{'-':>7}",
            f"{row['memory_gb']:7.3f}" if row["memory_gb"] else "",
        ]
        lines.append("".join(cells))
    again = result.get("deterministic", {})
    if again:
        found = f"{again['ms']:.3f} ms" if "ms" in again else again["missing"]
        lines.append(f"{again['row']} with {DETERMINISTIC}: {found}")
    for what, value in result["ratios"].items():
        lines.append(f"{what}: {value:.2f}")
    lines += [f"left out: {row} ({why})" for row, why in result["missing"].items()]
    if "process_peak_gb" in result:
        lines.append(f"peak memory of the process {result['process_peak_gb']:.2f} GB")
    lines.append(f"{result['seconds']:.0f} s in all")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
