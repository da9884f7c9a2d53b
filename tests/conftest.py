"""What every test runs under: shapes checked, JAX strict, examples the same each time."""

import os

import jax
import pytest
from hypothesis import settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

# Before the first import of the package: every annotated function and record then
# checks its shapes and types when called.
install_import_hook("dsmooth_jax", "beartype.beartype")

# No rank is promoted and no dtype converted unless the code says so.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile("dsmooth_jax", deadline=None, derandomize=True)
settings.load_profile("dsmooth_jax")

# Subprocesses (the scripts) find the package as a user at the repository's root does.
os.environ.setdefault("PYTHONPATH", os.getcwd())


@pytest.fixture
def without_shape_checks():
    """For tests of bad input: a user has no shape checker, our own errors must do."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
