"""Classes under masks: right, blind to what is hidden, lazily the same; attacked."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from processes import fork

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.double_masking import NOT_COMPUTED, UNSURE, nominal

SIZE = (6, 7)
MASKS = ds.Masks(3, stride=2)  # 3 x 3 of them
NUM_CLASSES = 3


def linear_logits(weights, inputs):
    return inputs.reshape(len(inputs), -1) @ weights


PIXELS = np.random.default_rng(0).normal(size=(*SIZE, 1, NUM_CLASSES)).astype("f")


def linear(channels=2):
    """A linear classifier for which hidden pixels, and grey ones, say nothing."""
    if channels == 1:
        weights = jnp.asarray(PIXELS.reshape(-1, NUM_CLASSES))
        return Partial(lambda weights, x: linear_logits(weights, x - 0.5), weights)
    weights = np.concatenate([PIXELS, -PIXELS], axis=2).reshape(-1, NUM_CLASSES)
    return Partial(linear_logits, jnp.asarray(weights))


def random_images(num, *, seed=0, clear=1.0):
    """From noise to what a class looks like: they agree under masks to any degree."""
    rng = np.random.default_rng(seed)
    noise = rng.random((num, *SIZE, 1), np.float32) - 0.5
    likeness = PIXELS[..., rng.integers(0, NUM_CLASSES, num)].transpose(3, 0, 1, 2)
    share = clear * rng.random((num, 1, 1, 1), np.float32)
    return 0.5 + share * np.tanh(likeness) / 2 + (1 - share) * noise


def slow_table(logits_fn, masks, images, fill=None, confidence=0.0):
    """Every pair by itself, pixels hidden one by one."""
    hidden = masks.hide_masks(images.shape[1:3])
    table = np.empty((len(images), len(hidden), len(hidden)), int)
    for i, j in itertools.product(range(len(hidden)), repeat=2):
        inputs = images if fill is not None else np.concatenate([images, 1 - images], 3)
        inputs = inputs.copy()
        inputs[:, hidden[i] | hidden[j]] = 0 if fill is None else fill
        scores = np.asarray(jax.nn.softmax(logits_fn(jnp.asarray(inputs))))
        is_unsure = (i != j) & (scores.max(axis=1) < confidence)
        table[:, i, j] = np.where(is_unsure, UNSURE, scores.argmax(axis=1))
    return table


@pytest.mark.parametrize("fill", [None, 0.5])
def test_labels_are_the_classes_of_each_pair(fill):
    # Protects the table: entry (i, j) is what the classifier says with both hidden.
    images = random_images(20)
    logits_fn = linear(2 if fill is None else 1)
    expected = slow_table(logits_fn, MASKS, images, fill)
    assert len(np.unique(expected)) == NUM_CLASSES
    for batch_size in (7, 256):  # it only runs faster or slower
        found = ds.mask_labels(
            logits_fn, MASKS, images, fill=fill, batch_size=batch_size
        )
        assert found.dtype == np.int16
        np.testing.assert_array_equal(nominal(found), expected)
    eight_bit = np.rint(images * 255).astype(np.uint8)
    found = ds.mask_labels(logits_fn, MASKS, eight_bit, fill=fill)
    scaled = eight_bit.astype(np.float32) / 255
    assert (found == slow_table(logits_fn, MASKS, scaled, fill)).mean() > 0.99
    assert ds.mask_labels(logits_fn, MASKS, images[:0], fill=fill).shape == (0, 9, 9)


def test_hidden_pixels_and_neighbours_do_not_move_a_class():
    # Protects every certificate: whatever is put under mask i, row i stays as it is.
    images = random_images(6)
    expected = ds.mask_labels(linear(), MASKS, images)
    rng = np.random.default_rng(1)
    num_moved = 0
    for i, hidden in enumerate(MASKS.hide_masks(SIZE)):
        attacked = images.copy()
        attacked[::2, hidden] = rng.random((3, hidden.sum(), 1)) > 0.5
        attacked[1::2] = rng.random((3, *SIZE, 1))  # the neighbours become others
        found = ds.mask_labels(linear(), MASKS, attacked)
        np.testing.assert_array_equal(found[::2, i], expected[::2, i])
        num_moved += (found[::2] != expected[::2]).sum()
    assert num_moved > 20


@pytest.mark.parametrize("confidence", [0.0, 0.6])
@pytest.mark.parametrize("clear", [0.1, 0.8])
def test_whoever_stops_early_answers_the_same(clear, confidence):
    # Protects early exit and lazy prediction: they only run faster.
    images, sure = random_images(150, seed=2, clear=clear), {"confidence": confidence}
    whole = ds.mask_labels(linear(), MASKS, images, **sure)
    early = ds.mask_labels(linear(), MASKS, images, early_exit=True, **sure)
    masked = ds.MaskedClassifier(linear(), MASKS, **sure)
    lazy = masked.label(images, until="predicted")
    for partial in (early, lazy):
        is_known = partial != NOT_COMPUTED
        np.testing.assert_array_equal(partial[is_known], whole[is_known])
    prediction = ds.double_masking_predict(whole)
    np.testing.assert_array_equal(ds.double_masking_predict(lazy), prediction)
    assert (lazy == NOT_COMPUTED).sum() >= (early == NOT_COMPUTED).sum() > 0
    for height, width in ((1, 1), (1, 2), (2, 2)):
        covering = ds.covering(MASKS, ds.Patch(height, width), SIZE)
        expected = ds.certify_double_masking(whole, covering)
        found = ds.certify_double_masking(early, covering)
        for field in dataclasses.fields(expected):
            np.testing.assert_array_equal(
                getattr(found, field.name), getattr(expected, field.name), field.name
            )
        # Where all could be certified, nothing was left out.
        assert (early[expected.is_unanimous] != NOT_COMPUTED).all()


def test_predictions_and_certificates_of_many_masks_stop_early_alike():
    # Protects the second round: rows that are believed against the majority, and masks
    # of which none is needed alone.
    masks = ds.Masks(3, stride=1)
    images = random_images(200, seed=5, clear=0.5)
    logits_fn = linear()
    whole = ds.mask_labels(logits_fn, masks, images)
    expected = ds.certify_double_masking(
        whole, ds.covering(masks, ds.Patch(2, 2), SIZE)
    )
    singles = np.diagonal(whole, axis1=1, axis2=2)
    majority = np.array([np.bincount(row).argmax() for row in nominal(singles)])
    assert (expected.prediction != majority).any()  # the second round was needed
    assert (expected.is_certified & ~expected.is_unanimous).any()
    masked = ds.MaskedClassifier(logits_fn, masks, image_shape=(*SIZE, 1))
    found = masked.certify(images, ds.Patch(2, 2))
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(expected, field.name)
        )
    np.testing.assert_array_equal(masked.predict(images), expected.prediction)


def patched(image, patch, contents):
    """The image with every content at every placement, [n, H, W, C]."""
    made = []
    for row in range(image.shape[0] - patch.height + 1):
        for column in range(image.shape[1] - patch.width + 1):
            attacked = np.repeat(image[None], len(contents), axis=0)
            at = np.s_[:, row : row + patch.height, column : column + patch.width]
            attacked[at] = contents
            made.append(attacked)
    return np.concatenate(made)


@pytest.mark.parametrize("confidence", [0.0, 0.6])
def test_no_binary_patch_breaks_a_certificate_and_many_break_others(confidence):
    # Protects the promise itself: every black and white patch of 2x2, everywhere.
    masked = ds.MaskedClassifier(linear(), MASKS, confidence=confidence)
    images = random_images(200, seed=3)
    patch = ds.Patch(2, 2)
    found = masked.certify(images, patch)
    contents = np.array(list(itertools.product((0, 1), repeat=4)), np.float32)
    contents = contents.reshape(-1, 2, 2, 1)
    is_broken = {}
    for certified in (True, False):
        chosen = np.flatnonzero(found.is_certified == certified)[:12]
        assert len(chosen) == 12
        attacked = [patched(images[i], patch, contents) for i in chosen]
        predicted = masked.predict(np.concatenate(attacked)).reshape(12, -1)
        is_broken[certified] = (predicted != found.prediction[chosen, None]).any(axis=1)
    assert not is_broken[True].any()
    assert is_broken[False].sum() >= 4  # an attack that breaks nothing proves nothing


def test_no_patch_breaks_a_certificate_of_real_images():
    # Protects the promise on photographs: strong patches, by gradient, and random ones.
    shape, patch, num = (28, 28, 1), ds.Patch(5, 5), 30
    masks = ds.covering_masks(patch, shape[:2], per_axis=3)
    train = data.load("mnist5k", split="train")
    weights = _fit(train.images[::6], train.labels[::6], masks)
    test = data.load("mnist5k", split="test").images
    images = test[:: len(test) // num][:num]
    masked = ds.MaskedClassifier(Partial(linear_logits, weights), masks)
    found = masked.certify(images, patch)
    assert 5 < found.is_certified.sum() < num - 5
    rng = np.random.default_rng(0)
    broken = np.zeros(num, bool)
    for _ in range(20):
        row, column = rng.integers(0, 24, 2)
        at = np.s_[row : row + 5, column : column + 5]
        # The worst patch for a linear classifier without masks: black where a pixel
        # speaks for the prediction and against another class, white elsewhere.
        pixels = np.asarray(weights).reshape(28, 28, 2, -1)
        slope = (pixels[:, :, 0] - pixels[:, :, 1])[at]
        rival = rng.integers(0, 10, num)
        gain = slope[..., rival] - slope[..., found.prediction]
        attacked = images.copy()
        attacked[:, row : row + 5, column : column + 5, 0] = np.where(
            gain > 0, 255, 0
        ).transpose(2, 0, 1)
        broken |= masked.predict(attacked) != found.prediction
    assert not (broken & found.is_certified).any()
    assert broken[~found.is_certified].sum() >= 3


def _fit(images, labels, masks):
    """A linear classifier of masked images, by some steps of gradient descent."""
    hidden = jnp.asarray(masks.hide_masks(images.shape[1:3]))
    pixels = jnp.asarray(images, jnp.float32) / 255
    inputs = jnp.concatenate([pixels, 1 - pixels], axis=3)

    def loss(weights, index):
        shown = jnp.where(hidden[index][..., None], 0.0, inputs)
        logits = linear_logits(weights, shown)
        chosen = jnp.take_along_axis(logits, jnp.asarray(labels)[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()

    @jax.jit
    def step(weights, index):
        return weights - 0.05 * jax.grad(loss)(weights, index)

    weights = jnp.zeros((inputs[0].size, 10))
    rng = np.random.default_rng(0)
    for _ in range(60):
        weights = step(weights, jnp.asarray(rng.integers(0, len(hidden), len(labels))))
    return weights


def test_classes_that_rounding_could_swap_are_in_doubt():
    # Protects against a certificate that holds by the last digit only.
    images = random_images(4)
    weights = np.zeros((SIZE[0] * SIZE[1] * 2, 3), np.float32)
    weights[:, 2] = -1.0  # classes 0 and 1 always tie
    logits_fn = Partial(linear_logits, jnp.asarray(weights))
    table = ds.mask_labels(logits_fn, MASKS, images)
    assert (table == -2).all()
    found = ds.MaskedClassifier(logits_fn, MASKS).certify(images, ds.Patch(2, 2))
    assert (found.prediction == 0).all()
    assert not found.is_certified.any() and not found.is_detected.any()
    weights[0, 0] = 1e-4  # sure where the first pixel is seen, and in doubt elsewhere
    weights[SIZE[0] * 14 // 6 - 1, 0] = 0
    table = ds.mask_labels(
        Partial(linear_logits, jnp.asarray(weights)), MASKS, np.ones_like(images)
    )
    assert (table[:, 0] == -2).all() and (table[:, 1:, 1:] == 0).all()


def test_pairs_that_are_not_confident_agree_with_no_class():
    # Protects confidence: what is asked of two masks, not of one, and what it costs.
    images, patch = random_images(200, seed=7), ds.Patch(2, 2)
    covering = ds.covering(MASKS, patch, SIZE)
    before, num_predicted = None, set()
    for confidence in (0.0, 0.5, 0.7, 0.9):
        table = ds.mask_labels(linear(), MASKS, images, confidence=confidence)
        expected = slow_table(linear(), MASKS, images, confidence=confidence)
        np.testing.assert_array_equal(nominal(table), expected)
        masked = ds.MaskedClassifier(linear(), MASKS, confidence=confidence)
        found = masked.certify(images, patch)
        whole = ds.certify_double_masking(table, covering)
        np.testing.assert_array_equal(found.is_certified, whole.is_certified)
        if before is not None:  # fewer certificates, each of the same class
            assert found.is_certified.sum() < before.is_certified.sum()
            kept = found.is_certified
            assert before.is_certified[kept].all()
            assert (before.prediction[kept] == found.prediction[kept]).all()
        np.testing.assert_array_equal(found.is_detected, whole.is_detected)
        before = found
        num_predicted.add(tuple(found.prediction.tolist()))
    assert len(num_predicted) > 1  # a row was believed, and is no more


def test_a_confidence_that_rounding_could_miss_is_in_doubt():
    # Protects against a certificate that another machine's last digit undoes.
    score = float(jax.nn.softmax(jnp.array([1.0, 0, 0]))[0])
    constant = Partial(lambda x: jnp.eye(3)[jnp.zeros(len(x), int)])
    pairs = ~np.eye(9, dtype=bool)
    for confidence, entry in (
        (score - 1e-3, 0),
        (score - 1e-6, -2),
        (score + 1e-3, UNSURE),
    ):
        table = ds.mask_labels(
            constant, MASKS, random_images(1), confidence=confidence
        )[0]
        assert (table[pairs] == entry).all() and (table[~pairs] == 0).all()


def test_it_is_compiled_once_for_all_images_and_pairs():
    # Protects speed: neither the number of images nor an early exit compiles anew.
    traces = []

    def counted(inputs):
        traces.append(inputs.shape)
        return linear_logits(jnp.ones((SIZE[0] * SIZE[1] * 2, 3)), inputs)

    masked = ds.MaskedClassifier(Partial(counted), MASKS)
    masked.predict(random_images(3))
    once = len(traces)
    for num in (1, 5, 9):
        masked.certify(random_images(num), ds.Patch(1, 1))
    # Each call looks at the shapes, abstractly, and compiles nothing.
    assert len(traces) <= once + 3


FOUR_DEVICES = """
import jax
import numpy as np
import dsmooth_jax as ds
from test_labeling import MASKS, linear, random_images

assert jax.local_device_count() == 4, jax.devices()
images = random_images(9)
np.save({path!r}, ds.mask_labels(linear(), MASKS, images, batch_size=10))
"""


def test_four_devices_give_the_same_classes(tmp_path):
    # Protects dealing: passes are split over devices, and none moves or is lost.
    path = tmp_path / "table.npy"
    four = {"jax_num_cpu_devices": 4, "jax_platforms": "cpu"}
    done = fork("-c", FOUR_DEVICES.format(path=str(path)), **four).finish()
    assert done.returncode == 0, done.stderr
    expected = ds.mask_labels(linear(), MASKS, random_images(9))
    np.testing.assert_array_equal(np.load(path), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits_fn": 3}, TypeError, "logits_fn=3 must be a function"),
        ({"masks": 3}, TypeError, "masks=3 must be ds.Masks"),
        ({"images": np.zeros((6, 7, 1))}, ValueError, r"must be \[N, H, W, C\]"),
        ({"fill": 2.0}, ValueError, r"fill=2.0 must be in \[0, 1\]"),
        ({"tolerance": -1.0}, ValueError, "tolerance=-1.0 must be in"),
        ({"confidence": 1.0}, ValueError, "confidence=1.0 must be < 1"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be >= 1"),
        (
            {"logits_fn": lambda x: x[:, 0, 0, 0]},
            ValueError,
            r"logits_fn returned shape \(256,\) for 256 images",
        ),
        (
            {"logits_fn": lambda x: x[:, 0, 0, :1]},
            ValueError,
            "logits_fn returned 1 classes",
        ),
        (
            {"logits_fn": lambda x: jnp.full((len(x), 3), jnp.nan)},
            ValueError,
            "NaN for image 0 under masks 0 and 0",
        ),
        (
            {"masks": ds.Masks(6, 4, stride=3)},
            ValueError,
            "together hide all of an image",
        ),
        ({"masks": ds.Masks(2, stride=4)}, ValueError, "covers no patch of 1x1"),
    ],
)
def test_what_cannot_be_labelled_is_refused(
    change, error, message, without_shape_checks
):
    # Protects users from tables that mean nothing.
    given = {"logits_fn": linear(), "masks": MASKS, "images": random_images(2)}
    given |= change
    positional = [given.pop(name) for name in ("logits_fn", "masks", "images")]
    with pytest.raises(error, match=message):
        ds.mask_labels(*positional, **given)


def test_other_images_than_it_was_made_for_are_refused():
    # Protects from a classifier of other images: convolutions would take them.
    masked = ds.MaskedClassifier(linear(), MASKS, image_shape=(8, 7, 1))
    with pytest.raises(ValueError, match=r"this classifier takes \(8, 7, 1\)"):
        masked.predict(random_images(1))
    masked = ds.MaskedClassifier(linear(), MASKS)
    with pytest.raises(ValueError, match="covers no patch of 3x3"):
        masked.certify(random_images(1), ds.Patch(3, 3))
