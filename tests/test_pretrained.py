"""Protects the models that travel with the repository: whole, and still themselves."""

import dataclasses
import json
import pathlib
import subprocess
import tomllib

import chex
import jax
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.smoothed import restore_base
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST
from dsmooth_jax.training.losses import LossConfig
from scripts.calibrate import best_bias
from scripts.ship import with_masks

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "pretrained"
STORED = ROOT / "tests" / "data"
MATERIAL = ROOT.parent / "shared" / "data"

# Differences of float32 sums between machines and versions; they were never larger.
SLACK = 2e-5


# Of the first 200 test images, when the model was shipped: right, and certified, at 2x2
# and at 5x5.
ON_200 = {"cifar10_columns3": (162, 111, 162, 105)}
BY_VOTES = {"cifar10_columns3": (164, 125, 164, 96)}


@pytest.fixture(scope="module", params=sorted(ON_200))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def smoothed(name):
    return ds.load_smoothed(PRETRAINED / name)


def test_the_arrays_are_those_that_the_card_names(name):
    """The checksum of the weights, small enough to travel, nothing of a machine."""
    folder = PRETRAINED / name
    card = (folder / "README.md").read_text()
    assert checkpoint.fingerprint(folder / BEST) in card
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_500_000
    (done,) = folder.rglob("commit_success.txt")
    assert "/" not in done.read_text()
    record = checkpoint.read_metadata(folder / BEST)
    assert record["rounded_to"] == "float16"
    assert record["config"] == json.loads((folder / "config.json").read_text())


def test_it_travels_with_the_repository_and_not_with_the_package():
    """Git has every file of it; the wheel's packages are the library's alone."""
    tracked = subprocess.run(
        ["git", "ls-files", str(PRETRAINED)], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {ROOT / line for line in tracked.stdout.splitlines()}
    made = "certify"  # where certify.py writes unless told otherwise
    files = {path for path in PRETRAINED.rglob("*") if path.is_file()}
    assert {path for path in files if made not in path.parts} <= names
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    packages = settings["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} == {"dsmooth_jax"}
    folders = {path.parent for path in (ROOT / "dsmooth_jax").rglob("__init__.py")}
    wanted = {".".join(path.relative_to(ROOT).parts) for path in folders}
    assert set(packages) == wanted | {"dsmooth_jax.configs"}


def test_scores_are_reproduced_and_votes_exactly(name, smoothed):
    """16 images: scores within float slack, the votes they cast are the stored ones."""
    stored = np.load(STORED / f"{name}.npz")
    scores = smoothed.score(stored["images"])
    np.testing.assert_allclose(scores, stored["scores"], atol=SLACK)
    threshold, strength = smoothed.threshold, smoothed.strength
    for votes, wanted, doubt in (
        (
            ds.threshold_votes(scores, threshold),
            stored["threshold_votes"],
            ds.uncertain_votes(stored["scores"], SLACK, threshold=threshold),
        ),
        (
            ds.graded_votes(scores, strength).levels,
            stored["graded_votes"],
            ds.uncertain_votes(stored["scores"], SLACK, strength=strength),
        ),
    ):
        # Where a stored score is within the slack of a level's edge, either is right.
        assert doubt.mean() < 0.1
        np.testing.assert_array_equal(votes[~doubt], wanted[~doubt])
    patch = ds.Patch(5, 5)
    by_votes = dataclasses.replace(smoothed, decision="votes", patch=None)
    found = by_votes.certify(stored["images"], patch, tolerance=0.0)
    np.testing.assert_array_equal(found.prediction, stored["prediction"])
    np.testing.assert_array_equal(found.is_certified, stored["is_certified"])
    assert smoothed.decision == "double_masking" and smoothed.patch == patch
    masks = ds.design_masks(smoothed.ablation, patch, (32, 32))
    touched = ds.touched(smoothed.ablation, patch, (32, 32))
    wanted = ds.certify_masked(
        ds.log_levels(stored["scores"]), masks, ds.covering_touched(masks, touched)
    )
    found = smoothed.certify(stored["images"], patch)
    np.testing.assert_array_equal(found.prediction, wanted.prediction)
    np.testing.assert_array_equal(found.is_certified, wanted.is_certified)


def test_a_run_is_shipped_as_float16_values(run_script, smoke_run, tmp_path):
    """What scripts/ship.py writes is the run, rounded; nothing is overwritten."""
    command = (
        "-m",
        "scripts.ship",
        f"--workdir={smoke_run}",
        f"--out={tmp_path / 'x'}",
    )
    assert "500 validation images" in run_script(*command).stdout
    _, variables, record = restore_base(tmp_path / "x")
    _, trained, _ = restore_base(smoke_run)
    assert record["rounded_to"] == "float16"
    assert not any(str(tmp_path) in f.read_text() for f in tmp_path.rglob("*.txt"))
    halves = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), trained
    )
    chex.assert_trees_all_equal(variables, halves, strict=True)
    assert "exists already" in run_script(*command, is_ok=False).stderr
    with pytest.raises(ValueError, match="--per_axis is of masks of pixels"):
        with_masks(record, {"per_axis": 6})


def test_runs_are_joined_to_an_ensemble(run_script, smoke_run, tmp_path):
    """A run twice, once as what lies between it and itself, says what it said."""
    between = f"{smoke_run}:0.75+{smoke_run}:0.25"
    out = tmp_path / "x"
    run_script("-m", "scripts.join", str(smoke_run), between, f"--out={out}")
    whole, one = ds.load_smoothed(out), ds.load_smoothed(smoke_run)
    assert whole.settings() == one.settings()
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    np.testing.assert_allclose(whole.score(images), one.score(images), atol=1e-6)
    record = checkpoint.read_metadata(out / BEST)
    assert record["model"]["name"] == "ensemble"
    assert record["joined"][0] == smoke_run.name and "/" not in record["joined"][1]
    more = ("-m", "scripts.join", f"{smoke_run}:0.5+{smoke_run}:0.4", "--out=x")
    assert "must add up to 1, not 0.9" in run_script(*more, is_ok=False).stderr
    command = ("-m", "scripts.join", str(smoke_run), f"--out={out}")
    assert "exists already" in run_script(*command, is_ok=False).stderr


def test_the_bias_of_each_class_is_found(run_script, smoke_run, tmp_path):
    """A class that the scores favour is held back, and nothing but the head changes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    logits = 2 * np.eye(3)[labels][:, None] + random.normal(0, 2, (400, 6, 3))
    logits += np.array([1.5, 0, 0])
    scores = np.asarray(jax.nn.softmax(logits), np.float32)
    with jax.numpy_dtype_promotion("standard"):  # of Optax's schedule
        bias = best_bias(scores, labels, np.eye(6, dtype=bool), LossConfig())
    assert -1.3 < bias[0] < -0.7 and np.abs(bias[1:] - 0.5).max() < 0.3
    np.testing.assert_allclose(bias.sum(), 0, atol=1e-5)

    out = tmp_path / "x"
    command = ("-m", "scripts.calibrate", f"--workdir={smoke_run}", f"--out={out}")
    assert "bias of each class: " in run_script(*command, "--num_images=200").stdout
    (_, before, _), (_, after, record) = restore_base(smoke_run), restore_base(out)
    assert record["calibrated_on"] == 200
    moved = after["params"]["head"].pop("bias") - before["params"]["head"].pop("bias")
    assert np.abs(moved).max() > 1e-3
    chex.assert_trees_all_equal(before, after, strict=True)
    assert "exists already" in run_script(*command, is_ok=False).stderr


def test_its_network_is_local(smoothed):
    """What was trained on the margin keeps the contract that certificates rest on."""
    ds.check_locality(smoothed.scores_fn, smoothed.ablation, smoothed.image_shape)


def test_accuracy_on_200_fixed_images(name, smoothed):
    """The first 200 test images, counted when the model was shipped."""
    if not (MATERIAL / "cifar10_test.npz").exists():
        pytest.skip(f"needs cifar10_test.npz in {MATERIAL}")
    images = data.load("cifar10", "test", data_dir=str(MATERIAL)).take(range(200))
    scores = smoothed.score(images.images)
    votes = smoothed.vote(scores)
    levels = ds.log_levels(scores)
    masks = ds.design_masks(smoothed.ablation, smoothed.patch, (32, 32))
    by_votes, masked = [], []
    for patch in (ds.Patch(2, 2), ds.Patch(5, 5)):
        touched = ds.touched(smoothed.ablation, patch, (32, 32))
        covering = ds.covering_touched(masks, touched)
        for counts, found in (
            (by_votes, ds.certify(votes, touched)),
            (masked, ds.certify_masked(levels, masks, covering)),
        ):
            result = ds.evaluate(found, images.labels)
            counts += [result.clean.count, result.certified.count]
    assert tuple(masked) == ON_200[name]
    assert tuple(by_votes) == BY_VOTES[name]


def test_the_classifier_of_whole_images_is_the_one_of_its_card():
    """Small enough to travel; its masks cover what the card says; it is no chance."""
    folder = PRETRAINED / "cifar10_masks"
    assert checkpoint.fingerprint(folder / BEST) in (folder / "README.md").read_text()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 9_000_000
    masked = ds.load_masked(folder)
    assert masked.masks == ds.covering_masks(ds.Patch(5, 5), (32, 32), per_axis=7)
    assert masked.confidence == 0.5
    stored = np.load(STORED / "cifar10_columns3.npz")
    found = masked.predict(stored["images"])
    assert (found == stored["labels"]).mean() >= 0.8
