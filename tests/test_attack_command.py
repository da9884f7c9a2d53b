"""Protects attack.py: what it prints, writes and takes up again is what was found."""

import csv
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.commands import attacking
from dsmooth_jax.double_masking import NOT_COMPUTED
from dsmooth_jax.report import figures
from dsmooth_jax.report.attack_summary import attacked_squares, attacks_of
from dsmooth_jax.storage.attack_store import begin_attack, read_parts, write_part
from dsmooth_jax.storage.shards import StoreError

PATCH = ds.Patch(8, 8)
QUICK = {
    "num_candidates": 2,
    "steps": 4,
    "num_restarts": 1,
    "attacks_certified": False,
    "seed": 0,
    "batch_size": 8,
}


@pytest.fixture(autouse=True, scope="module")
def quick_to_try():
    """Parts of few images; one classifier, so that it is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacking, "_PART", 8)
        patch.setattr(attacking, "load_smoothed", functools.cache(ds.load_smoothed))
        yield


@pytest.fixture(scope="module")
def run(smoke_run):
    """(workdir, function that attacks 12 of its test images: two parts)."""

    def attack(out, **changes):
        given = {"num_images": 12, "decision": "votes", **QUICK, **changes}
        return attacking.attack_workdir(smoke_run, lambda _: [PATCH], out=out, **given)

    return smoke_run, attack


@pytest.fixture(scope="module")
def attacked(run, tmp_path_factory):
    """(folder, what was found there)."""
    out = tmp_path_factory.mktemp("attacks") / "out"
    return out, run[1](out)["8x8-votes"]


def test_what_is_written_is_what_the_classifier_says(run, attacked):
    """Rows, summary and pictures, each against predict on the saved images."""
    out, found = attacked
    smoothed = attacking.load_smoothed(run[0], chunk_size=8)
    smoothed = dataclasses.replace(smoothed, decision="votes", patch=None)
    images = data.load(name="mnist5k", split="test")
    images = images.take(np.arange(12) * len(images) // 12)
    np.testing.assert_array_equal(found["id"], images.ids)
    np.testing.assert_array_equal(found["attacked"], smoothed.predict(found["image"]))
    certificate = smoothed.certify(images.images, PATCH)
    np.testing.assert_array_equal(found["clean"], certificate.prediction)
    np.testing.assert_array_equal(found["is_certified"], certificate.is_certified)
    is_attacked = found["corner"][:, 0] >= 0
    assert 0 < is_attacked.sum() < 12
    assert (found["touched"][~is_attacked] == -1).all()
    clean = smoothed.score(images.images)[is_attacked]
    which = np.arange(len(clean))[:, None], found["touched"][is_attacked]
    kept = found["scores"][is_attacked]
    assert np.abs(clean[which] - kept).max() > 0.01  # the patch does something
    clean[which] = kept  # and nothing elsewhere
    attacked_scores = smoothed.score(found["image"][is_attacked])
    np.testing.assert_allclose(clean, attacked_scores, atol=1e-5)
    assert found["is_broken"].any()
    assert not (found["is_broken"] & found["votes_hold"]).any()
    assert (found["votes_hold"] >= found["is_certified"]).all()
    with open(out / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["attacked"]) for row in rows] == found["attacked"].tolist()
    assert [int(row["is_broken"]) for row in rows] == found["is_broken"].tolist()
    record = json.loads((out / "summary.json").read_text())["8x8-votes"]
    assert record["attacked"] == (found["attacked"] == found["label"]).mean()
    assert record["certified"] <= record["votes_hold"] <= record["attacked"]
    pictures = sorted((out / "8x8-votes").glob("*.png"))
    assert len(pictures) == min(found["is_broken"].sum(), 100)
    first = int(np.flatnonzero(found["is_broken"])[0])
    shown = np.asarray(Image.open(pictures[0]))
    np.testing.assert_array_equal(shown, found["image"][first, :, :, 0])


def test_the_report_marks_what_an_attack_of_the_same_classifier_left(tmp_path):
    """By the side of the square; not of other checkpoints, images or decisions."""
    scores = np.full((4, 6, 3), 0.3, np.float32)
    store = ds.save_scores(
        tmp_path / "certify" / "test" / "scores",
        scores,
        ablation=ds.Columns(2),
        image_shape=(6, 6, 1),
        labels=[0, 1, 2, 0],
        ids=["a", "b", "c", "d"],
        made_by={"checkpoint": "same", "data": {"name": "x", "split": "test"}},
    )

    def attacked(name, ids=("a", "c"), checkpoint="same"):
        folder = tmp_path / "attack" / "test" / name
        begin_attack(folder, {"checkpoint": checkpoint})
        flags = np.array([True, False])
        classes = np.array([1, 2])
        arrays = {"label": classes, "clean": classes, "attacked": classes - flags}
        write_part(folder, 0, {**arrays, "id": np.array(ids), "is_certified": flags})

    assert attacked_squares(attacks_of(store)) == {}
    attacked("2x2")
    attacked("2x3")
    attacked("3x3-votes")
    attacked("4x4", checkpoint="other")
    attacked("5x5", ids=("a", "z"))
    begin_attack(tmp_path / "attack" / "test" / "6x6", {"checkpoint": "same"})
    assert attacked_squares(attacks_of(store)) == {2: ds.Accuracy(1, 2)}
    figure = figures.accuracy_figure(
        {
            ("graded", ds.Patch(2, 2), "placement"): ds.Evaluation(
                *[ds.Accuracy(3, 4)] * 3
            )
        },
        base_accuracy=0.5,
        attacked=attacked_squares(attacks_of(store)),
        caption="4 images",
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    (cross,) = (h for h, text in zip(handles, labels, strict=True) if "attack" in text)
    assert cross.lines[0].get_xydata().tolist() == [[2, 50]]


def test_a_killed_attack_goes_on_and_ends_as_if_it_had_not_been(
    run, attacked, tmp_path, capsys
):
    """A part that is missing is made again; other settings are another attack."""
    out, found = attacked
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "8x8-votes" / "part-00001.npz").unlink()
    again = run[1](copy)["8x8-votes"]
    for name, array in found.items():
        np.testing.assert_array_equal(again[name], array)
    assert "found the attack" not in capsys.readouterr().out
    run[1](copy)
    assert "found the attack by 8x8-votes of 12 images" in capsys.readouterr().out
    with pytest.raises(StoreError, match=r"steps: saved 4, wanted 5.*--overwrite"):
        run[1](copy, steps=5)
    part = copy / "8x8-votes" / "part-00000.npz"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(StoreError, match=r"part-00000.npz is damaged"):
        read_parts(copy / "8x8-votes")
    with open(part, "r+b") as file:
        file.truncate(100)
    with pytest.raises(StoreError, match=r"part-00000.npz is damaged.*remove it"):
        read_parts(copy / "8x8-votes")
    other = run[1](copy, steps=5, is_anew=True, num_images=3)["8x8-votes"]
    assert len(other["id"]) == 3


def test_an_undefended_network_is_attacked_by_the_same_command(
    run, tmp_path, capsys, monkeypatch
):
    """Of whole images, by the settings given; it has no certificate, and no votes."""
    asked = []

    def no_attack(classifier, images, labels, patch, **settings):
        inputs = jnp.asarray(images / np.float32(255))
        asked.append((jax.eval_shape(classifier, inputs), settings))
        num = len(images)
        return ds.Attacked(
            images=images,
            corners=np.full((num, 2), -1),
            clean=labels,
            predictions=labels,
            is_broken=np.zeros(num, bool),
            is_certified=np.zeros(num, bool),
            num_gradients=np.zeros(num, np.int64),
            seconds=0.0,
        )

    monkeypatch.setattr(attacking, "attack", no_attack)
    found = run[1](tmp_path, decision="undefended", seed=5)["8x8-undefended"]
    assert not found["is_certified"].any() and "votes_hold" not in found
    assert [logits.shape for logits, _ in asked] == [(8, 10), (4, 10)]
    assert [settings["seed"] for _, settings in asked] == [5, 5 + 8]
    assert "votes hold" not in capsys.readouterr().out


def test_tables_of_attacked_images_are_those_that_answered_them(tmp_path):
    """What the page of masks is told: each pair that was looked at, and no others."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.2, (6 * 7 * 2, 3)).astype(np.float32)
    masked = ds.MaskedClassifier(Partial(_linear, weights), ds.Masks(3, 3, stride=2))
    images = rng.integers(0, 256, (12, 6, 7, 1), np.uint8)
    labels = np.where(np.arange(12) < 9, masked.predict(images), -1) % 3
    found = attacking._attack_part(
        masked, ds.Patch(2, 2), 8, tmp_path, {"steps": 4}, 0, images, labels
    )
    is_attacked = found["corner"][:, 0] >= 0
    assert found["is_broken"].any() and not is_attacked.all()
    kept = found["table"][is_attacked]
    np.testing.assert_array_equal(
        ds.double_masking_predict(kept), found["attacked"][is_attacked]
    )
    complete = masked.label(found["image"][is_attacked], until="complete")
    is_known = kept != NOT_COMPUTED
    np.testing.assert_array_equal(kept[is_known], complete[is_known])
    assert not found["table"][~is_attacked].any()


def _linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def test_a_certificate_that_breaks_is_kept_and_named(run, tmp_path, monkeypatch):
    """The command ends with an error, and a file holds image, place and content."""

    def lying_attack(*_, **__):
        content, image = np.zeros((8, 8, 1), np.uint8), np.ones((28, 28, 1), np.uint8)
        raise ds.UnsoundError(
            index=3,
            corner=(1, 2),
            content=content,
            image=image,
            prediction=4,
            attacked=9,
        )

    monkeypatch.setattr(attacking, "attack", lying_attack)
    with pytest.raises(ds.UnsoundError, match="image 3 is certified as class 4"):
        run[1](tmp_path, num_images=5)
    with np.load(tmp_path / "8x8-votes" / "unsound.npz") as kept:
        assert kept["index"] == 3 and kept["corner"].tolist() == [1, 2]
        assert kept["content"].shape == (8, 8, 1) and kept["image"].all()
