"""Protects the promise itself: real patches on pixels against what was certified."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.voting import cast_doubts

SHAPE = (6, 7, 1)
NUM_CLASSES = 3


def linear_logits(weights, ablated):
    return ablated.reshape(len(ablated), -1) @ weights


def masked(ablation):
    """A random linear classifier, sharp enough to be sure and to be fooled."""
    weights = 1.5 * jax.random.normal(jax.random.key(0), (6 * 7 * 2, NUM_CLASSES))
    return ds.masked_scores(Partial(linear_logits, weights), ablation, chunk_size=4)


def attack(smoothed, image, patch, rng, contents, step=1):
    """Random, extreme and flat contents at placements; whether the prediction moves."""
    size = (contents, patch.height, patch.width, 1)
    extremes = rng.integers(0, 2, size).astype(np.float32)
    flat = np.broadcast_to(np.linspace(0, 1, contents)[:, None, None, None], size)
    tries = np.concatenate([rng.random(size, np.float32), extremes, flat])
    batch = []
    for r in range(0, image.shape[0] - patch.height + 1, step):
        for c in range(0, image.shape[1] - patch.width + 1, step):
            attacked = np.repeat(image[None], len(tries), axis=0)
            attacked[:, r : r + patch.height, c : c + patch.width] = tries
            batch.append(attacked)
    found = smoothed.predict(np.concatenate(batch), batch_size=256)
    return (found != smoothed.predict(image[None], batch_size=256)).any()


@pytest.mark.parametrize("voting", ["threshold", "top_one", "graded"])
@pytest.mark.parametrize(
    "ablation", [ds.Columns(2), ds.Rows(2, stride=2), ds.MultiColumns(1, 2)], ids=str
)
def test_no_patch_that_was_tried_breaks_a_certificate(ablation, voting):
    """Thousands of patches an image, all placements; the attack breaks many others."""
    rng = np.random.default_rng(0)
    smoothed = ds.SmoothedClassifier(
        masked(ablation), ablation, voting=voting, threshold=0.4
    )
    images = rng.random((40, *SHAPE), np.float32)
    patch = ds.Patch(1, 1)
    found = smoothed.certify(images, patch)
    assert found.is_certified.any() and not found.is_certified.all()
    for i in np.flatnonzero(found.is_certified)[:4]:
        assert not attack(smoothed, images[i], patch, rng, 60)
    # An attack that breaks nothing would prove nothing.
    weakest = np.argsort(found.margin)[:6]
    assert any(attack(smoothed, images[i], ds.Patch(4, 4), rng, 60) for i in weakest)


def test_no_patch_breaks_a_trained_one_pass_network(smoke_run):
    """Real digits: those certified against 3x3, closest first, and the weakest."""
    rng = np.random.default_rng(0)
    smoothed = ds.load_smoothed(smoke_run)
    smoothed = dataclasses.replace(smoothed, decision="votes", patch=None)
    images = data.load("mnist5k", "test").images[::25].astype(np.float32) / 255
    patch = ds.Patch(3, 3)
    found = smoothed.certify(images, patch)
    closest = np.argsort(np.where(found.is_certified, found.margin, 10**6))
    for i in closest[:3]:
        assert found.is_certified[i]
        assert not attack(smoothed, images[i], patch, rng, 2)
    weakest = np.argsort(found.margin)[:3]
    broken = [attack(smoothed, images[i], ds.Patch(9, 9), rng, 3, 3) for i in weakest]
    assert any(broken)
    masked = dataclasses.replace(smoothed, decision="double_masking", patch=patch)
    certified = np.flatnonzero(masked.certify(images, patch).is_certified)
    assert len(certified) >= 3
    # Those that votes do not certify: the least sure.
    closest = certified[np.argsort(found.margin[certified])]
    for i in closest[:3]:
        assert not attack(masked, images[i], patch, rng, 2)


def test_what_is_predicted_is_what_is_certified():
    """By both votings and rules, any patch and batch size."""
    images = np.random.default_rng(1).random((9, *SHAPE), np.float32)
    for voting in ("threshold", "top_one"):
        smoothed = ds.SmoothedClassifier(
            masked(ds.Columns(2)), ds.Columns(2), voting=voting, threshold=0.5
        )
        predicted = smoothed.predict(images)
        for rule in ("placement", "margin"):
            for patch in (ds.Patch(1, 1), ds.Patch(3, 7)):
                found = smoothed.certify(images, patch, rule=rule, batch_size=4)
                np.testing.assert_array_equal(found.prediction, predicted)
        votes = smoothed.vote(smoothed.score(images))
        np.testing.assert_array_equal(votes.sum(axis=1).argmax(axis=1), predicted)


@pytest.mark.parametrize("voting", ["threshold", "top_one", "graded"])
def test_certificates_count_scores_that_may_differ_elsewhere(voting):
    """Scores at the very edge of another vote: certified here alone, not by default."""
    edge = {"threshold": [0.3, 0.0], "top_one": [0.5, 0.5], "graded": [0.105, 0.1]}
    scores = np.full((1, 6, 2), edge[voting], np.float32)

    def scores_fn(images):
        return jnp.broadcast_to(scores, (len(images), 6, 2))

    smoothed = ds.SmoothedClassifier(
        scores_fn, ds.Columns(1), voting=voting, threshold=0.3, strength=1.0
    )
    images, patch = np.zeros((1, 6, 6, 1), np.float32), ds.Patch(1, 1)
    votes = smoothed.vote(scores)
    touched = ds.touched(ds.Columns(1), patch, (6, 6))
    for tolerance in (0, 1e-9, 1e-3, None):
        given = {} if tolerance is None else {"tolerance": tolerance}
        found = smoothed.certify(images, patch, **given)
        doubt = cast_doubts(
            scores, voting, given.get("tolerance", 1e-5), threshold=0.3, strength=1.0
        )
        expected = ds.certify(votes, touched, uncertain=doubt)
        np.testing.assert_array_equal(found.margin, expected.margin)
        there = smoothed.certify_scores(scores, patch, (6, 6), **given)
        np.testing.assert_array_equal(there.margin, expected.margin)
    nominal = smoothed.certify(images, patch, tolerance=0)
    assert nominal.margin > found.margin
    with pytest.raises(ValueError, match="tolerance=2"):
        smoothed.certify(images, patch, tolerance=2)


def test_images_and_classifiers_that_do_not_fit_are_refused(without_shape_checks):
    """Another image shape, and a network whose P is not the ablation's."""
    ablation = ds.Columns(2)
    smoothed = ds.SmoothedClassifier(masked(ablation), ablation, image_shape=SHAPE)
    with pytest.raises(ValueError, match=r"\(7, 6, 1\).*takes \(6, 7, 1\)"):
        smoothed.predict(np.zeros((1, 7, 6, 1), np.float32))
    other = ds.SmoothedClassifier(masked(ds.Rows(2)), ablation)
    with pytest.raises(ValueError, match="returned 6 ablations"):
        other.predict(np.zeros((1, *SHAPE), np.float32))
    assert len(smoothed.predict(jnp.zeros((0, *SHAPE)))) == 0


@pytest.mark.parametrize(
    ("ablation", "patch"),
    [(ds.Columns(1), ds.Patch(2, 2)), (ds.Rows(1), ds.Patch(1, 1))],
    ids=str,
)
def test_no_patch_that_was_tried_breaks_double_masking(ablation, patch):
    """The same attack on the other decision; prediction and certificate agree."""
    rng = np.random.default_rng(0)
    smoothed = ds.SmoothedClassifier(
        masked(ablation), ablation, decision="double_masking", patch=patch
    )
    images = rng.random((40, *SHAPE), np.float32)
    found = smoothed.certify(images, patch)
    assert found.prediction.tolist() == smoothed.predict(images).tolist()
    assert found.is_certified.any() and not found.is_certified.all()
    for i in np.flatnonzero(found.is_certified)[:4]:
        assert not attack(smoothed, images[i], patch, rng, 60)
    refused = np.flatnonzero(~found.is_certified)[:8]
    assert any(attack(smoothed, images[i], patch, rng, 60) for i in refused)


def test_double_masking_certifies_the_patch_it_is_made_for_and_what_is_inside():
    """Smaller patches by the same predictions; larger ones and the paper's rule not."""
    ablation = ds.Columns(1)
    images = np.random.default_rng(1).random((20, *SHAPE), np.float32)
    smoothed = ds.SmoothedClassifier(
        masked(ablation), ablation, decision="double_masking", patch=ds.Patch(2, 2)
    )
    whole = smoothed.certify(images, ds.Patch(2, 2))
    inside = smoothed.certify(images, ds.Patch(1, 1))
    assert inside.prediction.tolist() == whole.prediction.tolist()
    assert not (whole.is_certified & ~inside.is_certified).any()
    scores = smoothed.score(images)
    there = smoothed.certify_scores(scores, ds.Patch(1, 1), SHAPE[:2])
    assert there.is_certified.tolist() == inside.is_certified.tolist()
    for patch in (ds.Patch(3, 2), ds.Patch(2, 3)):
        with pytest.raises(ValueError, match="is not inside 2x2"):
            smoothed.certify(images, patch)
    with pytest.raises(ValueError, match="rule='margin' is for votes"):
        smoothed.certify(images, ds.Patch(1, 1), rule="margin")
    huge = ds.SmoothedClassifier(
        masked(ablation), ablation, decision="double_masking", patch=ds.Patch(4, 4)
    )
    with pytest.raises(ValueError, match="the patch is too large"):
        huge.predict(images)


@pytest.mark.parametrize(
    "settings", [{"decision": "double_masking"}, {"patch": ds.Patch(1, 1)}], ids=str
)
def test_double_masking_and_its_patch_belong_together(settings):
    """A decision without its patch would be another classifier."""
    with pytest.raises(ValueError, match="needs the Patch that it is made for"):
        ds.SmoothedClassifier(masked(ds.Columns(1)), ds.Columns(1), **settings)
