"""What the page of masks shows of attacks: images as saved, which masks gave way."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import dsmooth_jax as ds
from dsmooth_jax.double_masking import NOT_COMPUTED
from dsmooth_jax.masks import covered_placements
from dsmooth_jax.report import attacked_masks, label_report
from dsmooth_jax.report.attack_summary import attacks_of
from dsmooth_jax.report.attacked_masks import attacked_images
from dsmooth_jax.report.label_analysis import analyze_labels
from dsmooth_jax.storage.attack_store import begin_attack, write_part
from dsmooth_jax.storage.label_store import LabelStore

SIZE, PATCH, NUM = (6, 7), ds.Patch(2, 2), 40
MASKS = ds.Masks(3, stride=1)  # 4 x 5, more than are needed
NAMES = ["<b>", "one", "two"]


@pytest.fixture
def attacked(tmp_path):
    """(function that writes an attack, arrays of it, tables before, the store)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=NUM)
    before = np.repeat(labels, 400).reshape(NUM, 20, 20).astype(np.int16)
    for table in before:
        for i, j in rng.integers(20, size=(12, 2)):
            table[i, j] = table[j, i] = rng.integers(3)
    store = LabelStore.create(
        tmp_path / "certify" / "test" / "scores",
        masks=MASKS,
        tolerance=0.0,
        image_shape=(*SIZE, 1),
        num_classes=3,
        labels=labels,
        ids=list(map(str, range(NUM))),
        made_by={
            "checkpoint": "same",
            "class_names": NAMES,
            "data": {"name": "x", "split": "test"},
        },
    )
    store = store.put(0, before)
    index = rng.permutation(NUM)[:30]
    corner = rng.integers(0, [5, 6], (30, 2))
    corner[::5] = -1  # left alone
    covers, row_of = covered_placements(MASKS, PATCH, SIZE)
    after = before[index].copy()
    for table, place, label in zip(after, corner, labels[index], strict=True):
        if place[0] >= 0:  # what no covering mask hides is the attacker's
            free = ~covers[row_of[tuple(place)]]
            table[np.ix_(free, free)] = (label + 1) % 3
    after[7, 3, 5] = after[7, 5, 3] = NOT_COMPUTED
    clean = ds.double_masking_predict(before[index])
    answers = ds.double_masking_predict(after)
    arrays = {
        "id": store.ids[index],
        "label": labels[index],
        "clean": clean,
        "attacked": answers,
        "is_broken": clean != answers,
        "is_certified": corner[:, 0] < 0,
        "corner": corner,
        "image": rng.integers(0, 256, (30, *SIZE, 1), np.uint8),
        "table": after,
    }

    def write(name, without=(), **changes):
        folder = tmp_path / "attack" / "test" / name
        settings = {"checkpoint": "same", "decision": str(MASKS), **changes}
        begin_attack(folder, settings)
        write_part(folder, 0, {k: v for k, v in arrays.items() if k not in without})

    return write, {**arrays, "index": index}, before, store


def test_the_masks_shown_are_why_the_right_answer_was_not_believed(attacked):
    # Protects what a reader is told: the first mask hides the patch wholly, and with
    # the second it says the class that is named; counts are those of the diagonals.
    write, arrays, before, store = attacked
    write("2x2")
    write("3x3-undefended")
    analysis = analyze_labels(store, [PATCH])
    ((found, images),) = attacked_images(analysis, attacks_of(store))
    assert found.name == "2x2"
    tried = np.flatnonzero(arrays["corner"][:, 0] >= 0)
    assert sorted(one.index for one in images) == sorted(arrays["index"][tried])
    fell = [one.before != one.after for one in images]
    assert fell == sorted(fell, reverse=True) and 0 < sum(fell) < len(fell)
    for one in images:
        i = int(np.flatnonzero(arrays["index"] == one.index)[0])
        table, place = arrays["table"][i], tuple(arrays["corner"][i].tolist())
        assert one.corner == place
        assert one.before == arrays["clean"][i] and one.after == arrays["attacked"][i]
        np.testing.assert_array_equal(one.pixels, arrays["image"][i])
        for counts, shown in (
            (before[one.index], one.alone_before),
            (table, one.alone_after),
        ):
            singles = [counts[m, m] for m in range(20)]
            assert shown.tolist() == [singles.count(k) for k in range(3)]
        if one.before == one.after:
            assert one.broken is None
            continue
        pair = one.broken.first, one.broken.second
        assert one.broken.corner == place
        assert one.broken.label == table[pair] != one.before
        row, column = divmod(pair[0], 5)
        assert row <= place[0] <= row + 1 and column <= place[1] <= column + 1
        # The attacker had no hand in what it says.
        assert table[pair] == before[(one.index, *pair)]


def test_attacks_on_the_same_network_decided_otherwise_are_not_shown(attacked):
    # Protects the page from attacks on other masks, or on another confidence: its
    # certificates are not theirs.
    write, _, _, store = attacked
    write("1x1", confidence=0.5)
    write("2x2")
    write("2x3", decision=str(ds.Masks(4, stride=1)))
    write("3x3-undefended", decision="undefended")
    names = [found.name for found in attacks_of(store)]
    assert names == ["2x2", "3x3-undefended"]


def test_the_page_holds_attacked_images_with_patch_and_masks(
    attacked, tmp_path, monkeypatch
):
    # Protects the page: pictures pixel by pixel, a patch on each, names no markup; and
    # the figure has a cross. Attacks by older versions kept no tables.
    write, arrays, _, store = attacked
    write("2x2")
    write("3x3", without=("table",))
    monkeypatch.setattr(attacked_masks, "_MOST_SHOWN", 16)
    analysis = analyze_labels(store, [PATCH])
    figure = label_report.draw(analysis, attacks_of(store))
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "right after an attack, 30 images" in texts
    label_report.write(analysis, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    section = re.search(r'<section id="attacks".*?</section>', page, re.DOTALL)[0]
    kept = {image.tobytes() for image in arrays["image"]}
    pictures = re.findall(r'href="data:image/png;base64,(.*?)"', section)
    for coded in pictures:
        cell = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))))
        assert cell[: SIZE[0], : SIZE[1]].tobytes() in kept
    assert len(pictures) == 16 == section.count('class="patch"')
    tabled, older = re.split("By a 3x3 patch", section)
    fallen = tabled.count("fell: now")
    assert fallen <= tabled.count('class="mask"') <= 2 * fallen and fallen
    assert older.count("fell: now") and 'class="mask"' not in older
    assert tabled.count("and now") == 8 and "and now" not in older
    assert "<b><b>" not in page and "&lt;b&gt;" in section
    without = analyze_labels(store, [PATCH])
    for folder in (tmp_path / "attack" / "test").iterdir():
        folder.rename(tmp_path / folder.name)
    label_report.write(without, tmp_path / "plain")
    assert 'id="attacks"' not in (tmp_path / "plain" / "report.html").read_text()
