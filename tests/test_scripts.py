"""Protects what a new user does: train, certify, ask again; and what is refused."""

import csv
import dataclasses
import json
import pathlib
import re
import shutil
import time

import numpy as np
import pytest
from processes import fork

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.report import thumbnails
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST

PATCHES = "1x1,2x2,2x5"


@pytest.fixture(scope="module")
def certified(run_script, smoke_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("certified")
    done = run_script(
        "certify.py",
        f"--workdir={smoke_run}",
        f"--patches={PATCHES}",
        "--num_images=60",
        f"--out={out}",
    )
    return out, done.stdout


def read_rows(out):
    return list(csv.DictReader((out / "rows.csv").read_text().splitlines()))


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_training_leaves_what_the_design_lists(smoke_run):
    """config.json, metrics.jsonl, curve.png, and checkpoints that say what they are."""
    assert json.loads((smoke_run / "config.json").read_text())["train"]["epochs"] == 2
    text = (smoke_run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["step"] == round(2 * 3500 / 128)
    assert np.isfinite([x["loss"] for x in lines]).all()
    assert (smoke_run / "curve.png").stat().st_size > 10_000


def test_summary_rows_and_table_say_the_same(certified):
    """Every number in the three can be recomputed from the rows."""
    out, printed = certified
    assert printed.startswith("mnist5k, test: 1,000 images of height 28, width 28, 1 ")
    summary = json.loads((out / "summary.json").read_text())
    rows = read_rows(out)
    assert summary["num_images"] == len(rows) == 60
    assert summary["split"] == "test"
    right = np.array([row["label"] == row["prediction"] for row in rows])
    assert summary["clean_accuracy"] == right.mean()
    found = {(*c["patch"], c["voting"], c["rule"]): c for c in summary["certificates"]}
    assert len(found) == 15
    for (height, width, voting, rule), record in found.items():
        if voting == "double_masking":
            continue
        right = np.array([r["label"] == r[f"prediction_{voting}"] for r in rows])
        name = f"margin_{height}x{width}_{voting}_{rule}"
        certified = np.array([int(row[name]) >= 0 for row in rows])
        assert record["certified_accuracy"] == (right & certified).mean()
        assert record["certified_wrong"] == (~right & certified).mean()
        assert record["clean_accuracy"] == right.mean()
        low, high = record["certified_interval"]
        assert low <= record["certified_accuracy"] <= high
        here = found[height, width, voting, "placement"]
        assert here["certified_accuracy"] <= here["certified_accuracy_nominal"]
    for height, width, voting, _ in found:
        if voting != "double_masking":
            continue
        record = found[height, width, voting, "placement"]
        of = f"{height}x{width}_{voting}"
        right = np.array([r["label"] == r[f"prediction_{of}"] for r in rows])
        certified, detected = (
            np.array([r[f"{name}_{of}"] == "1" for r in rows])
            for name in ("is_certified", "is_detected")
        )
        assert record["clean_accuracy"] == right.mean()
        assert record["certified_accuracy"] == (right & certified).mean()
        assert record["certified_wrong"] == (~right & certified).mean()
        assert record["detected_accuracy"] == (right & detected).mean()
    line = next(x for x in printed.splitlines() if x.startswith("2x2"))
    record = found[2, 2, "threshold", "placement"]
    assert f"{100 * record['certified_accuracy']:.1f}" in line
    for voting in ("threshold", "graded"):
        name = f"largest_certified_square_{voting}"
        sides = np.array([int(row[name]) for row in rows])
        name = f"margin_2x2_{voting}_placement"
        at_2x2 = np.array([int(row[name]) >= 0 for row in rows])
        np.testing.assert_array_equal(sides >= 2, at_2x2)
    for name in ("certified_accuracy", "rectangles", "settings", "margins", "map"):
        assert (out / f"{name}.png").stat().st_size > 10_000
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    assert max(map(len, printed.splitlines())) <= 100 + len(str(out))
    assert "are classified right, and proven to stay so: no 2x2 patch" in " ".join(
        printed.split()
    )


def test_the_page_is_there_with_its_pictures(certified):
    """report.html holds the numbers of summary.json, and each image's own picture."""
    out, _ = certified
    text = (out / "report.html").read_text(encoding="utf-8")
    found = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert found["classes"] == list("0123456789") and found["numImages"] == 60
    summary = json.loads((out / "summary.json").read_text())
    for record in summary["certificates"]:
        if record["voting"] == "double_masking":
            continue
        if record["patch"] == [2, 2] and record["rule"] == "placement":
            square = found["votings"][record["voting"]]["squares"][1]
            assert square["certified"][0] / 60 == record["certified_accuracy"]
            assert square["certified"][1:] == record["certified_interval"]
            assert square["wrong"][0] / 60 == record["certified_wrong"]
    store = ds.open_scores(out / "scores")
    test_set = data.load("mnist5k", "test")
    where = {name: i for i, name in enumerate(test_set.ids)}
    images = test_set.images[[where[name] for name in found["ids"]]]
    np.testing.assert_array_equal(thumbnails.load_thumbnails(store), images)
    assert found["atlas"]["size"] == [28, 28]


def test_runs_are_set_side_by_side(certified, run_script, tmp_path):
    """--compare: one table and one figure, of folders that certify.py wrote."""
    out, _ = certified
    done = run_script(
        "certify.py",
        f"--compare={out},{out / 'scores'}",
        "--patches=2x2",
        f"--out={tmp_path}",
    )
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [str(out), "scores"]
    assert rows[0]["certified"] == rows[1]["certified"] and rows[1]["gained"] == "0"
    assert "against the first" in done.stdout
    assert (tmp_path / "comparison.png").exists()


def test_library_and_script_agree(certified, smoke_run):
    """load_smoothed predicts and certifies exactly what certify.py wrote."""
    out, _ = certified
    rows = read_rows(out)
    smoothed = ds.load_smoothed(smoke_run)
    test_set = data.load("mnist5k", "test")
    where = {name: i for i, name in enumerate(test_set.ids)}
    images = test_set.images[[where[row["id"]] for row in rows]]
    assert [int(r["prediction"]) for r in rows] == smoothed.predict(images).tolist()
    patch = ds.Patch(2, 5)
    votes = dataclasses.replace(smoothed, decision="votes", patch=None)
    margins = votes.certify(images, patch).margin.tolist()
    name = f"margin_2x5_{smoothed.voting}_placement"
    assert [int(r[name]) for r in rows] == margins
    masked = dataclasses.replace(smoothed, decision="double_masking", patch=patch)
    found = masked.certify(images, patch)
    for name in ("prediction", "is_certified", "is_detected"):
        written = [int(r[f"{name}_2x5_double_masking"]) for r in rows]
        assert written == getattr(found, name).astype(int).tolist()


def test_scores_are_found_again_and_asked_again(certified, smoke_run, run_script):
    """The same command computes nothing twice; --scores asks with other settings."""
    out, printed = certified
    again = run_script(
        "certify.py",
        f"--workdir={smoke_run}",
        f"--patches={PATCHES}",
        "--num_images=60",
        "--noreport",
        f"--out={out}",
    )
    assert "found all scores, of 60 images" in again.stdout
    table = printed[printed.index("60 test images") : printed.index("Drawing")]
    assert table in again.stdout
    other = out / "asked"
    run_script(
        "certify.py",
        f"--scores={out / 'scores'}",
        "--patches=3x7,2%",
        "--threshold=0.4",
        "--voting=threshold",
        "--area=6",
        "--num_patches=2",
        "--thresholds=0.2,0.4",
        "--strengths=3",
        "--top_k=3,10",
        "--alarms=10%",
        f"--validation_scores={out / 'scores'}",
        "--maps",
        "--noreport",
        f"--out={other}",
    )
    assert not (other / "report.html").exists()
    summary = json.loads((other / "summary.json").read_text())
    assert summary["threshold"] == 0.4
    certified = {
        c["attack"]: c["certified_accuracy"]
        for c in summary["certificates"]
        if c["rule"] == "placement" and c["voting"] == "threshold"
    }
    assert {"3x7", "4x4", "1x6", "2x3", "6x1", "area <=6", "2 x 3x7"} <= set(certified)
    assert certified["area <=6"] <= min(certified["1x6"], certified["2x3"])
    assert certified["2 x 3x7"] <= certified["3x7"]
    sweep = list(csv.DictReader((other / "sweep.csv").read_text().splitlines()))
    same = [
        int(row["certified"]) / 60
        for row in sweep
        if (row["setting"], row["attack"], row["rule"]) == ("0.4", "3x7", "placement")
    ]
    assert same == [certified["3x7"]]
    ranks = [int(row["worst_rank_3x7_threshold"]) for row in read_rows(other)]
    shares = [(row["k"], row["certified"]) for row in summary["top_k"]][:2]
    assert shares == [(3, (np.array(ranks) <= 3).mean()), (10, 1.0)]
    assert shares[0][1] >= certified["3x7"]
    swept = [row["certified_top_10"] for row in sweep if row["rule"] == "placement"]
    assert set(swept) == {"60", ""}  # double masking ranks no class
    sharp, chosen = summary["alarms"][:2]
    assert sharp["rate"] is None and chosen["rate"] == 0.1
    assert chosen["false_alarms"] <= 0.1 and chosen["detected"] <= sharp["detected"]
    assert chosen["unwavering"] <= certified["3x7"] <= chosen["detected"]
    maps = np.load(other / "maps.npz")
    assert maps["margin"].shape == (60, 26, 22)
    margins = [int(row["margin_3x7_threshold_placement"]) for row in read_rows(other)]
    assert maps["margin"].min(axis=(1, 2)).tolist() == margins


def test_a_finished_run_says_so_and_another_config_is_refused(smoke_run, run_script):
    """Again: exits 0 at once, says its data first; another one names what differs."""
    same = ["train.py", "--config=configs/mnist5k_smoke.py", f"--workdir={smoke_run}"]
    again = run_script(*same).stdout
    assert "is finished" in again
    assert again.splitlines()[0] == (
        "mnist5k, train: 3,500 images of height 28, width 28, 1 channel (grey), "
        "10 classes"
    )
    done = run_script(*same, "--config.train.batch_size=64", is_ok=False)
    assert "train.batch_size: saved 128, wanted 64" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    smoke_run, run_script, tmp_path
):
    """SIGKILL after the first checkpoint, then the same command: the same metrics."""
    killed = tmp_path / "killed"
    arguments = ["train.py", "--config=configs/mnist5k_smoke.py", f"--workdir={killed}"]
    forked = fork(*arguments)
    deadline = time.time() + 120
    while checkpoint.latest_step(killed / "checkpoints/latest") is None:
        assert time.time() < deadline and forked.process.is_alive()
        time.sleep(0.02)
    forked.process.kill()
    forked.finish()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 99')  # a line that the kill cut short
    assert "is finished" not in run_script(*arguments).stdout
    whole = (smoke_run / "metrics.jsonl").read_text()
    assert (killed / "metrics.jsonl").read_text() == whole
    assert checkpoint.fingerprint(killed / BEST) == checkpoint.fingerprint(
        smoke_run / BEST
    )


def test_damaged_and_foreign_checkpoints_are_refused(smoke_run, run_script, tmp_path):
    """One flipped bit in the largest file: certify.py says so instead of certifying."""
    copy = tmp_path / "copy"
    shutil.copytree(smoke_run, copy)
    files = [p for p in (copy / "checkpoints/best").rglob("*") if p.is_file()]
    flip_bit(max(files, key=lambda p: p.stat().st_size))
    done = run_script("certify.py", f"--workdir={copy}", is_ok=False)
    assert "checksum" in done.stderr or "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not pathlib.Path(copy, "certify").exists()


def test_scores_of_other_images_are_refused_or_overwritten(
    certified, smoke_run, run_script
):
    """Other settings in the same folder: named and refused, unless --overwrite."""
    out, _ = certified
    arguments = [
        "certify.py",
        f"--workdir={smoke_run}",
        "--patches=2x2",
        "--num_images=30",
        "--noreport",
        f"--out={out}",
    ]
    done = run_script(*arguments, is_ok=False)
    assert "num_images: saved 60, wanted 30" in done.stderr
    assert "scored 30 images" in run_script(*arguments, "--overwrite").stdout
    assert len(read_rows(out)) == 30


LEAKY = """
import sys
from dsmooth_jax.models.band_layers import BandNet

honest = BandNet.__call__

def leaky(self, x):  # the first ablation's first class sees the whole image
    return honest(self, x).at[:, 0].add(1e-3 * x.mean(axis=(1, 2, 3)))

BandNet.__call__ = leaky
from dsmooth_jax.commands import certify
certify.main()
"""


def test_a_network_that_leaks_is_refused_before_the_first_image(
    smoke_run, run_script, tmp_path
):
    """The ablation and the pixel are named, and nothing is written."""
    out = tmp_path / "out"
    done = run_script(
        "-c", LEAKY, f"--workdir={smoke_run}", f"--out={out}", is_ok=False
    )
    assert "the score of ablation 0 depends on the pixel at row" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_resized_images_are_the_attackers_and_the_output_says_so(run_script, tmp_path):
    """A patch on a resized image is no patch on the file: summary and table say so."""
    scores = np.full((3, 8, 2), 0.5, np.float32)
    ds.save_scores(
        tmp_path / "scores",
        scores,
        ablation=ds.Columns(2),
        image_shape=(8, 8, 3),
        labels=[0, 1, 0],
        made_by={"data": {"name": "photographs", "split": "test", "size": [8, 8]}},
    )
    done = run_script("certify.py", f"--scores={tmp_path / 'scores'}", "--patches=2x2")
    assert "resized the images to 8x8: patches are in pixels of the" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["resized_to"] == [8, 8]
