"""The report of tables: every number is that of the certificate, every break is one."""

import csv
import json

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax.double_masking import NOT_COMPUTED, UNSURE, in_doubt
from dsmooth_jax.masks import covered_placements
from dsmooth_jax.report import comparison, label_report
from dsmooth_jax.report.label_analysis import analyze_labels, find_break
from dsmooth_jax.report.label_page import choose_shown
from dsmooth_jax.report.thumbnails import choose
from dsmooth_jax.storage.label_store import LabelStore
from dsmooth_jax.storage.shards import StoreError
from dsmooth_jax.storage.timing import enter_seconds

SIZE = (6, 7)
MASKS = ds.Masks(3, stride=1)  # 4 x 5, more than are needed
PATCHES = [ds.Patch(1, 1), ds.Patch(2, 3)]


def make_tables(num=40):
    """Symmetric tables that agree, but for some masks, and some not computed."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=num)
    tables = np.broadcast_to(labels[:, None, None], (num, 20, 20)).astype(np.int16)
    tables = tables.copy()
    for image in range(num):
        for _ in range(rng.integers(0, 4)):
            i, j = rng.integers(20, size=2)
            tables[image, i, j] = tables[image, j, i] = rng.integers(3)
    tables[3, 4, 7] = tables[3, 7, 4] = NOT_COMPUTED
    tables[5, 2, 2] = in_doubt(tables[5, 2, 2])
    tables[7, 0], tables[7, :, 0] = UNSURE, UNSURE
    tables[7, 0, 0] = labels[7]
    return tables, np.where(rng.random(num) < 0.9, labels, (labels + 1) % 3)


@pytest.fixture
def store(tmp_path):
    tables, labels = make_tables()
    made = LabelStore.create(
        tmp_path / "scores",
        masks=MASKS,
        confidence=0.5,
        tolerance=1e-5,
        image_shape=(*SIZE, 1),
        num_classes=3,
        labels=labels,
        ids=[f"<{i}>" for i in range(len(labels))],
        made_by={
            "model": {"name": "cnn"},
            "class_names": ["<b>", "one", "two"],
            "images": "f",
            "versions": {"jax": "1"},
        },
        shard_size=16,
    )
    for shard in range(made.num_shards):
        made = made.put(shard, tables[made.span(shard)])
    images = np.random.default_rng(1).integers(0, 256, (len(labels), *SIZE, 1), "u1")
    ds.save_thumbnails(made, images)
    return made


def test_every_number_is_that_of_the_certificate(store, tmp_path):
    # Protects the report: shards are put together, and nothing is counted twice.
    analysis = analyze_labels(store, PATCHES)
    tables = store.read_all()
    names = ("prediction", "is_certified", "is_detected", "is_unanimous")
    for patch in PATCHES:
        expected = ds.certify_double_masking(tables, ds.covering(MASKS, patch, SIZE))
        found = analysis.certificates[patch]
        for name in names:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        is_right = expected.prediction == store.labels
        result = analysis.result(patch)
        assert result.certified.count == (is_right & expected.is_certified).sum()
        assert 0 < result.certified.count < is_right.sum()
        unanimous = analysis.unanimous(patch).certified.count
        assert unanimous == (is_right & expected.is_unanimous).sum()
    assert analysis.squares == (1, 2, 3)
    assert analysis.num_passes.sum() == 40 * 210 - 1
    label_report.write(analysis, tmp_path / "out", has_figures=False)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [c["attack"] for c in summary["certificates"]] == ["1x1"] * 2 + ["2x3"] * 2
    rows = list(
        csv.DictReader((tmp_path / "out" / "rows.csv").read_text().splitlines())
    )
    column = [int(row["is_certified_2x3"]) for row in rows]
    expected = analysis.certificates[ds.Patch(2, 3)].is_certified
    np.testing.assert_array_equal(column, expected)
    share = np.mean(
        (expected) & (analysis.certificates[PATCHES[0]].prediction == store.labels)
    )
    assert summary["certificates"][2]["certified_accuracy"] == share


def test_what_breaks_a_certificate_does_so(store):
    # Protects the explorer: the placement has no believed mask, and the pair disagrees.
    analysis = analyze_labels(store, PATCHES, sample=np.arange(len(store)))
    tables, found = store.read_all(), analysis.certificates[analysis.patch]
    covers, row_of = covered_placements(MASKS, analysis.patch, SIZE)
    assert set(analysis.breaks) == set(np.flatnonzero(~found.is_certified).tolist())
    assert analysis.breaks[7].label is None  # the pair is not sure
    for image, broken in analysis.breaks.items():
        table, prediction = tables[image], found.prediction[image]
        at = covers[row_of[broken.corner]]
        assert at[broken.first]
        assert not any((table[i] == prediction).all() for i in np.flatnonzero(at))
        assert table[broken.first, broken.second] != prediction
        entry = table[broken.first, broken.second]
        assert entry != NOT_COMPUTED and (broken.label is None) == (entry == UNSURE)
    with pytest.raises(IndexError):  # where nothing fails there is nothing to find
        agreed = np.zeros((20, 20), np.int16)
        find_break(agreed, 0, covers, row_of)


def test_the_page_shows_what_was_found_and_escapes_names(store, tmp_path):
    # Protects readers: pictures, masks and placement drawn, and no name is markup.
    chosen = choose(store)
    analysis = analyze_labels(store, PATCHES, sample=chosen[choose_shown(len(chosen))])
    written = label_report.write(analysis, tmp_path / "out")
    assert written[0] == "report.html"
    for name in written:
        assert (tmp_path / "out" / name).stat().st_size > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>one" in page and "&lt;b&gt;" in page and "<b><b>" not in page
    assert page.count("<svg viewBox") == len(analysis.sample) == 40
    assert page.count('class="patch"') == len(analysis.breaks)
    assert page.count("data:image/png;base64") == 40
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert label_report.claim(analysis).startswith(
        f"{analysis.result(analysis.patch).certified.count} of 40 images"
    )
    assert "20 masks of 3x3 pixels, two of them believed from a score of 0.5 on" in page
    assert page.count("no class for sure") == 1


def test_a_patch_that_is_not_covered_is_refused(store):
    # Protects against a table of patches of which nothing is known.
    with pytest.raises(ValueError, match="covers no patch of 4x1"):
        analyze_labels(store, [ds.Patch(4, 1)])


def test_no_images_are_a_report_too(tmp_path):
    # Protects empty splits.
    none = LabelStore.create(
        tmp_path / "scores",
        masks=MASKS,
        tolerance=0.0,
        image_shape=(*SIZE, 1),
        num_classes=3,
        labels=np.zeros(0, int),
        ids=np.zeros(0, str),
        made_by={},
    )
    analysis = analyze_labels(none, PATCHES)
    label_report.write(analysis, tmp_path / "out", has_figures=False)
    assert (
        json.loads((tmp_path / "out" / "summary.json").read_text())["num_images"] == 0
    )


def test_smoothing_and_masks_stand_side_by_side(store, tmp_path):
    # Protects --compare: the same images, each by its own way to decide, and its cost.
    scores = np.random.default_rng(2).dirichlet(np.ones(3), (40, 7)).astype("f")
    smoothed = ds.save_scores(
        tmp_path / "smoothed",
        scores,
        ablation=ds.Columns(2),
        image_shape=(*SIZE, 1),
        labels=store.labels,
        ids=store.ids,
    )
    runs = comparison.compare({"a": smoothed, "b": store}, PATCHES)
    found = [row for row in comparison.rows(runs) if row["patch"] == "2x3"]
    analysis = analyze_labels(store, PATCHES)
    certificate = analysis.certificates[PATCHES[1]]
    hit = certificate.is_certified & (certificate.prediction == store.labels)
    theirs = runs["a"].is_hit("threshold", "2x3")
    assert found[1]["certified"].count == hit.sum()
    assert found[1]["gained"] == (hit & ~theirs).sum() > 0
    assert found[1]["lost"] == (theirs & ~hit).sum()
    assert (found[0]["views"], found[1]["views"]) == (7, analysis.num_passes.mean())
    costs = comparison.format_comparison(runs).splitlines()[-2:]
    assert [line.split() for line in costs] == [
        ["a", "7", "-", "-"],
        ["b", "210", "-", "-"],
    ]
    assert [row["seconds"] for row in found] == [None, None]
    for shard, seconds in enumerate((70.0, 3.0, 3.0)):  # 16, 16 and 8 images
        enter_seconds(store, shard, seconds, is_first=shard == 0)
    assert comparison.rows(runs)[-1]["seconds"] == 0.25
    last = comparison.format_comparison(runs).splitlines()[-1]
    assert last.split() == ["b", "210", "0.25", "-"]
    assert comparison.write(runs, tmp_path / "out")[0] == "comparison.png"
    # In the other order: what was gained is lost.
    turned = comparison.rows(comparison.compare({"b": store, "a": smoothed}, PATCHES))
    assert turned[-1]["lost"] == found[1]["gained"]
    other = ds.save_scores(
        tmp_path / "other",
        scores[:3],
        ablation=ds.Columns(2),
        image_shape=(*SIZE, 1),
        labels=store.labels[:3],
    )
    with pytest.raises(StoreError, match="are of different images"):
        comparison.compare({"b": store, "a": other}, PATCHES)
