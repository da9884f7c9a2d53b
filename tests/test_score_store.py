"""Scores on disk: what was written comes back, or an error names the file."""

import json
import os
import pathlib

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax.storage.score_store import ScoreStore

NUM_IMAGES, NUM_CLASSES, SHARD_SIZE = 7, 3, 3
ABLATION, IMAGE_SHAPE = ds.Columns(2), (2, 5, 1)
RNG = np.random.default_rng(0)
SCORES = RNG.dirichlet(np.ones(NUM_CLASSES), (NUM_IMAGES, 5)).astype(np.float32)
SETTINGS = {
    "ablation": ABLATION,
    "image_shape": IMAGE_SHAPE,
    "num_classes": NUM_CLASSES,
    "labels": np.arange(NUM_IMAGES) % NUM_CLASSES,
    "ids": np.array([f"image_{i}" for i in range(NUM_IMAGES)]),
    "made_by": {"model": {"name": "small_cnn"}, "checkpoint": "abc", "patch": (3, 3)},
    "shard_size": SHARD_SIZE,
}
FILES = [
    "manifest.json",
    "labels.npy",
    "ids.npy",
    "scores-00000.npy",
    "scores-00001.npy",
    "scores-00002.npy",
]


def write(path, shards=None, **changes):
    """What certify.py does: begin or take up, then write what is missing."""
    written = ScoreStore.create(path, **SETTINGS | changes)
    for shard in written.missing if shards is None else shards:
        written = written.put(shard, SCORES[written.span(shard)])
    return written


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def check_is_whole(opened):
    np.testing.assert_array_equal(opened.read_all(), SCORES)
    np.testing.assert_array_equal(opened.labels, SETTINGS["labels"])
    np.testing.assert_array_equal(opened.ids, SETTINGS["ids"])
    assert opened.ablation == ABLATION and opened.image_shape == IMAGE_SHAPE
    assert opened.num_classes == NUM_CLASSES and len(opened) == NUM_IMAGES


def test_what_is_opened_is_what_was_written(tmp_path):
    # Protects the one costly thing: every array, every setting, shard by shard.
    write(tmp_path / "scores")
    opened = ds.open_scores(tmp_path / "scores")
    check_is_whole(opened)
    assert opened.made_by == SETTINGS["made_by"] | {"patch": [3, 3]}  # as JSON has it
    spans = [span for span, _ in opened]
    assert spans == [slice(0, 3), slice(3, 6), slice(6, 7)]
    for span, part in opened:
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, SCORES[span])
    assert sorted(contents(tmp_path / "scores")) == sorted(FILES)


def test_a_store_is_files_that_any_tool_opens(tmp_path):
    # Protects users without this package: plain .npy and .json, no pickle.
    path = write(tmp_path / "scores").path
    np.testing.assert_array_equal(np.load(path / "scores-00001.npy"), SCORES[3:6])
    np.testing.assert_array_equal(np.load(path / "labels.npy"), SETTINGS["labels"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["ablation"] == {"kind": "Columns", "width": 2, "stride": 1}
    assert manifest["num_images"] == NUM_IMAGES


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_shard_is_written_again_and_nothing_else(tmp_path, missing):
    # Protects resuming: the same bytes as if the writer had never been stopped.
    whole = contents(write(tmp_path / "whole").path)
    path = tmp_path / "scores"
    write(path, shards=[i for i in range(3) if i != missing])
    assert ScoreStore.create(path, **SETTINGS).missing == [missing]
    write(path)
    assert contents(path) == whole


def test_a_writer_killed_at_any_moment_loses_nothing(tmp_path, monkeypatch):
    # Protects kills: before and after each rename the same command completes the store.
    whole = contents(write(tmp_path / "whole").path)
    replace = os.replace
    last = len(FILES) + 3 - 1  # the manifest is replaced once more with each shard
    for is_after in (False, True):
        for moment in range(last + 1):
            calls = iter(range(last + 1))

            def killed(source, target, moment=moment, is_after=is_after, calls=calls):
                if next(calls) == moment:
                    if is_after:
                        replace(source, target)
                    else:  # in the middle of writing
                        os.truncate(source, os.path.getsize(source) // 2)
                    raise KeyboardInterrupt
                replace(source, target)

            path = tmp_path / f"killed_{is_after}_{moment}"
            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", killed)
                with pytest.raises(KeyboardInterrupt):
                    write(path)
            if not (is_after and moment == last):
                with pytest.raises(ds.StoreError):
                    ds.open_scores(path)
            check_is_whole(write(path))
            assert contents(path) == whole


def test_leftovers_of_a_kill_are_harmless(tmp_path):
    # Protects readers from half-written files, which lie beside the whole ones.
    path = write(tmp_path / "scores").path
    for name in FILES:
        (path / (name + ".part")).write_bytes(b"half of it")
    check_is_whole(ds.open_scores(path))
    check_is_whole(write(path))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused_and_the_file_named(tmp_path, name):
    # Protects every number that is recomputed from a store, in every byte of each file.
    path = write(tmp_path / "scores").path
    content = (path / name).read_bytes()
    accepted = []
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (path / name).write_bytes(flipped)
        try:
            ds.open_scores(path).read_all()
        except ds.StoreError as error:
            assert name in str(error), f"byte {at}: {error}"
        else:
            accepted.append(at)
    places = [content[max(0, at - 20) : at + 1] for at in accepted]
    assert not accepted, (
        f"{len(accepted)} of {len(content)} flips accepted: {places[:5]}"
    )
    (path / name).write_bytes(content)
    check_is_whole(ds.open_scores(path))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [None, 0, 1, 40])
def test_a_truncated_or_missing_file_is_refused_and_named(tmp_path, name, size):
    # Protects against full disks and partial copies: the file and the remedy are named.
    path = write(tmp_path / "scores").path
    if size is None:
        (path / name).unlink()
    else:
        os.truncate(path / name, size)
    with pytest.raises(ds.StoreError, match=name):
        ds.open_scores(path).read_all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ablation": ds.Columns(3)}, ["ablation.width", "saved 2", "wanted 3"]),
        ({"ablation": ds.Rows(2)}, ["ablation.kind", "Columns", "Rows"]),
        ({"image_shape": (3, 5, 1)}, ["image_shape", "[2, 5, 1]", "[3, 5, 1]"]),
        ({"num_classes": 4}, ["num_classes", "saved 3", "wanted 4"]),
        ({"labels": np.zeros(NUM_IMAGES, int)}, ["labels"]),
        ({"ids": np.arange(NUM_IMAGES)}, ["ids"]),
        ({"made_by": {"checkpoint": "xyz"}}, ["made_by.checkpoint", "abc", "xyz"]),
        ({"shard_size": 2}, ["shard_size", "saved 3", "wanted 2"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("shards", [[0], None], ids=["begun", "finished"])
def test_scores_of_other_settings_are_not_taken_up(tmp_path, change, words, shards):
    # Protects against mixing scores: the difference is named, and nothing is touched.
    path = write(tmp_path / "scores", shards=shards).path
    before = contents(path)
    with pytest.raises(ds.StoreError) as raised:
        ScoreStore.create(path, **SETTINGS | change)
    for word in [str(path), *words]:
        assert word in str(raised.value)
    assert contents(path) == before


def test_an_unfinished_store_is_not_opened(tmp_path):
    # Protects accuracies: a part of the images must not pass for all of them.
    path = write(tmp_path / "scores", shards=[0, 2]).path
    with pytest.raises(ds.StoreError, match=r"1 of 3 shards are missing.*goes on"):
        ds.open_scores(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_images", [0, 1, NUM_IMAGES, 130])
def test_scores_from_numpy(tmp_path, dtype, num_images):
    # Protects scores of any framework: saved as float32, in shards, then as any other.
    rows = np.arange(num_images) % NUM_IMAGES
    scores = SCORES[rows].astype(dtype)
    saved = ds.save_scores(
        tmp_path / "scores",
        scores,
        ablation=ABLATION,
        image_shape=IMAGE_SHAPE,
        labels=SETTINGS["labels"][rows],
        made_by={"framework": "another"},
    )
    for found in (saved, ds.open_scores(tmp_path / "scores")):
        np.testing.assert_array_equal(found.read_all(), scores.astype(np.float32))
        assert found.ids.tolist() == [str(i) for i in range(num_images)]
        assert found.made_by == {"framework": "another"} and not found.missing


def test_saving_other_scores_in_the_same_place_is_refused(tmp_path):
    # Protects new scores from being dropped without a word for old ones that are there.
    arguments = {
        "ablation": ABLATION,
        "image_shape": IMAGE_SHAPE,
        "labels": SETTINGS["labels"],
    }
    ds.save_scores(tmp_path / "scores", SCORES, **arguments)
    with pytest.raises(ds.StoreError, match="scores"):
        ds.save_scores(tmp_path / "scores", SCORES[::-1], **arguments)
    np.testing.assert_array_equal(
        ds.open_scores(tmp_path / "scores").read_all(), SCORES
    )


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("has_ids", [False, True])
def test_labels_and_ids_of_other_images_are_refused(tmp_path, extra, has_ids):
    # Protects the pairing: as many labels and ids as scores, or nothing is written.
    count = NUM_IMAGES + extra
    with pytest.raises(ValueError, match=str(NUM_IMAGES)):
        ds.save_scores(
            tmp_path / "scores",
            SCORES,
            ablation=ABLATION,
            image_shape=IMAGE_SHAPE,
            labels=np.zeros(count, int),
            ids=np.arange(count) if has_ids else None,
        )
    assert not (tmp_path / "scores").exists()


def test_a_store_of_the_first_format_still_opens():
    # Protects scores that took days: what version 0.1 wrote is read, value for value.
    path = pathlib.Path(__file__).parent / "data" / "store_v1"
    before = contents(path)
    image, ablation, _ = np.ogrid[:5, :4, :1]
    first, second = (7 * image + 3 * ablation) % 31, (5 * image + 11 * ablation) % 29
    scores = np.concatenate([first, second, 64 - first - second], axis=2) / 64
    opened = ds.open_scores(path)
    found = opened.read_all()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, scores)  # 64ths: exact in float32
    np.testing.assert_array_equal(opened.labels, [0, 1, 2, 0, 1])
    assert opened.ids.tolist() == [f"test/{n}" for n in range(5)]
    assert opened.ablation == ds.Columns(2) and opened.image_shape == (3, 4, 1)
    assert opened.num_classes == 3 and opened.shard_size == 2
    assert [span for span, _ in opened] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert opened.made_by == {
        "model": {"name": "seeded formula", "width": 4},
        "data": {"name": "none", "split": "test"},
        "threshold": 0.3,
    }
    assert contents(path) == before  # reading writes nothing
