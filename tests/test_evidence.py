"""Ablations left out two sets at a time: masks, tables of winners, and attacks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmooth_jax as ds
from dsmooth_jax import double_masking, evidence
from dsmooth_jax.duels import check_levels


def random_scores(rng, num_images, num_ablations, num_classes, *, signal=1.0):
    """Softmax scores that lean towards one class of each image."""
    logits = rng.normal(size=(num_images, num_ablations, num_classes))
    favourite = rng.integers(num_classes, size=num_images)
    logits[np.arange(num_images), :, favourite] += signal
    weights = np.exp(2 * logits)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def slow_winner(levels, left, limit):
    """The winner of one image [P, K] over the ablations left, word for word."""
    num_classes = levels.shape[1]
    kept = [[int(x) for x in levels[p]] for p in np.flatnonzero(left)]

    def goodness(c):
        if limit is None:
            return sum(row[c] for row in kept)
        return min(
            sum(max(-limit, min(limit, row[c] - row[j])) for row in kept)
            for j in range(num_classes)
            if j != c
        )

    return max(range(num_classes), key=lambda c: (goodness(c), -c))


def slow_table(levels, masks, limit):
    return [
        [
            [slow_winner(image, ~(one | other), limit) for other in masks]
            for one in masks
        ]
        for image in levels
    ]


def certify(scores, sets, **settings):
    masks = ds.ablation_masks(sets)
    return evidence.certify_masked(
        ds.log_levels(scores), masks, ds.covering_touched(masks, sets), **settings
    )


def test_levels_are_logarithms_in_thousandths():
    # Protects the evidence: floor, rounding, and nothing above 0.
    scores = np.array([[[1.0, 1e-3, 0.0], [0.5, 1e-4, 9e-5]]])
    expected = [
        [
            [round(1000 * math.log(max(float(np.float32(s)), 1e-4))) for s in row]
            for row in image
        ]
        for image in scores
    ]
    assert ds.log_levels(scores).tolist() == expected
    assert ds.log_levels(scores).dtype == np.int16
    assert ds.log_levels(np.zeros((1, 1, 2)), floor=1e-12).min() == -27631


@pytest.mark.parametrize("floor", [0, 1, -1.0, 1e-13, float("nan")])
def test_a_floor_without_a_logarithm_is_refused(floor):
    # Protects against levels that wrap around or say nothing.
    with pytest.raises(ValueError, match="floor="):
        ds.log_levels(np.zeros((1, 1, 2)), floor=floor)


@pytest.mark.parametrize(
    ("ablation", "patch"),
    [
        (ds.Columns(2), ds.Patch(3, 2)),
        (ds.Columns(2, stride=3), ds.Patch(1, 4)),
        (ds.Rows(3), ds.Patch(2, 5)),
        (ds.Blocks(3), ds.Patch(2, 3)),
        (ds.MultiColumns(2, 2), ds.Patch(2, 2)),
    ],
)
def test_masks_are_the_largest_touched_sets_and_cover_every_placement(ablation, patch):
    # Protects covering: each touched set lies in a mask, and in which ones is true.
    size = (8, 10)
    sets = ds.touched(ablation, patch, size)
    exact = ds.ablation_masks(sets)
    largest = [
        one
        for i, one in enumerate(sets)
        if not any((one <= other).all() and i != j for j, other in enumerate(sets))
    ]
    assert exact.tolist() == [one.tolist() for one in largest]
    for masks in (
        exact,
        *(ds.merged_masks(ablation, patch, size, per_axis=k) for k in (1, 2, 3, 99)),
    ):
        covers = ds.covering_touched(masks, sets)
        expected = [[bool((one <= mask).all()) for mask in masks] for one in sets]
        assert covers.tolist() == expected
        assert covers.any(axis=1).all()
    assert (
        ds.merged_masks(ablation, patch, size, per_axis=99).tolist() == exact.tolist()
    )
    assert len(ds.merged_masks(ablation, patch, size, per_axis=2)) <= 4


def test_masks_of_a_smaller_patch_are_refused():
    # Protects against the mutant: a mask that does not hold what the patch touches.
    masks = ds.ablation_masks(ds.touched(ds.Columns(2), ds.Patch(3, 3), (8, 8)))
    smaller = ds.touched(ds.Columns(2), ds.Patch(2, 2), (8, 8))
    assert ds.covering_touched(masks, smaller).any(axis=1).all()
    larger = ds.touched(ds.Columns(2), ds.Patch(4, 4), (8, 8))
    with pytest.raises(ValueError, match="lies in no mask"):
        ds.covering_touched(masks, larger)


@pytest.mark.parametrize("limit", [None, 1, 700])
@pytest.mark.parametrize("is_tied", [False, True])
def test_tables_are_those_of_the_slow_twin(limit, is_tied):
    # Protects sums of what is left: overlaps count once, ties go to the smaller.
    rng = np.random.default_rng(3)
    levels = rng.integers(-2 if is_tied else -9210, 1, (5, 6, 3))
    masks = np.zeros((4, 6), bool)
    for mask, out in enumerate([(0, 1), (1, 2), (3, 4), (0, 5)]):
        masks[mask, list(out)] = True
    table = ds.mask_table(levels.astype(np.int16), masks, limit=limit)
    assert table.tolist() == slow_table(levels, masks, limit)
    assert table.dtype == np.int16


@pytest.mark.parametrize("limit", [None, 3])
def test_winners_that_other_roundings_change_are_in_doubt(limit):
    # Protects certificates elsewhere: every way to move the levels, those and no other.
    rng = np.random.default_rng(7)
    masks = np.eye(3, dtype=bool)
    num_doubted = num_entries = 0
    for _ in range(60):
        levels = rng.integers(0, 5, (1, 3, 2)).astype(np.int16)
        doubt = rng.integers(0, 3, levels.shape)
        table = ds.mask_table(levels, masks, limit=limit, uncertain=doubt)
        nominal = ds.mask_table(levels, masks, limit=limit)
        np.testing.assert_array_equal(double_masking.nominal(table), nominal)
        every = itertools.product(*(range(-d, d + 1) for d in doubt.ravel()))
        moved = levels + np.array(list(every)).reshape(-1, 3, 2)
        winners = ds.mask_table(moved, masks, limit=limit)
        is_changed = (winners != nominal).any(axis=0)
        is_doubted = table[0] != nominal[0]
        assert not (is_changed & ~is_doubted).any()
        if limit is None:
            np.testing.assert_array_equal(is_doubted, is_changed)
        num_doubted += int(is_doubted.sum())
        num_entries += is_doubted.size
    assert 0.2 < num_doubted / num_entries < 0.9


@pytest.mark.parametrize("tolerance", [0.0, 1e-5, 0.01])
def test_doubts_of_logarithms_hold_whatever_scores_nearby_become(tolerance):
    # Protects tolerance: no score within it moves a level further, and one so far.
    rng = np.random.default_rng(8)
    scores = random_scores(rng, 20, 4, 3, signal=2).astype(np.float64)
    scores[0, 0] = [1.0, 0.0, 1e-4]
    doubt = ds.log_doubts(scores, tolerance)
    levels, furthest = ds.log_levels(scores), np.zeros(scores.shape, int)
    for share in np.linspace(-1, 1, 21):
        nearby = ds.log_levels(np.clip(scores + share * tolerance, 0, 1))
        furthest = np.maximum(furthest, np.abs(nearby.astype(int) - levels))
    np.testing.assert_array_equal(doubt, furthest)
    assert doubt.dtype == np.int16 and doubt.any() == (tolerance > 0)


def test_scores_within_the_tolerance_leave_certified_predictions_alone():
    # Protects the default of classifiers: other machines, attacked, predict the same.
    rng = np.random.default_rng(9)
    sets = ds.touched(ds.Columns(1), ds.Patch(1, 1), (1, 9))
    masks = ds.ablation_masks(sets)
    scores = random_scores(rng, 80, 9, 3, signal=1.0)
    tolerance = 0.01
    doubt = ds.log_doubts(scores, tolerance)
    found = certify(scores, sets, uncertain=doubt)
    nominal = certify(scores, sets)
    np.testing.assert_array_equal(found.prediction, nominal.prediction)
    for name in ("is_certified", "is_detected", "is_unanimous"):
        assert not (getattr(found, name) & ~getattr(nominal, name)).any()
    assert 5 < found.is_certified.sum() < nominal.is_certified.sum()
    num_changed = 0
    for _ in range(60):
        moves = rng.choice([-1, 1], scores.shape) * tolerance * 0.999
        other = np.clip(scores + moves, 0, 1)
        for row in [np.zeros(9, bool), *sets]:
            attacked = other.copy()
            attacked[:, row] = np.eye(3)[rng.integers(0, 3, (80, int(row.sum())))]
            table = ds.mask_table(ds.log_levels(attacked), masks)
            is_changed = ds.double_masking_predict(table) != found.prediction
            assert not (is_changed & found.is_certified).any()
            num_changed += int((is_changed & nominal.is_certified).sum())
    assert num_changed  # what is certified here alone does change elsewhere


def test_tables_of_large_levels_are_exact():
    # Protects integers that float32 does not hold: they go another way.
    levels = np.zeros((1, 3, 2), np.int64)
    levels[0, :2] = [[2**40, 2**40 + 1], [1, 0]]
    masks = np.array([[False, False, True]])
    assert ds.mask_table(levels, masks).tolist() == [[[0]]]  # equal: the smaller
    levels[0, 1, 1] = 1
    assert ds.mask_table(levels, masks).tolist() == [[[1]]]
    with pytest.raises(ValueError, match="below 2"):
        ds.mask_table(levels * 2**15, masks)


def test_chunks_change_nothing(monkeypatch):
    # Protects bounded memory: images do not depend on those beside them.
    rng = np.random.default_rng(4)
    levels = ds.log_levels(random_scores(rng, 30, 8, 4))
    sets = ds.touched(ds.Columns(2), ds.Patch(2, 2), (8, 8))
    masks = ds.ablation_masks(sets)
    covering = ds.covering_touched(masks, sets)
    table = ds.mask_table(levels, masks)
    whole = evidence.certify_masked(levels, masks, covering)
    monkeypatch.setattr(evidence, "_CHUNK_ENTRIES", 100)
    assert (ds.mask_table(levels, masks) == table).all()
    parts = evidence.certify_masked(levels, masks, covering)
    for name in ("prediction", "is_certified", "is_detected", "is_unanimous"):
        assert (getattr(parts, name) == getattr(whole, name)).all()
    none = evidence.certify_masked(levels[:0], masks, covering)
    assert none.prediction.shape == (0,)


GRID = np.array([-30_000, -9210, -1, 0, 1, 30_000])


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("limit", [None, 500])
def test_no_rewriting_of_a_touched_set_changes_a_certified_prediction(limit, is_merged):
    # Protects the certificate: every placement, every rewriting from a grid of levels,
    # beyond what scores can be.
    rng = np.random.default_rng(5)
    size = (6, 6)
    ablation, patch = ds.Columns(1), ds.Patch(1, 2)
    sets = ds.touched(ablation, patch, size)
    masks = ds.ablation_masks(sets)
    if is_merged:
        masks = ds.merged_masks(ablation, patch, size, per_axis=3)
    covering = ds.covering_touched(masks, sets)
    levels = ds.log_levels(random_scores(rng, 20, 6, 2, signal=1.2)).astype(np.int32)
    found = evidence.certify_masked(levels, masks, covering, limit=limit)
    assert 3 < found.is_certified.sum() < 20
    num_broken = 0
    for image, one in enumerate(levels):
        for touched in sets:
            written = np.array(list(itertools.product(GRID, repeat=2 * touched.sum())))
            attacked = np.repeat(one[None], len(written), axis=0)
            attacked[:, touched] = written.reshape(len(written), -1, 2)
            predicted = ds.double_masking_predict(
                ds.mask_table(attacked, masks, limit=limit)
            )
            is_changed = (predicted != found.prediction[image]).any()
            assert not (found.is_certified[image] and is_changed)
            num_broken += is_changed
    assert num_broken > 20


@given(st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_votes_certify_is_certified_with_the_same_duels(data):
    # Protects the proposition of `evidence`: never behind votes, where all touched sets
    # have one size and duels are limited alike.
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    num_classes = data.draw(st.integers(2, 5))
    scores = random_scores(rng, 20, 9, num_classes, signal=data.draw(st.floats(0, 3)))
    sets = ds.touched(ds.Columns(2), ds.Patch(2, data.draw(st.integers(1, 2))), (9, 9))
    masks = ds.ablation_masks(sets)
    covering = ds.covering_touched(masks, sets)
    strength = data.draw(st.sampled_from([1, 5, 20]))
    for votes in (ds.graded_votes(scores, strength), ds.threshold_votes(scores, 0.3)):
        by_votes = ds.certify(votes, sets)
        levels, limit, _ = check_levels(votes)
        masked = evidence.certify_masked(levels, masks, covering, limit=limit)
        assert not (by_votes.is_certified & ~masked.is_certified).any()
        agree = masked.prediction == by_votes.prediction
        assert agree[by_votes.is_certified].all()


def test_it_certifies_more_than_votes():
    # Protects the reason to have it: on the same scores, more images.
    rng = np.random.default_rng(6)
    scores = random_scores(rng, 300, 16, 5, signal=0.9)
    sets = ds.touched(ds.Columns(2), ds.Patch(3, 3), (16, 16))
    graded = ds.certify(ds.graded_votes(scores, 5), sets)
    assert certify(scores, sets).is_certified.sum() > graded.is_certified.sum() + 20


def test_a_pair_that_leaves_no_ablation_is_refused():
    # Protects against certifying class 0 where nothing is left to look at.
    sets = ds.touched(ds.Columns(2), ds.Patch(3, 3), (6, 6))
    with pytest.raises(ValueError, match="leave no ablation; the patch is too large"):
        certify(np.full((1, 6, 2), 0.5, np.float32), sets)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (np.zeros((2, 3)), TypeError, "masks has dtype float64"),
        (np.zeros((2, 4), bool), ValueError, r"must be \[M, 3\]"),
        (np.zeros((0, 3), bool), ValueError, "at least one row"),
    ],
)
def test_what_is_no_mask_is_refused(masks, error, message):
    # Protects the table from masks of other ablations.
    with pytest.raises(error, match=message):
        ds.mask_table(np.zeros((1, 3, 2), np.int16), masks)


@pytest.mark.parametrize(
    ("ablation", "patch", "most"),
    [
        (ds.Columns(2), ds.Patch(2, 2), 16),
        (ds.Columns(1), ds.Patch(1, 1), 36),
        (ds.Blocks(3), ds.Patch(2, 2), 36),
    ],
    ids=str,
)
def test_a_classifier_has_masks_for_its_patch_and_all_inside(ablation, patch, most):
    # Protects the number of pairs, and the cover of every smaller patch.
    size = (16, 16) if most == 16 else (14, 70)
    masks = ds.design_masks(ablation, patch, size)
    assert 1 < len(masks) <= most
    for inside in itertools.product(
        *(range(1, n + 1) for n in (patch.height, patch.width))
    ):
        sets = ds.touched(ablation, ds.Patch(*inside), size)
        assert ds.covering_touched(masks, sets).any(axis=1).all()
