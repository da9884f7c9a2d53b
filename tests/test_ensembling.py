"""Protects ensembles: the geometric mean of their members, as local as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import models
from dsmooth_jax.hiding import HidingConfig
from dsmooth_jax.models.ensemble import joined, of_member
from dsmooth_jax.scoring import some_scores

SHAPE, ABLATION = (8, 12, 1), ds.Columns(3)
TASK = {"ablation": ABLATION, "image_shape": SHAPE, "num_classes": 3}
MEMBERS = [
    {"name": "bandnet", "width": 4, "depth": 2},
    {"name": "small_cnn"},
]


@pytest.fixture(scope="module")
def parts():
    """Both networks with random weights, and their ensemble."""
    each = [models.build(spec, **TASK) for spec in MEMBERS]
    variables = [one.init(jax.random.key(i)) for i, one in enumerate(each)]
    whole = models.build({"name": "ensemble", "members": MEMBERS}, **TASK)
    scores_fns = [one.scores_fn(v) for one, v in zip(each, variables, strict=True)]
    return scores_fns, whole, joined(variables)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, *SHAPE), np.float32)


def test_scores_are_the_geometric_mean_of_the_members(parts, images):
    """Against NumPy, as a classifier and as a function of functions."""
    scores_fns, whole, variables = parts
    each = [ds.score(fn, images).astype(np.float64) for fn in scores_fns]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    expected = np.sqrt(each[0] * each[1])
    expected /= expected.sum(axis=-1, keepdims=True)
    found = ds.score(whole.scores_fn(variables), images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(ds.score(ds.mean_scores(scores_fns), images), found)
    assert found.max() <= 1


def test_some_scores_are_those_of_all(parts, images):
    """What attacks ask: single ablations, and runs of neighbours around the edge."""
    _, whole, variables = parts
    scores_fn = whole.scores_fn(variables)
    every = ds.score(scores_fn, images)
    index = np.array([[11, 0, 1], [3, 4, 5], [0, 1, 2]])
    for is_run in (False, True):
        asked = jnp.asarray(images), jnp.asarray(index)
        found = some_scores(scores_fn, *asked, is_run=is_run)
        taken = np.take_along_axis(every, index[:, :, None], axis=1)
        np.testing.assert_allclose(found, taken, atol=1e-5)


def test_an_ensemble_is_as_local_as_its_members(parts):
    """And no more: one that looks elsewhere is found."""
    scores_fns, whole, variables = parts
    ds.check_locality(whole.scores_fn(variables), ABLATION, SHAPE)

    def leaks(images):
        bright = images.mean(axis=(1, 2, 3))[:, None, None]
        return scores_fns[0](images) * bright + (1 - bright) / 3

    with pytest.raises(ValueError, match="ablation"):
        ds.check_locality(ds.mean_scores([scores_fns[0], leaks]), ABLATION, SHAPE)


def test_an_ensemble_teaches_what_its_members_say_on_the_same_windows(images):
    """The mean of their logarithms, of the ablations that the key draws."""
    member = MEMBERS[0]
    both = models.build({"name": "ensemble", "members": [member, member]}, **TASK)
    variables = both.init(jax.random.key(0))
    images, key = jnp.asarray(images), jax.random.key(1)
    one = models.build(member, **TASK)
    each = [
        jax.nn.log_softmax(one.drawn_logits(of_member(variables, i), images, key))
        for i in (0, 1)
    ]
    assert np.abs(each[0] - each[1]).max() > 1e-2
    found = both.drawn_logits(variables, images, key)
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)


def test_a_score_of_zero_is_no_error(images):
    """Softmax may round to 0, whose logarithm is not finite."""

    def sure(batch):
        return jax.nn.one_hot(np.zeros((len(batch), 12), int), 3)

    found = ds.score(ds.mean_scores([sure, sure]), images)
    np.testing.assert_allclose(found, np.eye(3)[np.zeros((3, 12), int)], atol=1e-6)


def test_variables_are_drawn_while_tracing_and_training_is_refused(parts):
    """`eval_shape` of an ensemble's `init` is what restores it from a checkpoint."""
    _, whole, variables = parts
    drawn = jax.eval_shape(whole.init, jax.random.key(0))
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, variables)
    with pytest.raises(ValueError, match=r"'ensemble' is not trained.*scripts\.join"):
        whole.train_logits(variables, np.zeros((1, *SHAPE)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"model\.members=\[\]"):
        models.build({"name": "ensemble"}, **TASK)


def test_a_network_of_whole_images_is_the_mean_of_its_members():
    """For masks of pixels: against NumPy, in float32 and as training sees it."""
    members = [{"name": "cnn", "width": 2}, {"name": "small_cnn"}]
    task = {"image_shape": (12, 13, 1), "num_classes": 3}
    nets = [models.build_image_classifier(m, HidingConfig(), **task) for m in members]
    each = [net.init(jax.random.key(i)) for i, net in enumerate(nets)]
    whole = models.build_image_classifier(
        {"name": "ensemble", "members": members}, HidingConfig(), **task
    )
    inputs = jnp.asarray(
        np.random.default_rng(1).random((5, 12, 13, 2)), dtype=jnp.float32
    )
    logits = [
        np.asarray(net.logits_fn(v)(inputs), np.float64)
        for net, v in zip(nets, each, strict=True)
    ]
    assert np.abs(logits[0] - logits[1]).max() > 1e-2
    scores = [np.exp(one) / np.exp(one).sum(1, keepdims=True) for one in logits]
    expected = np.log(scores[0]) / 2 + np.log(scores[1]) / 2
    found = whole.logits_fn(joined(each))(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    drawn = jax.eval_shape(whole.init, jax.random.key(0))
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, joined(each))
    images, labels = jnp.zeros((2, 12, 13, 1)), jnp.zeros(2, int)
    with pytest.raises(ValueError, match=r"'ensemble' is not trained.*scripts\.join"):
        whole.train_logits(joined(each), images, labels, jax.random.key(0))
    for bad, message in (
        ({"name": "ensemble"}, r"model\.members=\[\]"),
        ({"name": "ensemble", "members": MEMBERS}, "'bandnet' is of ablations"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build_image_classifier(bad, HidingConfig(), **task)
