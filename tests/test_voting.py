"""Scores to votes: who gets a vote, and that nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dsmooth_jax as ds
from dsmooth_jax.voting import cast_votes

some_scores = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(2, 4)),
    elements=st.sampled_from([np.float32(i / 10) for i in range(11)]),
)


@given(some_scores, st.sampled_from([0.1, 0.3, 0.7, 1.0]))
def test_threshold_votes_are_those_of_a_loop(scores, threshold):
    # Protects who votes: each class on its own, so several may get a vote, or none.
    votes = ds.threshold_votes(scores, threshold)
    assert votes.dtype == np.bool_ and votes.shape == scores.shape
    for index in np.ndindex(scores.shape):
        assert votes[index] == (scores[index] >= np.float32(threshold))


@given(some_scores)
def test_top_one_votes_are_those_of_a_loop(scores):
    # Protects the tie rule of an ablation: one vote each, ties to the smaller class.
    votes = ds.top_one_votes(scores)
    assert votes.dtype == np.bool_ and votes.shape == scores.shape
    for n, p in np.ndindex(scores.shape[:2]):
        row = scores[n, p].tolist()
        assert votes[n, p].nonzero()[0].tolist() == [row.index(max(row))]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9, 1.0])
def test_a_score_equal_to_the_threshold_is_a_vote(threshold):
    # Protects the edge: 0.3 is no float32, the score that is written 0.3 still votes.
    at = np.float32(threshold)
    below = np.nextafter(at, np.float32(0))
    scores = np.array([[[at, below]]])
    assert ds.threshold_votes(scores, threshold).tolist() == [[[True, False]]]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9, 1.0])
def test_float64_scores_vote_as_they_do_once_stored(threshold):
    # Protects "compared as float32": a store holds float32 and votes the same.
    at = float(threshold)
    scores = np.array([[[at, np.nextafter(at, 0)], [at - 1e-5, 0.0]]])
    np.testing.assert_array_equal(
        ds.threshold_votes(scores, threshold),
        ds.threshold_votes(scores.astype(np.float32), threshold),
    )


@given(some_scores, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_higher_threshold_only_takes_votes_away(scores, one, other):
    # Protects the direction of the comparison, for every threshold.
    low, high = sorted((one, other))
    votes = ds.threshold_votes(scores, low), ds.threshold_votes(scores, high)
    assert (votes[0] | ~votes[1]).all()


def test_each_name_casts_the_votes_of_its_own_function():
    # Protects certify.py's --voting: the name must select, and only select.
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5))
    by_threshold = cast_votes(scores, "threshold", threshold=0.4)
    np.testing.assert_array_equal(by_threshold, ds.threshold_votes(scores, 0.4))
    by_top_one = cast_votes(scores, "top_one", threshold=0.4)
    np.testing.assert_array_equal(by_top_one, ds.top_one_votes(scores))
    assert (by_threshold != by_top_one).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arguments_are_not_changed(dtype):
    # Protects scores that a caller asks again, in every precision, read-only too.
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (2, 4)).astype(dtype)
    before = scores.copy()
    scores.flags.writeable = False
    ds.threshold_votes(scores, 0.3), ds.top_one_votes(scores)
    np.testing.assert_array_equal(scores, before)
