"""Networks as plain functions, the merge that guards them, and specs."""

import dataclasses
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsmooth_jax.ablation import Columns
from dsmooth_jax.models import build, masked_classifier, network, resnet, small_cnn
from dsmooth_jax.scoring import score

IMAGE_SHAPE = (8, 8, 3)
NUM_CLASSES = 5


class Tiny(nnx.Module):
    """Normalised means of the input: the smallest module with batch statistics."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(6, NUM_CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x).mean(axis=(1, 2)))


class Stack(nnx.Module):
    """Layers with equal shapes, so that only their names tell them apart."""

    def __init__(self, names, rngs: nnx.Rngs):
        self.names = tuple(names)
        for name in names:
            setattr(self, name, nnx.Linear(3, 3, rngs=rngs))

    def __call__(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


def _images(num, channels=3):
    """float32 [num, 8, 8, channels] in [0, 1)."""
    return np.random.default_rng(0).random((num, 8, 8, channels), np.float32)


def _inputs(num):
    """As many inputs of a network, which have twice the channels."""
    return jnp.asarray(_images(num, 6))


def _jit(fn):
    """Compiled in half the time, for functions that run once."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def _num_params(variables):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def _num_multiply_adds(net, abstract, input_shape):
    """Of one evaluation, convolutions and dense layers only."""
    inputs = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    jaxpr = jax.make_jaxpr(net.logits)(abstract, inputs)
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            weights = eqn.invars[1].aval.shape  # the last axis is the output's
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(weights[:-1])
    return total


def _assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def tiny():
    net = network(Tiny)
    return net, net.init(jax.random.key(0))


@pytest.fixture(scope="module")
def resnet18():
    net = resnet(
        18, image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, stem="cifar", width=8
    )
    return net, net.init(jax.random.key(0))


@pytest.fixture(scope="module")
def cnn():
    net = small_cnn(image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES)
    return net, net.init(jax.random.key(0))


# Sizes and shapes.


@pytest.mark.parametrize(
    ("depth", "num_params", "giga_macs"),
    [(18, 11_689_512, 1.81), (34, 21_797_672, 3.66), (50, 25_557_032, 4.09)],
)
def test_resnet_has_the_published_size(depth, num_params, giga_macs):
    # Protects the layers (parameters) and their strides (multiply-adds), as published
    # with torchvision's models for 224x224 images.
    net = resnet(depth, image_shape=(224, 224, 3), num_classes=1000, stem="imagenet")
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    # Our first convolution sees 2C = 6 channels, torchvision's 3.
    extra = 7 * 7 * 3 * 64
    assert _num_params(abstract) == num_params + extra
    macs = _num_multiply_adds(net, abstract, (1, 224, 224, 6)) - extra * 112 * 112
    assert round(macs / 1e9, 2) == giga_macs


def test_cifar_stem_keeps_the_resolution():
    # Protects the small-image variant: 3x3 stem, stride 1, no pool (0.56 GMAC).
    net = resnet(18, image_shape=(32, 32, 3), num_classes=10, stem="cifar")
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    assert abstract["params"]["stem_conv"]["kernel"].shape == (3, 3, 6, 64)
    macs = _num_multiply_adds(net, abstract, (1, 32, 32, 6))
    assert round(macs / 1e9, 2) == 0.56


def test_small_cnn_has_the_papers_layers():
    # Protects the paper's MNIST network: 28 -> 14 -> 7 pixels, then 500, 100, K.
    net = small_cnn(image_shape=(28, 28, 1), num_classes=10)
    params = jax.eval_shape(net.init, jax.random.key(0))["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "conv1": (4, 4, 2, 64),
        "conv2": (4, 4, 64, 128),
        "dense1": (7 * 7 * 128, 500),
        "dense2": (500, 100),
        "head": (100, 10),
    }


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (5, 7, 3), (1, 2, 1)])
def test_small_cnn_takes_any_image_size(image_shape):
    # Protects the size of the first dense layer where 4 does not divide the image.
    net = small_cnn(image_shape=image_shape, num_classes=3)
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    height, width, channels = image_shape
    inputs = jax.ShapeDtypeStruct((2, height, width, 2 * channels), jnp.float32)
    assert jax.eval_shape(net.logits, abstract, inputs).shape == (2, 3)


# Functions of variables.


def test_variables_are_plain_dicts(tiny, cnn):
    # Protects checkpoints and optimizers from Flax types.
    for _, variables in (tiny, cnn):
        assert set(variables) == {"params", "batch_stats"}
        for node in (variables, *variables.values()):
            assert type(node) is dict
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    assert cnn[1]["batch_stats"] == {}


def test_init_is_a_function_of_the_key(tiny):
    # Protects reproducible training: same key, same weights; another key, others.
    net, variables = tiny
    _assert_equal(net.init(jax.random.key(0)), variables)
    other = net.init(jax.random.key(1))["params"]["head"]["kernel"]
    assert not np.array_equal(other, variables["params"]["head"]["kernel"])


def test_resnet_convolutions_start_with_he_variance(resnet18):
    # Protects the initialisation: normal, variance 2 / fan_out.
    kernel = resnet18[1]["params"]["stage4_block02"]["conv2"]["kernel"]  # [3,3,64,64]
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


def test_blocks_are_applied_in_the_order_of_their_names(resnet18):
    # Protects against a permuted network: names sort as they are applied.
    params = resnet18[1]["params"]
    blocks = [name for name in params if name.startswith("stage")]
    assert sorted(blocks) == [
        f"stage{s}_block0{b}" for s in (1, 2, 3, 4) for b in (1, 2)
    ]


def test_training_mode_moves_and_returns_the_batch_statistics(tiny):
    # Protects against silently dropped statistics: momentum 0.9 on the batch's own.
    net, variables = tiny
    inputs = np.asarray(_inputs(4))
    before = jax.tree.map(np.array, variables)
    _, batch_stats = _jit(net.train_logits)(variables, inputs)
    np.testing.assert_allclose(
        batch_stats["norm"]["mean"], 0.1 * inputs.mean((0, 1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        batch_stats["norm"]["var"], 0.9 + 0.1 * inputs.var((0, 1, 2)), rtol=1e-5
    )
    _assert_equal(variables, before)


def test_modes_agree_where_the_running_statistics_are_the_batchs(tiny):
    # Protects the two graphs: they differ in the statistics used and in nothing else.
    net, variables = tiny
    inputs = _inputs(4)
    logits_fn = _jit(net.logits)
    train_logits, moved = _jit(net.train_logits)(variables, inputs)
    assert not np.allclose(train_logits, logits_fn(variables, inputs), atol=1e-2)
    batch = jax.tree.map(
        lambda new, old: (new - 0.9 * old) / 0.1, moved, variables["batch_stats"]
    )
    eval_logits = logits_fn({**variables, "batch_stats": batch}, inputs)
    np.testing.assert_allclose(train_logits, eval_logits, atol=1e-4)


def test_modes_agree_without_batch_statistics(cnn):
    # Protects networks without modes: training and evaluation are one program.
    net, variables = cnn
    inputs = _inputs(2)
    train_fn = jax.make_jaxpr(lambda *args: net.train_logits(*args)[0])
    eval_fn = jax.make_jaxpr(lambda *args: net.logits(*args))
    assert str(train_fn(variables, inputs)) == str(eval_fn(variables, inputs))
    batch_stats = jax.eval_shape(net.train_logits, variables, inputs)[1]
    assert batch_stats == {}


def test_resnet_evaluates_each_image_alone(resnet18):
    # Protects the certificate: other images of the batch, even NaN, change nothing.
    net, variables = resnet18
    logits_fn = _jit(net.logits)
    inputs = np.array(_inputs(3))
    expected = logits_fn(variables, inputs)
    assert expected.shape == (3, NUM_CLASSES)
    assert np.isfinite(expected).all()
    inputs[1:] = np.nan
    poisoned = np.asarray(logits_fn(variables, inputs))
    np.testing.assert_array_equal(poisoned[0], expected[0])
    assert np.isnan(poisoned[1:]).all()


def test_gradients_predict_the_loss_of_a_step(resnet18):
    # Protects the training path under jit and grad: every parameter has a gradient,
    # together they are the loss's slope, and the statistics come along.
    net, variables = resnet18
    inputs, labels = _inputs(16), jnp.arange(16) % NUM_CLASSES

    def loss_fn(params):
        logits, batch_stats = net.train_logits({**variables, "params": params}, inputs)
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
        return loss, batch_stats

    grad_fn = _jit(jax.value_and_grad(loss_fn, has_aux=True))
    params = variables["params"]
    (loss, batch_stats), grads = grad_fn(params)
    structure = jax.tree.structure(variables["batch_stats"])
    assert jax.tree.structure(batch_stats) == structure
    grads = jax.tree.map(np.asarray, grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad != 0), path
    slope = sum(np.square(grad).sum() for grad in jax.tree.leaves(grads))
    step = np.float32(1e-4)
    stepped = jax.tree.map(lambda w, grad: np.asarray(w) - step * grad, params, grads)
    (loss_after, _), _ = grad_fn(stepped)
    assert loss - loss_after == pytest.approx(step * slope, rel=0.2)


def test_one_network_serves_many_models_under_vmap(tiny):
    # Protects tracing over variables: an ensemble is a vmap, shapes checked inside it.
    net, variables = tiny
    other = net.init(jax.random.key(1))
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), variables, other)
    inputs = _inputs(2)
    both = _jit(jax.vmap(net.logits, in_axes=(0, None)))(stacked, inputs)
    expected = _jit(net.logits)(other, inputs)
    np.testing.assert_allclose(both[1], expected, rtol=1e-5, atol=1e-6)


# The merge.


def test_merge_pairs_names_where_order_would_mislead():
    # Protects more than nine numbered layers: "10" sorts before "2".
    names = [f"layer{index}" for index in range(12)]
    net = network(lambda rngs: Stack(names, rngs))
    variables = net.init(jax.random.key(0))
    x = np.ones((1, 3), np.float32)
    expected = x
    for name in names:
        layer = jax.tree.map(np.asarray, variables["params"][name])
        expected = expected @ layer["kernel"] + layer["bias"][None]
    logits = _jit(net.logits)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_merge_refuses_renamed_layers():
    # Protects against permuted layers: equal shapes, other names, as nnx.merge takes.
    made = network(lambda rngs: Stack(["1", "2", "10"], rngs))
    other = network(lambda rngs: Stack(["01", "02", "10"], rngs))
    variables = made.init(jax.random.key(0))
    message = "variables['params']['01']['bias'] is missing, but in the network it is "
    with pytest.raises(ValueError, match=re.escape(message + "float32[3]")):
        other.logits(variables, jnp.ones((1, 3)))


def test_merge_refuses_numbers_read_back_as_strings():
    # Protects children of an nnx.List: their keys are integers, those of JSON strings.
    class Listed(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net = network(Listed)
    variables = net.init(jax.random.key(0))
    layers = variables["params"]["layers"]
    variables["params"]["layers"] = {str(key): layers[key] for key in layers}
    message = "variables['params']['layers'][0]['bias'] is missing"
    with pytest.raises(ValueError, match=re.escape(message)):
        net.logits(variables, jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda v: v["params"].pop("head"),
            "variables['params']['head']['bias'] is missing, but in the network it is "
            "float32[5]",
        ),
        (
            lambda v: v["params"].update(extra=jnp.zeros(2)),
            "variables['params']['extra'] is float32[2], but in the network it is "
            "missing",
        ),
        (
            lambda v: v["params"]["head"].update(kernel=jnp.zeros((6, 4))),
            "variables['params']['head']['kernel'] is float32[6, 4], but in the "
            "network it is float32[6, 5]",
        ),
        (
            lambda v: v["params"]["norm"].update(scale=jnp.ones(6, jnp.bfloat16)),
            "variables['params']['norm']['scale'] is bfloat16[6], but in the network "
            "it is float32[6]",
        ),
        (
            lambda v: v["batch_stats"]["norm"].update(mean=None),
            "variables['batch_stats']['norm']['mean'] is missing",
        ),
        (
            lambda v: v.update(batch_stats={}),
            "variables['batch_stats']['norm']['mean'] is missing",
        ),
    ],
)
def test_merge_refuses_what_does_not_fit(tiny, edit, message):
    # Protects against weights of another model, in both modes and under jit.
    net, variables = tiny
    variables = jax.tree.map(lambda leaf: leaf, variables)  # new dicts
    edit(variables)
    for fn in (net.logits, net.train_logits, jax.jit(net.logits)):
        with pytest.raises(ValueError, match=re.escape(message)):
            fn(variables, _inputs(1))


def test_only_training_computes_in_bfloat16(tiny):
    # Protects certificates: scores are never those of rounded parameters by accident.
    net, variables = tiny
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    exact, _ = net.train_logits(variables, _inputs(2))
    variables = {**variables, "params": half}
    rounded, _ = net.train_logits(variables, _inputs(2))
    assert 0 < np.abs(np.asarray(rounded, np.float32) - exact).max() < 0.1
    with pytest.raises(ValueError, match="is bfloat16"):
        net.logits(variables, _inputs(2))


def test_a_teacher_may_compute_in_bfloat16(tiny):
    # Protects speed where nothing is certified, and that it is evaluation all the same.
    net, variables = tiny
    wanted = net.logits(variables, _inputs(2))
    np.testing.assert_array_equal(net.quick_logits(variables, _inputs(2)), wanted)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    found = net.quick_logits({**variables, "params": half}, _inputs(2))
    assert 0 < np.abs(np.asarray(found, np.float32) - wanted).max() < 0.1


def test_merge_refuses_other_containers(cnn):
    # Protects the form of variables: an absent "batch_stats" is not an empty one.
    net, variables = cnn
    with pytest.raises(ValueError, match="exactly the keys 'params' and 'batch_stats'"):
        net.logits({"params": variables["params"]}, _inputs(1))


def test_network_refuses_modules_with_random_state():
    # Protects purity: a dropout's key would have to live somewhere.
    with pytest.raises(ValueError, match="Dropout"):
        network(lambda rngs: nnx.Dropout(0.5, rngs=rngs))


# Base classifiers and their specs.


def test_masked_classifier_trains_on_one_ablation_an_image(tiny):
    # Protects the shapes of training, and that the key decides what is kept.
    net, variables = tiny
    classifier = masked_classifier(net, Columns(3), chunk_size=4)
    _assert_equal(classifier.init(jax.random.key(0)), variables)
    images = _images(4)
    train_logits = jax.jit(classifier.train_logits)
    logits, batch_stats = train_logits(variables, images, jax.random.key(3))
    assert logits.shape == (4, 1, NUM_CLASSES)
    assert np.any(
        batch_stats["norm"]["mean"] != variables["batch_stats"]["norm"]["mean"]
    )
    again, _ = train_logits(variables, images, jax.random.key(3))
    np.testing.assert_array_equal(logits, again)
    other, _ = train_logits(variables, images, jax.random.key(4))
    assert not np.allclose(logits, other)
    # A teacher sees the same: given the statistics of these inputs, it says the same.
    stats = jax.tree.map(np.zeros_like, variables["batch_stats"])
    _, updated = train_logits(
        {**variables, "batch_stats": stats}, images, jax.random.key(3)
    )
    own = jax.tree.map(lambda leaf: leaf / (1 - 0.9), updated)  # the momentum
    given = {**variables, "batch_stats": own}
    taught = jax.jit(classifier.drawn_logits)(given, images, jax.random.key(3))
    np.testing.assert_allclose(taught, logits, rtol=1e-4, atol=1e-5)


def test_masked_classifier_scores_every_ablation(tiny):
    # Protects the order of ablations and the use of evaluation mode in scoring.
    net, variables = tiny
    images = _images(2)
    encoded = np.concatenate([images, 1 - images], axis=-1)
    keep = Columns(3).keep_masks(IMAGE_SHAPE[:2])  # [P, H, W]
    ablated = np.where(keep[None, ..., None], encoded[:, None], np.float32(0))
    logits = _jit(net.logits)(variables, ablated.reshape(2 * 8, 8, 8, 6))
    expected = jax.nn.softmax(logits).reshape(2, 8, NUM_CLASSES)
    classifier = masked_classifier(net, Columns(3), chunk_size=3)
    scores = score(classifier.scores_fn(variables), images)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_new_weights_do_not_compile_again(tiny):
    # Protects validation between epochs: weights are arguments of the compiled program.
    net, variables = tiny
    once = chex.assert_max_traces(net.logits, n=1)
    classifier = masked_classifier(
        dataclasses.replace(net, logits=once), Columns(3), chunk_size=8
    )
    images = np.zeros((2, *IMAGE_SHAPE), np.float32)
    first = score(classifier.scores_fn(variables), images, batch_size=2)
    other = score(
        classifier.scores_fn(net.init(jax.random.key(1))), images, batch_size=2
    )
    assert not np.allclose(first, other)
    with pytest.raises(AssertionError, match="traced > 1"):  # it does count
        score(classifier.scores_fn(variables), images, batch_size=1)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "resnet18", "stem": "cifar", "width": 8},
        {"name": "resnet50", "stem": "imagenet", "width": 8},
        {"name": "small_cnn"},
    ],
)
def test_a_spec_builds_a_base_classifier(spec):
    # Protects the contract: [B, n, K] in training, [B, P, K] in scoring.
    classifier = build(
        spec, ablation=Columns(3), image_shape=[8, 8, 1], num_classes=NUM_CLASSES
    )
    abstract = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    logits, batch_stats = jax.eval_shape(
        classifier.train_logits, abstract, images, jax.random.key(1)
    )
    assert logits.shape == (2, 1, NUM_CLASSES)
    assert batch_stats == abstract["batch_stats"]
    scores = jax.eval_shape(
        lambda variables, images: classifier.scores_fn(variables)(images),
        abstract,
        images,
    )
    assert scores.shape == (2, 8, NUM_CLASSES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "resnet19"},
            "model.name='resnet19' must be one of 'bandnet', 'cnn', 'small_cnn', 'ens",
        ),
        ({}, "model.name=None must be one of"),
        ({"name": "small_cnn", "stem": "cifar"}, "model.stem='cifar' is no setting"),
        ({"name": "resnet18"}, "resnet18 needs model.stem"),
        ({"name": "resnet18", "stem": "cifar", "depth": 3}, "which takes stem, width"),
        ({"name": "resnet18", "stem": "mnist"}, "must be one of ['cifar', 'imagenet']"),
        ({"name": "resnet18", "stem": "cifar", "width": 0}, "width=0 must be >= 1"),
    ],
)
def test_build_refuses_specs_it_does_not_know(spec, message):
    # Protects against typos that would train another model than the one written down.
    with pytest.raises(ValueError, match=re.escape(message)):
        build(spec, ablation=Columns(3), image_shape=IMAGE_SHAPE, num_classes=5)


def test_builders_refuse_impossible_tasks():
    # Protects from shape errors deep in a layer: the argument is named instead.
    with pytest.raises(ValueError, match=r"depth=20 must be one of \[18, 34, 50\]"):
        resnet(20, image_shape=IMAGE_SHAPE, num_classes=5, stem="cifar")
    with pytest.raises(ValueError, match=r"image_shape=\(8, 8\) must be"):
        small_cnn(image_shape=(8, 8), num_classes=5)
    with pytest.raises(ValueError, match="num_classes=1 must be >= 2"):
        small_cnn(image_shape=IMAGE_SHAPE, num_classes=1)
