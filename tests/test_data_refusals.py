"""Data sets as they are found: labels, names, fields and files that are not as meant.

Each is understood in the one way that it can be, or refused by file and field. The
programs say in their first line what they understood.
"""

import json
import os
import pathlib
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest

from dsmooth_jax import data

tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")

IMAGES = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(folder, part="train", **changes):
    """A good set_PART.npz but for the changes; None leaves a field out."""
    fields = {"images": IMAGES, "labels": LABELS} | changes
    path = folder / f"set_{part}.npz"
    np.savez(path, **{k: v for k, v in fields.items() if v is not None})
    return path


def load(folder, split="train", **changes):
    arguments = {"data_dir": str(folder), "num_validation": 0}
    return data.load("set", split, **arguments | changes)


NAMES = ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (np.array(NAMES), NAMES),
        (np.array(["ant", "bee", "gr\u00fcn"]), ["ant", "bee", "gr\u00fcn"]),
        (np.array([b"ant", b"bee", b"caf\xe9"]), ["ant", "bee", "caf\\xe9"]),
        (np.array(["ant", "bee", "caf\udce9"]), ["ant", "bee", "caf\\udce9"]),
        (np.array([7, 5, 3]), ["7", "5", "3"]),
        (np.array([7, 5, 3], np.uint8), ["7", "5", "3"]),
    ],
    ids=["str", "umlaut", "bytes", "surrogate", "int", "uint8"],
)
def test_class_names_and_ids_are_made_plain(tmp_path, names, expected):
    """What goes into records is Python text, whatever NumPy held it in."""
    write(tmp_path, class_names=names, ids=names, images=IMAGES[:3], labels=LABELS[:3])
    loaded = load(tmp_path)
    assert list(loaded.class_names) == expected == loaded.ids.tolist()
    assert all(type(name) is str for name in loaded.class_names)
    assert json.loads(json.dumps(loaded.class_names)) == expected
    assert loaded.fingerprint
    "\n".join([*loaded.ids, str(loaded)]).encode()


OBJECTS = np.array(["ant", "bee", None], object)

REFUSED = {
    "scalar names": ({"class_names": np.array("ant")}, r"class_names .* shape \(\)"),
    "square names": ({"class_names": np.array([NAMES])}, r"class_names .*\(1, 3\)"),
    "true names": ({"class_names": LABELS[:3] > 0}, "class_names .* dtype bool"),
    "float names": ({"class_names": np.ones(3)}, "class_names .* dtype float64"),
    "object names": ({"class_names": OBJECTS}, "'class_names'.*objects.* not loaded"),
    "few names": ({"class_names": NAMES[:2]}, "label 2 of .* must be in 0..1"),
    "double names": ({"class_names": ["a", "b", "a"]}, "class_names in .*'a' 2 times"),
    "object ids": ({"ids": OBJECTS.repeat(2)}, "'ids'.*objects, which are not loaded"),
    "float ids": ({"ids": np.ones(6)}, "ids in .*set_train.npz .* dtype float64"),
    "scalar ids": ({"ids": "x"}, r"ids in .* shape \(\)"),
    "double ids": ({"ids": np.array(["a"] * 6)}, "ids in .*set_train.npz .*'a' 6"),
    "object labels": ({"labels": OBJECTS.repeat(2)}, "'labels'.*objects"),
    "float labels": ({"labels": LABELS * 1.0}, "labels in .* dtype float64"),
    "text labels": ({"labels": LABELS.astype(str)}, "labels in .* must be integers"),
    "true labels": ({"labels": LABELS > 0}, "labels in .* dtype bool"),
    "one-hot labels": ({"labels": np.eye(6, dtype=int)}, r"labels in .* \(6, 6\)"),
    "scalar label": ({"labels": np.array(3)}, r"labels in .* shape \(\)"),
    "no labels": ({"labels": LABELS[:0]}, r"labels in .* shape \(0,\)"),
    "few labels": ({"labels": LABELS[:5]}, "has 5 labels but images of shape"),
    "negative label": ({"labels": LABELS - 1}, "labels in .* are -1..1"),
    "large label": ({"labels": LABELS * 500_000}, "up to 1000000, but only 3 of"),
    "huge label": ({"labels": LABELS.astype(np.uint64) << 61}, "labels in|the label"),
    "label of no signed integer": (
        {"labels": LABELS.astype(np.uint64) << 62},
        "labels in .* go up to 9223372036854775808",
    ),
    "one class": ({"labels": LABELS * 0}, "labels in .* are 0..0: number"),
    "one class of six": ({"labels": LABELS * 0 + 5}, "number the classes from 0"),
    "float images": ({"images": IMAGES / 255}, "images in .* float64; .* be uint8"),
    "true images": ({"images": IMAGES > 9}, "images in .* dtype bool"),
    "int images": ({"images": IMAGES.astype(np.int32)}, "images in .* dtype int32"),
    "object images": ({"images": IMAGES.astype(object)}, "'images'.*objects"),
    "flat images": ({"images": IMAGES.reshape(6, 60)}, r"\(6, 60\): they must be"),
    "scalar images": ({"images": np.uint8(1)}, r"of shape \(\)"),
    "no pixels": ({"images": IMAGES[:, :0]}, r"\[6, 0, 5, 3\]: they have no pixels"),
    "no images": ({"images": IMAGES[:0]}, r"of shape \(0, 4, 5, 3\)"),
    "channels first": (
        {"images": np.zeros((6, 3, 16, 16), np.uint8)},
        r"images in .* \[6, 3, 16, 16\], which is \[N, C, H, W\].*transpose\(0, 2, 3",
    ),
    "grey channel first": (
        {"images": np.zeros((6, 1, 28, 28), np.uint8)},
        r"which is \[N, C, H, W\]",
    ),
    "images last": ({"images": np.zeros((5, 5, 3, 6), np.uint8)}, "they must be .6, H"),
    "nothing": ({"images": None}, "holds labels: it must hold 'labels' and either"),
    "nothing at all": ({"images": None, "labels": None}, "holds nothing: it must"),
    "text as jpeg": (
        {"images": None, "jpeg": np.array(["a"]), "offsets": [0, 1]},
        "'jpeg' of dtype <U1",
    ),
    "float offsets": (
        {"images": None, "jpeg": IMAGES.ravel(), "offsets": np.linspace(0, 360, 7)},
        "'offsets' of dtype float64",
    ),
    "scalar offsets": (
        {"images": None, "jpeg": IMAGES.ravel(), "offsets": np.array(0)},
        r"offsets of shape \(\)",
    ),
    "pickled offsets": (
        {"images": None, "jpeg": IMAGES.ravel(), "offsets": OBJECTS},
        "'offsets'.*objects",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_fields_that_are_not_as_meant_are_refused(tmp_path, kind):
    """By file and field, in a line; never unpickled, guessed, or a NumPy error."""
    changes, words = REFUSED[kind]
    write(tmp_path, **changes)
    with pytest.raises((TypeError, ValueError), match=words):
        load(tmp_path)


def test_a_set_is_not_read_by_another_sets_names(tmp_path):
    """Test labels by other class names would be other classes, silently."""
    write(tmp_path, class_names=NAMES)
    path = write(tmp_path, "test", class_names=NAMES[::-1])
    with pytest.raises(ValueError, match=f"class_names in {path} are not those in"):
        load(tmp_path, "test")
    write(tmp_path, "test", class_names=NAMES)
    assert load(tmp_path, "test").class_names == tuple(NAMES)


class _Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def _as_npy(path):
    np.save(path.with_suffix(".npy"), IMAGES)
    path.with_suffix(".npy").rename(path)


def _as_pickle(path):
    path.write_bytes(pickle.dumps(_Trap(path.with_name("trace"))))


def _as_foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels", "0, 1, 2")


def _as_trap(path):
    trap = np.array([_Trap(path.with_name("trace"))], object)
    np.savez(path, images=IMAGES, labels=trap)


def _with_changed_bytes(path):
    np.savez_compressed(path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_as_npy, r"it holds one array of shape \(6, 4, 5, 3\).*np.savez"),
        (_as_pickle, "cannot be read as an npz file: it is no file of np.savez"),
        (_as_foreign_zip, "its field 'labels'.: it is no array"),
        (_as_trap, "its field 'labels'.: it holds Python objects"),
        (_with_changed_bytes, "cannot be read as an npz file"),
        (lambda p: p.write_bytes(b""), "cannot be read as an npz file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-200]), "cannot be read as an npz"),
        (lambda p: p.write_text("labels,images"), "it is no file of np.savez"),
    ],
    ids=["npy", "pickle", "zip", "trap", "changed", "empty", "cut", "text"],
)
def test_files_that_are_no_npz_are_named(tmp_path, damage, words):
    """Whatever NumPy, zip or zlib raise, it is one line with the file."""
    path = write(tmp_path)
    damage(path)
    with pytest.raises(ValueError, match=f"{path} .*{words}|{path} {words}"):
        load(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path):
    """A folder, or a file that one may not read, is said as the system says it."""
    (tmp_path / "set_train.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=r"set_train\.npz"):
        load(tmp_path)


def test_classes_without_images_are_said_by_name(tmp_path):
    """Labels 1..K, and an empty folder: taken, and said in the first line."""
    write(tmp_path, labels=LABELS + 1)
    loaded = load(tmp_path)
    assert loaded.num_classes == 4
    assert str(loaded) == (
        "set, train: 6 images of height 4, width 5, 3 channels (RGB), 4 classes; "
        "no image of 0"
    )
    names = [f"class {index}" for index in range(12)]
    write(tmp_path, images=IMAGES[..., 0], class_names=names)
    assert str(load(tmp_path)).endswith(
        "width 5, 1 channel (grey), 12 classes; no image of 'class 3', 'class 4', "
        "'class 5', 'class 6', 'class 7', and 4 more"
    )
    write(tmp_path)
    assert str(load(tmp_path)).endswith(" 3 classes")


def test_data_sets_of_ones_own_are_checked_too():
    """The same care without files: names that are texts, axes in order."""

    def make(**changes):
        fields = {"name": "x", "split": "test", "images": IMAGES, "labels": LABELS}
        fields |= {"ids": np.array(list("abcdef"))}
        return data.Dataset(**(fields | {"num_classes": 3} | changes))

    made = make(class_names=tuple(np.array(NAMES)))
    assert [type(name) for name in made.class_names] == [str] * 3
    for names in (("a", "b", 3), "abc", (b"a", b"b", b"c")):
        with pytest.raises(TypeError, match="class_names"):
            make(class_names=names)
    with pytest.raises(ValueError, match="2 class_names do not name num_classes=3"):
        make(class_names=("a", "b"))
    with pytest.raises(ValueError, match="class name 'a' occurs 2 times"):
        make(class_names=("a", "b", "a"))
    with pytest.raises(ValueError, match=r"images have shape \[6, 3, 8, 8\]"):
        make(images=np.zeros((6, 3, 8, 8), np.uint8))


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[0]).save(path, "PNG")


def test_folders_are_read_as_they_are_found(tmp_path):
    """Hidden files passed over, links followed, an empty class said, strays refused."""
    for name in ("ant/1.png", "bee/2.png", "bee/.DS_Store", ".git/x/1.png"):
        write_image(tmp_path / "set/train" / name)
    (tmp_path / "set/train/bee/3.png").symlink_to(tmp_path / "set/train/ant/1.png")
    (tmp_path / "set/train/cat").symlink_to(tmp_path / "set/train/ant")
    (tmp_path / "set/train/dog").mkdir()
    loaded = load(tmp_path)
    assert loaded.ids.tolist() == ["ant/1.png", "bee/2.png", "bee/3.png", "cat/1.png"]
    assert str(loaded).endswith("4 classes; no image of 'dog'")
    strays = {
        "ant/deeper/1.png": "ant/deeper is a folder",
        "ant/gone.png": "ant/gone.png is no file, or leads to none",
        "ant/pipe": "ant/pipe is no file",
        "ant/notes.txt": "'ant/notes.txt' cannot be decoded: it is no image file",
        "ant/empty.png": "'ant/empty.png' cannot be decoded: it is empty, 0 bytes",
        "list.csv": "list.csv must be a folder",
    }
    for name, words in strays.items():
        stray = tmp_path / "set/train" / name
        if name == "ant/gone.png":
            stray.symlink_to(tmp_path / "nowhere")
        elif name == "ant/pipe":
            os.mkfifo(stray)
        elif name == "ant/deeper/1.png":
            write_image(stray)
        else:
            stray.write_text("a note" if "empty" not in name else "")
        with pytest.raises(ValueError, match=words):
            load(tmp_path)
        if stray.parent.name == "deeper":
            shutil.rmtree(stray.parent)
        else:
            stray.unlink()


@pytest.mark.skipif(
    sys.getfilesystemencoding() != "utf-8" or sys.platform == "darwin",
    reason="this file system takes no names that are not UTF-8",
)
def test_names_that_are_not_utf8_work_escaped(tmp_path):
    """A Latin-1 class or file: read, and shown in a form that every file takes."""
    root = os.fsencode(tmp_path)
    for part in (b"train", b"test"):
        for name in (b"ant", b"caf\xe9"):
            folder = os.path.join(root, b"set", part, name)
            os.makedirs(folder)
            write_image(tmp_path / "one.png")
            shutil.copy(os.fsencode(tmp_path / "one.png"), folder + b"/gr\xfcn.png")
    loaded = load(tmp_path, "test")
    assert loaded.class_names == ("ant", "caf\\udce9")
    assert loaded.ids.tolist() == [
        "ant/gr\\udcfcn.png",
        "caf\\udce9/gr\\udcfcn.png",
    ]
    np.testing.assert_array_equal(loaded.images[1], IMAGES[0])
    assert loaded.fingerprint
    with open(os.path.join(root, b"set/test/ant/gr\xfcn.png"), "wb"):
        pass
    with pytest.raises(ValueError, match=r"udcfcn.png' cannot be decoded: it is empty"):
        load(tmp_path, "test")
    with pytest.raises(ValueError, match="is not UTF-8: rename the data set"):
        data.load("caf\udce9", "test", data_dir=str(tmp_path))
