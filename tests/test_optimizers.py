"""Protects optimizers and schedules: they are the ones that configs name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsmooth_jax.training import optimizers
from dsmooth_jax.training.optimizers import OptimizerConfig


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax's own schedules add Python floats to integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_schedules_are_the_ones_named():
    """Cosine ends at zero, warm-up starts there, piecewise drops to a tenth."""

    def rates(**kwargs):
        config = OptimizerConfig(learning_rate=0.1, **kwargs)
        _, schedule = optimizers.make_optimizer(
            config, num_epochs=10, steps_per_epoch=2.5
        )
        return np.array([float(schedule(i)) for i in range(26)])

    cosine = rates(schedule="cosine", warmup_epochs=2)
    assert cosine[0] == 0 and cosine[25] == pytest.approx(0, abs=1e-9)
    assert cosine.argmax() == 5 and cosine.max() == pytest.approx(0.1)
    drops = rates(schedule="piecewise", boundaries=(4, 8))
    np.testing.assert_allclose(drops[[0, 9, 10, 19, 20]], [0.1, 0.1, 0.01, 0.01, 1e-3])
    warm = rates(schedule="piecewise", boundaries=(4, 8), warmup_epochs=2)
    np.testing.assert_allclose(warm[[0, 5, 9, 10, 20]], [0, 0.1, 0.1, 0.01, 1e-3])
    assert set(rates(schedule="constant")) == {0.1}
    linear = rates(schedule="linear", warmup_epochs=2)
    np.testing.assert_allclose(linear[[0, 5, 15, 25]], [0, 0.1, 0.05, 0], atol=1e-9)


def test_sgd_weight_decay_is_the_papers():
    """Decay is added to the gradient before momentum, as in the paper's optimizer."""
    config = OptimizerConfig(
        "sgd", 0.1, weight_decay=0.5, momentum=0.9, schedule="constant"
    )
    optimizer, _ = optimizers.make_optimizer(config, num_epochs=1, steps_per_epoch=1)
    params, trace = jnp.float32(2.0), 0.0
    state, expected = optimizer.init(params), 2.0
    for gradient in (1.0, -0.5, 0.25):
        updates, state = optimizer.update(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        trace = 0.9 * trace + gradient + 0.5 * expected
        expected -= 0.1 * trace
        assert float(params) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("iterations", [3, 5])
def test_muon_turns_kernels_into_orthogonal_steps_and_adam_does_the_rest(iterations):
    """A kernel's step has singular values near the rate; others move by Adam's."""
    config = OptimizerConfig(
        "muon",
        0.02,
        adam_learning_rate=1e-3,
        weight_decay=0.0,
        newton_schulz_steps=iterations,
        schedule="constant",
    )
    optimizer, _ = optimizers.make_optimizer(config, num_epochs=1, steps_per_epoch=1)
    rng = np.random.default_rng(0)
    shapes = {
        "block": {"kernel": (3, 2, 4, 8), "scale": (8,)},
        "wide": {"kernel": (8, 32), "pos_embed": (2, 3, 8)},
        "head": {"kernel": (8, 10)},
    }

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params, gradient = (
        jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(2)
    )
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for name, factor in (("block", 1.0), ("wide", 2.0)):  # sqrt(outputs / inputs)
        found, values = (
            np.linalg.svd(x.reshape(-1, x.shape[-1]), compute_uv=False)
            for x in (np.asarray(tree[name]["kernel"]) for tree in (updates, gradient))
        )
        # Each iteration is one polynomial of every singular value (Jordan 2024, Muon).
        values = values / np.linalg.norm(values)
        for _ in range(iterations):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        expected = 0.02 * factor * values
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-3)
        assert (found > 0.6 * 0.02 * factor).all()
        assert (found < 1.3 * 0.02 * factor).all()
    for adams, of in (
        (updates["block"]["scale"], gradient["block"]["scale"]),
        (updates["head"]["kernel"], gradient["head"]["kernel"]),
        (updates["wide"]["pos_embed"], gradient["wide"]["pos_embed"]),
    ):
        # Its first step has one size for all, whatever the gradient (Nesterov: 1.47).
        np.testing.assert_allclose(adams, -1.4737e-3 * np.sign(of), rtol=1e-3)
