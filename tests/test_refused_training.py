"""Bad settings of training, models and weights: refused by name, with the remedy."""

from refusals import COLUMNS, SIZE, check_refused, each

import dsmooth_jax as ds
from dsmooth_jax import models
from dsmooth_jax.ablation import thinned
from dsmooth_jax.commands import cli
from dsmooth_jax.training import optimizers
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.config import Config, TrainConfig
from dsmooth_jax.training.losses import LossConfig
from dsmooth_jax.training.teaching import TeacherConfig


def calls():
    # What the scripts hand on.
    for text in ("", "5", "5x", "x5", "0x5", "5x0", "-1x2", "2x2,", "2.0x2", "2x2x2"):
        bad = text.split(",")[-1]
        words = ["--patches", repr(bad), "HEIGHTxWIDTH", "--patches=2x2,5x5"]
        yield (
            f"cli: {text!r}",
            lambda t=text: cli.parse_patches(t, (8, 8)),
            ValueError,
            words,
        )
    for change, error, words in (
        ({"name": "adam"}, ValueError, ["optimizer.name='adam'", "adamw", "sgd"]),
        ({"schedule": "step"}, ValueError, ["optimizer.schedule='step'", "cosine"]),
        ({"learning_rate": 0}, ValueError, ["optimizer.learning_rate=0", "> 0"]),
        ({"learning_rate": "1"}, TypeError, ["optimizer.learning_rate='1'", "number"]),
        ({"weight_decay": -1}, ValueError, ["optimizer.weight_decay=-1", ">= 0"]),
        ({"adam_learning_rate": 0}, ValueError, ["optimizer.adam_learning_rate=0"]),
        ({"momentum": 1}, ValueError, ["optimizer.momentum=1", "< 1"]),
        ({"newton_schulz_steps": 0}, ValueError, ["newton_schulz_steps=0", ">= 1"]),
        ({"warmup_epochs": -1}, ValueError, ["optimizer.warmup_epochs=-1", ">= 0"]),
        ({"boundaries": (3, 2)}, ValueError, ["optimizer.boundaries=(3, 2)"]),
    ):
        yield (
            f"training: {change}",
            lambda c=change: optimizers.OptimizerConfig(**c),
            error,
            words,
        )
    yield (
        "training: warm-up longer than the run",
        lambda: optimizers.make_optimizer(
            optimizers.OptimizerConfig(warmup_epochs=3), num_epochs=3, steps_per_epoch=5
        ),
        ValueError,
        ["optimizer.warmup_epochs=3", "epochs, 3"],
    )
    for change, error, words in (
        ({"weight": 1.5}, ValueError, ["train.teacher.weight=1.5", "<= 1"]),
        ({"weight": -0.5}, ValueError, ["train.teacher.weight=-0.5", ">= 0"]),
        ({"temperature": 0}, ValueError, ["train.teacher.temperature=0", "> 0"]),
    ):
        yield f"teacher: {change}", lambda c=change: TeacherConfig(**c), error, words
    taught = TeacherConfig("runs/teacher")
    yield (
        "teacher: of a margin",
        lambda: TrainConfig(teacher=taught, loss=LossConfig("double_masked")),
        ValueError,
        ["train.teacher.workdir='runs/teacher'", "loss.name='double_masked'"],
    )
    yield (
        "teacher: of whole images",
        lambda: Config(defence="double_masking", train=TrainConfig(teacher=taught)),
        ValueError,
        ["train.teacher.workdir='runs/teacher'", "defence='double_masking'"],
    )
    yield (
        "training: shift",
        lambda: AugmentConfig(shift=-1),
        ValueError,
        ["augment.shift=-1", ">= 0"],
    )
    yield (
        "training: shift that is no whole pixel",
        lambda: AugmentConfig(shift=1.5),
        TypeError,
        ["augment.shift=1.5", "integer"],
    )
    yield (
        "training: every second ablation of several windows",
        lambda: thinned(ds.MultiColumns(2, 2), 2),
        TypeError,
        ["every=2", "MultiColumns(width=2, keep=2)", "use every=1"],
    )
    for change, error, words in (
        ({"cutout": -1}, ValueError, ["augment.cutout=-1", ">= 0"]),
        ({"cutout": 2.5}, TypeError, ["augment.cutout=2.5", "integer"]),
        ({"color": 1.0}, ValueError, ["augment.color=1.0", "< 1"]),
    ):
        yield f"augment: {change}", lambda c=change: AugmentConfig(**c), error, words
    for change, error, words in (
        ({"name": "hinge"}, ValueError, ["loss.name='hinge'", "certified_margin"]),
        ({"label_smoothing": 1}, ValueError, ["loss.label_smoothing=1", "< 1"]),
        ({"every": 0}, ValueError, ["loss.every=0", ">= 1"]),
        ({"temperature": 0}, ValueError, ["loss.temperature=0", "> 0"]),
        ({"target": None}, TypeError, ["loss.target=None", "number"]),
        ({"cross_entropy": -1}, ValueError, ["loss.cross_entropy=-1", ">= 0"]),
        ({"patch": (0, 5)}, ValueError, ["0"]),
    ):
        yield f"losses: {change}", lambda c=change: LossConfig(**c), error, words
    model = models.small_cnn(image_shape=(*SIZE, 1), num_classes=3)
    yield (
        "load_weights: no file",
        lambda: ds.load_weights("/nowhere/weights.pth", model),
        FileNotFoundError,
        ["/nowhere/weights.pth", "is no file"],
    )
    yield (
        "save_weights: another format",
        lambda: ds.save_weights("/nowhere/weights", {}, format="onnx"),
        ValueError,
        ["format='onnx'", "safetensors"],
    )
    yield (
        "models: no such model",
        lambda: models.build(
            {"name": "vgg"}, ablation=COLUMNS, image_shape=(4, 6, 1), num_classes=3
        ),
        ValueError,
        ["name='vgg'", "resnet18", "small_cnn"],
    )


@each(calls())
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    check_refused(call, error, words)
