"""Protects soft labels of ablations: of what the student sees, mixed as asked."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import models
from dsmooth_jax.ablation import ablation_to_json
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST
from dsmooth_jax.training import optimizers, teaching
from dsmooth_jax.training.augment import AugmentConfig
from dsmooth_jax.training.optimizers import OptimizerConfig
from dsmooth_jax.training.step import init_state, make_train_step, with_teacher
from dsmooth_jax.training.teaching import TeacherConfig

SHAPE = (8, 8, 1)
STUDENT = {
    "model": {"name": "bandnet", "width": 4, "depth": 2, "crops": 2},
    "ablation": ablation_to_json(ds.Columns(3)),
    "image_shape": list(SHAPE),
    "num_classes": 3,
}
TEACHER = {"name": "bandnet", "width": 6, "depth": 3, "crops": 4, "mirror": True}


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax's own schedules add Python floats to integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def student():
    return models.build(
        STUDENT["model"], ablation=ds.Columns(3), image_shape=SHAPE, num_classes=3
    )


@pytest.fixture(scope="module")
def teacher():
    """A larger network, and its weights, drawn at random."""
    classifier = teaching.build_teacher(TEACHER, STUDENT)
    return classifier, classifier.init(jax.random.key(5))


def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *SHAPE)).astype(np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 3, 6), jnp.int32)


def one_step(student, teach=None, num_accumulated=1):
    """(parameters, metrics) after a step without augmentation."""
    optimizer, _ = optimizers.make_optimizer(
        OptimizerConfig("sgd", 0.1), num_epochs=1, steps_per_epoch=10
    )
    step = make_train_step(
        student, optimizer, AugmentConfig(), num_accumulated=num_accumulated
    )
    step = step if teach is None else with_teacher(step, teach)
    state = init_state(student, optimizer, jax.random.key(0))
    state, metrics = jax.jit(lambda step, *rest: step(*rest))(
        step, state, *batch(), jax.random.key(1)
    )
    return state.variables["params"], metrics


def test_labels_are_those_of_the_windows_that_the_student_sees(student, teacher):
    """The loss of a step, against one written out: windows, weight, temperature."""
    config = TeacherConfig("unused", weight=0.75, temperature=2.0)
    teach = teaching.teach(config, *teacher, precision="float32")
    _, metrics = one_step(student, teach)
    images, labels = batch()
    pixels = images.astype(jnp.float32) / 255
    _, key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0))
    said = teacher[0].drawn_logits(teacher[1], pixels, key)
    soft = 0.75 * np.asarray(jax.nn.softmax(said / 2.0))  # [6, 2, 3]
    soft[np.arange(6), :, np.asarray(labels)] += 0.25
    logits, _ = student.train_logits(student.init(jax.random.key(0)), pixels, key)
    loss = -(soft * np.asarray(jax.nn.log_softmax(logits))).sum(-1).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    agrees = np.asarray(logits).argmax(-1) == soft.argmax(-1)
    np.testing.assert_allclose(metrics["accuracy"], agrees.mean(), rtol=1e-6)


def test_a_teacher_without_weight_changes_nothing(student, teacher):
    """And one with weight does, of a batch in two parts, its arrays arguments."""
    nothing = teaching.teach(
        TeacherConfig("unused", weight=0.0), *teacher, precision="bfloat16"
    )
    plain, _ = one_step(student, None, 2)
    same, _ = one_step(student, nothing, 2)
    chex.assert_trees_all_close(plain, same, rtol=1e-6, atol=1e-7)
    all_of_it = teaching.teach(
        TeacherConfig("unused", weight=1.0), *teacher, precision="bfloat16"
    )
    other, _ = one_step(student, all_of_it, 2)
    change = max(
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True)
    )
    assert change > 1e-3
    leaves = jax.tree.leaves(all_of_it)
    assert len(leaves) == len(jax.tree.leaves(teacher[1]))
    assert {leaf.dtype.name for leaf in leaves} == {"bfloat16", "float32"}


def test_a_run_is_taught_by_a_run_of_the_same_ablation(run_script, smoke_run, tmp_path):
    """train.py records whose arrays taught; a teacher that does not fit is refused."""
    run_script(
        "train.py",
        "--config=configs/mnist5k_smoke.py",
        f"--workdir={tmp_path / 'taught'}",
        f"--config.train.teacher.workdir={smoke_run}",
        "--config.train.epochs=0.1",
        "--config.train.optimizer.warmup_epochs=0.0",
        "--config.validation.every_epochs=0.1",
    )
    arrays = checkpoint.fingerprint(smoke_run / BEST)
    assert checkpoint.read_metadata(tmp_path / "taught" / BEST)["teacher"] == arrays
    record = checkpoint.read_metadata(smoke_run / BEST)
    found = teaching.restore_teacher(TeacherConfig(str(smoke_run)), record)
    assert found[2] == arrays and teaching.is_of_ablations(
        TeacherConfig(str(smoke_run))
    )
    other = {**record, "ablation": ablation_to_json(ds.Columns(3))}
    with pytest.raises(ValueError, match=r"has ablation .*take a teacher of the same"):
        teaching.restore_teacher(TeacherConfig(str(smoke_run)), other)
    with pytest.raises(ValueError, match=r"train\.teacher\.workdir=.*none"):
        teaching.is_of_ablations(TeacherConfig(str(tmp_path / "none")))


def test_masked_networks_and_bandnets_do_not_teach_each_other():
    """They draw other ablations of the same key: labels would be of other windows."""
    for model in (
        {"name": "small_cnn"},
        {"name": "ensemble", "members": [TEACHER, {"name": "small_cnn"}]},
    ):
        with pytest.raises(ValueError, match="a small_cnn, which cannot teach a bandn"):
            teaching.build_teacher(model, STUDENT)
    masked = {**STUDENT, "model": {"name": "small_cnn"}}
    with pytest.raises(ValueError, match="a bandnet, which cannot teach a small_cnn"):
        teaching.build_teacher(TEACHER, masked)
    both = teaching.build_teacher({"name": "small_cnn"}, masked)
    images = batch()[0].astype(jnp.float32) / 255
    variables = both.init(jax.random.key(0))
    logits = both.drawn_logits(variables, images, jax.random.key(0))
    assert logits.shape == (6, 1, 3)
