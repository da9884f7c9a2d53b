"""Prepared TFDS data sets that are damaged, half there, or in another format."""

import json
import shutil

import pytest
from test_data import pictures, prepare

from dsmooth_jax import data

tfds = pytest.importorskip("tensorflow_datasets")

NAME = "tiny_pictures"
SHARD = f"{NAME}-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder, pictures(12))
    return folder


@pytest.fixture
def prepared(good, tmp_path):
    return shutil.copytree(good, tmp_path / "sets")


@pytest.fixture(params=["code", "files"])
def known_by(request, monkeypatch):
    """TFDS knows the set by its code, as cifar10, or by what lies there alone."""
    if request.param == "files":
        monkeypatch.delitem(tfds.core.registered._DATASET_REGISTRY, NAME)
    return request.param


def load(folder):
    return data.load(NAME, "train", data_dir=str(folder), num_validation=3)


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    for place in (len(content) // 3, len(content) // 2):
        content[place] ^= 255
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_text('{"hello": 1}')


def a_list(path):
    path.write_text("[]")


def folder_instead(path):
    path.unlink()
    path.mkdir()


def gone(path):
    path.unlink()


DAMAGES = [half, flipped, cut, empty, foreign, a_list, folder_instead, gone]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(prepared, damage):
    """Half, changed, foreign, missing: one line with the file, whatever TFDS raises."""
    damage(prepared / NAME / "1.0.0" / SHARD)
    with pytest.raises(ValueError, match=f"{SHARD} cannot be read: .+ again$"):
        load(prepared)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_is_named(prepared, damage, known_by):
    """dataset_info.json likewise; what cannot be opened is not called damaged."""
    path = prepared / NAME / "1.0.0" / "dataset_info.json"
    damage(path)
    words = {"folder_instead": "directory", "gone": "not prepared|Could not read"}
    words = words.get(damage.__name__, "is damaged .* again")
    with pytest.raises((OSError, ValueError), match=words) as caught:
        load(prepared)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_are_named(prepared, damage, monkeypatch):
    """features.json is read where TFDS does not have the set's code."""
    monkeypatch.delitem(tfds.core.registered._DATASET_REGISTRY, NAME)
    path = prepared / NAME / "1.0.0" / "features.json"
    damage(path)
    with pytest.raises((OSError, ValueError), match=r"features\.json"):
        load(prepared)


@pytest.mark.parametrize("added", [[], ["array_record"]])
def test_another_format_is_refused_with_what_converts_it(prepared, known_by, added):
    """TFDS's default is tfrecord: the line is a command that makes it readable."""
    assert len(load(prepared)) == 9
    path = prepared / NAME / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text()) | {"fileFormat": "tfrecord"}
    path.write_text(json.dumps(info | {"alternativeFileFormats": added}))
    match = (
        f"{path.parent} is prepared as tfrecord.*convert_format .*array_record "
        f"--dataset_version_dir={path.parent} "
        f"--out_dir={prepared}_array_record/{NAME}/1.0.0; .*--data_dir={prepared}_arr"
    )
    with pytest.raises(ValueError, match=match):
        load(prepared)
