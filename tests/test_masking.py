"""Hiding and cutting: what is shown is right, and what is hidden cannot be seen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmooth_jax.ablation import Blocks, Columns, MultiBlocks, MultiColumns, Rows
from dsmooth_jax.masking import (
    ablate,
    ablate_at,
    crop,
    crop_at,
    random_ablate,
    window_starts,
)

SIZE = (4, 6)
SINGLE = (
    Columns(2),
    Columns(3, stride=4),  # does not divide 6, and wraps
    Rows(4),
    Rows(2, stride=3),
    Blocks(3, 4),
    Blocks(2, stride=3),
)
MULTI = (MultiColumns(2, 2), MultiBlocks(2, 3))
POISONS = (np.nan, np.inf, 1e30, -1e30)


def random_images(num=2, channels=3, size=SIZE):
    rng = np.random.default_rng(0)
    return rng.random((num, *size, channels), np.float32)


def assert_same_bits(actual, expected):
    """Not only equal: NaN, -0.0 and 0.0 are told apart."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def jitted(fn, *static):
    """Compiles fn(..., *static) as one: in a tenth of the time of op after op."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda *args: fn(*args, *static), compiler_options=options)


def slow_ablate(images, ablation):
    """float32 [B, P, H, W, 2C], one visible pixel at a time."""
    masks = ablation.keep_masks(images.shape[1:3])
    num_images, height, width, channels = images.shape
    shape = (num_images, len(masks), height, width, 2 * channels)
    shown = np.zeros(shape, np.float32)
    for b, (p, i, j) in itertools.product(range(num_images), np.argwhere(masks)):
        pixel = images[b, i, j]
        shown[b, p, i, j] = np.concatenate([pixel, np.float32(1) - pixel])
    return shown


@pytest.mark.parametrize("ablation", SINGLE + MULTI, ids=str)
def test_ablate_equals_the_slow_twin(ablation):
    """Visible pixels are (x, 1 - x), hidden ones (0, 0), in the order of keep_masks."""
    images = random_images()
    shown = jitted(ablate, ablation)(images)
    assert_same_bits(shown, slow_ablate(images, ablation))


def test_null_differs_from_every_color():
    """Black is (0, 1) and white (1, 0); only a hidden pixel is (0, 0)."""
    images = np.zeros((1, *SIZE, 1), np.float32)
    images[:, :, ::2] = 1
    shown = np.asarray(jitted(ablate, Columns(2))(images))
    masks = np.broadcast_to(Columns(2).keep_masks(SIZE), shown.shape[:-1])
    np.testing.assert_array_equal(shown.sum(axis=-1), masks)


@pytest.mark.parametrize("ablation", [Columns(2), MultiBlocks(2, 2)], ids=str)
def test_uint8_is_the_same_as_float(ablation):
    """All 256 values of a pixel come out as the value / 255, in and out of jit."""
    pixels = np.arange(264).astype(np.uint8).reshape(11, *SIZE, 1)
    expected = slow_ablate(pixels.astype(np.float32) / np.float32(255), ablation)
    assert_same_bits(ablate(pixels, ablation), expected)
    assert_same_bits(jax.jit(lambda x: ablate(x, ablation))(pixels), expected)
    kept = ablate(pixels / 255, ablation)  # float64
    assert_same_bits(kept, expected)


@pytest.mark.parametrize("ablation", [Blocks(3, 4), MultiColumns(2, 2)], ids=str)
def test_ablate_works_under_jit_and_vmap(ablation):
    """A user's own jitted or vmapped function sees the same bits."""
    images = random_images()
    expected = ablate(images, ablation)
    assert_same_bits(jax.jit(lambda x: ablate(x, ablation))(images), expected)
    one_at_a_time = jax.vmap(lambda x: ablate(x[None], ablation)[0])
    assert_same_bits(one_at_a_time(images), expected)


def test_ablate_at_gives_the_ablations_asked_for():
    """Chunks take any numbers in any order, repeated ones too (the last chunk is)."""
    images = random_images()
    for ablation in (Blocks(2, stride=3), MultiColumns(2, 2)):
        index = [2, 0, 2]
        expected = slow_ablate(images, ablation)[:, index]
        chosen = ablate_at(jnp.asarray(images), ablation, jnp.asarray(index))
        assert_same_bits(chosen, expected)


@pytest.mark.parametrize("ablation", SINGLE, ids=str)
def test_crop_is_the_window_of_ablate(ablation):
    """The cut window, wrapped or not, holds just what `ablate` shows, and all of it."""
    images = random_images()
    windows = np.asarray(jitted(crop, ablation)(images))
    shown = slow_ablate(images, ablation)
    h, w = ablation.window_shape(SIZE)
    assert windows.shape == (*shown.shape[:2], h, w, shown.shape[-1])
    for p, (i, j) in enumerate(ablation.starts(SIZE)):
        rows, columns = (i + np.arange(h)) % SIZE[0], (j + np.arange(w)) % SIZE[1]
        assert_same_bits(windows[:, p], shown[:, p][:, rows][:, :, columns])
        assert np.count_nonzero(shown[0, p].any(axis=-1)) == h * w


def test_crop_works_under_jit_and_vmap_and_takes_uint8():
    """As `ablate` does."""
    pixels = (random_images() * 255).astype(np.uint8)
    expected = crop(pixels.astype(np.float32) / np.float32(255), Blocks(3, 4))
    assert_same_bits(crop(pixels, Blocks(3, 4)), expected)
    assert_same_bits(jax.jit(lambda x: crop(x, Blocks(3, 4)))(pixels), expected)
    one_at_a_time = jax.vmap(lambda x: crop(x[None], Blocks(3, 4))[0])
    assert_same_bits(one_at_a_time(pixels), expected)


@pytest.mark.parametrize("ablation", MULTI, ids=str)
def test_crop_refuses_several_windows(ablation, without_shape_checks):
    """There is no one window to cut out."""
    with pytest.raises(TypeError, match=r"several windows.*use ablate"):
        crop(random_images(), ablation)


def which_ablation(shown, images, ablation):
    """int [B]: the ablation each image was shown through; exactly one must fit."""
    fits = (slow_ablate(images, ablation) == np.asarray(shown)[:, None]).all((2, 3, 4))
    np.testing.assert_array_equal(fits.sum(axis=1), 1)
    return fits.argmax(axis=1)


@pytest.mark.parametrize("ablation", [Rows(2, stride=3), *MULTI], ids=str)
def test_random_ablate_draws_one_ablation_for_each_image(ablation):
    """Each image is seen through one of the P, its own draw, and every one occurs."""
    images = random_images(num=100, channels=1)
    drawn = jitted(random_ablate, ablation)(jax.random.key(0), images)
    chosen = which_ablation(drawn, images, ablation)
    assert set(chosen) == set(range(ablation.num_ablations(SIZE)))


def test_random_ablate_draws_evenly():
    """No ablation is trained on more than another (5 standard deviations)."""
    images = random_images(num=3000, channels=1)
    drawn = jitted(random_ablate, Columns(2))(jax.random.key(1), images)
    counts = np.bincount(which_ablation(drawn, images, Columns(2)), minlength=6)
    assert (abs(counts - 500) < 5 * np.sqrt(3000 * 1 / 6 * 5 / 6)).all()


def test_random_ablate_is_a_function_of_its_key():
    """The same key draws the same, in and out of jit; another key draws otherwise."""
    images = random_images(num=32)
    first = random_ablate(jax.random.key(3), images, Blocks(2))
    draw = jitted(random_ablate, Blocks(2))
    assert_same_bits(draw(jax.random.key(3), images), first)
    assert_same_bits(draw(jax.random.key(3), images), first)
    assert (np.asarray(draw(jax.random.key(4), images)) != first).any()
    keys = jax.random.split(jax.random.key(5), 2)
    mapped = jax.vmap(lambda key, x: random_ablate(key, x, Blocks(2)), (0, None))
    per_key = jitted(mapped)(keys, images)
    assert_same_bits(per_key[1], draw(keys[1], images))


@pytest.mark.parametrize("ablation", SINGLE + MULTI, ids=str)
def test_hidden_pixels_cannot_be_seen(ablation):
    """Whatever ablation p hides becomes: its bits do not move. All p, all poisons."""
    images = random_images()
    masks = ablation.keep_masks(SIZE)
    expected = slow_ablate(images, ablation)
    at = jitted(lambda x, index: ablate_at(x, ablation, index))
    for (p, mask), poison in itertools.product(enumerate(masks), POISONS):
        poisoned = np.where(mask[:, :, None], images, np.float32(poison))
        assert_same_bits(at(poisoned, jnp.array([p]))[:, 0], expected[:, p])


@pytest.mark.parametrize("ablation", SINGLE, ids=str)
def test_hidden_pixels_are_not_in_the_crop(ablation):
    """The same for the cut window."""
    images = random_images()
    starts = jnp.asarray(window_starts(ablation, SIZE))
    at = jitted(lambda x, starts: crop_at(x, ablation, starts))
    expected = at(images, starts)
    masks = ablation.keep_masks(SIZE)
    for (p, mask), poison in itertools.product(enumerate(masks), POISONS):
        poisoned = np.where(mask[:, :, None], images, np.float32(poison))
        assert_same_bits(at(poisoned, starts)[:, p], expected[:, p])


def test_random_ablate_hides_what_the_ablation_hides():
    """Training sees no hidden pixel either: a NaN outside the window stays outside."""
    images = random_images(num=50, channels=1)
    draw = jitted(random_ablate, Columns(2))
    shown = draw(jax.random.key(0), images)
    chosen = which_ablation(shown, images, Columns(2))
    masks = Columns(2).keep_masks(SIZE)[chosen][..., None]
    poisoned = np.where(masks, images, np.float32(np.nan))
    assert_same_bits(draw(jax.random.key(0), poisoned), shown)


def test_no_images_and_unchanged_images():
    """N = 0 gives N = 0, and an argument is never written to."""
    none = np.zeros((0, *SIZE, 3), np.float32)
    key, ablation = jax.random.key(0), Blocks(3, 4)
    assert jitted(ablate, ablation)(none).shape == (0, 24, *SIZE, 6)
    assert jitted(crop, ablation)(none).shape == (0, 24, 3, 4, 6)
    assert jitted(random_ablate, ablation)(key, none).shape == (0, *SIZE, 6)
    images = random_images()
    before = images.copy()
    ablate(images, ablation)
    crop(images, ablation)
    random_ablate(key, images, ablation)
    assert_same_bits(images, before)
