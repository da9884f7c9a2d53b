"""What flags, config and image shape already show to be impossible is refused first."""

import json

import jax
import numpy as np
import pytest
from test_refused_commands import DRIVER

import dsmooth_jax as ds
from dsmooth_jax import distributed
from dsmooth_jax.training.step import TrainState

TRAIN = ["train.py", "--config=configs/mnist5k_smoke.py", "--workdir={tmp}/new"]
CERTIFY = ["certify.py", "--workdir={trained}", "--out={tmp}/out"]
ASK = ["certify.py", "--scores={tmp}/kept/scores"]


def training(*flags):
    return [*TRAIN, *(f"--config.{flag}" for flag in flags)]


# Each command, and words of its one line.
COMMANDS = {
    "patch above the image": (
        training("validation.patch=(40,40)"),
        ["validation.patch=[40, 40]", "28x28"],
    ),
    "patch of no pixel": (
        training("validation.patch=(0,5)"),
        ["validation.patch=[0, 5]", ">= 1"],
    ),
    "patch of one number": (
        training("validation.patch=(5,)"),
        ["validation.patch=[5]", "(height, width)"],
    ),
    "patch as text": (
        training("validation.patch=5x5"),
        ["validation.patch=['5x5']", "(5, 5)"],
    ),
    "loss's patch above the image": (
        training("train.loss.name=certified_margin", "train.loss.patch=(5,29)"),
        ["train.loss.patch=[5, 29]", "28x28"],
    ),
    "loss's patch of three": (training("train.loss.patch=(5,5,5)"), ["loss.patch"]),
    "parts that do not divide": (
        training("train.num_accumulated=3"),
        ["train.num_accumulated=3", "train.batch_size=128"],
    ),
    "no finite rate": (
        training("train.optimizer.learning_rate=inf"),
        ["optimizer.learning_rate=inf", "finite"],
    ),
    "average that forgets nothing": (
        training("train.ema_decay=1.0"),
        ["train.ema_decay=1.0", "< 1"],
    ),
    "negative seed": (training("seed=-1"), ["seed=-1", ">= 0"]),
    "channels without end": (
        training("model.depth=30"),
        ["depth=30", "32,768 channels", "max_width"],
    ),
    "seed of no generator": (
        training("data.seed=4294967296"),
        ["data.seed=4294967296", "< 4294967296"],
    ),
    "size above any memory": (
        training("data.size=(1000000,1000000)"),
        ["data.size=(1000000, 1000000)", "67,108,864 pixels"],
    ),
    "steps that no counter holds": (
        training("train.epochs=9e8"),
        ["num_steps=", "< 2147483648"],
    ),
    "epochs that no number holds": (
        training("train.epochs=1e308"),
        ["train.epochs=1e+308"],
    ),
    "an ablation's kind alone": (
        training("ablation.kind=Blocks"),
        ["Blocks takes", "needs ['height']", "['stride', 'width']"],
    ),
    "no step at all": (
        training("train.batch_size=1280000", "train.optimizer.warmup_epochs=0.0"),
        ["train.epochs=2", "3500 images", "train.batch_size=1280000"],
    ),
    "begins with nothing": (
        training("train.init_from={tmp}/nothing"),
        ["train.init_from={tmp}/nothing", "no checkpoint"],
    ),
    "begins with a file that has no weights": (
        training("train.init_from={tmp}/kept/file"),
        ["train.init_from: {tmp}/kept/file", "cannot be read as weights"],
    ),
    "begins with another network": (
        training("train.init_from={trained}", "model.width=8"),
        ["train.init_from={trained}", "is not of this model", "shape"],
    ),
    "workdir that is a file": (
        [*TRAIN[:2], "--workdir={tmp}/kept/file"],
        ["--workdir={tmp}/kept/file", "no folder"],
    ),
    "empty workdir": ([*TRAIN[:2], "--workdir="], ["--workdir is empty"]),
    "workdir of nobody": (
        [*TRAIN[:2], "--workdir=~nobody-of-this-name/run"],
        ["--workdir=~nobody-of-this-name/run", "home"],
    ),
    "tolerance above a level": (
        [*CERTIFY, "--tolerance=0.5"],
        ["tolerance=0.5", "one level at strength"],
    ),
    "tolerance of threshold votes": (
        [*CERTIFY, "--voting=threshold", "--tolerance=1.5"],
        ["tolerance=1.5", "[0, 1)"],
    ),
    "tolerance below 0": ([*CERTIFY, "--tolerance=-1e-6"], ["tolerance=-1e-06"]),
    "no number": ([*CERTIFY, "--tolerance=nan"], ["tolerance=nan"]),
    "tolerance, of scores": ([*ASK, "--patches=2x2", "--tolerance=0.5"], ["tolerance"]),
    "area of nothing": ([*CERTIFY, "--area=0"], ["area=0", ">= 1"]),
    "out that is a file": (
        [*CERTIFY[:2], "--out={tmp}/kept/file"],
        ["--out={tmp}/kept/file", "no folder"],
    ),
    "out of other scores": (
        [*ASK, "--patches=2x2", "--out={tmp}/kept/other"],
        ["--out={tmp}/kept/other", "other scores"],
    ),
    "out that is a store": (
        [*ASK, "--patches=2x2", "--out={tmp}/kept/scores"],
        ["--out={tmp}/kept/scores", "is a store itself"],
    ),
    "batch above any memory": (
        [*CERTIFY, "--patches=2x2", "--batch_size=1000000000000"],
        ["memory", "--batch_size"],
    ),
    "out among checkpoints": (
        [*CERTIFY[:2], "--out={trained}/checkpoints/best"],
        ["checkpoints of a run"],
    ),
    "comparison into a file": (
        [
            "certify.py",
            "--compare={tmp}/kept/scores,{tmp}/kept/other/scores",
            "--patches=2x2",
            "--out={tmp}/kept/file",
        ],
        ["--out={tmp}/kept/file"],
    ),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    for name in ("kept/scores", "kept/other/scores"):
        ds.save_scores(
            folder / name,
            np.full((2, 6, 3), 0.25, np.float32),
            ablation=ds.Columns(2),
            image_shape=(4, 6, 1),
            labels=[0, 2],
        )
    (folder / "kept" / "file").touch()
    return folder


@pytest.fixture(scope="module")
def finished(scratch, smoke_run, run_script):
    places = {"tmp": scratch, "trained": smoke_run}
    commands = {
        name: [argument.format(**places) for argument in arguments]
        for name, (arguments, _) in COMMANDS.items()
    }
    done = run_script("-c", DRIVER, json.dumps(commands), jax_platforms="cpu")
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_is_refused_at_once_in_a_line(
    finished, scratch, smoke_run, name
):
    """Before any training or scoring, which would end the command here."""
    status, _, error = finished[name]
    assert status == 1 and len(error.splitlines()) == 1, error
    for word in COMMANDS[name][1]:
        assert word.format(tmp=scratch, trained=smoke_run) in error


def test_a_network_above_the_devices_memory_is_refused_by_its_shapes():
    """With the number of parameters; one that fits passes."""
    for side, is_refused in ((1000, False), (10**7, True)):
        weight = jax.ShapeDtypeStruct((side, side), np.float32)
        step = jax.ShapeDtypeStruct((), np.int32)
        state = TrainState(step, {"params": {"w": weight}}, {"momentum": weight})
        if not is_refused:
            distributed.check_memory(state)
            continue
        match = (
            "100,000,000,000,000 parameters, .* more than 1,200,000 GB; .* model.dep"
        )
        with pytest.raises(ValueError, match=match):
            distributed.check_memory(state)


def test_nothing_is_left_by_what_was_refused(finished, scratch):
    """Neither folders nor locks."""
    assert [path.name for path in scratch.iterdir()] == ["kept"]
    names = {path.name for path in (scratch / "kept").iterdir()}
    assert names == {"scores", "other", "file"}
    assert not list(scratch.rglob("*.lock"))
