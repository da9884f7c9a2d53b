"""A config with `defence: double_masking` trains and certifies by the same commands."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.double_masking import UNSURE
from dsmooth_jax.masked import restore_network
from dsmooth_jax.masking import encode
from dsmooth_jax.storage.checkpoint import CheckpointError, fingerprint, read_metadata
from dsmooth_jax.storage.timing import seconds_per_image
from dsmooth_jax.storage.workdir import BEST
from dsmooth_jax.training.teaching import TeacherConfig, soft_labels

SETTINGS = [
    "--config=configs/mnist5k_masks.py",
    "--config.train.epochs=0.3",
    "--config.train.optimizer.warmup_epochs=0.1",
    "--config.train.hide.worst_of=1",
    "--config.model.width=4",
    "--config.masks.per_axis=3",
    "--config.masks.confidence=0.125",
    "--config.validation.per_axis=2",
    "--config.validation.every_epochs=0.3",
]


@pytest.fixture(scope="module")
def run(run_script, tmp_path_factory):
    """A workdir that was trained in seconds, and certified."""
    workdir = tmp_path_factory.mktemp("runs") / "masks"
    run_script("train.py", f"--workdir={workdir}", *SETTINGS)
    done = run_script(
        "certify.py", f"--workdir={workdir}", "--patches=2x2,5x5", "--num_images=30"
    )
    return workdir, done.stdout


def test_the_commands_say_what_the_library_says(run):
    # Protects the commands: what they print is what load_masked certifies.
    workdir, text = run
    out = workdir / "certify" / "test"
    summary = json.loads((out / "summary.json").read_text())
    masked = ds.load_masked(workdir)
    assert masked.masks == ds.covering_masks(ds.Patch(5, 5), (28, 28), per_axis=3)
    images = data.load(name="mnist5k", split="test")
    chosen = images.take(np.arange(30) * len(images) // 30)
    found = masked.certify(chosen.images, ds.Patch(5, 5))
    np.testing.assert_array_equal(masked.predict(chosen.images), found.prediction)
    result = ds.evaluate(found, chosen.labels)
    record = next(c for c in summary["certificates"] if c["attack"] == "5x5")
    assert record["certified_accuracy"] == result.certified.value
    assert record["clean_accuracy"] == result.clean.value
    assert f"{100 * result.certified.value:.1f} (" in text
    assert summary["seconds_per_image"] == seconds_per_image(
        ds.open_labels(out / "scores")
    )
    assert 0 < summary["seconds_per_image"] < 60
    assert masked.confidence == summary["confidence"] == 0.125
    described = "9 masks of 12x12 pixels, two of them believed from a score of 0.125 on"
    assert described in " ".join(text.split())
    assert (out / "report.html").stat().st_size > 10_000
    validation = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= validation["certified_accuracy"] <= validation["clean_accuracy"]
    with pytest.raises(CheckpointError, match=r"load it with ds.load_masked"):
        ds.load_smoothed(workdir)


def test_tables_are_asked_again_and_what_cannot_be_is_refused(run, run_script):
    # Protects what was computed: other patches cost no pass; errors come first.
    workdir, _ = run
    scores = f"--scores={workdir}/certify/test/scores"
    done = run_script("certify.py", scores, "--patches=3x4", "--noreport")
    assert "3x4 " in done.stdout and "scored" not in done.stdout
    done = run_script("certify.py", scores, "--patches=6x6", is_ok=False)
    assert "covers no patch of 6x6" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_soft_labels_are_the_teachers_probabilities(run):
    # Protects the labels: of each image and its mirror image, mixed as asked; against
    # NumPy. Another task or no teacher is refused by name.
    workdir, _ = run
    train_set = data.load(name="mnist5k", split="train").take(range(20))
    settings = TeacherConfig(str(workdir), weight=0.75, temperature=0.1)
    found, arrays = soft_labels(settings, train_set, mirror=True)
    logits_fn = ds.load_masked(workdir).logits_fn
    images = train_set.images.astype(np.float32) / 255
    sides = []
    for side in (images, images[:, :, ::-1]):
        encoded = np.concatenate([side, 1 - side], axis=-1)
        powers = np.exp(np.asarray(logits_fn(jnp.asarray(encoded)), np.float64) / 0.1)
        sides.append(powers / powers.sum(axis=1, keepdims=True))
    assert np.abs(sides[0] - sides[1]).max() > 1e-3
    expected = 0.75 * np.mean(sides, axis=0)
    expected[np.arange(20), train_set.labels] += 0.25
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32 and arrays == fingerprint(workdir / BEST)
    plain, _ = soft_labels(settings, train_set, mirror=False)
    change = 0.75 * (sides[0] - sides[1]) / 2
    np.testing.assert_allclose(plain - found, change, atol=1e-5)
    smaller = dataclasses.replace(train_set, images=train_set.images[:, :20])
    with pytest.raises(ValueError, match=r"train.teacher.workdir=.*is of images"):
        soft_labels(settings, smaller, mirror=False)
    nowhere = dataclasses.replace(settings, workdir=str(workdir / "none"))
    with pytest.raises(ValueError, match=r"train.teacher.workdir=.*none"):
        soft_labels(nowhere, train_set, mirror=False)


def test_a_run_of_ablations_is_taught_and_says_by_whom(run, run_script, tmp_path):
    # Protects the setting: the loss is that of soft labels, and the record names them.
    workdir, _ = run
    settings = [
        "--config=configs/mnist5k_smoke.py",
        "--config.model.width=4",
        "--config.model.depth=2",
        "--config.train.epochs=0.1",
        "--config.train.optimizer.warmup_epochs=0.0",
        "--config.validation.every_epochs=0.1",
    ]
    losses = {}
    for name, teacher in (("hard", ""), ("soft", str(workdir))):
        out, taught = tmp_path / name, f"--config.train.teacher.workdir={teacher}"
        run_script("train.py", f"--workdir={out}", *settings, taught)
        line = (out / "metrics.jsonl").read_text().splitlines()[-1]
        losses[name] = json.loads(line)["loss"]
        expected = fingerprint(workdir / BEST) if teacher else ""
        assert read_metadata(out / BEST).get("teacher", "") == expected
    assert abs(losses["hard"] - losses["soft"]) > 1e-3


def test_another_confidence_is_asked_of_a_trained_run(run, run_script, tmp_path):
    # Protects --confidence: it is that of the tables, which are not mixed with others.
    workdir, _ = run
    command = ("certify.py", f"--workdir={workdir}", "--patches=5x5", "--num_images=30")
    command += (f"--out={tmp_path / 'x'}", "--noreport")
    run_script(*command, "--confidence=0.5")
    tables = ds.open_labels(tmp_path / "x" / "scores")
    found = tables.read_all()
    assert tables.confidence == 0.5 and (found == UNSURE).any()
    images = data.load(name="mnist5k", split="test")
    chosen = images.take(np.arange(30) * len(images) // 30)
    masked = dataclasses.replace(ds.load_masked(workdir), confidence=0.5)
    np.testing.assert_array_equal(masked.label(chosen.images), found)
    done = run_script(*command, "--confidence=0.6", is_ok=False)
    assert "confidence: saved 0.5, wanted 0.6" in " ".join(done.stderr.split())


def test_a_run_is_shipped_as_float16_values(run, run_script, tmp_path):
    # Protects scripts/ship.py: the network is the run's, rounded, and still loads.
    workdir, _ = run
    command = ("-m", "scripts.ship", f"--workdir={workdir}", f"--out={tmp_path / 'x'}")
    done = run_script(*command, "--confidence=0.25", "--per_axis=4")
    assert "validation images" in done.stdout
    shipped, patch = ds.load_masked(tmp_path / "x"), ds.Patch(5, 5)
    assert shipped.confidence == 0.25
    assert shipped.masks == ds.covering_masks(patch, (28, 28), per_axis=4)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["masks"] == {"patch": [5, 5], "per_axis": 4, "confidence": 0.25}
    _, variables, record = restore_network(tmp_path / "x")
    _, trained, _ = restore_network(workdir)
    assert record["rounded_to"] == "float16"
    halves = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), trained
    )
    chex.assert_trees_all_equal(variables, halves, strict=True)


def test_runs_are_joined_to_an_ensemble(run, run_script, tmp_path):
    # Protects scripts/join.py for masks of pixels: a run twice says what it said.
    workdir, _ = run
    out = tmp_path / "x"
    run_script("-m", "scripts.join", str(workdir), str(workdir), f"--out={out}")
    network, variables, record = restore_network(out)
    assert record["model"] == {
        "name": "ensemble",
        "members": 2 * [restore_network(workdir)[2]["model"]],
    }
    images = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    whole, one = ds.load_masked(out), ds.load_masked(workdir)
    assert (whole.masks, whole.confidence) == (one.masks, one.confidence)
    inputs = encode(jnp.asarray(images))
    np.testing.assert_allclose(
        jax.nn.softmax(network.logits_fn(variables)(inputs)),
        jax.nn.softmax(one.logits_fn(inputs)),
        atol=1e-6,
    )


def test_runs_of_both_kinds_are_not_joined(run, smoke_run, run_script, tmp_path):
    # Protects users from a mean of networks that are asked different things.
    command = ("-m", "scripts.join", str(run[0]), str(smoke_run))
    done = run_script(*command, f"--out={tmp_path / 'x'}", is_ok=False)
    assert "the runs differ in 'defence'" in done.stderr
