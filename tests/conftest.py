"""What every test runs under: shapes checked, JAX strict, examples fixed."""

import fcntl
import os
import shutil

import jax
import pytest
from hypothesis import settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook
from processes import collect_rarely, fork

# Before the first import of the package: every annotated function and record then
# checks its shapes and types when called.
install_import_hook("dsmooth_jax", "typechecker.check")

# No rank is promoted and no dtype converted unless the code says so.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

collect_rarely()

settings.register_profile("dsmooth_jax", deadline=None, derandomize=True)
settings.load_profile("dsmooth_jax")


@pytest.fixture
def without_shape_checks():
    """For tests of bad input: a user has no shape checker, our own errors must do."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def run_script():
    """Runs a script in its own process, from the repository's root."""

    def run(*arguments, is_ok=True, **jax_settings):
        done = fork(*arguments, **jax_settings).finish()
        assert (done.returncode == 0) == is_ok, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def smoke_run(run_script, tmp_path_factory):
    """A workdir that train.py made in seconds, from real images."""
    base = tmp_path_factory.getbasetemp()
    # Workers share one run: who comes second waits, and finds it finished.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    trained = shared / "smoke_run"
    config = "--config=configs/mnist5k_smoke.py"
    with open(shared / "smoke_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_script("train.py", config, f"--workdir={trained}")
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    shutil.copytree(trained, workdir)
    return workdir
