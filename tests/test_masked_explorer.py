"""What the page shows of double masking: the masks that harm most, and what is left."""

import base64
import json

import numpy as np
import pytest
from pages import one_pixel_request

import dsmooth_jax as ds
from dsmooth_jax.evidence import worst_pair
from dsmooth_jax.report.analysis import analyze
from dsmooth_jax.report.explorer_data import explore

SIZE, NUM_IMAGES, NUM_CLASSES = (5, 10), 20, 3
SHOWN = np.arange(1, NUM_IMAGES, 2)


@pytest.fixture(
    scope="module",
    params=[ds.Columns(2), ds.Blocks(2, stride=2), ds.MultiColumns(2, 2)],
    ids=lambda ablation: type(ablation).__name__,
)
def asked(request, tmp_path_factory):
    """(scores, labels, ablation, what the page holds of every second image)."""
    rng = np.random.default_rng(0)
    ablation = request.param
    labels = rng.integers(0, NUM_CLASSES, NUM_IMAGES)
    shape = (NUM_IMAGES, ablation.num_ablations(SIZE))
    lean = rng.random((NUM_IMAGES, 1, 1)) * np.eye(NUM_CLASSES)[labels][:, None]
    scores = rng.dirichlet(np.ones(NUM_CLASSES), shape) / 2 + lean / 2
    store = ds.save_scores(
        tmp_path_factory.mktemp("asked") / "scores",
        scores.astype(np.float32),
        ablation=ablation,
        image_shape=(*SIZE, 1),
        labels=labels,
    )
    wanted = one_pixel_request(ablation, SIZE, SHOWN)
    page = json.loads(json.dumps(explore(analyze(store, wanted))))
    return store.read_all(), labels, ablation, page


def slow_leads(levels, masks, answer):
    """{(i, j): (margin, rival)} of one image, by lists of ablations and their sums."""
    found = {}
    for i in range(len(masks)):
        for j in range(i, len(masks)):
            out = {p for m in (i, j) for p in range(len(levels)) if masks[m][p]}
            left = [p for p in range(len(levels)) if p not in out]
            sums = [sum(int(levels[p, k]) for p in left) for k in range(NUM_CLASSES)]
            others = [k for k in range(NUM_CLASSES) if k != answer]
            rival = max(others, key=lambda k: (sums[k], -k))
            margin = sums[answer] - sums[rival] - (rival < answer)
            found[i, j] = margin, rival
    return found


def test_the_page_shows_the_most_harmful_pair_and_it_adds_up(asked):
    # Protects what a reader is told breaks an image: no other pair does more harm, the
    # rival is who wins there, and the page's own bars and masks give the sum.
    scores, labels, ablation, page = asked
    levels = ds.log_levels(scores)
    num_ablations, outcomes = scores.shape[1], set()
    squares = page["masking"]["squares"]
    assert len(squares) == len(page["sides"]) and squares[-1] is None
    for side, found in zip(page["sides"], squares, strict=True):
        if found is None:
            continue
        patch = ds.Patch(side, side)
        masks = ds.design_masks(ablation, patch, SIZE)
        bits = np.frombuffer(base64.b64decode(found["masks"]), np.uint8)
        bits = np.unpackbits(bits.reshape(len(masks), -1), axis=1)
        np.testing.assert_array_equal(bits[:, :num_ablations], masks)
        covering = ds.covering_touched(masks, ds.touched(ablation, patch, SIZE))
        table = ds.mask_table(levels, masks)
        proven = ds.certify_double_masking(table, covering)
        assert found["answer"] == proven.prediction[SHOWN].tolist()
        assert found["isCertified"] == proven.is_certified[SHOWN].tolist()
        assert found["isDetected"] == proven.is_detected[SHOWN].tolist()
        is_right = proven.prediction == labels
        for name, hits in (
            ("clean", is_right),
            ("certified", is_right & proven.is_certified),
            ("wrong", ~is_right & proven.is_certified),
            ("detected", is_right & proven.is_detected),
        ):
            assert found[name][0] == hits.sum(), name
        for shown, image in enumerate(SHOWN):
            answer, rival = found["answer"][shown], found["rival"][shown]
            pair = found["first"][shown], found["second"][shown]
            margin = found["margin"][shown]
            every = slow_leads(levels[image], masks, answer)
            assert every[pair] == (margin, rival)
            assert margin == min(lead for lead, _ in every.values())
            assert (table[image][pair] == rival) == (margin < 0)
            coded = page["masking"]["leads"][shown][f"{answer} {rival}"]
            leads = np.frombuffer(base64.b64decode(coded), "<i2").astype(int)
            is_left = bits[list(pair), :num_ablations].sum(axis=0) == 0
            assert leads[is_left].sum() - (rival < answer) == margin
            outcomes.add(margin >= 0)
    assert outcomes == {True, False}  # or a page of one kind would pass


@pytest.mark.parametrize("seed", range(4))
def test_ties_and_near_ties_name_who_wins(seed):
    # Protects the sentence "without them it is ...": where sums are equal or one apart,
    # the rival is the class of the table.
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 2, (200, 5, NUM_CLASSES))
    masks = np.eye(5, dtype=bool)
    chosen = rng.integers(0, NUM_CLASSES, 200)
    found, table = worst_pair(levels, masks, chosen), ds.mask_table(levels, masks)
    is_broken = (table != chosen[:, None, None]).any(axis=(1, 2))
    np.testing.assert_array_equal(found.margin < 0, is_broken)
    there = table[np.arange(200), found.first, found.second]
    np.testing.assert_array_equal(there[is_broken], found.rival[is_broken])
    for image in range(0, 200, 9):
        every = slow_leads(levels[image], masks, chosen[image])
        pair = int(found.first[image]), int(found.second[image])
        assert every[pair] == (found.margin[image], found.rival[image])
        assert pair == min(every, key=lambda pair: (every[pair][0], pair))
