"""Tables of classes on disk: what is read is what was written, and nothing else."""

import json

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax.double_masking import NOT_COMPUTED, UNSURE, in_doubt
from dsmooth_jax.storage.label_store import LabelStore
from dsmooth_jax.storage.shards import StoreError

MASKS = ds.Masks(3, stride=2)
SETTINGS = {
    "masks": MASKS,
    "confidence": 0.5,
    "tolerance": 1e-5,
    "image_shape": (6, 7, 1),
    "num_classes": 4,
    "labels": np.arange(7) % 4,
    "ids": np.arange(7).astype(str),
    "made_by": {"model": {"name": "cnn"}},
    "shard_size": 3,
}


def make_tables():
    rng = np.random.default_rng(0)
    tables = np.triu(rng.integers(4, size=(7, 9, 9))).astype(np.int16)
    tables += np.triu(tables, 1).swapaxes(1, 2)
    tables[1, 0, 3] = tables[1, 3, 0] = NOT_COMPUTED
    tables[2, 0, 3] = tables[2, 3, 0] = UNSURE
    tables[2, 4, 4] = in_doubt(tables[2, 4, 4])
    return tables


def test_tables_come_back_and_a_killed_writer_goes_on(tmp_path):
    # Protects what a long run computed: shards that are there are not made again.
    tables = make_tables()
    begun = LabelStore.create(tmp_path / "a", **SETTINGS)
    assert begun.missing == [0, 1, 2]
    begun.put(1, tables[3:6])
    with pytest.raises(StoreError, match="unfinished, 2 of 3 shards are missing"):
        ds.open_labels(tmp_path / "a")
    again = LabelStore.create(tmp_path / "a", **SETTINGS)
    assert again.missing == [0, 2]
    for shard in again.missing:
        again = again.put(shard, tables[again.span(shard)])
    found = ds.open_labels(tmp_path / "a")
    np.testing.assert_array_equal(found.read_all(), tables)
    assert found.masks == MASKS and found.fill is None
    assert (found.confidence, found.tolerance) == (0.5, 1e-5)
    assert [path.name for path in sorted(found.path.glob("t*"))] == [
        f"tables-0000{i}.npy" for i in range(3)
    ]


def test_damage_and_other_settings_are_refused(tmp_path):
    # Protects certificates from tables that are not those of these masks and images.
    tables = make_tables()
    store = LabelStore.create(tmp_path / "a", **SETTINGS)
    for shard in range(3):
        store = store.put(shard, tables[store.span(shard)])
    for change in (
        {"masks": ds.Masks(4, stride=1)},
        {"fill": 0.5},
        {"confidence": 0.6},
        {"tolerance": 0.1},
    ):
        with pytest.raises(StoreError, match="made under other settings"):
            LabelStore.create(tmp_path / "a", **SETTINGS | change)
    with pytest.raises(StoreError, match="holds tables, not scores"):
        ds.open_scores(tmp_path / "a")
    path = store.shard_path(1)
    path.write_bytes(path.read_bytes()[:-2] + b"\x07\x00")
    with pytest.raises(StoreError, match=r"tables-00001.npy is not what was written"):
        ds.open_labels(tmp_path / "a").read_all()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["tolerance"] = 0.0
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="checksum differs"):
        ds.open_labels(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t[:2], ValueError, r"tables of shard 0 have shape \(2, 9, 9\)"),
        (lambda t: t + 4, ValueError, "tables hold class"),
        (lambda t: t.astype(float), TypeError, "table has dtype float64"),
        (lambda t: t * np.arange(1, 10)[:, None], ValueError, "not symmetric"),
    ],
)
def test_what_is_no_table_is_not_written(tmp_path, change, error, message):
    # Protects a store from what could not be certified later.
    store = LabelStore.create(tmp_path / "a", **SETTINGS)
    with pytest.raises(error, match=message):
        store.put(0, change(make_tables()[:3]))
    assert store.missing == [0, 1, 2]


def test_a_store_without_images_is_finished(tmp_path):
    # Protects empty splits from an error deep inside.
    none = {"labels": np.zeros(0, int), "ids": np.zeros(0, str)}
    LabelStore.create(tmp_path / "a", **SETTINGS | none)
    assert ds.open_labels(tmp_path / "a").read_all().shape == (0, 9, 9)
