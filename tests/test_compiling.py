"""Protects how programs are compiled: told what is fast, and the same inside others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmooth_jax import compiling


@pytest.fixture
def fresh():
    """The options are asked for once in a process."""
    compiling.compiler_options.cache_clear()
    yield
    compiling.compiler_options.cache_clear()


def convolve(images, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


def arrays():
    random = np.random.default_rng(0)
    return (
        random.random((2, 8, 8, 16), np.float32),
        random.random((3, 3, 16, 16), np.float32),
    )


def test_on_a_cpu_xla_takes_what_it_is_told():
    """Else the tested version has dropped the option, and all is slow again."""
    if jax.default_backend() != "cpu":
        pytest.skip("no CPU is the default here")
    assert compiling.compiler_options()


def test_results_are_those_of_jit_outside_and_inside_another_program():
    """With JAX's own options, too: a donated argument is gone."""
    expected = convolve(*arrays())
    fast = compiling.jit(convolve)
    np.testing.assert_allclose(fast(*arrays()), expected, rtol=1e-5)
    inside = jax.jit(lambda *args: fast(*args) + 1)(*arrays())
    np.testing.assert_allclose(inside, expected + 1, rtol=1e-5)
    assert jax.eval_shape(fast, *arrays()).shape == expected.shape
    options = compiling.compiler_options()
    donating = jax.jit(jnp.negative, donate_argnums=0, compiler_options=options)
    given = jnp.ones(3)
    donating(given)
    assert given.is_deleted()


def test_a_version_that_knows_no_such_option_does_without(monkeypatch, fresh):
    """Another release of XLA must not stop anybody's work."""
    monkeypatch.setattr(compiling, "_ON_CPUS", {"xla_no_such_option": "1"})
    assert compiling.compiler_options() is None
    result = compiling.jit(convolve)(*arrays())
    np.testing.assert_allclose(result, convolve(*arrays()), rtol=1e-5)


def test_accelerators_are_told_nothing(monkeypatch, fresh):
    """The option is one for CPUs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiling.compiler_options() is None
