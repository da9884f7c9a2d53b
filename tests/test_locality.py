"""Protects the contract that certificates rest on: every kind of leak is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import dsmooth_jax as ds

SHAPE = (5, 6, 1)
COLUMNS = ds.Columns(3)
KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 2, 8))  # 3 high, 3 wide
HEAD = jax.random.normal(jax.random.key(1), (8, 4))


def features(x, width=3, wrap=2, padding=0):
    """One pass: [B, H, W, C] -> [B, P, 8], a 3-wide convolution, wrapped columns."""
    x = jnp.concatenate([x, x[:, :, :wrap]], axis=2) if wrap else x
    x = jnp.concatenate([x, 1 - x], axis=-1)
    y = jax.lax.conv_general_dilated(
        x,
        KERNEL[:, :width],
        (1, 1),
        ((1, 1), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.max(axis=1)


def head(f):
    return f @ HEAD


def normalised(f, axes):
    return (f - f.mean(axes, keepdims=True)) / (f.std(axes, keepdims=True) + 1e-3)


LEAKS = {
    "one wrong padding": lambda x: head(features(x, wrap=0, padding=1)),
    "one kernel too wide": lambda x: (
        head(features(x)[:, jnp.arange(6)])
        + jnp.roll(head(features(x, 1, 0)), -3, axis=1)
    ),
    "normalisation over the width": lambda x: head(normalised(features(x), (1,))),
    "squeeze and excite": lambda x: head(
        features(x) * jax.nn.sigmoid(features(x).mean(axis=1, keepdims=True))
    ),
    "only through max": lambda x: head(
        features(x) + jnp.where(x > 0.9, x, 0.9).max(axis=(1, 2))[:, None]
    ),
    "swallows NaN": lambda x: head(
        features(x) + jnp.nan_to_num(x, posinf=0, neginf=0).mean((1, 2))[:, None]
    ),
    "saturates at extremes": lambda x: head(
        features(x) + ((x > 0.5) & (x <= 1)).mean((1, 2))[:, None]
    ),
    "a single far pixel": lambda x: head(features(x)).at[:, 0, 0].add(x[:, 2, 4, 0]),
}


def test_a_local_network_passes():
    """Nothing is refused that keeps its contract, in all three ways to make one."""
    ds.check_locality(
        ds.one_pass_scores(lambda x: head(features(x)), COLUMNS), COLUMNS, SHAPE
    )
    window_head = jax.random.normal(jax.random.key(2), (5 * 3 * 2, 4))

    def windows(x, starts):
        position = jnp.cos(starts[:, 1:].astype(jnp.float32))
        return x.reshape(len(x), -1) @ window_head + position

    ds.check_locality(ds.cropped_scores(windows, COLUMNS), COLUMNS, SHAPE, batch_size=3)
    whole_head = jax.random.normal(jax.random.key(2), (5 * 6 * 2, 4))
    masked = ds.masked_scores(lambda x: x.reshape(len(x), -1) @ whole_head, COLUMNS)
    ds.check_locality(masked, COLUMNS, SHAPE, ablations=[0, 5], batch_size=2)


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_found_and_named(name):
    """The ablation and the pixel in the message really are a leak."""
    scores_fn = ds.one_pass_scores(LEAKS[name], COLUMNS)
    with pytest.raises(ValueError, match="depends on") as caught:
        ds.check_locality(scores_fn, COLUMNS, SHAPE)
    words = str(caught.value).replace(",", "").split()
    p = int(words[words.index("ablation") + 1])
    row, column = (int(words[words.index(w) + 1]) for w in ("row", "column"))
    assert not COLUMNS.keep_masks(SHAPE[:2])[p, row, column]
    if name == "a single far pixel":
        assert (p, row, column) == (0, 2, 4)


@pytest.mark.parametrize(
    "leak",
    [
        lambda x: head(normalised(features(x), (0,))),
        lambda x: head(features(x)) + 1e-3 * x[::-1, :1, :1, 0],
        lambda x: head(features(x)) + jnp.where(x > 0.99, x, 0.99).max(),
    ],
    ids=["batch statistics", "a neighbour", "max over the batch"],
)
def test_leaks_between_images_are_found(leak):
    """Batch statistics at test time, and a leak from the neighbouring image."""
    with pytest.raises(ValueError, match="other images"):
        ds.check_locality(ds.one_pass_scores(leak, COLUMNS), COLUMNS, SHAPE)


def test_every_pair_of_images_is_told_apart():
    """A leak between any two slots of a batch, here 2 to 6, is found."""

    def leak(x):
        return head(features(x)).at[6].add(x[2, 0, 0, 0])

    with pytest.raises(ValueError, match="image 6 of a batch"):
        ds.check_locality(
            ds.one_pass_scores(leak, COLUMNS), COLUMNS, SHAPE, batch_size=8
        )


def test_scores_that_are_not_finite_are_refused():
    """NaN for an ordinary image would make every comparison void."""
    scores_fn = ds.one_pass_scores(lambda x: head(features(x)) / 0.0, COLUMNS)
    with pytest.raises(ValueError, match="finite"):
        ds.check_locality(scores_fn, COLUMNS, SHAPE)


def test_the_three_ways_agree():
    """One convolution read in one pass, on crops and on masked images."""
    images = np.random.default_rng(0).random((7, *SHAPE), np.float32)
    one_pass = ds.one_pass_scores(lambda x: head(features(x)), COLUMNS)

    def on_window(x, starts):
        y = jax.lax.conv_general_dilated(
            x,
            KERNEL,
            (1, 1),
            ((1, 1), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return head(y.max(axis=(1, 2)))

    cropped = ds.cropped_scores(on_window, COLUMNS, chunk_size=4)
    a, b = ds.score(one_pass, images), ds.score(cropped, images, batch_size=2)
    np.testing.assert_allclose(a, b, atol=1e-6)

    def with_weights(weights, x):
        return features(x) @ weights

    bound = ds.one_pass_scores(Partial(with_weights, HEAD), COLUMNS)
    np.testing.assert_array_equal(ds.score(bound, images), a)


def test_a_wrong_number_of_ablations_is_refused():
    """P logits, or an error that says how many there must be."""
    scores_fn = ds.one_pass_scores(lambda x: head(features(x))[:, 1:], COLUMNS)
    with pytest.raises(ValueError, match=r"must be \[32, 6, K\]"):
        ds.score(scores_fn, np.zeros((1, *SHAPE), np.float32))
