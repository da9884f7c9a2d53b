"""Double masking of tables of classes: prediction, certificate, and attacks on both."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsmooth_jax as ds
from dsmooth_jax.double_masking import NOT_COMPUTED, UNSURE, in_doubt, nominal


def slow_predict(table):
    """The two rounds, as one would say them."""
    num_masks = len(table)
    singles = [int(table[i][i]) for i in range(num_masks)]
    seen = collections.Counter(singles)
    majority = min(c for c in seen if seen[c] == max(seen.values()))
    for i in range(num_masks):
        if singles[i] != majority and all(x == singles[i] for x in table[i]):
            return singles[i]
    return majority


def slow_certify(table, covering):
    """The certificate of one image, word for word."""
    chosen = slow_predict(table)
    return all(
        any(covers and all(table[i] == chosen) for i, covers in enumerate(placement))
        for placement in covering
    )


def random_tables(rng, num, num_masks, num_classes, *, agreeing=0.7, unsure=0.0):
    """Symmetric tables in which most entries are one class, or unsure of one."""
    tables = rng.integers(num_classes, size=(num, num_masks, num_masks))
    favourite = rng.integers(num_classes, size=(num, 1, 1))
    is_favourite = rng.random((num, num_masks, num_masks)) < agreeing
    tables = np.where(is_favourite, favourite, tables)
    is_pair = ~np.eye(num_masks, dtype=bool)
    tables = np.where(is_pair & (rng.random(tables.shape) < unsure), UNSURE, tables)
    upper = np.triu(np.ones((num_masks, num_masks), bool))
    return np.where(upper, tables, tables.swapaxes(1, 2)).astype(np.int16)


def random_covering(rng, num_placements, num_masks):
    covering = rng.random((num_placements, num_masks)) < 0.4
    covering[
        np.arange(num_placements), rng.integers(num_masks, size=num_placements)
    ] = True
    return covering


def rewritings(table, covers, num_classes):
    """Every table that an attacker at a placement can make of one, int [n, M, M]."""
    num_masks = len(table)
    free = [
        (i, j)
        for i, j in itertools.combinations_with_replacement(range(num_masks), 2)
        if not covers[i] and not covers[j]
    ]
    said = [[*range(num_classes), *[UNSURE] * (i != j)] for i, j in free]
    made = np.array(list(itertools.product(*said)))
    tables = np.repeat(table[None], len(made), axis=0)
    for at, (i, j) in enumerate(free):
        tables[:, i, j] = tables[:, j, i] = made[:, at]
    return tables


@pytest.mark.parametrize("agreeing", [0.3, 0.8, 0.97])
@pytest.mark.parametrize("unsure", [0, 0.05])
def test_predictions_and_certificates_are_those_of_the_slow_twin(agreeing, unsure):
    # Protects both rounds, ties of the majority, and the rule for each placement.
    rng, how = np.random.default_rng(int(100 * agreeing)), {"unsure": unsure}
    for num_masks, num_classes in ((1, 2), (2, 2), (3, 4), (5, 3), (8, 2)):
        tables = random_tables(
            rng, 200, num_masks, num_classes, agreeing=agreeing, **how
        )
        covering = random_covering(rng, 4, num_masks)
        found = ds.certify_double_masking(tables, covering)
        expected = [slow_predict(table) for table in tables]
        assert found.prediction.tolist() == expected
        assert ds.double_masking_predict(tables).tolist() == expected
        assert found.is_certified.tolist() == [
            slow_certify(table, covering) for table in tables
        ]
        singles = [np.diag(table) for table in tables]
        assert found.is_detected.tolist() == [len(set(s)) == 1 for s in singles]
        assert found.is_unanimous.tolist() == [
            bool((t == t[0, 0]).all()) for t in tables
        ]


def test_no_rewriting_changes_a_certified_prediction():
    # Protects the certificate: every placement, every table an attacker there can make,
    # of classes and of pairs that are unsure.
    rng = np.random.default_rng(0)
    num_certified = num_tried = num_beyond_unanimity = 0
    for unsure in np.repeat([0, 0.05], 40):
        num_masks, num_classes = int(rng.integers(2, 5)), int(rng.integers(2, 4))
        tables = random_tables(
            rng, 20, num_masks, num_classes, agreeing=0.85, unsure=unsure
        )
        covering = random_covering(rng, 3, num_masks)
        found = ds.certify_double_masking(tables, covering)
        num_beyond_unanimity += int((found.is_certified & ~found.is_unanimous).sum())
        for image in np.flatnonzero(found.is_certified):
            num_certified += 1
            for covers in covering:
                attacked = rewritings(tables[image], covers, num_classes)
                num_tried += len(attacked)
                predicted = ds.double_masking_predict(attacked)
                assert (predicted == found.prediction[image]).all()
    assert num_certified > 300 and num_tried > 10_000
    assert num_beyond_unanimity > 50  # the sharper rule was under attack, too


def test_what_is_refused_can_often_be_broken():
    # Protects the test above from attacks that could change nothing anyway.
    rng = np.random.default_rng(1)
    tables = random_tables(rng, 200, 3, 2, agreeing=0.8)
    covering = np.eye(3, dtype=bool)
    found = ds.certify_double_masking(tables, covering)
    broken = [
        any(
            (
                ds.double_masking_predict(rewritings(table, covers, 2)) != prediction
            ).any()
            for covers in covering
        )
        for table, prediction in zip(tables, found.prediction, strict=True)
    ]
    assert not np.any(np.array(broken) & found.is_certified)
    assert np.mean(np.array(broken)[~found.is_certified]) > 0.5


def test_no_attack_on_a_detected_image_answers_otherwise_in_silence():
    # Protects is_detected: agreement of all single masks can only be on that class.
    rng = np.random.default_rng(2)
    tables = random_tables(rng, 100, 4, 3, agreeing=0.9)
    covering = random_covering(rng, 3, 4)
    found = ds.certify_double_masking(tables, covering)
    assert 10 < found.is_detected.sum() < 100
    for image in np.flatnonzero(found.is_detected):
        for covers in covering:
            attacked = rewritings(tables[image], covers, 3)
            singles = np.diagonal(attacked, axis1=1, axis2=2)
            agrees = (singles == singles[:, :1]).all(axis=1)
            assert (singles[agrees, 0] == found.prediction[image]).all()


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_certificates_imply_each_other_in_one_direction(data):
    # Protects the claim: unanimity is certified; what is certified for more placements
    # is certified for fewer; a placement that more masks cover is no harder.
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    num_masks = data.draw(st.integers(1, 6))
    tables = random_tables(rng, 30, num_masks, 3, agreeing=0.9)
    covering = random_covering(rng, 4, num_masks)
    found = ds.certify_double_masking(tables, covering)
    assert not (found.is_unanimous & ~found.is_certified).any()
    fewer = ds.certify_double_masking(tables, covering[:2])
    assert not (found.is_certified & ~fewer.is_certified).any()
    wider = ds.certify_double_masking(
        tables, covering | random_covering(rng, 4, num_masks)
    )
    assert not (found.is_certified & ~wider.is_certified).any()


@pytest.mark.parametrize("nothing", [NOT_COMPUTED, UNSURE])
def test_what_says_no_class_is_not_believed(nothing):
    # Protects tables with gaps: a missing pair, or an unsure one, agrees with no class.
    table = np.array([[[1, 1], [1, 1]]], np.int16)
    assert ds.certify_double_masking(table, np.eye(2, dtype=bool)).is_certified.all()
    table[:, 0, 1] = table[:, 1, 0] = nothing
    assert (nominal(table) == table).all()
    found = ds.certify_double_masking(table, np.eye(2, dtype=bool))
    assert found.prediction.tolist() == [1] and found.is_detected.all()
    assert not found.is_certified.any() and not found.is_unanimous.any()


def test_a_class_in_doubt_predicts_and_certifies_nothing():
    # Protects against a rounding on another day: whichever way the classes in doubt
    # fall, what is certified is predicted, and so under attack.
    rng = np.random.default_rng(3)
    num_certified = num_doubted = 0
    for _ in range(12):
        tables = random_tables(rng, 20, 3, 3, agreeing=0.9)
        doubted = np.triu(rng.random((20, 3, 3)) < 0.15)
        doubted |= doubted.swapaxes(1, 2)
        covering = random_covering(rng, 3, 3)
        marked = np.where(doubted, in_doubt(tables), tables)
        found = ds.certify_double_masking(marked, covering)
        expected = ds.certify_double_masking(tables, covering)
        assert (found.prediction == expected.prediction).all()
        assert (ds.double_masking_predict(marked) == expected.prediction).all()
        for name in ("is_certified", "is_detected", "is_unanimous"):
            assert not (getattr(found, name) & ~getattr(expected, name)).any()
        num_doubted += int((expected.is_certified & ~found.is_certified).sum())
        for image in np.flatnonzero(found.is_certified & doubted.any(axis=(1, 2))):
            num_certified += 1
            fallen = rewritings(tables[image], ~doubted[image].any(axis=0), 3)
            fallen = np.where(doubted[image], fallen, tables[image])
            for covers in covering:
                for table in fallen:
                    attacked = rewritings(table, covers, 3)
                    predicted = ds.double_masking_predict(attacked)
                    assert (predicted == found.prediction[image]).all()
    assert num_certified > 10 and num_doubted > 20


def test_a_class_in_doubt_beyond_int16_certifies_nothing():
    # Protects wide tables of many classes: what is in doubt there is no unsure entry.
    table = np.full((1, 2, 2), in_doubt(40_000), np.int64)
    found = ds.certify_double_masking(table, [[True, True]])
    assert found.prediction.tolist() == [40_000]
    assert not found.is_certified.any() and not found.is_detected.any()


def test_no_images_give_an_empty_certificate():
    # Protects empty shards.
    found = ds.certify_double_masking(np.empty((0, 2, 2), np.int16), [[True, True]])
    assert found.prediction.shape == found.is_certified.shape == (0,)


@pytest.mark.parametrize(
    ("table", "covering", "error", "message"),
    [
        (np.zeros((1, 2, 2)), [[True, True]], TypeError, "table has dtype float64"),
        (np.zeros((1, 2, 3), int), [[True, True]], ValueError, r"\[N, M, M\]"),
        ([[[0, 1], [0, 0]]], [[True, True]], ValueError, r"table\[0\] is not symm"),
        ([[[-1, 0], [0, 0]]], [[True, True]], ValueError, "single mask without a cla"),
        ([[[0, 0], [0, UNSURE]]], [[True, True]], ValueError, "alone must have one"),
        ([[[0, 0], [0, 0]]], [[1, 1]], TypeError, "covering has dtype int64"),
        ([[[0, 0], [0, 0]]], [[True]], ValueError, r"must be \[L, 2\]"),
        ([[[0, 0], [0, 0]]], np.empty((0, 2), bool), ValueError, "L >= 1"),
        ([[[0, 0], [0, 0]]], [[True, False], [False, False]], ValueError, r"\[1\]"),
    ],
)
def test_what_is_no_table_or_covers_nothing_is_refused(table, covering, error, message):
    # Protects against a cover that is none: what it certifies could be broken.
    with pytest.raises(error, match=message):
        ds.certify_double_masking(table, covering)
