"""Images on disk: folders, resizing, decoding when used; what is wrong is named."""

import pathlib

import numpy as np
import pytest

from dsmooth_jax import data

Image = pytest.importorskip("PIL.Image")
PHOTOGRAPHS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "imagenet_samples"


def picture(index, height=6, width=8, channels=3):
    """An image whose pixels are its number."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.full(shape, index, np.uint8)


def write_folder(root, part, counts, **shape):
    """ROOT/shapes/PART/CLASS/NUMBER.png, so many of each class."""
    index = 0
    for name, count in counts.items():
        folder = root / "shapes" / part / name
        folder.mkdir(parents=True)
        for _ in range(count):
            Image.fromarray(picture(index, **shape)).save(folder / f"{index:03d}.png")
            index += 1


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, "train", {"cat": 10, "ant": 6, "bee": 8})
    write_folder(tmp_path, "val", {"cat": 3, "bee": 2})
    (tmp_path / "shapes/train/.DS_Store").touch()
    return tmp_path


def load(folder, split, **changes):
    arguments = {"data_dir": str(folder), "num_validation": 6, "test_split": "val"}
    return data.load("shapes", split, **arguments | changes)


@pytest.fixture
def on_disk(monkeypatch):
    """As if no set fitted into memory."""
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)


def test_a_folder_for_each_class_is_a_data_set(folder):
    """Classes in alphabetical order, ids that are paths, a stratified validation."""
    train, validation, test = (load(folder, s) for s in ("train", "validation", "test"))
    assert train.class_names == ("ant", "bee", "cat") and train.num_classes == 3
    assert [len(d) for d in (train, validation, test)] == [18, 6, 5]
    assert (abs(np.bincount(validation.labels) - [1.5, 2, 2.5]) <= 2).all()
    assert not set(train.ids) & set(validation.ids)
    assert test.ids.tolist()[:3] == ["bee/003.png", "bee/004.png", "cat/000.png"]
    assert test.labels.tolist() == [1, 1, 2, 2, 2]
    for dataset in (train, validation, test):
        numbers = [int(pathlib.Path(name).stem) for name in dataset.ids]
        assert dataset.images[:, 0, 0, 0].tolist() == numbers


def test_training_opens_no_test_image(folder):
    """Train and validation are there without the test images, which are read once."""
    for path in (folder / "shapes/val").rglob("*.png"):
        path.write_text("not to be read")
    assert len(load(folder, "train")) + len(load(folder, "validation")) == 24
    with pytest.raises(ValueError, match=r"'bee/003.png' cannot be decoded"):
        load(folder, "test")


def test_what_is_wrong_in_a_folder_is_named(folder):
    """A stray file, a foreign class, no class, no part: by path, with the remedy."""
    with pytest.raises(FileNotFoundError, match=r"no folder 'test': put .*test/CLASS"):
        load(folder, "test", test_split="test")
    (folder / "shapes/val/dog").mkdir()
    with pytest.raises(ValueError, match=r"val/dog is a class that .* does not have"):
        load(folder, "test")
    (folder / "shapes/train/notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt must be a folder"):
        load(folder, "train")
    (folder / "shapes/train/notes.txt").unlink()
    (folder / "shapes/train/bee/deep").mkdir()
    with pytest.raises(ValueError, match=r"bee/deep is a folder; .* remove it"):
        load(folder, "train", num_validation=0)
    write_folder(folder / "one", "train", {"all": 3})
    with pytest.raises(ValueError, match="at least 2 classes, it holds all"):
        load(folder / "one", "train")


def test_wrong_shapes_and_channels_are_named_with_the_remedy(folder):
    """Nothing is resized or recolored unless the config says so."""
    grey = folder / "shapes/val/cat/900.png"
    Image.fromarray(picture(7, channels=1)).save(grey)
    match = r"'cat/900.png' has shape \(6, 8, 1\), but 'bee/003.png' .*channels=3"
    with pytest.raises(ValueError, match=match):
        load(folder, "test")
    assert load(folder, "test", channels=3).images[-1, 0, 0].tolist() == [7, 7, 7]
    assert load(folder, "test", channels=1).image_shape == (6, 8, 1)
    Image.fromarray(picture(8, height=12, width=10)).save(grey)
    with pytest.raises(ValueError, match=r"shape \(12, 10, 3\).*data.size="):
        load(folder, "test")
    resized = load(folder, "test", size=(4, 4))
    assert resized.images.shape == (6, 4, 4, 3) and resized.images[-1].max() == 8
    deep = np.full((6, 8), 40_000, np.uint16)
    Image.fromarray(deep).save(grey)
    with pytest.raises(ValueError, match=r"'cat/900.png' .* must have 8 bits"):
        load(folder, "test", channels=3)
    grey.write_bytes((folder / "shapes/val/cat/000.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"'cat/900.png' cannot be decoded"):
        load(folder, "test")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": (4,)}, r"size=\(4,\) must be \(height, width\)"),
        ({"size": (0, 4)}, r"size=\(0, 4\) must be"),
        ({"channels": 4}, "channels=4 must be 1"),
        ({"num_validation": 24}, r"num_validation=24 must be in 0..23"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, changes, match):
    """By name and value, before an image is read."""
    with pytest.raises(ValueError, match=match):
        load(folder, "train", **changes)


def test_resizing_keeps_the_middle_and_the_aspect_ratio():
    """The largest centred part of the target's shape, not a squeezed image."""
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the middle square
    for size in ((10, 10), (5, 5), (20, 20)):
        middle = data.decode(wide, "wide", size=size)
        assert middle.shape == (*size, 3)
        assert (middle[:, 1:-1] == 200).all() and middle.min() > 100
    grey = data.decode(wide[..., :1], "grey", size=(5, 15))
    assert grey.shape == (5, 15, 1) and grey[:, 0].max() == 0
    assert data.decode(wide, "wide", channels=1).shape == (10, 30, 1)


def test_images_on_disk_behave_as_the_array_they_are(folder, monkeypatch):
    """Indexing, subsets and batches: the same pixels in the same order as in memory."""
    whole = load(folder, "train")
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)
    stored = load(folder, "train")
    assert isinstance(stored.images, data.StoredImages)
    assert stored.image_shape == whole.image_shape and len(stored) == len(whole)
    for index in (slice(None), slice(2, 7), np.array([5, 1])):
        np.testing.assert_array_equal(stored.images[index], whole.images[index])
    taken = stored.take([3, 0])
    np.testing.assert_array_equal(taken.images[:], whole.images[[3, 0]])
    spans = [slice(0, 7), slice(7, 14), slice(14, 18)]
    parts = list(data.read_ahead(stored.images, spans))
    np.testing.assert_array_equal(np.concatenate(parts), whole.images)
    # Small sets are sampled whole: so the fingerprints agree, too.
    assert stored.fingerprint == whole.fingerprint
    assert stored.take([3, 0]).fingerprint != stored.take([0, 3]).fingerprint

    def some(dataset, **changes):
        arguments = {"seed": 3, "start": 0, "stop": 9}
        return list(data.batches(dataset, 4, **arguments | changes))

    for (a, b), (c, d) in zip(some(whole), some(stored), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    # From any step on, and split over processes: parts of the same batches.
    for dataset in (whole, stored):
        late = some(dataset, start=5)
        halves = [some(dataset, start=5, share=(i, 2)) for i in (0, 1)]
        for step, (images, labels) in enumerate(some(whole)[5:]):
            np.testing.assert_array_equal(late[step][0], images)
            joined = np.concatenate([half[step][1] for half in halves])
            np.testing.assert_array_equal(joined, labels)
            joined = np.concatenate([half[step][0] for half in halves])
            np.testing.assert_array_equal(joined, images)
    assert some(stored, start=9) == []
    with pytest.raises(ValueError, match="batch_size=4 must be divisible by 3"):
        some(whole, share=(0, 3))


def test_an_image_that_breaks_while_training_is_named(folder, on_disk):
    """Large sets are decoded late: then, too, the error says which file it is."""
    stored = load(folder, "train")
    broken = stored.ids[5]
    (folder / "shapes/train" / broken).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"'{broken}' cannot be decoded"):
        list(data.batches(stored, 6, seed=0, start=0, stop=3))
    with pytest.raises(ValueError, match=f"'{broken}' cannot be decoded"):
        list(data.read_ahead(stored.images, [slice(0, 4), slice(4, 8), slice(8, 12)]))


def test_real_photographs_where_they_are_at_hand():
    """ImageNet-size JPEGs of all shapes become one array of 299 x 299."""
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"{PHOTOGRAPHS} is not there")
    for path in sorted(PHOTOGRAPHS.iterdir())[:6]:
        image = data.decode(path.read_bytes(), path.name, size=(299, 299))
        assert image.shape == (299, 299, 3) and image.std() > 10
