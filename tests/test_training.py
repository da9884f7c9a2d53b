"""Protects training: pure, repeatable steps that learn, and the paper's settings."""

import dataclasses
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dsmooth_jax as ds
from dsmooth_jax import models, training
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.training import AugmentConfig, OptimizerConfig

SHAPE = (8, 8, 1)


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax's own schedules add Python floats to integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def small_classifier():
    return models.build(
        {"name": "small_cnn"}, ablation=ds.Columns(4), image_shape=SHAPE, num_classes=3
    )


def batch(n=12, shape=SHAPE, num_classes=3):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, n)
    images = rng.integers(0, 60, (n, *shape)) + 60 * labels[:, None, None, None]
    return jnp.asarray(images.astype(np.uint8)), jnp.asarray(labels, jnp.int32)


def run(config, augment=None, num_steps=30):
    classifier = small_classifier()
    optimizer, _ = training.make_optimizer(config, num_epochs=1, steps_per_epoch=30)
    state = training.init_state(classifier, optimizer, jax.random.key(0))
    augment = augment or AugmentConfig()
    step = jax.jit(training.make_train_step(classifier, optimizer, augment))
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, *batch(), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(learning_rate=2e-3),
        OptimizerConfig("sgd", 0.02, schedule="piecewise", boundaries=(0.8,)),
    ],
    ids=lambda config: config.name,
)
def test_training_learns(config):
    """Brightness says the class, any column shows it: the loss falls by half."""
    _, losses = run(config)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_steps_are_repeatable_and_have_their_own_random_numbers():
    """The same key gives the same run; two steps on one batch differ."""
    config = OptimizerConfig(learning_rate=1e-9)
    (first, losses), (second, again) = run(config), run(config)
    assert losses == again
    assert len(set(losses)) > 20  # other ablations are drawn at each step
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(first.step) == 30


def test_the_step_is_the_gradient_of_the_mean_loss():
    """One step of plain SGD against the gradient written out here."""
    classifier = small_classifier()
    images, labels = batch()
    optimizer, _ = training.make_optimizer(
        OptimizerConfig("sgd", 0.1, 0.0, 0.0, "constant"),
        num_epochs=1,
        steps_per_epoch=1,
    )
    state = training.init_state(classifier, optimizer, jax.random.key(0))
    step = jax.jit(training.make_train_step(classifier, optimizer, AugmentConfig()))
    after, metrics = step(state, images, labels, jax.random.key(1))
    _, ablate_key = jax.random.split(jax.random.fold_in(jax.random.key(1), state.step))

    def loss_fn(params):
        variables = {**state.variables, "params": params}
        floats = images.astype(jnp.float32) / 255
        logits, _ = classifier.train_logits(variables, floats, ablate_key)
        own = jnp.take_along_axis(logits[:, 0], labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits[:, 0], axis=1) - own).mean()

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(state.variables["params"])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(
        lambda p, g: p - 0.1 * g, state.variables["params"], gradient
    )
    for a, b in zip(
        jax.tree.leaves(after.variables["params"]),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_shifts_are_crops_of_the_padded_image_and_flips_mirror():
    """Every result is one of the shifts; all directions and both flips are drawn."""
    images, _ = batch(200)
    images = images.astype(jnp.float32) / 255
    config = AugmentConfig(shift=1, flip=True)
    found = np.asarray(training.augment(jax.random.key(0), images, config))
    padded = np.pad(np.asarray(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for i in range(200):
        for r in range(3):
            for c in range(3):
                crop = padded[i, r : r + 8, c : c + 8]
                for flip in (False, True):
                    if np.array_equal(found[i], crop[:, ::-1] if flip else crop):
                        seen.add((r, c, flip))
                        break
                else:
                    continue
                break
            else:
                continue
            break
        else:
            pytest.fail(f"image {i} is no shift of the original")
    assert len(seen) == 18
    same = training.augment(jax.random.key(0), images, AugmentConfig())
    np.testing.assert_array_equal(same, images)


def test_schedules_are_the_ones_named():
    """Cosine ends at zero, warm-up starts there, piecewise drops to a tenth."""

    def rates(**kwargs):
        config = OptimizerConfig(learning_rate=0.1, **kwargs)
        _, schedule = training.make_optimizer(
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


def test_sgd_weight_decay_is_the_papers():
    """Decay is added to the gradient before momentum, as in the paper's optimiser."""
    config = OptimizerConfig("sgd", 0.1, 0.5, 0.9, "constant")
    optimizer, _ = training.make_optimizer(config, num_epochs=1, steps_per_epoch=1)
    params, trace = jnp.float32(2.0), 0.0
    state, expected = optimizer.init(params), 2.0
    for gradient in (1.0, -0.5, 0.25):
        updates, state = optimizer.update(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        trace = 0.9 * trace + gradient + 0.5 * expected
        expected -= 0.1 * trace
        assert float(params) == pytest.approx(expected, rel=1e-6)


CONFIGS = [
    "cifar10_columns4_resnet18",
    "mnist5k_columns",
    "mnist5k_columns_small_cnn",
    "mnist5k_smoke",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_traces_at_its_real_shapes_and_takes_a_step(name):
    """No config can rot: real shapes are traced, and one step of batch 2 is run."""
    module = importlib.import_module(f"configs.{name}")
    assert f"--config=configs/{name}.py" in module.__doc__
    config = json.loads(module.get_config().to_json())
    shape = {"mnist5k": (28, 28, 1), "cifar10": (32, 32, 3)}[config["data"]["name"]]
    classifier = models.build(
        config["model"],
        ablation=ablation_from_json(config["ablation"]),
        image_shape=shape,
        num_classes=10,
    )
    optimizer, _ = training.make_optimizer(
        OptimizerConfig(**config["train"]["optimizer"]),
        num_epochs=config["train"]["epochs"],
        steps_per_epoch=10,
    )
    augment = AugmentConfig(**config["train"]["augment"])
    step = training.make_train_step(classifier, optimizer, augment)

    state = training.init_state(classifier, optimizer, jax.random.key(0))
    real = jax.ShapeDtypeStruct((config["train"]["batch_size"], *shape), jnp.uint8)
    real_labels = jax.ShapeDtypeStruct(real.shape[:1], jnp.int32)
    after, _ = jax.eval_shape(step, state, real, real_labels, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    images, labels = batch(2, shape, 10)
    fast = {"xla_backend_optimization_level": 0}
    step = jax.jit(step, compiler_options=fast)
    state, metrics = step(state, images, labels, jax.random.key(1))
    assert np.isfinite(float(metrics["loss"])) and int(state.step) == 1


def test_every_config_is_tested():
    """A file in configs/ that the list above forgets."""
    folder = pathlib.Path(__file__).parents[1] / "configs"
    assert sorted(p.stem for p in folder.glob("*.py")) == sorted(CONFIGS)


def test_configs_are_frozen_values():
    """A change is a new value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptimizerConfig().learning_rate = 1.0
