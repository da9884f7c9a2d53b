"""Protects what benchmarks count; what they time is no test."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.programs import flop_of


def test_flop_are_those_of_products_and_convolutions_and_of_loops():
    # Protects the limits that benchmarks.accelerator prints: two for each multiply-add.
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
    matrix = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def convolved(image, kernel, stride):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (stride, stride), "VALID", dimension_numbers=layout
        )

    def repeated(matrix):
        return jax.lax.fori_loop(0, 7, lambda _, m: jax.jit(jnp.matmul)(m, m), matrix)

    def count(fn, *args):
        return flop_of(jax.make_jaxpr(fn)(*args).jaxpr)

    for stride, side in ((1, 6), (2, 3)):
        once = 2 * (2 * side * side * 5) * (3 * 3 * 3)
        conv = functools.partial(convolved, stride=stride)
        assert count(conv, image, kernel) == once
        # Forward, and the gradient of the kernel, which does as much.
        gradient = jax.grad(lambda k, x, f=conv: f(x, k).sum())
        assert count(gradient, kernel, image) == 2 * once
    assert count(repeated, matrix) == 7 * 2 * 4**3
