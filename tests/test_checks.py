"""Checks that many functions share: here of paths that a user gave."""

import pathlib

import numpy as np
import pytest
import safetensors.numpy

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.checks import user_path
from dsmooth_jax.models import weight_files
from dsmooth_jax.report import comparison
from dsmooth_jax.storage import checkpoint


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder; the current one is another, where ./~ must not appear."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


def test_a_tilde_is_the_home_folder_as_in_a_shell(home, monkeypatch):
    """At the beginning alone, with or without a name; ./~ is a folder of that name."""
    here = pathlib.Path.cwd()
    for given, wanted in {
        "~": home,
        "~/runs/a": home / "runs" / "a",
        pathlib.Path("~/a"): home / "a",
        "a/~/b": pathlib.Path("a/~/b"),
        "a~": pathlib.Path("a~"),
        "./~": here / "~",
        "./~nobody-of-this-name/a": here / "~nobody-of-this-name" / "a",
        "/~": pathlib.Path("/~"),
    }.items():
        found = user_path("path", given)
        assert found == wanted
        assert user_path("path", found) == found  # whoever calls whom
    refused = {"": "path is empty", "~nobody-of-this-name/a": "write ./~nobody"}
    for given, words in refused.items():
        with pytest.raises(ValueError, match=words):
            user_path("path", given)


def test_library_calls_take_a_tilde(home):
    """Scores, tables, runs, weights, reports, data: none makes a folder named ~."""
    store = ds.save_scores(
        "~/runs/scores",
        np.full((2, 6, 3), 0.25, np.float32),
        ablation=ds.Columns(2),
        image_shape=(4, 6, 1),
        labels=[0, 2],
    )
    assert store.path == home / "runs" / "scores"
    assert ds.open_scores("~/runs/scores").path == store.path
    assert comparison.find_scores("~/runs", "test").path == store.path
    with pytest.raises(ValueError, match="holds scores already"):
        ds.save_scores(
            "~/runs/scores",
            store.read_all(),
            ablation=store.ablation,
            image_shape=store.image_shape,
            labels=store.labels,
        )
    checkpoint.save("~/run/checkpoints/best", 1, {"w": np.zeros(2, np.float32)}, {})
    assert checkpoint.steps("~/run/checkpoints/best") == [1]
    with pytest.raises(KeyError):  # it is found, though it is none of a run
        ds.load_smoothed("~/run")
    safetensors.numpy.save_file({"w": np.ones(2)}, home / "w.safetensors")
    assert weight_files.read_tensors("~/w.safetensors").keys() == {"w"}
    np.savez(
        home / "set_train.npz",
        images=np.zeros((4, 5, 5, 1), np.uint8),
        labels=[0, 1] * 2,
    )
    assert len(data.load("set", "train", data_dir="~", num_validation=0)) == 4
