"""bandnet: the window is all that a score can see, and all readings agree."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmooth_jax import masking
from dsmooth_jax.ablation import Blocks, Columns, MultiBlocks, MultiColumns, Rows
from dsmooth_jax.locality import check_locality
from dsmooth_jax.models.band_layers import (
    _halvings,
    receptive_field,
    strides,
    window_kernels,
)
from dsmooth_jax.models.bandnet import band_network, bandnet
from dsmooth_jax.scoring import score, some_scores

NUM_CLASSES = 3
MOMENTUM = 0.9  # of the running batch statistics
SMALL = {"num_classes": NUM_CLASSES, "width": 4, "depth": 3, "crops": 2}

# Cut along either axis and both, strides that divide and do not, H != W, windows that
# are one pixel, that are halved on the way and that are the whole axis.
GEOMETRIES = [
    (Columns(1), (5, 6, 1)),
    (Columns(4, stride=3), (9, 10, 2)),
    (Columns(11, stride=4), (4, 11, 1)),
    (Rows(9, stride=2), (12, 5, 1)),
    (Blocks(3, 8, stride=2), (6, 9, 1)),
    (Blocks(9, 2, stride=5), (10, 7, 1)),
]


def make(ablation, image_shape, **changes):
    """The network, and variables drawn so that every one of them matters."""
    net = band_network(ablation, image_shape=image_shape, **{**SMALL, **changes})
    random = np.random.default_rng(0)

    def draw(leaf):  # no `init`: it would have to be compiled for every geometry
        if len(leaf.shape) == 1:  # scales, variances: positive
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return random.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return net, jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))


def random_images(num_images, image_shape):
    shape = (num_images, *image_shape)
    return np.random.default_rng(1).uniform(size=shape).astype(np.float32)


def test_kernels_see_exactly_the_window():
    """Every pixel of the window and no other, at every depth that can reach it."""
    for window in range(1, 300):
        least = max(1, window.bit_length() - 2)
        for depth in range(least, 12):
            kernels = window_kernels(window, depth)
            assert len(kernels) == depth + 1
            assert receptive_field(kernels) == window
            seen = {0}
            for extent, dilation in kernels:
                seen = {x + i * dilation for x in seen for i in range(extent)}
            assert seen == set(range(window))


@pytest.mark.parametrize("window, depth", [(8, 1), (25, 2), (299, 6)])
def test_too_small_a_depth_is_refused_with_the_least_that_works(window, depth):
    with pytest.raises(
        ValueError, match=f"depth={depth} must be >= {depth + 1} to see"
    ):
        window_kernels(window, depth)
    window_kernels(window, depth + 1)


@given(window=st.integers(1, 40), step=st.integers(0, 9), count=st.integers(1, 4))
def test_strides_compute_just_the_outputs_asked_for(window, step, count):
    """Followed through all layers, position i of the last one sees window i."""
    count = 1 if step == 0 else count
    kernels = window_kernels(window, 5)
    seen = [{pixel} for pixel in range((count - 1) * step + window)]
    for (extent, _), (stride, dilation) in zip(
        kernels, strides(kernels, step), strict=True
    ):
        reach = (extent - 1) * dilation
        seen = [
            set().union(*(seen[first + i * dilation] for i in range(extent)))
            for first in range(0, len(seen) - reach, stride)
        ]
    assert seen == [set(range(i * step, i * step + window)) for i in range(count)]


@pytest.mark.parametrize("ablation, image_shape", GEOMETRIES)
def test_scores_see_their_window_and_nothing_else(ablation, image_shape):
    """NaN in all that an ablation hides, and in the other images of the batch, changes
    no bit of its scores; NaN in a pixel shows in the ablations that keep it."""
    net, variables = make(ablation, image_shape)
    logits_fn = jax.jit(net.image_logits)
    keep = ablation.keep_masks(image_shape[:2])
    pixels = np.eye(math.prod(image_shape[:2]), dtype=bool)
    pixels = pixels.reshape(-1, *image_shape[:2])
    shown = np.concatenate([keep, ~pixels])  # one image each
    images = np.repeat(random_images(1, image_shape), len(shown), axis=0)
    clean = np.asarray(logits_fn(variables, images))
    assert clean.shape == (len(shown), len(keep), NUM_CLASSES)
    assert np.isfinite(clean).all()
    poisoned = np.where(shown[..., None], images, np.float32(np.nan))
    logits = np.asarray(logits_fn(variables, poisoned))
    own = np.arange(len(keep))
    np.testing.assert_array_equal(logits[own, own], clean[own, own])
    is_hit = np.isnan(logits[len(keep) :]).any(axis=-1)  # [HW, P]
    np.testing.assert_array_equal(is_hit, keep.reshape(len(keep), -1).T)


@st.composite
def geometries(draw):
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    stride = draw(st.integers(1, 5))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    ablation = draw(
        st.sampled_from(
            [
                Columns(columns, stride=stride),
                Rows(rows, stride=stride),
                Blocks(rows, columns, stride=stride),
            ]
        )
    )
    halve = draw(st.sampled_from([None, (), (2,), (2, 3)]))
    return ablation, (height, width, draw(st.integers(1, 2))), halve


@settings(max_examples=6)
@given(geometries())
def test_one_pass_and_single_windows_agree(geometry):
    """Dilation over the image and strides over one window are the same function."""
    ablation, image_shape, halve = geometry
    net, variables = make(ablation, image_shape, crops=1, halve=halve)
    images = random_images(2, image_shape)
    starts = masking.window_starts(ablation, image_shape[:2])

    @jax.jit
    def one_by_one(variables, images):
        windows = masking.crop(images, ablation)
        windows = windows.reshape(-1, *windows.shape[2:])
        return net.window_logits(variables, windows, jnp.tile(starts, (2, 1)))

    dense = jax.jit(net.image_logits)(variables, images)
    alone = one_by_one(variables, images).reshape(dense.shape)
    np.testing.assert_allclose(dense, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ablation, image_shape, rectangle",
    [(Columns(4), (8, 9, 1), (1, 3)), (Blocks(5, 2, stride=3), (9, 6, 1), (2, 2))],
)
def test_training_reads_what_is_certified(ablation, image_shape, rectangle):
    """Given the batch statistics of the crops, the one pass gives the logits of
    the training mode, also of windows across the edge."""
    net, variables = make(ablation, image_shape, crops=math.prod(rectangle))
    params = variables["params"]
    zeros = jax.tree.map(np.zeros_like, variables["batch_stats"])
    images = jnp.asarray(random_images(3, image_shape))
    starts = masking.window_starts(ablation, image_shape[:2])
    first = starts[[0, 2, len(starts) - 1]]
    offsets = np.indices(rectangle).reshape(2, -1).T * ablation.stride
    chosen = (first[:, None] + offsets) % image_shape[:2]  # [B, n, 2]
    is_chosen = (chosen[:, :, None] == starts).all(axis=-1)  # [B, n, P]
    assert (is_chosen.sum(axis=-1) == 1).all()

    given = {"params": params, "batch_stats": zeros}
    logits, updated = jax.jit(net.train_logits)(given, images, jnp.asarray(first))
    of_crops = jax.tree.map(lambda x: x / (1 - MOMENTUM), updated)
    given = {"params": params, "batch_stats": of_crops}
    one_pass = np.asarray(jax.jit(net.image_logits)(given, images))
    wanted = np.take_along_axis(one_pass, is_chosen.argmax(axis=-1)[..., None], axis=1)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    # And so reads a teacher.
    taught = jax.jit(net.drawn_logits)(given, images, jnp.asarray(first))
    np.testing.assert_allclose(taught, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "ablation, image_shape",
    [(Columns(4), (8, 9, 1)), (Blocks(5, 7, stride=3), (9, 8, 1))],
)
def test_gradient_on_crops_is_that_of_the_one_pass_loss(ablation, image_shape):
    """In evaluation mode (batch statistics are constants), over all ablations."""
    net, variables = make(ablation, image_shape)
    images = jnp.asarray(random_images(2, image_shape))
    starts = masking.window_starts(ablation, image_shape[:2])

    def one_pass_loss(params):
        logits = net.image_logits({**variables, "params": params}, images)
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    def crop_loss(params):
        windows = masking.crop(images, ablation)
        windows = windows.reshape(-1, *windows.shape[2:])
        given = {**variables, "params": params}
        logits = net.window_logits(given, windows, jnp.tile(starts, (2, 1)))
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    wanted = jax.tree.leaves(jax.jit(jax.grad(one_pass_loss))(variables["params"]))
    gradient = jax.tree.leaves(jax.jit(jax.grad(crop_loss))(variables["params"]))
    largest = max(jnp.abs(leaf).max() for leaf in wanted)
    for got, want in zip(gradient, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * largest)


def test_training_draws_ablations_of_each_image():
    """The base classifier's crops start at ablations, uniformly, by the key alone."""
    ablation, image_shape = Columns(2, stride=3), (4, 9, 1)
    options = {"image_shape": image_shape, **SMALL, "crops": 1}
    base = bandnet(ablation, **options)
    _, variables = make(ablation, image_shape)
    images = np.repeat(random_images(1, image_shape), 64, axis=0)
    train_logits = jax.jit(base.train_logits)
    logits, batch_stats = train_logits(variables, images, jax.random.key(3))
    assert logits.shape == (64, 1, NUM_CLASSES)
    assert jax.tree.structure(batch_stats) == jax.tree.structure(
        variables["batch_stats"]
    )
    counts = np.unique(np.asarray(logits).round(4), axis=0, return_counts=True)[1]
    assert len(counts) == 3 and counts.min() >= 8  # of 64, 21 expected


def test_scores_are_the_softmax_of_the_one_pass():
    """What is certified is the one pass, through `score`, ragged batches included."""
    ablation, image_shape = Columns(4), (6, 7, 1)
    net, variables = make(ablation, image_shape)
    base = bandnet(ablation, image_shape=image_shape, **SMALL)
    images = random_images(5, image_shape)
    scores = score(base.scores_fn(variables), images, batch_size=2)
    wanted = jax.nn.softmax(jax.jit(net.image_logits)(variables, images), axis=-1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-6)


def test_imagenet_size_can_be_expressed():
    """299 x 299 pixels, columns of 25, 1,000 classes; shapes only."""
    ablation, image_shape = Columns(25), (299, 299, 3)
    base = bandnet(ablation, image_shape=image_shape, num_classes=1000)
    variables = jax.eval_shape(base.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    scores = jax.eval_shape(lambda v, x: base.scores_fn(v)(x), variables, images)
    assert scores.shape == (2, 299, 1000)


@pytest.mark.parametrize("ablation", [MultiColumns(2, 2), MultiBlocks(4, 2)])
def test_several_windows_are_refused(ablation):
    with pytest.raises(TypeError, match="use Columns, Rows or Blocks"):
        bandnet(ablation, image_shape=(8, 8, 1), **SMALL)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ablation": Columns(9)}, r"width=9 must be in 1\.\.8, the image width"),
        ({"ablation": Columns(8), "depth": 1}, "depth=1 must be >= 2 to see 8 pixels"),
        ({"width": 0}, "width=0 must be >= 1"),
        ({"depth": 0}, "depth=0 must be >= 1"),
        ({"max_width": 3}, "max_width=3 must be >= width, 4"),
        ({"halve": [1, 9]}, r"halve=\[1, 9\] must be numbers of blocks, in 1\.\."),
        ({"shift": 8}, r"shift=8 must be in 0\.\.7"),
        ({"shift": -1}, r"shift=-1 must be in 0\.\.7"),
        ({"ablation": Blocks(2), "shift": 1}, "keeps neither axis whole.*use shift=0"),
        ({"crops": 0}, "crops=0 must be rows"),
        ({"crops": 9}, "an image has 1 x 8"),
        ({"ablation": Blocks(2, stride=3), "crops": 5}, "an image has 3 x 3"),
        ({"num_classes": 1}, "num_classes=1 must be >= 2"),
        ({"image_shape": (8, 8)}, "image_shape"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changes, message):
    options = {"ablation": Columns(2), "image_shape": (8, 8, 1), **SMALL, **changes}
    with pytest.raises(ValueError, match=message):
        bandnet(options.pop("ablation"), **options)


def test_channels_double_in_every_second_block_up_to_the_most():
    """The widest layers of a config are what it says, and the default has no limit."""

    def channels(**options):
        net = band_network(
            Columns(3), image_shape=(8, 8, 1), num_classes=2, width=4, **options
        )
        params = jax.eval_shape(net.init, jax.random.key(0))["params"]
        return [
            params[f"block{i:02d}"]["conv2"]["kernel"].shape[-1] for i in range(1, 7)
        ]

    assert channels() == [4, 8, 8, 16, 16, 32]
    assert channels(max_width=12) == [4, 8, 8, 12, 12, 12]


def test_blocks_halve_the_height_where_they_are_told_to():
    """The extents that a config means, and that none is halved below two pixels."""

    def extents(depth, halve):
        strides = [stride for stride, _ in _halvings(32, depth, halve)]
        return np.ceil(32 / np.cumprod(strides)).astype(int).tolist()

    assert extents(6, range(1, 7)) == [32, 16, 8, 4, 2, 2, 2]
    assert extents(6, (2, 3, 4, 5)) == [32, 32, 16, 8, 4, 2, 2]
    assert extents(8, (3, 5, 7)) == [32, 32, 32, 16, 16, 8, 8, 4, 4]


@pytest.mark.parametrize("ablation", [Columns(3), Rows(2), Blocks(3, 4)], ids=repr)
def test_mirrored_scores_see_the_same_pixels_and_do_not_change_when_flipped(ablation):
    """A window's score is its mirror image's, and local; it is not the plain one."""
    shape, size = (6, 7, 1), (6, 7)
    build = functools.partial(
        bandnet, ablation, image_shape=shape, num_classes=3, width=4
    )
    base, plain = build(mirror=True), build()
    variables = base.init(jax.random.key(0))
    scores_fn = base.scores_fn(variables)
    check_locality(scores_fn, ablation, shape)
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    scores = score(scores_fn, images)
    flipped = score(scores_fn, images[:, :, ::-1])
    masks = ablation.keep_masks(size)
    for index, mask in enumerate(masks):
        (twin,) = np.flatnonzero((masks == mask[:, ::-1]).all(axis=(1, 2)))
        np.testing.assert_allclose(scores[:, index], flipped[:, twin], atol=1e-6)
    assert not np.allclose(scores, score(plain.scores_fn(variables), images))


@pytest.mark.parametrize("ablation", [Columns(3), Rows(2)], ids=repr)
@pytest.mark.parametrize("mirror", [False, True])
def test_shifted_scores_see_the_same_pixels_and_are_the_mean_of_three(ablation, mirror):
    """A window's score is local, and that of the mean logits of the images moved."""
    shape, axis = (6, 7, 1), 1 if isinstance(ablation, Columns) else 2
    build = functools.partial(
        bandnet, ablation, image_shape=shape, num_classes=3, width=4, mirror=mirror
    )
    base, plain = build(shift=2), build()
    variables = base.init(jax.random.key(0))
    check_locality(base.scores_fn(variables), ablation, shape)
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    moved = np.moveaxis(images, axis, 0)
    up, down = np.zeros_like(moved), np.zeros_like(moved)
    up[:-2], down[2:] = moved[2:], moved[:-2]
    logits = [
        np.log(score(plain.scores_fn(variables), np.moveaxis(view, 0, axis)))
        for view in (up, moved, down)
    ]
    mean = jax.nn.softmax(np.mean(logits, axis=0))
    found = score(base.scores_fn(variables), images)
    np.testing.assert_allclose(found, mean, atol=1e-5)
    assert not np.allclose(found, jax.nn.softmax(logits[1]), atol=1e-3)


@pytest.mark.parametrize(
    ("ablation", "views"),
    [
        (Columns(3), {"mirror": True, "shift": 2}),
        (Rows(2, stride=2), {"shift": 1}),
        (Columns(2), {}),
    ],
    ids=repr,
)
def test_a_run_of_windows_scores_as_in_the_whole(ablation, views):
    """What an attack reads of the image: a run, around the edge, of each image."""
    shape = (6, 7, 1)
    net = bandnet(ablation, image_shape=shape, **SMALL, **views)
    _, variables = make(ablation, shape)
    scores_fn, images = net.scores_fn(variables), random_images(3, shape)
    every = score(scores_fn, images)
    num = every.shape[1]
    index = (np.array([[0], [num - 1], [1]]) + np.arange(num - 1)) % num
    run = jax.jit(lambda x, i: some_scores(scores_fn, x, i, is_run=True))
    expected = np.take_along_axis(every, index[:, :, None], axis=1)
    np.testing.assert_allclose(run(jnp.asarray(images), index), expected, atol=1e-6)


def test_blocks_and_strides_that_do_not_divide_have_no_runs():
    """Neighbours across the edge would be other windows."""
    for ablation in (Blocks(2), Columns(2, stride=2)):
        assert make(ablation, (6, 7, 1))[0].run_logits is None


@pytest.mark.parametrize(("chunk_size", "is_one"), [(6, True), (5, False)])
def test_views_are_one_batch_where_memory_allows(monkeypatch, chunk_size, is_one):
    """On an accelerator, up to chunk_size of them; the scores are the same."""
    shape, ablation = (6, 7, 1), Columns(3)
    base = bandnet(
        ablation,
        image_shape=shape,
        num_classes=3,
        width=4,
        mirror=True,
        shift=2,
        chunk_size=chunk_size,
    )
    variables = base.init(jax.random.key(0))
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    expected = score(base.scores_fn(variables), images)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()  # on the CPU they were read one after the other
    text = str(jax.make_jaxpr(base.scores_fn(variables))(images))
    assert ("scan" in text) != is_one
    np.testing.assert_allclose(
        score(base.scores_fn(variables), images), expected, atol=1e-6
    )
    check_locality(base.scores_fn(variables), ablation, shape)


def test_mirror_images_need_a_window_there():
    """Starts 0, 3, 6 of 8 columns: the mirror image of the first begins at 5."""
    with pytest.raises(ValueError, match=r"mirror=True.*stride=1"):
        bandnet(
            Columns(3, stride=3),
            image_shape=(8, 8, 1),
            num_classes=2,
            crops=1,
            mirror=True,
        )
