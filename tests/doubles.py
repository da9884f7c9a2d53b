"""A function of float32 arrays, computed in float64: what it says without rounding."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def in_float64(fn, *arguments):
    """`fn(*arguments)`, an array, with every float32 in it made float64.

    Networks refuse variables of other types than their own, so `fn` is traced as it is
    and its operations are repeated one by one.
    """
    traced = jax.make_jaxpr(fn)(*arguments)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(arguments)]
    with jax.enable_x64(True):
        (result,) = jax.jit(lambda *values: _repeat(traced, values))(*leaves)
        return np.asarray(result)


def _repeat(traced, arguments):
    jaxpr = traced.jaxpr
    known = dict(zip(jaxpr.constvars, map(_wide, traced.consts), strict=True))
    known |= zip(jaxpr.invars, map(_wide, arguments), strict=True)

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        values = [_wide(read(atom)) for atom in eqn.invars]
        params = {key: _wide_dtype(value) for key, value in eqn.params.items()}
        inner = [p for p in params.values() if isinstance(p, core.ClosedJaxpr)]
        if inner:  # a function that is compiled, or has derivatives, of its own
            results = _repeat(inner[0], values)
        else:
            results = eqn.primitive.bind(*values, **params)
        if not eqn.primitive.multiple_results:
            results = [results]
        known |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _wide(value):
    value = jnp.asarray(value)
    return value.astype(jnp.float64) if value.dtype == jnp.float32 else value


def _wide_dtype(param):
    is_float32 = isinstance(param, np.dtype) and param == np.float32
    return np.dtype(np.float64) if is_float32 else param
