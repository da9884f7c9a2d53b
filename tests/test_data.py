"""Data sets: fixed splits, errors by name, and a training order without state."""

import io
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmooth_jax import data

tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set that needs no network and no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    records: tuple = ()

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(num_classes=3),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for index, (image, label) in enumerate(self.records):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield index, {"image": buffer.getvalue(), "label": label}


def prepare(data_dir, records):
    builder = TinyPictures(data_dir=str(data_dir), file_format="array_record")
    builder.records = tuple(records)
    builder.download_and_prepare()


def pictures(num, shape=(6, 5, 3)):
    """Images whose first pixel is their number, labels 0, 1, 2 in turn."""
    for index in range(num):
        image = np.full(shape, index, np.uint8)
        image[0, 0] = index
        yield image, index % 3


def example(**changes):
    fields = {
        "name": "some",
        "split": "train",
        "images": np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3, 1),
        "labels": np.array([0, 1, 2, 1], np.int64),
        "ids": np.array(["a", "b", "c", "d"]),
        "num_classes": 3,
    }
    return data.Dataset(**(fields | changes))


def test_dataset_is_read_only_and_leaves_its_arguments_alone():
    """A data set cannot be changed, and making one changes nothing of the caller's."""
    images = np.zeros((4, 2, 3, 1), np.uint8)
    dataset = example(images=images)
    assert len(dataset) == 4 and dataset.image_shape == (2, 3, 1)
    for array in (dataset.images, dataset.labels, dataset.ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    assert images.flags.writeable


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": np.array([0, 3, 2, -1])}, "label 3 of 'b' must be in 0..2: 2 such"),
        ({"ids": np.array(["a", "b", "c", "b"])}, "id 'b' occurs 2 times"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
    ],
)
def test_wrong_values_are_named_by_id(changes, match):
    """A bad label or a doubled id is found when the data set is made."""
    with pytest.raises(ValueError, match=match):
        example(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.zeros((4, 2, 3, 1), np.float32)},
        {"images": np.zeros((4, 2, 3), np.uint8)},
        {"images": np.zeros((3, 2, 3, 1), np.uint8)},
        {"labels": np.zeros(4, np.int32)},
        {"ids": np.arange(4)},
    ],
)
def test_wrong_arrays_are_refused(changes):
    """No array of another dtype, rank or length gets in."""
    with pytest.raises((TypeError, ValueError)):
        example(**changes)


def test_fingerprint_depends_on_the_content_alone():
    """Same content under another name: same; any change of content: another."""
    same = example(name="other", split="test", ids=np.array(["a", "b", "c", "d"], "U9"))
    assert example().fingerprint == same.fingerprint
    images = example().images.copy()
    images[3, 1, 2, 0] ^= 1
    different = [
        example(images=images),
        example(images=images.reshape(4, 3, 2, 1)),
        example(images=example().images.reshape(4, 3, 2, 1)),
        example(labels=np.array([0, 1, 2, 2])),
        example(ids=np.array(["a", "b", "c", "e"])),
        example().take([1, 0, 2, 3]),
    ]
    assert len({d.fingerprint for d in [example(), *different]}) == 7


def test_take_selects_in_order_and_names_bad_indices():
    """Subsets keep order and identity; masks, repeats and overruns are refused."""
    taken = example().take(np.array([3, 1]))
    assert taken.ids.tolist() == ["d", "b"] and taken.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(taken.images, example().images[[3, 1]])
    assert len(example().take([])) == 0 and len(example().take(range(2))) == 2
    with pytest.raises(ValueError, match=r"index 4 must be in 0..3"):
        example().take([0, 4])
    with pytest.raises(ValueError, match="id 'b' occurs 2 times"):
        example().take([1, 1])
    with pytest.raises(TypeError):
        example().take(np.array([True, False, True, False]))


def test_mnist5k_splits_are_stratified_disjoint_and_pinned():
    """The published split: sizes, equal classes, no overlap, the same for ever."""
    splits = {s: data.load("mnist5k", s) for s in ("train", "validation", "test")}
    for name, per_class in (("train", 350), ("validation", 50), ("test", 100)):
        assert np.bincount(splits[name].labels).tolist() == [per_class] * 10
        assert splits[name].image_shape == (28, 28, 1)
        assert splits[name].images.max() == 255
    ids = np.concatenate([s.ids for s in splits.values()])
    assert sorted(ids) == [f"mnist5k_{row:05d}" for row in range(5000)]
    # Rows are sorted by class in the source: an id gives its label.
    rows = [int(i.removeprefix("mnist5k_")) for i in splits["test"].ids]
    assert (np.array(rows) // 500 == splits["test"].labels).all()
    assert splits["test"].fingerprint.startswith("cc8b1c9471766e1a")
    assert splits["train"].fingerprint.startswith("638667197c63b44e")


def test_the_test_split_does_not_depend_on_the_seed():
    """Another seed moves images between training and validation, never from test."""
    first, other = (data.load("mnist5k", "test", seed=s) for s in (0, 1))
    assert first.fingerprint == other.fingerprint
    held_out = data.load("mnist5k", "validation", seed=1)
    assert not set(held_out.ids) & set(first.ids)
    assert set(held_out.ids) != set(data.load("mnist5k", "validation").ids)


def test_tfds_splits_partition_the_training_split(tmp_path):
    """Validation is a stratified part of training; test is TFDS's own; all decoded."""
    prepare(tmp_path, pictures(30))
    load = {
        split: data.load(
            "tiny_pictures", split, data_dir=str(tmp_path), num_validation=6
        )
        for split in ("train", "validation", "test")
    }
    assert [len(d) for d in load.values()] == [24, 6, 30]
    assert np.bincount(load["validation"].labels).tolist() == [2, 2, 2]
    train_ids, validation_ids = set(load["train"].ids), set(load["validation"].ids)
    assert not train_ids & validation_ids
    assert train_ids | validation_ids == {
        f"tiny_pictures_train_{i:05d}" for i in range(30)
    }
    both = np.concatenate([load["train"].images, load["validation"].images])
    assert sorted(both[:, 0, 0, 0]) == list(range(30))
    for dataset in load.values():
        assert dataset.image_shape == (6, 5, 3) and dataset.num_classes == 3
        np.testing.assert_array_equal(dataset.labels, dataset.images[:, 0, 0, 0] % 3)
    again = data.load(
        "tiny_pictures", "train", data_dir=str(tmp_path), num_validation=6
    )
    assert again.fingerprint == load["train"].fingerprint
    with pytest.raises(ValueError, match=r"num_validation=30 must be in 0..29"):
        data.load("tiny_pictures", "train", data_dir=str(tmp_path), num_validation=30)
    with pytest.raises(ValueError, match="num_validation=0 leaves none"):
        data.load(
            "tiny_pictures", "validation", data_dir=str(tmp_path), num_validation=0
        )


def test_images_of_different_shape_are_named(tmp_path):
    """No silent cropping or resizing: the two images that disagree are named."""
    records = itertools.chain(pictures(3), pictures(1, shape=(7, 5, 3)))
    prepare(tmp_path, records)
    match = r"'tiny_pictures_test_0000\d' has shape \(\d, 5, 3\), but"
    with pytest.raises(ValueError, match=match):
        data.load("tiny_pictures", "test", data_dir=str(tmp_path))


def test_unprepared_and_unknown_names_say_what_to_do(tmp_path):
    """The message for a missing data set is the command that prepares it."""
    match = "not prepared as array_record.*download_and_prepare"
    with pytest.raises(FileNotFoundError, match=match):
        data.load("cifar10", "train", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="name='no_such' is neither 'mnist5k' nor"):
        data.load("no_such", "train", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="split='val' must be one of train, valid"):
        data.load("mnist5k", "val")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.lists(st.floats(0, 0.4), max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_stratified_parts_are_disjoint_and_proportional(labels, shares, seed):
    """Any labels: exact sizes, no overlap, each class within two of its share."""
    labels = np.array(labels)
    sizes = [int(share * len(labels)) for share in shares]
    sizes = sizes if sum(sizes) <= len(labels) else sizes[:2]
    parts = data.stratified_split(labels, sizes, seed)
    assert [len(part) for part in parts] == sizes
    every = np.concatenate([*parts, np.empty(0, np.int64)])
    assert len(np.unique(every)) == len(every)
    for part in parts:
        assert (np.diff(part) > 0).all()
        ideal = np.bincount(labels, minlength=5) * len(part) / len(labels)
        assert (abs(np.bincount(labels[part], minlength=5) - ideal) <= 2).all()


def test_stratified_split_refuses_sizes_that_do_not_fit():
    """Too many or negative images are an error, not a shorter part."""
    for sizes in ([3, 2], [-1]):
        with pytest.raises(ValueError, match="add up to at most 4"):
            data.stratified_split(np.array([0, 0, 1, 1]), sizes, 0)


@pytest.mark.parametrize(("num", "batch"), [(10, 3), (7, 7), (5, 13), (1, 2)])
def test_batches_are_one_endless_stream_of_epochs(num, batch):
    """Laid end to end, the batches are whole permutations: nothing lost or doubled."""
    steps = range(4 * num)
    stream = np.concatenate(
        [data.batch_indices(num, batch, seed=3, step=t) for t in steps]
    )
    epochs = stream.reshape(-1, num)
    assert (np.sort(epochs, axis=1) == np.arange(num)).all()
    if num > 4:
        assert len({tuple(e) for e in epochs[:4]}) == 4


def test_a_batch_is_a_function_of_its_step_alone():
    """Resuming anywhere, in any order, in another process, gives the same batches."""
    order = [data.batch_indices(50, 8, seed=1, step=t) for t in range(20)]
    for step in (13, 2, 19, 0):
        data.batch_indices(50, 8, seed=2, step=step)
        again = data.batch_indices(50, 8, seed=1, step=step)
        assert again.dtype == np.int64
        np.testing.assert_array_equal(again, order[step])
        again[:] = 0  # a caller's own array: the next call must not see this
        np.testing.assert_array_equal(
            data.batch_indices(50, 8, seed=1, step=step), order[step]
        )
    assert data.batch_indices(50, 8, seed=1, step=10**12).max() < 50


@pytest.mark.parametrize("argument", ["num_examples", "batch_size", "seed", "step"])
def test_batch_arguments_are_checked(argument):
    """A negative seed or step would otherwise be a NumPy error or a wrong batch."""
    arguments = {"num_examples": 4, "batch_size": 2, "seed": 0, "step": 0}
    with pytest.raises(ValueError, match=f"{argument}=-1 must be at least"):
        data.batch_indices(**(arguments | {argument: -1}))


def test_import_loads_no_data_library():
    """The package stays cheap to import: TFDS and mlxtend only when used."""
    code = (
        "import sys, dsmooth_jax.data; "
        "assert not {'tensorflow_datasets', 'mlxtend', 'PIL'} & set(sys.modules)"
    )
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def encode(image, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, form)
    return buffer.getvalue()


def write_npz(folder, records, part, **changes):
    """Encoded images, one after the other, as NAME_PART.npz."""
    images, labels = zip(*records, strict=True)
    files = [encode(image) for image in images]
    fields = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array(labels, np.uint8),
    }
    np.savez(folder / f"shapes_{part}.npz", **(fields | changes))


def test_npz_files_are_found_by_name_and_read_in_both_forms(tmp_path):
    """Encoded or plain, color or grey: the same pixels, labels and ids."""
    train, test = list(pictures(12)), list(pictures(5))
    write_npz(tmp_path, train, "train")
    write_npz(tmp_path, test, "test")
    plain = tmp_path / "plain"
    plain.mkdir()
    names = np.array(["red", "green", "blue"])
    for part, records in (("train", train), ("test", test)):
        images, labels = map(np.array, zip(*records, strict=True))
        np.savez(
            plain / f"shapes_{part}.npz",
            images=images,
            labels=labels,
            class_names=names,
        )
    for split, num in (("train", 9), ("validation", 3), ("test", 5)):
        load = {
            folder: data.load("shapes", split, data_dir=str(folder), num_validation=3)
            for folder in (tmp_path, plain)
        }
        found = load[tmp_path]
        assert len(found) == num and found.image_shape == (6, 5, 3)
        assert found.num_classes == 3 and found.class_names == ()
        np.testing.assert_array_equal(found.labels, found.images[:, 0, 0, 0] % 3)
        assert found.ids[0].startswith("shapes_test_" if num == 5 else "shapes_train_")
        assert found.fingerprint == load[plain].fingerprint
        assert load[plain].class_names == ("red", "green", "blue")
    grey = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    np.savez(tmp_path / "shapes_train.npz", images=grey, labels=np.arange(4) % 2)
    dataset = data.load("shapes", "train", data_dir=str(tmp_path), num_validation=0)
    np.testing.assert_array_equal(dataset.images, grey[..., None])
    with pytest.raises(ValueError, match="num_validation=0 leaves none"):
        data.load("shapes", "validation", data_dir=str(tmp_path), num_validation=0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": np.array([0, 1, 2, 0, 7])}, "label 7 of 'shapes_test_00004' must"),
        ({"labels": np.zeros(5)}, "labels in .*shapes_test.npz .* must be integers"),
        ({"labels": np.zeros(4, int)}, r"offsets of shape \(6,\) .* in 4 steps"),
        ({"offsets": np.arange(6)}, "must rise from 0 to"),
        ({"ids": np.array(["a"])}, r"ids of shape \(1,\): one each"),
        ({"images": np.zeros((4, 6, 5, 3), np.uint8)}, r"must be \[5, H, W, C\]"),
        ({"images": np.zeros((5, 6, 5, 3), np.float32)}, "must be uint8"),
        (
            {"jpeg": np.zeros(5, np.uint8), "offsets": np.arange(6)},
            "the image 'shapes_test_00000' cannot be decoded",
        ),
    ],
)
def test_bad_npz_files_are_refused_by_file_or_image(tmp_path, changes, match):
    """What is wrong in a file of one's own making is named, with its remedy."""
    write_npz(tmp_path, pictures(12), "train")
    write_npz(tmp_path, pictures(5), "test", **changes)
    with pytest.raises((TypeError, ValueError), match=match):
        data.load("shapes", "test", data_dir=str(tmp_path))


def test_npz_files_that_are_none_or_missing_are_named(tmp_path):
    """A missing half, a foreign npz, and a file that is something else."""
    (tmp_path / "shapes_train.npz").write_text("no zip file")
    with pytest.raises(ValueError, match=r"shapes_train.npz cannot be read as an npz"):
        data.load("shapes", "train", data_dir=str(tmp_path))
    np.savez(tmp_path / "shapes_train.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="holds weights: it must hold 'labels' and"):
        data.load("shapes", "train", data_dir=str(tmp_path))
    np.savez(tmp_path / "shapes_train.npz", labels=np.zeros(3, int), pixels=np.ones(3))
    with pytest.raises(ValueError, match="holds labels, pixels: it must hold 'labels'"):
        data.load("shapes", "train", data_dir=str(tmp_path), num_validation=0)
    write_npz(tmp_path, pictures(12), "train")
    with pytest.raises(FileNotFoundError, match=r"shapes_test.npz is missing"):
        data.load("shapes", "test", data_dir=str(tmp_path))


def test_real_cifar10_as_npz_where_it_is_at_hand():
    """50,000 training and 5,000 test photographs, decoded, split and pinned."""
    folder = pathlib.Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "cifar10_test.npz").exists():
        pytest.skip(f"{folder} has no cifar10_test.npz")
    test = data.load("cifar10", "test", data_dir=str(folder))
    assert test.images.shape == (5000, 32, 32, 3) and test.num_classes == 10
    assert np.bincount(test.labels).min() > 400
