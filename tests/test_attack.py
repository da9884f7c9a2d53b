"""Protects the attacker: it finds what there is to find, and a certificate stands."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import dsmooth_jax as ds
from dsmooth_jax.attacks import study, victims
from dsmooth_jax.attacks.objectives import double_masking_margin, votes_margin
from dsmooth_jax.attacks.patching import cut, paste, shrunk
from dsmooth_jax.certificate import predict_votes
from dsmooth_jax.double_masking import double_masking_predict

SHAPE = (6, 7, 1)
NUM_CLASSES = 3
QUICK = {"num_candidates": 4, "steps": 8, "batch_size": 128}


def linear_logits(weights, inputs):
    return inputs.reshape(len(inputs), -1) @ weights


def weights(num, scale=1.5):
    return scale * jax.random.normal(jax.random.key(0), (num, NUM_CLASSES))


def some_images(num, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *SHAPE), np.uint8)


def smoothed(ablation, **settings):
    """A random linear classifier of ablations, easily sure and easily fooled."""
    logits_fn = Partial(linear_logits, weights(6 * 7 * 2))
    scores_fn = ds.masked_scores(logits_fn, ablation, chunk_size=4)
    return ds.SmoothedClassifier(scores_fn, ablation, **settings)


def plain(scale=1.5):
    return Partial(linear_logits, weights(6 * 7, scale))


# Patches.


def test_a_patch_is_put_where_it_belongs():
    """One for all and one for each; the last corner; images stay as they are."""
    images, before = some_images(3), some_images(3)
    contents = some_images(3, seed=1)[:, :2, :3]
    for corners in itertools.product((0, 1, 4), (0, 2, 4)):
        found = ds.apply_patch(images, contents, corners)
        expected = before.copy()
        r, c = corners
        expected[:, r : r + 2, c : c + 3] = contents
        np.testing.assert_array_equal(found, expected)
    each = ds.apply_patch(images, contents[0], [(0, 0), (4, 4), (1, 2)])
    for i, (r, c) in enumerate([(0, 0), (4, 4), (1, 2)]):
        expected = before[i].copy()
        expected[r : r + 2, c : c + 3] = contents[0]
        np.testing.assert_array_equal(each[i], expected)
    np.testing.assert_array_equal(images, before)


# Objectives.


def scores_of(rng, num, ablations, classes):
    """Softmax scores, many of them equal, so that there are ties."""
    logits = rng.integers(-2, 3, (num, ablations, classes)).astype(np.float32)
    return np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=2))


@pytest.mark.parametrize("voting", ["threshold", "top_one", "graded"])
def test_the_margin_of_votes_is_positive_exactly_where_the_prediction_changes(voting):
    """Against the votes as they are counted, ties and all; every own class."""
    settings = {"threshold": 0.3, "strength": 2.0}
    scores = scores_of(np.random.default_rng(0), 300, 5, 4)
    predicted = predict_votes(ds.cast_votes(scores, voting, **settings))
    rivals = np.arange(4)
    margin_fn = jax.jit(functools.partial(votes_margin, voting=voting, **settings))
    for own in range(4):
        margins = np.stack(
            [
                margin_fn(scores, jnp.full(300, own), jnp.full(300, rival))
                for rival in rivals[rivals != own]
            ]
        )
        np.testing.assert_array_equal((margins > 0).any(axis=0), predicted != own)


def test_the_margin_of_double_masking_is_positive_only_where_the_prediction_changes():
    """Against the two rounds as they are computed; and nearly wherever it does."""
    scores = scores_of(np.random.default_rng(0), 400, 6, 3)
    masks = np.eye(6, dtype=bool) | np.roll(np.eye(6, dtype=bool), 1, axis=1)
    left = jnp.asarray(~(masks[:, None] | masks[None]), jnp.float32)
    predicted = double_masking_predict(ds.mask_table(ds.log_levels(scores), masks))
    margin_fn = jax.jit(double_masking_margin)
    num_changed = num_found = 0
    for own in range(3):
        others = [rival for rival in range(3) if rival != own]
        margins = np.stack(
            [
                margin_fn(scores, jnp.full(400, own), jnp.full(400, r), left)
                for r in others
            ]
        )
        is_found = (margins > 1e-2).any(axis=0)  # sums are rounded to levels
        assert (predicted[is_found] != own).all()
        num_changed += (predicted != own).sum()
        num_found += is_found.sum()
    assert num_found > 0.75 * num_changed  # the rest are ties


def test_gradients_do_not_vanish_where_votes_are_flat():
    """Every ablation that can still turn pulls, however sure it is."""
    logits = jnp.asarray([[[9.0, 0.0, -9.0]] * 6])
    masks = np.eye(6, dtype=bool)
    left = jnp.asarray(~(masks[:, None] | masks[None]), jnp.float32)
    own, rival = jnp.array([0]), jnp.array([1])

    def by_votes(logits):
        scores = jax.nn.softmax(logits, axis=2)
        settings = {"voting": "threshold", "threshold": 0.3, "strength": 5.0}
        return votes_margin(scores, own, rival, **settings)[0]

    def by_masks(logits):
        scores = jax.nn.softmax(logits, axis=2)
        return double_masking_margin(scores, own, rival, left)[0]

    for margin in (by_votes, by_masks):
        gradient = jax.jit(jax.grad(margin))(logits)[0]
        assert (gradient[:, 0] < -1e-4).all() and (gradient[:, 1] > 1e-4).all()


# What is found.


def test_what_brute_force_breaks_is_broken_and_nothing_else():
    """Every value of every pixel against the attack, on votes that a pixel changes."""
    classifier = smoothed(ds.Columns(3), voting="top_one")
    images = some_images(8)
    labels = classifier.predict(images)
    values = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    is_breakable = np.zeros(len(images), bool)
    for corner in itertools.product(range(6), range(7)):
        for i in np.flatnonzero(~is_breakable):
            tries = ds.apply_patch(np.repeat(images[[i]], 256, 0), values, corner)
            is_breakable[i] = (
                classifier.predict(tries, batch_size=256) != labels[i]
            ).any()
    found = ds.attack(
        classifier,
        images,
        labels,
        ds.Patch(1, 1),
        num_candidates=84,
        steps=16,
        batch_size=256,
    )
    assert is_breakable.any() and not is_breakable.all()
    assert not (found.is_broken & ~is_breakable).any()
    assert found.is_broken.sum() >= 0.9 * is_breakable.sum()


def test_an_undefended_linear_network_falls_where_the_best_patch_breaks_it():
    """The best content is known: each pixel at the end that its weights prefer."""
    classifier = plain(0.3)
    table = np.asarray(classifier.args[0]).reshape(*SHAPE[:2], NUM_CLASSES)
    images = some_images(40)
    logits = linear_logits(classifier.args[0], images / np.float32(255))
    labels = np.asarray(logits).argmax(axis=1)
    is_breakable = np.zeros(len(images), bool)
    for (i, own), rival in itertools.product(enumerate(labels), range(NUM_CLASSES)):
        difference = table[..., rival] - table[..., own]
        gain = np.maximum(difference, 0) - difference * images[i, ..., 0] / 255
        best = np.lib.stride_tricks.sliding_window_view(gain, (2, 2)).sum(axis=(2, 3))
        lead = float(logits[i, own] - logits[i, rival])
        is_breakable[i] |= own != rival and best.max() > lead
    found = ds.attack(
        classifier, images, labels, ds.Patch(2, 2), num_candidates=20, steps=40
    )
    assert is_breakable.any() and not is_breakable.all()
    assert not (found.is_broken & ~is_breakable).any()
    assert found.is_broken.sum() >= 0.95 * is_breakable.sum()
    assert not found.is_certified.any()


def test_the_record_says_what_can_be_saved_and_seen_again():
    """Only the patch differs, predictions are those of the images, seeds repeat."""
    classifier = smoothed(ds.Columns(2), voting="graded")
    images, patch = some_images(20), ds.Patch(3, 2)
    labels = classifier.predict(images)
    labels[:5] = (labels[:5] + 1) % NUM_CLASSES  # wrong as they are
    found = ds.attack(classifier, images, labels, patch, **QUICK)
    assert found.images.dtype == np.uint8 and found.is_broken.any()
    np.testing.assert_array_equal(classifier.predict(found.images), found.predictions)
    np.testing.assert_array_equal(classifier.predict(images), found.clean)
    is_right = found.clean == labels
    np.testing.assert_array_equal(
        found.is_broken, is_right & (found.predictions != labels)
    )
    tried = found.num_gradients > 0
    assert (tried == (is_right & ~found.is_certified)).all()
    assert (found.corners[~tried] == -1).all()
    for i in np.flatnonzero(tried):
        r, c = found.corners[i]
        content = found.images[i, r : r + 3, c : c + 2]
        again = ds.apply_patch(images[[i]], content, (r, c))[0]
        np.testing.assert_array_equal(again, found.images[i])
    np.testing.assert_array_equal(found.images[~tried], images[~tried])
    again = ds.attack(classifier, images, labels, patch, **QUICK)
    np.testing.assert_array_equal(again.images, found.images)
    other = ds.attack(classifier, images, labels, patch, seed=1, **QUICK)
    assert (other.images != found.images).any()
    none = ds.attack(classifier, images[:0], labels[:0], patch, **QUICK)
    assert none.images.shape == (0, *SHAPE) and none.is_broken.shape == (0,)


def test_the_last_row_and_column_are_reached():
    """A network that looks at one pixel, in the last corner: it falls."""

    def corner_logits(images):
        value = images[:, -1, -1, 0] - 0.5
        return jnp.stack([value, -value], axis=1)

    images = np.full((2, *SHAPE), 255, np.uint8)
    found = ds.attack(corner_logits, images, np.zeros(2, int), ds.Patch(2, 2), **QUICK)
    assert found.is_broken.all()
    assert found.corners.tolist() == [[4, 5]] * 2


def test_one_patch_breaks_images_that_it_was_not_trained_on():
    """An undefended network, any place and light; what may be printed is kept to."""
    classifier, patch = plain(0.3), ds.Patch(4, 4)
    train, others = some_images(40), some_images(200, seed=1)
    labels = np.asarray(classifier(jnp.asarray(train / np.float32(255)))).argmax(1)
    settings = {"target": 1, "steps": 30, "brightness": 0.2, "printable": (20, 230)}
    settings["least_scale"] = 0.5
    found = ds.universal_patch(classifier, train, labels, patch, **settings)
    assert found.shape == (4, 4, 1) and found.min() >= 20 and found.max() <= 230
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [3, 4], (200, 2))
    noise = rng.integers(0, 256, (200, 4, 4, 1), np.uint8)

    def share(contents):
        patched = ds.apply_patch(others, contents, corners)
        logits = classifier(jnp.asarray(patched / np.float32(255)))
        return (np.asarray(logits).argmax(axis=1) == 1).mean()

    assert share(found) > share(noise) + 0.2
    again = ds.universal_patch(classifier, train, labels, patch, **settings)
    np.testing.assert_array_equal(again, found)


def test_a_patch_seen_from_further_away_stays_in_its_rectangle():
    """Whole it is pasted; smaller, all of it is there, and the image around it."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((9, 6, 7, 2), np.float32))
    contents = rng.random((9, 4, 4, 2), np.float32)
    corners = jnp.asarray(rng.integers(0, [3, 4], (9, 2)))
    behind = cut(images, corners, (4, 4))
    np.testing.assert_array_equal(paste(images, behind, corners), images)

    def seen(size, starts):
        sizes = jnp.full((9, 2), size)
        return np.array(shrunk(jnp.asarray(contents), sizes, starts, behind))

    whole = seen(4, jnp.zeros((9, 2), int))
    np.testing.assert_allclose(whole, contents, atol=1e-6)
    starts = rng.integers(0, 3, (9, 2))
    found = seen(2, jnp.asarray(starts))
    for i, (r, c) in enumerate(starts):
        # Each pixel leans to the four that it was.
        four = contents[i].reshape(2, 2, 2, 2, 2).mean(axis=(1, 3))
        small = found[i, r : r + 2, c : c + 2]
        assert np.corrcoef(small.ravel(), four.ravel())[0, 1] > 0.8
        found[i, r : r + 2, c : c + 2] = behind[i, r : r + 2, c : c + 2]
    np.testing.assert_array_equal(found, behind)


# Soundness.


MASKED = ds.MaskedClassifier(
    Partial(linear_logits, weights(6 * 7 * 2, 0.2)), ds.Masks(3, 3, stride=2)
)
VOTED = [
    smoothed(ablation, voting="threshold", threshold=0.4)
    for ablation in (
        ds.Columns(2),
        ds.Rows(2, stride=2),
        ds.Blocks(3, stride=2),
        ds.MultiColumns(1, 2),
        ds.MultiBlocks(1, 1),
    )
]
VOTED += [smoothed(ds.Columns(2), voting="graded")]
VOTED += [smoothed(ds.Columns(1), voting="top_one")]
DOUBLE = smoothed(ds.Columns(1), decision="double_masking", patch=ds.Patch(2, 2))
DEFENDED = [(one, ds.Patch(1, 1)) for one in VOTED]
DEFENDED += [(DOUBLE, ds.Patch(2, 2)), (MASKED, ds.Patch(2, 2))]
DEFENDED += [(dataclasses.replace(MASKED, confidence=0.4), ds.Patch(2, 2))]


def name(value):
    if isinstance(value, ds.SmoothedClassifier):
        return f"{value.ablation}-{value.decision}-{value.voting}"
    return str(value) if isinstance(value, ds.Patch) else "masks"


@pytest.mark.parametrize(("classifier", "patch"), DEFENDED, ids=name)
def test_nothing_that_is_certified_falls(classifier, patch):
    """10,000 (image, placement, content) tries of each kind; others do fall."""
    images = some_images(60)
    labels = classifier.predict(images, batch_size=128)
    is_certified = classifier.certify(images, patch, batch_size=128).is_certified
    assert 0 < is_certified.sum() < len(images)
    kept = np.resize(np.flatnonzero(is_certified), 128)
    hard = {"num_candidates": 1, "num_restarts": 4, "steps": 20, "batch_size": 128}
    found = ds.attack(
        classifier, images[kept], labels[kept], patch, attacks_certified=True, **hard
    )  # UnsoundError if one falls
    assert found.num_gradients.sum() >= 10_000
    assert not found.is_broken.any() and found.is_certified.all()
    others = np.flatnonzero(~is_certified)
    found = ds.attack(classifier, images[others], labels[others], patch, **QUICK)
    assert found.is_broken.any()  # an attack that breaks nothing would prove nothing


@pytest.mark.parametrize("classifier", [VOTED[0], DOUBLE, MASKED], ids=name)
def test_images_are_scored_once_or_not_at_all(classifier, monkeypatch):
    """Certificate, study and attack share the scores, or take those that are there."""
    images, patch = some_images(20), ds.Patch(1, 1)
    labels = classifier.predict(images)
    seen = []
    is_smoothed = isinstance(classifier, ds.SmoothedClassifier)
    method = "score" if is_smoothed else "label"
    honest = getattr(type(classifier), method)

    def counted(self, given, **options):
        seen.append(given.shape == images.shape and bool((given == images).all()))
        return honest(self, given, **options)

    monkeypatch.setattr(type(classifier), method, counted)
    options = {**QUICK, "num_candidates": 2, "steps": 2}
    first = ds.attack(classifier, images, labels, patch, **options)
    assert sum(seen) == 1 and len(seen) > 1
    if not is_smoothed:
        return
    scores = honest(classifier, images)
    seen.clear()
    second = ds.attack(classifier, images, labels, patch, scores=scores, **options)
    assert sum(seen) == 0
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.is_certified, second.is_certified)


@pytest.mark.parametrize("classifier", [VOTED[5], DOUBLE, MASKED], ids=name)
def test_what_is_known_of_many_classes_is_little_and_the_same(classifier, monkeypatch):
    """The nearest three of them; image by image, or all at once."""
    images, patch = some_images(7), ds.Patch(1, 1)
    victim = victims.victim_of(classifier, patch, SHAPE[:2], batch_size=8)
    at_once = victim.study(images, None)
    asked = []

    def nearest(promise, own):
        asked.append((promise, own))
        return study.nearest_rivals(promise, own)

    monkeypatch.setattr(study, "_MOST_ENTRIES", 1)
    monkeypatch.setattr(victims, "nearest_rivals", nearest)
    one_by_one = victim.study(images, None)
    assert [len(promise) for promise, _ in asked] == [1] * 7
    for field in ("prediction", "is_certified", "is_open", "rival", "promise"):
        np.testing.assert_array_equal(
            getattr(at_once, field), getattr(one_by_one, field)
        )
    assert at_once.rival.shape[2] == min(3, NUM_CLASSES - 1)
    for i, (promise, own) in enumerate(asked):
        for kind, row in enumerate(promise[0]):
            others = [k for k in range(NUM_CLASSES) if k != own[0]]
            others.sort(key=lambda k, row=row: (-row[k], k))
            assert at_once.rival[i, kind].tolist() == others[:3]
            assert at_once.promise[i, kind].tolist() == row[others[:3]].tolist()


def test_two_patches_at_once_do_not_break_what_is_certified_against_two():
    """The attack on what an attack left: both patches together are allowed."""
    classifier = smoothed(ds.Columns(1), voting="threshold", threshold=0.4)
    images, patch = some_images(60), ds.Patch(1, 1)
    votes = classifier.vote(classifier.score(images))
    sets = ds.touched(classifier.ablation, patch, SHAPE[:2])
    certificate, is_exact = ds.certify_several(votes, sets, 2)
    assert is_exact and certificate.is_certified.any()
    labels = certificate.prediction
    first = ds.attack(
        classifier, images, labels, patch, attacks_certified=True, **QUICK
    )
    second = ds.attack(
        classifier, first.images, labels, patch, attacks_certified=True, **QUICK
    )
    fell = second.predictions != labels
    assert fell.any() and not (fell & certificate.is_certified).any()


@dataclasses.dataclass(frozen=True, eq=False)
class Liar(ds.SmoothedClassifier):
    """Certifies everything."""

    def certify_scores(self, scores, patch, image_size, **options):
        found = super().certify_scores(scores, patch, image_size, **options)
        return dataclasses.replace(found, margin=np.zeros_like(found.margin))


def test_a_wrong_certificate_is_found_and_can_be_reproduced():
    """What is certified and falls stops the attack, with image, place and content."""
    ablation = ds.Columns(2)
    honest = smoothed(ablation)
    liar = Liar(honest.scores_fn, ablation)
    images, patch = some_images(10), ds.Patch(3, 3)
    labels = liar.predict(images)
    ds.attack(liar, images, labels, patch, **QUICK)  # it believes certificates
    with pytest.raises(ds.UnsoundError, match="please report it") as raised:
        ds.attack(liar, images, labels, patch, attacks_certified=True, **QUICK)
    found = raised.value
    np.testing.assert_array_equal(found.image, images[found.index])
    patched = ds.apply_patch(found.image[None], found.content, found.corner)
    assert honest.predict(found.image[None]) == found.prediction
    assert honest.predict(patched) == found.attacked != found.prediction
    assert str(found.corner) in str(found)


def test_undefended_twins_see_the_whole_image():
    """Of ablated images, of masked ones, and of windows: every pixel counts."""
    images = some_images(2) / np.float32(255)
    of_masked = ds.undefended(MASKED)(jnp.asarray(images))
    encoded = np.concatenate([images, 1 - images], axis=-1)
    expected = linear_logits(weights(6 * 7 * 2, 0.2), jnp.asarray(encoded))
    np.testing.assert_allclose(of_masked, expected, rtol=1e-5)
    classifier = smoothed(ds.Columns(2))
    expected = linear_logits(weights(6 * 7 * 2), jnp.asarray(encoded))
    of_ablated = ds.undefended(classifier)(jnp.asarray(images))
    np.testing.assert_allclose(of_ablated, expected, rtol=1e-5)
    scores_fn = ds.one_pass_scores(classifier.scores_fn, classifier.ablation)
    one_pass = dataclasses.replace(classifier, scores_fn=scores_fn)
    logs = ds.undefended(one_pass)(jnp.asarray(images))
    expected = jnp.log(scores_fn(jnp.asarray(images))).mean(axis=1)
    np.testing.assert_allclose(logs, expected, rtol=1e-5)
