"""Protects augmentation: what is drawn is what is named, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmooth_jax.training.augment import AugmentConfig, augment

SHAPE = (8, 8, 3)


def uniform(n):
    images = np.random.default_rng(0).random((n, *SHAPE), np.float32)
    return jnp.asarray(images)


def test_shifts_are_crops_of_the_padded_image_and_flips_mirror():
    """Every result is one of the shifts; all directions and both flips are drawn."""
    images = uniform(200)
    config = AugmentConfig(shift=1, flip=True)
    found = np.asarray(augment(jax.random.key(0), images, config))
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
    same = augment(jax.random.key(0), images, AugmentConfig())
    np.testing.assert_array_equal(same, images)


def test_cutout_is_one_grey_square_anywhere():
    """A square, or what of it lies inside; the rest untouched; every pixel is met."""
    images = uniform(300)
    found = np.asarray(augment(jax.random.key(0), images, AugmentConfig(cutout=3)))
    met = np.zeros(SHAPE[:2], int)
    for before, after in zip(np.asarray(images), found, strict=True):
        is_cut = (before != after).any(axis=-1)
        rows, columns = np.flatnonzero(is_cut.any(1)), np.flatnonzero(is_cut.any(0))
        assert 2 <= len(rows) <= 3 and 2 <= len(columns) <= 3
        assert is_cut[np.ix_(rows, columns)].all() and (np.diff(rows) == 1).all()
        assert is_cut.sum() == len(rows) * len(columns)
        assert (after[is_cut] == 0.5).all()
        met += is_cut
    assert (met > 0).all()


def test_color_scales_contrast_and_channels():
    """Each image is an affine map of itself per channel, in range; all differ."""
    images = 0.4 + 0.2 * uniform(50)  # nothing is clipped
    found = np.asarray(augment(jax.random.key(0), images, AugmentConfig(color=0.3)))
    slopes = []
    for before, after in zip(np.asarray(images), found, strict=True):
        mean = before.mean()
        for channel in range(3):
            x, y = before[..., channel].ravel(), after[..., channel].ravel()
            slope, intercept = np.polyfit(x, y, 1)
            np.testing.assert_allclose(slope * x + intercept, y, atol=1e-5)
            at_mean = slope * mean + intercept  # contrast keeps the image's mean
            assert 0.7 <= at_mean / mean <= 1.3
            slopes.append(slope / (at_mean / mean))
    contrast = np.array(slopes).reshape(50, 3)
    np.testing.assert_allclose(contrast, contrast[:, :1].repeat(3, 1), rtol=1e-3)
    assert contrast.min() >= 0.699 and contrast.max() <= 1.301
    assert len(np.unique(contrast[:, 0].round(4))) > 40


@pytest.mark.parametrize("config", [{"cutout": 4}, {"color": 0.9}, {"shift": 2}])
def test_augmented_images_stay_in_range(config):
    """What is trained on is an image."""
    found = augment(jax.random.key(1), uniform(20), AugmentConfig(**config))
    assert found.shape == (20, *SHAPE) and found.dtype == jnp.float32
    assert float(found.min()) >= 0 and float(found.max()) <= 1
