"""A config with `defence: double_masking` trains and certifies by the same commands."""

import json

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.storage.checkpoint import CheckpointError

SETTINGS = [
    "--config=configs/mnist5k_masks.py",
    "--config.train.epochs=0.3",
    "--config.train.optimizer.warmup_epochs=0.1",
    "--config.train.hide.worst_of=1",
    "--config.model.width=4",
    "--config.masks.per_axis=3",
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
    assert "9 masks of 14x14 pixels" in text or "9 masks of 12x12 pixels" in text
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
