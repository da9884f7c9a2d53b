"""What the page shows of attacks: the images as saved, and what was said of them."""

import base64
import io
import json
import re

import numpy as np
import pytest
from pages import one_pixel_request
from PIL import Image

import dsmooth_jax as ds
from dsmooth_jax.report import attacked_explorer, html
from dsmooth_jax.report.analysis import analyze
from dsmooth_jax.report.attack_summary import attacks_of
from dsmooth_jax.report.attacked_explorer import explore_attacks
from dsmooth_jax.storage.attack_store import begin_attack, write_part

SIZE, NUM_IMAGES, NUM_CLASSES = (5, 10), 20, 3
ABLATION, PATCH = ds.Columns(2), ds.Patch(2, 3)
SHOWN = np.arange(1, NUM_IMAGES, 2)
VOTES = {"decision": "votes", "patch": None}
EVIDENCE = {"decision": "double_masking", "patch": [2, 3]}


def some_scores(rng, num):
    shape = (num, ABLATION.num_ablations(SIZE))
    return rng.dirichlet(np.ones(NUM_CLASSES), shape).astype(np.float32)


def answers(scores, settings):
    """(classes, levels of each ablation, their limit or None)."""
    if settings["decision"] == "double_masking":
        masks = ds.design_masks(ABLATION, PATCH, SIZE)
        levels = ds.log_levels(scores)
        table = ds.mask_table(levels, masks)
        return ds.double_masking_predict(table), levels.astype(int), None
    if settings["voting"] == "threshold":
        votes = ds.threshold_votes(scores, settings["threshold"])
        return votes.sum(axis=1).argmax(axis=1), votes.astype(int), 1
    votes = ds.graded_votes(scores, settings["strength"])
    ones = np.ones((1, votes.levels.shape[1]), bool)  # all touched: only predictions
    return ds.certify(votes, ones).prediction, votes.levels.astype(int), ds.GRADES


@pytest.fixture
def attacked(tmp_path):
    """(settings, arrays to leave out) -> (analysis, arrays, scores after)."""
    rng = np.random.default_rng(0)
    before = some_scores(rng, NUM_IMAGES)
    store = ds.save_scores(
        tmp_path / "certify" / "test" / "scores",
        before,
        ablation=ABLATION,
        image_shape=(*SIZE, 1),
        labels=rng.integers(0, NUM_CLASSES, NUM_IMAGES),
        made_by={"checkpoint": "same", "data": {"name": "x", "split": "test"}},
    )
    analysis = analyze(store, one_pixel_request(ABLATION, SIZE, SHOWN))

    def attack(name, settings, without=()):
        settings = {"voting": "graded", "threshold": 0.3, "strength": 3.0, **settings}
        index = rng.permutation(NUM_IMAGES)[:12]  # in two parts
        corner = rng.integers(0, [4, 8], (12, 2))
        corner[::4] = -1  # left alone
        touched = np.full((12, 4), -1, np.int32)
        after = before[index].copy()
        for i in np.flatnonzero(corner[:, 0] >= 0):
            column = corner[i, 1]
            touched[i] = [(column + p) % 10 for p in range(-1, 3)]
            after[i, touched[i]] = np.eye(NUM_CLASSES)[i % NUM_CLASSES] * 0.97 + 0.01
        scores = np.take_along_axis(after, np.maximum(touched, 0)[..., None], axis=1)
        arrays = {
            "id": store.ids[index],
            "label": store.labels[index],
            "clean": answers(before[index], settings)[0],
            "attacked": answers(after, settings)[0],
            "is_broken": corner[:, 0] % 2 == 1,
            "is_certified": corner[:, 0] < 0,
            "corner": corner,
            "image": rng.integers(0, 256, (12, *SIZE, 1), np.uint8),
            "touched": touched,
            "scores": scores,
        }
        folder = tmp_path / "attack" / "test" / name
        begin_attack(folder, {"checkpoint": "same", **settings})
        for part in range(2):
            half = slice(6 * part, 6 * part + 6)
            kept = {k: v[half] for k, v in arrays.items() if k not in without}
            write_part(folder, part, kept)
        return analysis, {**arrays, "index": index}, settings, before[index], after

    return attack


@pytest.mark.parametrize(
    "settings",
    [{**VOTES, "voting": "threshold"}, VOTES, EVIDENCE],
    ids=["threshold", "graded", "double_masking"],
)
def test_before_and_after_are_what_each_ablation_said(attacked, settings):
    """Of each image shown, against levels subtracted one by one; rivals are the won."""
    analysis, arrays, settings, before, after = attacked("2x3", settings)
    (found,) = attacks_of(analysis.store)
    ((page, images),) = explore_attacks(analysis, [found])
    page = json.loads(json.dumps(page))
    index, corner = arrays["index"], arrays["corner"]
    wanted = [i for i in range(12) if corner[i, 0] >= 0 and index[i] in SHOWN]
    assert SHOWN[page["images"]].tolist() == index[wanted].tolist()
    np.testing.assert_array_equal(images, arrays["image"][wanted])
    assert page["size"] == [2, 3] and page["tried"] == 9
    assert page["fell"] == arrays["is_broken"].sum()
    changed = set()
    for k, i in enumerate(wanted):
        assert [page["row"][k], page["column"][k]] == corner[i].tolist()
        own, won = page["before"][k], page["after"][k]
        rival = page["rival"][k]
        assert (own, won) == (arrays["clean"][i], arrays["attacked"][i])
        changed.add(own != won)
        coded = base64.b64decode(page["preferences"][k])
        shown = np.frombuffer(coded, "<i2").reshape(2, -1)
        sums = np.zeros((2, NUM_CLASSES), int)
        for n, scores in enumerate((before[i], after[i])):
            _, levels, limit = answers(scores[None], settings)
            for p, level in enumerate(levels[0].tolist()):
                gaps = [level[own] - level[j] for j in range(NUM_CLASSES)]
                if limit:
                    gaps = [min(max(gap, -limit), limit) for gap in gaps]
                assert shown[n, p] == gaps[rival]
                sums[n] += gaps
        others = [j for j in range(NUM_CLASSES) if j != own]
        nearest = min(others, key=lambda j, left=sums[1]: (left[j], j))
        assert rival == (won if won != own else nearest)
        out = np.setdiff1d(np.arange(shown.shape[1]), arrays["touched"][i])
        np.testing.assert_array_equal(shown[0, out], shown[1, out])
    assert changed == {True, False}


def test_older_and_undefended_attacks_show_what_they_can(attacked):
    """Without scores the image alone; what no ablations decided is not shown."""
    attacked("2x3", VOTES, without=("touched", "scores"))
    attacked("2x3-undefended", {"decision": "undefended"})
    analysis, *_ = attacked("4x4-votes", VOTES)
    pages = [page for page, _ in explore_attacks(analysis, attacks_of(analysis.store))]
    assert [page["name"] for page in pages] == ["2x3", "4x4-votes"]
    assert pages[0]["preferences"] is None and pages[0]["images"]
    assert pages[1]["preferences"] is not None


def test_a_part_of_an_older_version_does_not_hide_the_others(attacked, tmp_path):
    """What all parts hold is read, whichever came first."""
    analysis, arrays, *_ = attacked("2x3", VOTES)
    part = {k: v[:6] for k, v in arrays.items() if k not in ("scores", "index")}
    write_part(tmp_path / "attack" / "test" / "2x3", 1, part)
    (found,) = attacks_of(analysis.store)
    assert "scores" not in found.arrays and len(found.arrays["image"]) == 12


def test_the_page_holds_the_attacked_images_as_saved(attacked, monkeypatch):
    """Pixel by pixel, in the sheet of their attack; no more than a page can bear."""
    attacked("2x3", VOTES)
    analysis, *_ = attacked("2x3-double_masking", EVIDENCE)
    found = attacks_of(analysis.store)
    monkeypatch.setattr(attacked_explorer, "_MOST_SHOWN", 6)
    page = html.render(analysis, {}, found)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [one["sheet"] for one in data["attacks"]] == ["attacked-0", "attacked-1"]
    for one, attack in zip(data["attacks"], found, strict=True):
        assert len(one["images"]) == 3
        uri = re.search(one["sheet"] + r" .*?url\(data:image/png;base64,(.*?)\)", page)
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1]))))
        (high, wide), columns = one["atlas"]["cell"], one["atlas"]["columns"]
        for k, place in enumerate(one["images"]):
            i = int(np.flatnonzero(attack.index == SHOWN[place])[0])
            row, column = high * (k // columns), wide * (k % columns)
            cell = sheet[row : row + SIZE[0], column : column + SIZE[1]]
            np.testing.assert_array_equal(cell, attack.arrays["image"][i, :, :, 0])
    assert 'id="attack"' in page
    assert 'id="attack"' not in html.render(analysis, {})
