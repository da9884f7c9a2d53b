"""Vision transformers: tokens that see nothing are dropped, and nothing changes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import numbers

import dsmooth_jax as ds
from dsmooth_jax.masking import ablate
from dsmooth_jax.models import ViTConfig, build, masked_classifier, vit
from dsmooth_jax.models.vit import SIZES, visible_tokens

SHAPE = (12, 12, 3)
CONFIG = ViTConfig(patch=4, width=8, depth=2, heads=2, registers=2)
POOLED = ViTConfig(patch=4, width=8, depth=2, heads=2, pool="avg", class_token=False)
COLUMNS = ds.Columns(3)


def drawn(net):
    """Variables that differ everywhere, and cost no compilation."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: numbers(str(path), leaf.shape).astype(np.float32),
        jax.eval_shape(net.init, jax.random.key(0)),
    )


def quickly(fn):
    """Compiled in half the time, for functions that run once."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def run(net, variables, inputs):
    return quickly(net.logits)(variables, jnp.asarray(inputs))


def images_of(shape=SHAPE, num=2):
    return np.random.default_rng(0).random((num, *shape), np.float32)


def twin(variables, config, image):
    """The logits of one NULL-encoded image [H, W, 2C] by masked attention over all."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)[
        "params"
    ]
    features, depth, heads = config.width, config.depth, config.heads

    def norm(layer, x):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + config.epsilon
        )
        return scaled * params_of(layer)["scale"] + params_of(layer)["bias"]

    def params_of(layer):
        found = params
        for part in layer.split("/"):
            found = found[part]
        return found

    def dense(layer, x):
        return x @ params_of(layer)["kernel"] + params_of(layer)["bias"]

    tokens, seen = [], []
    rows, columns, _ = params["pos_embed"].shape
    for row in range(rows):
        for column in range(columns):
            p = config.patch
            patch = image[row * p : (row + 1) * p, column * p : (column + 1) * p]
            kernel = params["patch_embed"]["kernel"]
            token = np.einsum("hwc,hwcd->d", patch, kernel)
            token = (
                token + params["patch_embed"]["bias"] + params["pos_embed"][row, column]
            )
            tokens.append(token)
            seen.append((patch != 0).any())
    prefix = [params[n] for n in ("class_token", "registers") if n in params]
    num_prefix = sum(map(len, prefix))
    x = np.concatenate([*prefix, np.stack(tokens)])
    seen = np.array([True] * num_prefix + seen)
    for block in [f"block{index + 1:02d}" for index in range(depth)]:
        qkv = dense(f"{block}/qkv", norm(f"{block}/norm1", x))
        q, k, v = qkv.reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
        weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(features // heads))
        weights = weights * seen  # keys that see nothing weigh nothing
        weights /= weights.sum(-1, keepdims=True)
        y = (weights @ v).transpose(1, 0, 2).reshape(len(x), -1)
        x = x + dense(f"{block}/proj", y)
        y = dense(f"{block}/fc1", norm(f"{block}/norm2", x))
        y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = x + dense(f"{block}/fc2", y)
    if config.pool == "token":
        return dense("head", norm("norm", x[0]))
    return dense("head", norm("fc_norm", x[num_prefix:][seen[num_prefix:]].mean(0)))


@pytest.mark.parametrize(
    ("config", "ablation"),
    [
        (CONFIG, COLUMNS),  # wraps; meets one or two columns of tokens
        (CONFIG, ds.Blocks(3, stride=3)),
        (POOLED, ds.Rows(2, stride=3)),
        (POOLED, ds.MultiBlocks(4, 2)),
    ],
    ids=["columns", "blocks", "rows", "several"],
)
def test_dropping_tokens_is_masked_attention(config, ablation):
    # Protects the claim that what is dropped changes no score, whichever the window.
    net = vit(config, ablation, image_shape=SHAPE, num_classes=5)
    variables = drawn(net)
    ablated = np.asarray(ablate(images_of(num=1), ablation))[0]
    tokens = visible_tokens(ablation, SHAPE[:2], SHAPE[:2], (3, 3)).sum((1, 2))
    assert tokens.max() < 9  # some are dropped
    assert tokens.min() < tokens.max() or config is POOLED  # some are filled up
    found = run(net, variables, ablated)
    expected = np.stack([twin(variables, config, image) for image in ablated])
    assert np.ptp(expected, axis=0).min() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_visible_tokens_are_those_that_see_a_pixel():
    # Protects the number of tokens that is computed, counted pixel by pixel.
    for ablation in (COLUMNS, ds.Blocks(3, 5), ds.Rows(5), ds.MultiColumns(2, 2)):
        keep = ablation.keep_masks((8, 12))
        found = visible_tokens(ablation, (8, 12), (8, 12), (2, 3))
        for p, r, c in np.ndindex(found.shape):
            patch = keep[p, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
            assert found[p, r, c] == patch.any()
    tokens = visible_tokens(ds.Columns(19), (224, 224), (224, 224), (14, 14))
    assert set(tokens.sum((1, 2))) == {28, 42}


def test_resizing_spreads_a_window_over_more_tokens():
    # Protects tokens that see a hidden pixel's neighbour after bilinear resizing.
    found = visible_tokens(COLUMNS, (8, 12), (16, 24), (4, 6))
    resized = jax.image.resize(
        COLUMNS.keep_masks((8, 12)).astype(np.float32), (12, 16, 24), "linear"
    )
    blocks = np.asarray(resized).reshape(12, 4, 4, 6, 4)
    np.testing.assert_array_equal(found, (blocks > 0).any((2, 4)))
    assert found.sum() > visible_tokens(COLUMNS, (8, 12), (8, 12), (2, 3)).sum() * 2


RESIZED = functools.partial(
    vit, CONFIG, image_shape=SHAPE, num_classes=5, resize=(24, 24)
)


def test_resizing_comes_after_ablation():
    # Protects the attacker's pixels: scores pass check_locality, and do not where the
    # image is resized first, which spreads a pixel into windows that do not keep it.
    net = RESIZED(COLUMNS)
    variables = drawn(net)
    scores_fn = masked_classifier(net, COLUMNS, chunk_size=4).scores_fn(variables)
    ds.check_locality(scores_fn, COLUMNS, SHAPE, ablations=[0, 11], batch_size=4)

    wide = ds.Columns(6, stride=2)  # the same columns, in resized pixels
    plain = vit(CONFIG, wide, image_shape=(24, 24, 3), num_classes=5)

    def resized_first(images):
        images = jax.image.resize(images, (len(images), 24, 24, 3), "linear")
        fn = jax.tree_util.Partial(plain.logits, variables)
        return ds.masked_scores(fn, wide, chunk_size=4)(images)

    with pytest.raises(ValueError, match="depends on the pixel at row"):
        ds.check_locality(resized_first, COLUMNS, SHAPE, ablations=[0], batch_size=4)


def test_resized_tokens_are_dropped_alike():
    # Protects dropping after resizing: the logits are those of all tokens.
    net, all_tokens = RESIZED(COLUMNS), RESIZED(None)
    variables = drawn(net)
    ablated = ablate(images_of(num=1), COLUMNS)[0]
    found = run(net, variables, ablated)
    expected = run(all_tokens, variables, ablated)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sizes_are_the_published_ones():
    # Protects the names of sizes: timm's numbers of parameters for 1,000 classes.
    counts = {}
    for size, options in SIZES.items():
        features, depth = options["width"], options["depth"]
        block = 12 * features**2 + 13 * features
        ends = (768 + 1 + 197 + 1 + 2 + 1000) * features + 1000
        counts[size] = depth * block + ends
    assert counts == {
        "vit_tiny": 5_717_416,
        "vit_small": 22_050_664,
        "vit_base": 86_567_656,
        "vit_large": 304_326_632,
    }
    net = vit(
        ViTConfig(patch=16, **SIZES["vit_tiny"]),
        ds.Columns(19),
        image_shape=(224, 224, 3),
        num_classes=1000,
    )
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    found = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    # Three channels more; the class token's position is part of it.
    assert found == counts["vit_tiny"] + 3 * 16 * 16 * 192 - 192


SPEC = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 4}
SPEC |= {"pool": "avg", "registers": 1}


def test_it_trains_in_bfloat16():
    # Protects training: every parameter has a gradient, through the dropped tokens.
    classifier = build(
        SPEC,
        ablation=COLUMNS,
        image_shape=SHAPE,
        num_classes=5,
    )
    variables = drawn(classifier)
    images, key = jnp.asarray(images_of()), jax.random.key(0)

    @quickly
    def gradient_fn(params):
        def loss(params):
            logits, stats = classifier.train_logits(
                {"params": params, "batch_stats": {}}, images, key
            )
            assert stats == {} and logits.shape == (2, 1, 5)
            return (logits.astype(jnp.float32) ** 2).sum()

        return jax.grad(loss)(params)

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient_fn(params)):
        assert leaf.dtype == jnp.bfloat16
        assert np.isfinite(leaf).all() and np.any(np.asarray(leaf) != 0), path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 5}, r"patch=5 must divide the image's height, 12"),
        ({"heads": 3}, r"heads=3 must divide width=8"),
        ({"depth": 0}, r"depth=0 must be >= 1"),
        ({"pool": "max"}, r"pool='max' must be one of"),
        ({"activation": "relu"}, r"activation='relu' must be one of"),
        ({"registers": -1}, r"registers=-1 must be >= 0"),
        ({"class_token": False}, r"pool='token' needs class_token=True"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, message):
    # Protects users from a network that was not meant.
    with pytest.raises(ValueError, match=message):
        vit(
            ViTConfig(**{"patch": 4, "width": 8, "heads": 2, **options}),
            COLUMNS,
            image_shape=SHAPE,
            num_classes=5,
        )
