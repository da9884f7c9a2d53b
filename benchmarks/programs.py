"""The programs that `benchmarks.accelerator` times, compiled, with what they cost."""

import dataclasses
import functools
import importlib
import json
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsmooth_jax import models
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.masking import to_unit
from dsmooth_jax.scoring import MATMUL_PRECISION, is_masked, score_batch
from dsmooth_jax.smoothed import restore_base
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig, augment
from dsmooth_jax.training.config import from_json, to_json
from dsmooth_jax.training.step import init_state, make_train_step

SHIPPED = pathlib.Path(__file__).resolve().parents[1] / "pretrained/cifar10_columns3"


@dataclasses.dataclass(frozen=True)
class Size:
    """How large networks, batches and matrices are."""

    widths: tuple[int, int, int] = (80, 160, 320)
    depth: int = 6
    batch: int = 512
    score_batch: int = 256
    resnet_width: int = 64
    side: int = 299  # pixels of an ImageNet image
    columns: int = 25  # kept of them
    num_imagenet: int = 1000
    large_batch: int = 64
    matrix: int = 8192
    copied: int = 2**28  # float32 numbers


SIZES = {
    "card": Size(),
    "small": Size(
        widths=(4, 8, 16),
        depth=2,
        batch=16,
        score_batch=8,
        resnet_width=4,
        side=48,
        columns=4,
        num_imagenet=10,
        large_batch=4,
        matrix=512,
        copied=2**22,
    ),
}


@dataclasses.dataclass
class Program:
    """A compiled call, ready to be timed.

    FLOP are those of matrix products and convolutions, by `flop_of`: on GPUs XLA counts
    none of what cuDNN does. Bytes are what XLA counts, of a loop one round.
    """

    call: Callable[[], object]  # starts it; `wait` of the result: it is done
    images: float | None = None  # of one call
    flop: float = 0.0
    moved: float = 0.0  # bytes
    memory: float = 0.0  # bytes, XLA's own analysis
    rate: str = "bfloat16"  # of the matmul rates, its limit
    wait: Callable[[object], object] = jax.block_until_ready


def compiled(fn, *args, donate=()):
    """(callable, FLOP, bytes, peak memory) of one program."""
    traced = jax.jit(fn, donate_argnums=donate).trace(*args)
    program = traced.lower().compile()
    moved = (program.cost_analysis() or {}).get("bytes accessed", 0.0)
    used = program.memory_analysis()
    peak = used.argument_size_in_bytes + used.output_size_in_bytes
    peak += used.temp_size_in_bytes - used.alias_size_in_bytes
    return program, flop_of(traced.jaxpr.jaxpr), moved, peak


def flop_of(jaxpr):
    """FLOP of the matrix products and convolutions in a program, and in its parts."""
    total = 0.0
    for eqn in jaxpr.eqns:
        shapes = [variable.aval for variable in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            summed = math.prod(shapes[0].shape[axis] for axis in contracted)
            total += 2 * shapes[-1].size * summed
        elif eqn.primitive.name == "conv_general_dilated":
            features = shapes[1].shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            products = shapes[-1].size * shapes[1].size / features
            # Of a strided convolution's gradient, the zeros between its inputs.
            skipped = math.prod(eqn.params["lhs_dilation"])
            total += 2 * products / skipped / eqn.params["batch_group_count"]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(part):
                total += times * flop_of(getattr(part, "jaxpr", part))
    return total


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def recipe(name, columns=None, **model):
    """The settings of a file in configs/, of another network."""
    made = importlib.import_module(f"configs.{name}").get_config()
    config = to_json(from_json(json.loads(made.to_json())))
    config["model"] |= model
    if columns is not None:
        config["ablation"]["width"] = columns
    return config


def parts_of(config, shape, num_classes):
    """(classifier, optimizer, its first state)."""
    classifier = models.build(
        config["model"],
        ablation=ablation_from_json(config["ablation"]),
        image_shape=shape,
        num_classes=num_classes,
    )
    optimizer, _ = optimizers.make_optimizer(
        optimizers.OptimizerConfig(**config["train"]["optimizer"]),
        num_epochs=config["train"]["epochs"],
        steps_per_epoch=100,
    )
    state = init_state(classifier, optimizer, jax.random.key(0))
    return classifier, optimizer, state


def random_batch(batch, shape, num_classes):
    """uint8 images and labels, on the device."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *shape), np.uint8)
    labels = rng.integers(0, num_classes, batch).astype(np.int32)
    return jnp.asarray(images), jnp.asarray(labels)


def train_step(config, batch, shape, num_classes):
    """A step in bfloat16; its state is kept and donated, as in a run."""
    classifier, optimizer, state = parts_of(config, shape, num_classes)
    augment_config = AugmentConfig(**config["train"]["augment"])
    step = make_train_step(classifier, optimizer, augment_config, precision="bfloat16")
    key, data = jax.random.key(0), random_batch(batch, shape, num_classes)
    program, *cost = compiled(
        lambda s, x, y: step(s, x, y, key), state, *data, donate=0
    )
    states = [state]

    def call():
        states[0], metrics = program(states[0], *data)
        return metrics

    return Program(call, batch, *cost)


def step_part(part, config, batch, shape, num_classes):
    """One of "augmentation", "forward", "forward and backward" of `train_step`."""
    classifier, _, state = parts_of(config, shape, num_classes)
    images, labels = random_batch(batch, shape, num_classes)
    key, settings = jax.random.key(0), AugmentConfig(**config["train"]["augment"])

    def loss(params, images):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        variables = {**state.variables, "params": half}
        logits, _ = classifier.train_logits(variables, to_unit(images), key)
        chosen = jax.nn.one_hot(labels, num_classes)[:, None]
        return -(jax.nn.log_softmax(logits.astype(jnp.float32)) * chosen).mean()

    fn, *args = {
        "augmentation": (lambda x: augment(key, to_unit(x), settings), images),
        "forward": (loss, state.variables["params"], images),
        "forward and backward": (jax.grad(loss), state.variables["params"], images),
    }[part]
    program, *cost = compiled(fn, *args)
    return Program(lambda: program(*args), batch, *cost)


def scoring(make, batch, shape, views=1):
    """Scoring as `ds.score` does it; of a masked network the passes of a batch.

    `make` gives the scores_fn; `views` is how often it reads an image one after the
    other, which XLA counts once.
    """
    scores_fn = make()
    images, _ = random_batch(batch, shape, 2)
    if not is_masked(scores_fn):
        program, flop, moved, memory = compiled(score_batch, scores_fn, images)
        return Program(
            lambda: program(scores_fn, images),
            batch,
            flop,
            views * moved,
            memory,
            rate="float32",
        )
    # Its loop is over ablations: what it repeats is the network on some of them.
    (logits_fn,) = scores_fn.args
    passes = scores_fn.func.ablation.num_ablations(shape[:2])
    both = jnp.concatenate([to_unit(images), 1 - to_unit(images)], -1)
    with jax.default_matmul_precision(MATMUL_PRECISION):
        program, *cost = compiled(lambda f, x: f(x), logits_fn, both)
    return Program(
        lambda: program(logits_fn, both), batch / passes, *cost, rate="float32"
    )


def random_scores(config, shape, num_classes):
    """The scores_fn of a network with random weights, which do not change the cost."""
    classifier, _, state = parts_of(config, shape, num_classes)
    return classifier.scores_fn(state.variables)


def shipped_scores():
    """The scores_fn of the classifier that travels with the repository."""
    classifier, variables, _ = restore_base(SHIPPED)
    return classifier.scores_fn(variables)


def matmul(size, dtype, precision=None):
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    program, *_ = compiled(
        lambda x: jnp.matmul(x, x, precision=precision) / size, matrix
    )
    return Program(lambda: program(matrix), flop=2 * size**3)


def copy(numbers):
    array = jax.random.normal(jax.random.key(0), (numbers,))
    program, *_ = compiled(lambda x: x + 1, array)
    return Program(lambda: program(array), moved=8 * numbers)


def jobs_of(size):
    """{row: a function that compiles its `Program`}, what matters most first."""

    def job(fn, *args, **options):
        return functools.partial(fn, *args, **options)

    cifar, side = ((32, 32, 3), 10), ((size.side, size.side, 3), size.num_imagenet)

    def band(width, mirror=False, shift=0):
        shape = {"width": width, "max_width": 4 * width, "depth": size.depth}
        return recipe("cifar10_columns3", **shape, mirror=mirror, shift=shift)

    bands = {width: band(width) for width in size.widths}
    wide = {"width": size.resnet_width}
    paper = recipe("cifar10_columns4_resnet18", **wide)
    large = recipe("imagenet_columns25_bandnet", size.columns, depth=size.depth, **wide)
    deep = recipe("imagenet_columns25_resnet50", size.columns, **wide)
    first, middle, last = size.widths
    big, many, few = f"{size.side}x{size.side}", size.score_batch, size.large_batch
    # On CPUs views are read one after the other, elsewhere as one batch.
    views = 6 if jax.default_backend() == "cpu" else 1
    return {
        "rate bfloat16": job(matmul, size.matrix, jnp.bfloat16),
        "rate float32": job(matmul, size.matrix, jnp.float32, "highest"),
        "rate TF32": job(matmul, size.matrix, jnp.float32, "tensorfloat32"),
        "rate copy": job(copy, size.copied),
        f"step bandnet {middle}": job(train_step, bands[middle], size.batch, *cifar),
        "step ResNet-18": job(train_step, paper, size.batch, *cifar),
        f"step bandnet {first}": job(train_step, bands[first], size.batch, *cifar),
        f"step bandnet {last}": job(train_step, bands[last], size.batch, *cifar),
        f"step ResNet-50 {big}": job(train_step, deep, few, *side),
        f"step bandnet {big}": job(train_step, large, few, *side),
        "score shipped": job(scoring, shipped_scores, many, cifar[0]),
        f"score bandnet {first}, 6 views": job(
            scoring,
            job(random_scores, band(first, mirror=True, shift=3), *cifar),
            many,
            cifar[0],
            views,
        ),
        "score masked ResNet-18": job(
            scoring, job(random_scores, paper, *cifar), many, cifar[0]
        ),
        **{
            f"score bandnet {width}": job(
                scoring, job(random_scores, bands[width], *cifar), many, cifar[0]
            )
            for width in (middle, last)
        },
        f"score bandnet {big}": job(
            scoring, job(random_scores, large, *side), few, side[0]
        ),
        **{
            f"part of bandnet {middle}: {part}": job(
                step_part, part, bands[middle], size.batch, *cifar
            )
            for part in ("augmentation", "forward", "forward and backward")
        },
        f"score masked ResNet-50 {big}": job(
            scoring, job(random_scores, deep, *side), few, side[0]
        ),
    }
