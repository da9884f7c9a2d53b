"""What the benchmarks share: timing side by side, the machine's own limit, JSON."""

import json
import os
import platform
import time

import jax
import jax.numpy as jnp


def best_times(jobs, *, rounds):
    """Seconds of each job, the best of several rounds that take turns.

    Machines are noisy, and the noise only slows: the best of interleaved runs compares
    jobs under the same conditions. Each job is called once before, to compile.
    """
    for job in jobs.values():
        jax.block_until_ready(job())
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            jax.block_until_ready(job())
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def matmul_job(size=2048):
    """A job that multiplies two square float32 matrices, and its FLOPs."""
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(jnp.matmul)
    return (lambda: multiply(matrix, matrix)), 2 * size**3


def flops(fn, *args):
    """FLOPs of one call, as the compiler counts them. Loops are counted once."""
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def machine():
    """What the numbers were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def show(rows, **more):
    """Prints the result as JSON."""
    print(json.dumps({"machine": machine(), **more, "rows": rows}, indent=2))
