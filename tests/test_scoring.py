"""Scores: right, blind to what is hidden, and the same however they are computed."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from processes import fork

from dsmooth_jax.ablation import Blocks, Columns, MultiColumns, Rows
from dsmooth_jax.masking import ablate
from dsmooth_jax.scoring import (
    cropped_scores,
    masked_scores,
    one_pass_scores,
    score,
    softmax,
    some_scores,
)
from dsmooth_jax.voting import threshold_votes
from scripts.attack_soundness import conv_logits

SIZE = (5, 6)
NUM_CLASSES = 4
SLACK = 1e-6
ABLATIONS = (Columns(2), Rows(2, stride=2), Blocks(2, 3, stride=2), MultiColumns(2, 2))


def make_weights(seed=0, channels=1):
    rng = np.random.default_rng(seed)
    shapes = {"conv": (3, 3, 2 * channels, 8), "dense": (8 * 30, NUM_CLASSES)}
    return {k: rng.normal(0, 0.5, shape).astype("f") for k, shape in shapes.items()}


WEIGHTS = make_weights()


def plain_logits(inputs):
    return conv_logits(WEIGHTS, inputs)


def random_images(num, seed=0):
    return np.random.default_rng(seed).random((num, *SIZE, 1), np.float32)


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def slow_scores(images, ablation, weights=WEIGHTS):
    """float32 [N, P, K]: softmax of the logits of all ablated images at once."""

    @jax.jit
    def scores(images):
        shown = ablate(images, ablation)
        logits = conv_logits(weights, shown.reshape(-1, *shown.shape[2:]))
        return jax.nn.softmax(logits).reshape(*shown.shape[:2], -1)

    return np.asarray(scores(images))


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_scores_are_the_softmax_of_each_ablation(ablation):
    """scores[n, p] is what the classifier says of ablation p of image n."""
    images = random_images(3)
    scores = score(masked_scores(plain_logits, ablation), images)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(
        scores, slow_scores(images, ablation), rtol=0, atol=SLACK
    )
    assert scores.std(axis=1).max() > 0.01  # the ablations do differ


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_hidden_pixels_and_neighbours_do_not_move_a_score(ablation):
    """Whatever ablation p hides, and the other image, become: p's bits do not move."""
    images = random_images(2)
    scores_fn = jax.jit(masked_scores(plain_logits, ablation, chunk_size=4))
    expected = np.asarray(scores_fn(images))
    masks = ablation.keep_masks(SIZE)
    poisons = (np.nan, 1e30, -1e30)
    for (p, mask), poison in itertools.product(enumerate(masks), poisons):
        poisoned = np.where(mask[:, :, None], images, np.float32(poison))
        poisoned[1] = poison
        assert_same_bits(scores_fn(poisoned)[0, p], expected[0, p])


def test_some_scores_are_those_of_all():
    """Of each kind of base classifier and of any function; others for each image."""
    images = jnp.asarray(random_images(3))
    index = np.array([[0, 2, 2], [5, 4, 0], [1, 1, 3]])
    masked = masked_scores(Partial(conv_logits, WEIGHTS), Columns(2), chunk_size=2)
    table = jnp.asarray(WEIGHTS["dense"][: 2 * 5 * 2])

    def window_logits(windows, starts):
        where = starts[:, 1:].astype(jnp.float32)
        return windows.reshape(len(windows), -1) @ table + jnp.sin(where)

    cropped = cropped_scores(window_logits, Columns(2), chunk_size=2)
    one_pass = one_pass_scores(lambda x: jnp.log(cropped(x)), Columns(2))
    for scores_fn in (masked, cropped, one_pass, lambda x: cropped(x)):
        found = jax.jit(lambda x, i, fn=scores_fn: some_scores(fn, x, i))(images, index)
        every = score(scores_fn, np.asarray(images))
        expected = np.take_along_axis(every, index[:, :, None], axis=1)
        np.testing.assert_allclose(found, expected, atol=SLACK)


def test_batch_size_and_padding_do_not_change_scores():
    """batch_size only runs faster or slower; ragged batches drop nothing."""
    images = random_images(7)
    scores_fn = masked_scores(plain_logits, Columns(2))
    expected = slow_scores(images, Columns(2))
    for batch_size in (1, 3, 7, 10):
        scores = score(scores_fn, images, batch_size=batch_size)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=SLACK)


def test_chunk_size_does_not_change_scores():
    """chunk_size bounds memory only, also where it does not divide P or exceeds it."""
    images = random_images(3)
    expected = slow_scores(images, Columns(2))
    for chunk_size in (1, 4, 6, 50):
        scores_fn = masked_scores(plain_logits, Columns(2), chunk_size=chunk_size)
        scores = score(scores_fn, images)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=SLACK)


def test_order_and_neighbours_do_not_change_scores():
    """An image's scores are its own: bit by bit in its place, to 1e-6 in another's."""
    images, others = random_images(6), random_images(6, seed=1)
    scores_fn = masked_scores(plain_logits, Columns(2))
    expected = score(scores_fn, images, batch_size=4)
    order = np.random.default_rng(2).permutation(6)
    shuffled = score(scores_fn, images[order], batch_size=4)
    np.testing.assert_allclose(shuffled, expected[order], rtol=0, atol=SLACK)
    among_others = np.concatenate([others[:2], images[2:3], others[3:]])
    assert_same_bits(score(scores_fn, among_others, batch_size=4)[2], expected[2])
    # The last batch: 2 images and 2 of padding, then 2 images and 2 others.
    longer = np.concatenate([images, others[:2]])
    assert_same_bits(score(scores_fn, longer, batch_size=4)[:6], expected)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_plain_functions_and_partials_score_alike(batch_size):
    """Weights closed over or bound, of logits_fn or scores_fn: one result."""
    images = random_images(3)
    bound = masked_scores(Partial(conv_logits, WEIGHTS), Columns(2))
    expected = score(bound, images, batch_size=batch_size)
    closed = masked_scores(plain_logits, Columns(2))
    for scores_fn in (closed, lambda x: closed(x), jax.jit(bound)):
        scores = score(scores_fn, images, batch_size=batch_size)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=SLACK)


def test_compiled_once_for_each_function_and_shape():
    """Further batches, calls, equal base classifiers and new weights trace nothing."""
    logits_fn = chex.assert_max_traces(conv_logits, n=1)
    scores_fn = masked_scores(Partial(logits_fn, WEIGHTS), Columns(2))
    images = random_images(5)
    score(scores_fn, images, batch_size=2)
    score(scores_fn, images, batch_size=2)
    score(scores_fn, images[:1], batch_size=2)
    score(scores_fn, images[:0], batch_size=2)
    score(scores_fn, jnp.asarray(images), batch_size=2)
    other = make_weights(seed=1)
    rebuilt = masked_scores(Partial(logits_fn, other), Columns(2))
    scores = score(rebuilt, images, batch_size=2)
    expected = slow_scores(images, Columns(2), other)  # and the weights are not stale
    np.testing.assert_allclose(scores, expected, rtol=0, atol=SLACK)
    wider = masked_scores(Partial(logits_fn, WEIGHTS), Columns(3))
    for other_fn, batch_size in ((scores_fn, 3), (wider, 2)):  # other shapes, ablations
        with pytest.raises(AssertionError, match="traced > 1"):
            score(other_fn, images, batch_size=batch_size)


def test_a_plain_function_is_compiled_once():
    """A user's own scores_fn, reused, costs one trace for each image shape."""

    @chex.assert_max_traces(n=1)
    def scores_fn(images):
        assert images.shape == (4 // jax.local_device_count(), *SIZE, 1)
        means = images.mean(axis=1)  # [B, W, C]
        return jnp.concatenate([means, 1 - means], axis=-1)

    for num in (3, 8, 0):
        score(scores_fn, random_images(num), batch_size=4)


def test_no_images_give_no_scores():
    """N = 0 has the shape and type of any other N."""
    scores = score(masked_scores(plain_logits, Columns(2)), random_images(0))
    assert scores.shape == (0, 6, NUM_CLASSES)
    assert scores.dtype == np.float32


def test_uint8_and_other_floats_score_as_float32():
    """Pixels in 0..255 are divided once, float64 is taken, arguments stay unchanged."""
    pixels = np.arange(150).astype(np.uint8).reshape(5, *SIZE, 1)
    before = pixels.copy()
    scores_fn = masked_scores(plain_logits, Columns(2))
    expected = score(scores_fn, pixels.astype(np.float32) / np.float32(255))
    for images in (pixels, pixels / 255, jnp.asarray(pixels)):
        scores = score(scores_fn, images)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=SLACK)
    np.testing.assert_array_equal(pixels, before)


def test_scores_run_at_full_float32_precision():
    """Accelerators would round matrix products to TF32 or bfloat16 by default."""
    seen = []

    def logits_fn(inputs):
        seen.append(jax.config.jax_default_matmul_precision)
        return plain_logits(inputs)

    score(masked_scores(logits_fn, Columns(2)), random_images(1))
    assert set(seen) == {"highest"}


def test_scores_never_exceed_one():
    """Voting refuses scores above 1; a sure classifier's must not be rounded there."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, [[0.01], [1], [30], [1e4]], (500, 4, 37)).astype("f")
    scores = np.asarray(jax.jit(softmax)(logits))
    assert scores.dtype == np.float32
    assert scores.max() <= 1
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-5)


def test_rounding_above_one_is_cut_off(monkeypatch):
    """Should a backend's softmax round up, the score is 1; NaN stays NaN."""
    values = jnp.array([[1 + 1e-6, 0], [jnp.nan, 0.5]], jnp.float32)
    monkeypatch.setattr(jax.nn, "softmax", lambda logits, axis: values)
    scores = np.asarray(softmax(jnp.zeros((2, 2))))
    np.testing.assert_array_equal(scores, [[1, 0], [np.nan, 0.5]])


def test_low_precision_logits_are_normalised_in_float32():
    """A bfloat16 network's scores sum to 1 to float32 rounding."""
    scores = softmax(jnp.linspace(-1, 1, 30, dtype=jnp.bfloat16).reshape(3, 10))
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=SLACK)


FOUR_DEVICES = """
import sys, warnings, jax, numpy as np
warnings.simplefilter("error")
from test_scoring import Columns, masked_scores, plain_logits, random_images, score
assert jax.local_device_count() == 4, jax.devices()
scores_fn = masked_scores(plain_logits, Columns(2))
np.save(sys.argv[1], [score(scores_fn, random_images(7), batch_size=b) for b in (2, 9)])
"""


def test_four_devices_give_the_same_scores_and_votes(tmp_path):
    """Batches dealt over devices, 7 images over 4 of them: nothing moves or is lost."""
    path = tmp_path / "scores.npy"
    four = {"jax_num_cpu_devices": 4, "jax_platforms": "cpu"}
    done = fork("-c", FOUR_DEVICES, path, **four).finish()
    assert done.returncode == 0, done.stderr
    expected = score(masked_scores(plain_logits, Columns(2)), random_images(7))
    for scores in np.load(path):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=SLACK)
        np.testing.assert_array_equal(
            threshold_votes(scores, 0.3), threshold_votes(expected, 0.3)
        )
