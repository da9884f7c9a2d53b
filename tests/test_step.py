"""Protects training: pure, repeatable steps that learn, and the paper's settings."""

import dataclasses
import importlib
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import masking, models
from dsmooth_jax.ablation import ablation_from_json, thinned
from dsmooth_jax.masks import masks_from_json
from dsmooth_jax.training import masked, optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.config import from_json, to_json
from dsmooth_jax.training.losses import LossConfig
from dsmooth_jax.training.optimizers import OptimizerConfig
from dsmooth_jax.training.step import init_state, make_train_step

SHAPE = (8, 8, 1)


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax's own schedules add Python floats to integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def small_classifier():
    return models.build(
        {"name": "small_cnn"}, ablation=ds.Columns(4), image_shape=SHAPE, num_classes=3
    )


def batch(n=12, shape=SHAPE, num_classes=3):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, n)
    images = rng.integers(0, 60, (n, *shape)) + 60 * labels[:, None, None, None]
    return jnp.asarray(images.astype(np.uint8)), jnp.asarray(labels, jnp.int32)


def run(config, augment=None, num_steps=30):
    classifier = small_classifier()
    optimizer, _ = optimizers.make_optimizer(config, num_epochs=1, steps_per_epoch=30)
    state = init_state(classifier, optimizer, jax.random.key(0))
    augment = augment or AugmentConfig()
    step = jax.jit(make_train_step(classifier, optimizer, augment))
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, *batch(), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(learning_rate=2e-3),
        OptimizerConfig("sgd", 0.02, schedule="piecewise", boundaries=(0.8,)),
        OptimizerConfig("muon", 0.02, weight_decay=0.0, momentum=0.95),
    ],
    ids=lambda config: config.name,
)
def test_training_learns(config):
    """Brightness says the class, any column shows it: the loss falls by half."""
    _, losses = run(config)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_steps_are_repeatable_and_have_their_own_random_numbers():
    """The same key gives the same run; two steps on one batch differ."""
    config = OptimizerConfig(learning_rate=1e-9)
    (first, losses), (second, again) = run(config), run(config)
    assert losses == again
    assert len(set(losses)) > 20  # other ablations are drawn at each step
    chex.assert_trees_all_equal(first, second)
    assert int(first.step) == 30


def test_the_step_is_the_gradient_of_the_mean_loss():
    """One step of plain SGD against the gradient written out here."""
    classifier = small_classifier()
    images, labels = batch()
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig(
            "sgd", 0.1, weight_decay=0.0, momentum=0.0, schedule="constant"
        ),
        num_epochs=1,
        steps_per_epoch=1,
    )
    state = init_state(classifier, optimizer, jax.random.key(0))
    step = jax.jit(make_train_step(classifier, optimizer, AugmentConfig()))
    after, metrics = step(state, images, labels, jax.random.key(1))
    _, ablate_key = jax.random.split(jax.random.fold_in(jax.random.key(1), state.step))

    def loss_fn(params):
        variables = {**state.variables, "params": params}
        floats = images.astype(jnp.float32) / 255
        logits, _ = classifier.train_logits(variables, floats, ablate_key)
        own = jnp.take_along_axis(logits[:, 0], labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits[:, 0], axis=1) - own).mean()

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(state.variables["params"])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(
        lambda p, g: p - 0.1 * g, state.variables["params"], gradient
    )
    chex.assert_trees_all_close(
        after.variables["params"], expected, rtol=1e-7, atol=1e-6
    )


def margin_step(classifier, ablation, optimizer, every=1, patch=(2, 2)):
    return jax.jit(
        make_train_step(
            classifier,
            optimizer,
            AugmentConfig(),
            LossConfig("certified_margin", every=every, temperature=1.0, patch=patch),
            sets=ds.touched(ablation, ds.Patch(*patch), SHAPE[:2]),
        )
    )


@pytest.mark.parametrize(
    ("name", "every", "patch"),
    [("small_cnn", 1, (2, 2)), ("bandnet", 1, (2, 2)), ("bandnet", 2, (2, 1))],
)
def test_training_on_the_margin_certifies(name, every, patch):
    """The loss on the certificate makes certificates, whatever the classifier.

    Also that of every second ablation: what is certified are all of them.
    """
    ablation = ds.Columns(2)
    classifier = models.build(
        {"name": name}, ablation=ablation, image_shape=SHAPE, num_classes=3
    )
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig("muon", 0.02, weight_decay=0.0),
        num_epochs=1,
        steps_per_epoch=40,
    )
    state = init_state(classifier, optimizer, jax.random.key(0))
    step = margin_step(classifier, thinned(ablation, every), optimizer, every, patch)
    images, labels = batch()
    for _ in range(40):
        state, metrics = step(state, images, labels, jax.random.key(1))
    assert float(metrics["loss"]) < 1.0  # three classes, all duels even: about 6
    smoothed = ds.SmoothedClassifier(
        classifier.scores_fn(state.variables), ablation, voting="graded", strength=5.0
    )
    found = smoothed.certify(np.asarray(images), ds.Patch(*patch))
    assert (found.prediction == np.asarray(labels)).all() and found.is_certified.all()


def test_a_loss_on_the_margin_needs_touched_sets():
    """Without them there is nothing to certify."""
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig(), num_epochs=1, steps_per_epoch=1
    )
    with pytest.raises(ValueError, match="sets=None"):
        make_train_step(
            small_classifier(),
            optimizer,
            AugmentConfig(),
            LossConfig("certified_margin"),
        )


def test_touched_sets_of_other_ablations_are_refused():
    """Those of all ablations beside the logits of every second one."""
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig(), num_epochs=1, steps_per_epoch=1
    )
    classifier = small_classifier()
    state = init_state(classifier, optimizer, jax.random.key(0))
    step = margin_step(classifier, ds.Columns(2), optimizer, every=2)
    with pytest.raises(ValueError, match=r"touched has .* loss\.every=2; .* thinned"):
        step(state, *batch(), jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "ablation"),
    [
        ("small_cnn", ds.Columns(3)),
        ("small_cnn", ds.Blocks(3, 3)),
        ("bandnet", ds.Rows(3)),
        ("bandnet", ds.Blocks(4, 4)),
    ],
    ids=str,
)
def test_every_second_ablation_is_every_second_of_all(name, ablation):
    """Each of its logits is nearest to those of the same window among all of them.

    (Nearest: a bandnet's batch statistics are those of half as many windows.)
    """
    classifier = models.build(
        {"name": name}, ablation=ablation, image_shape=SHAPE, num_classes=3
    )
    variables = classifier.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).random((16, *SHAPE)), jnp.float32)
    read = jax.jit(classifier.train_all_logits, static_argnums=2)
    whole, found = (
        np.asarray(read(variables, images, every)[0]).swapaxes(0, 1)  # [P, B, K]
        for every in (1, 2)
    )
    starts, kept = (
        masking.window_starts(each, SHAPE[:2]).tolist()
        for each in (ablation, thinned(ablation, 2))
    )
    distances = np.abs(found[:, None] - whole[None]).sum((2, 3))
    assert len(kept) == len(found) < len(starts) == len(whole)
    assert [starts[i] for i in distances.argmin(1)] == kept


def test_the_average_is_the_exponential_one():
    """Against the recursion written out here; validated is the average."""
    classifier = small_classifier()
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig(), num_epochs=1, steps_per_epoch=3
    )
    step = jax.jit(
        make_train_step(classifier, optimizer, AugmentConfig(), ema_decay=0.15)
    )
    state = init_state(classifier, optimizer, jax.random.key(0), has_average=True)

    def kernel(variables):
        return np.asarray(variables["params"]["conv1"]["kernel"])

    expected = kernel(state.variables)
    for decay in (0.1, 0.15, 0.15):  # (1 + t) / (10 + t) until it reaches 0.15
        state, _ = step(state, *batch(), jax.random.key(1))
        expected = decay * expected + (1 - decay) * kernel(state.variables)
    np.testing.assert_allclose(kernel(state.best_variables), expected, rtol=1e-5)
    assert not np.allclose(kernel(state.variables), expected, rtol=1e-5)


def test_a_run_starts_from_given_variables():
    """Fine-tuning: the first state holds them, and the average starts there too."""
    classifier = small_classifier()
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig(), num_epochs=1, steps_per_epoch=1
    )
    given = classifier.init(jax.random.key(7))
    state = init_state(
        classifier, optimizer, jax.random.key(0), variables=given, has_average=True
    )
    for found in (state.variables, state.average):
        jax.tree.map(np.testing.assert_array_equal, found, given)


def step_of(classifier, num_steps=1, images=None, **settings):
    """(state, metrics) after some steps, and the function itself."""
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig("sgd", 0.05), num_epochs=1, steps_per_epoch=30
    )
    state = init_state(classifier, optimizer, jax.random.key(0))
    step = make_train_step(classifier, optimizer, AugmentConfig(shift=1), **settings)
    compiled = jax.jit(step)
    for _ in range(num_steps):
        state, metrics = compiled(state, *batch(), jax.random.key(1))
    return state, metrics, step


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    """Without batch normalisation and random ablations: the same step, to rounding."""
    classifier = small_classifier()

    def all_logits(variables, images, key):
        return classifier.train_all_logits(variables, images, 1)

    every = dataclasses.replace(classifier, train_logits=all_logits)
    whole, metrics, _ = step_of(every)
    parts, found, _ = step_of(every, num_accumulated=3)
    chex.assert_trees_all_close(whole, parts, rtol=1e-5, atol=1e-6)
    assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    with pytest.raises(ValueError, match="num_accumulated=5 must divide the batch, 12"):
        step_of(every, num_accumulated=5)
    with pytest.raises(ValueError, match="num_accumulated=0 must be >= 1"):
        step_of(every, num_accumulated=0)


def test_parts_of_a_batch_take_the_memory_of_a_part():
    """What accumulation is for: the temporaries of the compiled step shrink."""
    classifier = models.build(
        {"name": "bandnet", "width": 8, "depth": 2, "crops": 2},
        ablation=ds.Columns(4),
        image_shape=SHAPE,
        num_classes=3,
    )
    images, labels = batch(64)
    sizes = []
    for num in (1, 4):
        state, _, step = step_of(classifier, num_accumulated=num)
        compiled = jax.jit(step).lower(state, images, labels, jax.random.key(0))
        memory = compiled.compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2
    # Batch statistics pass through every part: one update each.
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("name", ["bandnet", "resnet18"])
def test_bfloat16_computes_and_float32_keeps(name):
    """Convolutions run in bfloat16; parameters, statistics and loss stay float32."""
    sizes = {"bandnet": {"depth": 2}, "resnet18": {"stem": "cifar"}}
    spec = {"name": name, "width": 8, **sizes[name]}
    classifier = models.build(
        spec, ablation=ds.Columns(4), image_shape=SHAPE, num_classes=3
    )
    exact, metrics, _ = step_of(classifier)
    state, found, step = step_of(classifier, precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {
        np.dtype(np.float32),
        np.dtype(np.int32),
    }
    assert found["loss"].dtype == jnp.float32
    program = str(jax.make_jaxpr(step)(state, *batch(), jax.random.key(0)))
    kernels = [x for x in program.split("\n") if "= conv_general_dilated" in x]
    assert kernels and all(":bf16[" in line for line in kernels)
    assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=0.05)
    assert float(found["loss"]) != float(metrics["loss"])
    exact_stats, stats = (s.variables["batch_stats"] for s in (exact, state))
    chex.assert_trees_all_close(exact_stats, stats, rtol=0.1, atol=0.02)
    with pytest.raises(ValueError, match=r"train.precision='float16' must be one of"):
        step_of(classifier, precision="float16")


FOLDER = pathlib.Path(__file__).parents[1] / "configs"
CONFIGS = {path.stem for path in FOLDER.glob("*.py")}
# An ensemble is put together and takes no step: tests/test_long_run.py.
CONFIGS = sorted(CONFIGS - {"cifar10_columns3_card_all"})

# One for each network, defence, loss and precision: layers of the others are theirs.
TAKES_A_STEP = {
    "cifar10_blocks12_resnet18",
    "cifar10_columns3",
    "cifar10_columns3_margin",
    "cifar10_columns4_vit_small",
    "imagenet_columns25_resnet50",
    "mnist5k_masks",
    "mnist5k_smoke",
    "mnist_columns2",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_traces_at_its_real_shapes_and_takes_a_step(name):
    """No config can rot: real shapes are traced; one of each kind takes a step."""
    module = importlib.import_module(f"configs.{name}")
    command = "python -m scripts.long_run" if "card" in name else "python train.py"
    assert command in module.__doc__
    assert "card" in name or f"--config=configs/{name}.py" in module.__doc__
    config = to_json(from_json(json.loads(module.get_config().to_json())))
    grey = dict.fromkeys(("mnist5k", "mnist", "fashion_mnist"), (28, 28, 1))
    shapes = {**grey, "cifar10": (32, 32, 3), "imagenet2012": (299, 299, 3)}
    shape = shapes[config["data"]["name"]]
    shape = (*(config["data"].get("size") or shape[:2]), shape[2])
    num_classes = 1000 if shape[0] > 200 else 10
    if config["defence"] == "double_masking":
        classifier = masked.build(from_json(config), shape, num_classes)
        record = masked.masks_record(from_json(config), shape[:2])
        assert masks_from_json(record["masks"]).num_masks(shape[:2]) > 1
    else:
        classifier = models.build(
            config["model"],
            ablation=ablation_from_json(config["ablation"]),
            image_shape=shape,
            num_classes=num_classes,
        )
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig(**config["train"]["optimizer"]),
        num_epochs=config["train"]["epochs"],
        steps_per_epoch=10,
    )
    augment = AugmentConfig(**config["train"]["augment"])
    loss = LossConfig(**config["train"]["loss"])
    sets = None
    if config["defence"] == "smoothing":
        ablation = thinned(ablation_from_json(config["ablation"]), loss.every)
        find = ds.design_masks if loss.name == "double_masked" else ds.touched
        sets = find(ablation, ds.Patch(*loss.patch), shape[:2])
    ema_decay = config["train"]["ema_decay"]
    step = make_train_step(
        classifier,
        optimizer,
        augment,
        loss,
        sets=sets,
        ema_decay=ema_decay,
        precision=config["train"]["precision"],
        num_accumulated=config["train"]["num_accumulated"],
    )

    def first_state(variables):
        has_average = ema_decay > 0
        key = jax.random.key(0)
        return init_state(
            classifier, optimizer, key, variables=variables, has_average=has_average
        )

    variables = jax.eval_shape(classifier.init, jax.random.key(0))
    state = jax.eval_shape(first_state, variables)
    real = jax.ShapeDtypeStruct((config["train"]["batch_size"], *shape), jnp.uint8)
    real_labels = jax.ShapeDtypeStruct(real.shape[:1], jnp.int32)
    after, _ = jax.eval_shape(step, state, real, real_labels, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    if name not in TAKES_A_STEP:
        return
    images, labels = batch(2, shape, num_classes)
    fast = {"xla_backend_optimization_level": 0}
    step = jax.jit(step, compiler_options=fast)
    state = first_state(None)
    state, metrics = step(state, images, labels, jax.random.key(1))
    assert np.isfinite(float(metrics["loss"])) and int(state.step) == 1


def test_configs_are_frozen_values():
    """A change is a new value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptimizerConfig().learning_rate = 1.0
