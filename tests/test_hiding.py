"""Training with windows hidden: what is drawn, what hurts most, what is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmooth_jax import models
from dsmooth_jax.hiding import HidingConfig, draw_hidden
from dsmooth_jax.models import image_classifier
from dsmooth_jax.models.base import Network
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.losses import LossConfig
from dsmooth_jax.training.step import init_state, make_train_step


def test_hidden_squares_lie_inside_anywhere_and_some_images_are_whole():
    # Protects what is trained on: squares of one size, every place, the stated chance.
    config = HidingConfig(size=3, count=1, none=0.25)
    (hidden,) = np.asarray(draw_hidden(jax.random.key(0), config, 2000, (5, 6)))
    is_whole = ~hidden.any(axis=(1, 2))
    assert 0.2 < is_whole.mean() < 0.3
    corners = set()
    for image in hidden[~is_whole]:
        row, column = image.any(1).argmax(), image.any(0).argmax()
        expected = np.zeros((5, 6), bool)
        expected[row : row + 3, column : column + 3] = True
        np.testing.assert_array_equal(image, expected)
        corners.add((row, column))
    assert corners == {(r, c) for r in range(3) for c in range(4)}


def test_several_squares_and_several_choices_are_drawn():
    # Protects count and worst_of: choices differ, but a whole image is whole in all.
    config = HidingConfig(size=2, count=2, none=0.5, worst_of=3)
    hidden = np.asarray(draw_hidden(jax.random.key(0), config, 200, (9, 9)))
    assert hidden.shape == (3, 200, 9, 9)
    sizes = hidden.sum(axis=(2, 3))
    assert sizes.max() == 8 and ((sizes == 0) | (sizes >= 4)).all()
    np.testing.assert_array_equal((sizes == 0).all(axis=0), (sizes == 0).any(axis=0))
    shown = sizes[0] > 0
    assert (hidden[0, shown] != hidden[1, shown]).any(axis=(1, 2)).mean() > 0.9
    nothing = draw_hidden(jax.random.key(0), HidingConfig(), 4, (9, 9))
    assert not nothing.any()


def bright_network():
    """Logits (brightness seen, 0): what it hides of a bright image hurts class 0."""

    def logits(variables, inputs):
        seen = variables["params"]["scale"] * inputs[..., 0].mean(axis=(1, 2))
        return jnp.stack([seen, jnp.zeros_like(seen)], axis=1)

    return Network(
        lambda key: {"params": {"scale": jnp.ones(())}, "batch_stats": {}},
        logits,
        lambda variables, inputs: (logits(variables, inputs), {"seen": len(inputs)}),
        logits,
    )


def test_the_worst_choice_is_the_one_of_the_largest_loss():
    # Protects worst_of: for class 0 what hides most light, for class 1 least.
    images = jnp.asarray(np.random.default_rng(0).random((30, 8, 8, 1), np.float32))
    labels = jnp.arange(30) % 2
    config = HidingConfig(size=4, count=1, none=0.2, worst_of=4)
    classifier = image_classifier(bright_network(), config)
    variables = classifier.init(jax.random.key(0))
    key = jax.random.key(5)
    found, batch_stats = classifier.train_logits(variables, images, labels, key)
    hidden = draw_hidden(key, config, 30, (8, 8))
    light = jnp.where(hidden, 0, images[None, ..., 0]).mean(axis=(2, 3))  # [n, B]
    expected = jnp.where(labels == 0, light.min(axis=0), light.max(axis=0))
    assert found.shape == (30, 1, 2)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-6)
    # Statistics are those of what is trained on, not of all choices.
    assert batch_stats == {"seen": 30}


def test_training_with_hidden_windows_learns_in_both_precisions():
    # Protects the step: the chain learns, its hidden pixels are NULL for the evaluation
    # too, and bfloat16 keeps float32 variables.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 24)
    images = rng.integers(0, 60, (24, 12, 12, 1)) + 60 * labels[:, None, None, None]
    images = jnp.asarray(images.astype(np.uint8))
    hiding = HidingConfig(size=4)
    classifier = models.build_image_classifier(
        {"name": "cnn", "width": 4}, hiding, image_shape=(12, 12, 1), num_classes=3
    )
    with jax.numpy_dtype_promotion("standard"):
        optimizer, _ = optimizers.make_optimizer(
            optimizers.OptimizerConfig(learning_rate=1e-2),
            num_epochs=1,
            steps_per_epoch=80,
        )
        state = init_state(classifier, optimizer, jax.random.key(0))
        step = jax.jit(
            make_train_step(
                classifier, optimizer, AugmentConfig(), precision="bfloat16"
            ),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        losses = []
        for _ in range(80):
            state, metrics = step(state, images, jnp.asarray(labels), jax.random.key(1))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {
        jnp.dtype("float32")
    }
    hidden = draw_hidden(jax.random.key(9), hiding, 24, (12, 12))[0]
    pixels = images.astype(jnp.float32) / 255
    inputs = jnp.concatenate([pixels, 1 - pixels], axis=3)
    inputs = jnp.where(hidden[..., None], 0.0, inputs)
    predicted = classifier.logits_fn(state.variables)(inputs).argmax(axis=1)
    assert (np.asarray(predicted) == labels).mean() > 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HidingConfig(size=-1), "train.hide.size=-1 must be >= 1"),
        (lambda: HidingConfig(count=0), "train.hide.count=0"),
        (lambda: HidingConfig(none=1.0), "train.hide.none=1.0 must be < 1"),
        (lambda: HidingConfig(worst_of=0), "train.hide.worst_of=0"),
        (
            lambda: draw_hidden(jax.random.key(0), HidingConfig(size=9), 2, (8, 9)),
            r"train.hide.size=9 must be in 0..8, for images of 8x9",
        ),
        (
            lambda: models.build_image_classifier(
                {"name": "bandnet"},
                HidingConfig(),
                image_shape=(8, 8, 1),
                num_classes=2,
            ),
            "model.name='bandnet' is of ablations",
        ),
        (
            lambda: make_train_step(
                image_classifier(bright_network(), HidingConfig()),
                optimizers.make_optimizer(
                    optimizers.OptimizerConfig(), num_epochs=1, steps_per_epoch=1
                )[0],
                AugmentConfig(),
                LossConfig("certified_margin"),
                sets=np.ones((1, 1), bool),
            ),
            "certified_margin' is of ablations",
        ),
        (
            lambda: models.cnn(image_shape=(8, 9, 1), num_classes=2),
            "must be at least 9x9",
        ),
    ],
)
def test_what_cannot_be_hidden_or_trained_is_refused(call, message):
    # Protects users from runs that would fail late, or train on something else.
    with pytest.raises(ValueError, match=message):
        call()


def test_the_chain_has_its_size():
    # Protects the layers and their channels: two million parameters, any image size.
    net = models.cnn(image_shape=(32, 32, 3), num_classes=10)
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract["params"]))
    assert count == 1_975_650
    for height, width in ((32, 32), (9, 20)):
        inputs = jax.ShapeDtypeStruct((2, height, width, 6), jnp.float32)
        assert jax.eval_shape(net.logits, abstract, inputs).shape == (2, 10)
