"""How the programs that take the time are compiled.

On CPUs XLA hands convolutions, one by one, to a library that leaves all cores but one
idle (jax 0.10 and 0.11). Told to hand over reductions only, it scores the shipped
network's images, and finds its gradients, in three fifths of the time on two cores
(`benchmarks.compiling`). Results differ by float rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_ON_CPUS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` with `compiler_options`, for functions of a module.

    Args:
      fn: a function of PyTrees of arrays.

    Returns:
      The compiled function. Given another program's values it is part of that one,
      which is compiled as that one says.
    """
    # Traced once for both: `jax.eval_shape` of this leaves its trace to the first call.
    inner = jax.jit(fn)

    @functools.cache
    def outermost() -> Callable[..., Any]:
        # Not before it is called: an import must not choose a backend.
        return jax.jit(fn, compiler_options=compiler_options())

    @functools.wraps(fn)
    def run(*arguments: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        is_inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (inner if is_inside else outermost())(*arguments)

    return run


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """What `jax.jit` tells XLA; None where it need not be told, or does not know it."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=_ON_CPUS).lower(0.0).compile()
    except RuntimeError:  # a version that has no such option
        return None
    return _ON_CPUS
