"""Scores to votes: who gets a vote, and that nothing else does."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dsmooth_jax as ds
from dsmooth_jax.voting import cast_doubts, cast_votes

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


FLOATING = ("bfloat16", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn")
FLOATING += ("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e3m4")
FLOATING += ("float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn")
FLOATING += ("float16", "float64", "longdouble")


@pytest.mark.parametrize("name", FLOATING)
def test_scores_of_every_floating_type_vote_as_their_float32(name, tmp_path):
    # Protects a JAX user's bfloat16 model: no type refused, none compared otherwise.
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    scores = np.random.default_rng(0).dirichlet([1] * 3, (20, 6)).astype(dtype)
    exact, labels = scores.astype(np.float32), np.arange(20) % 3
    touched = ds.touched(ds.Columns(2), ds.Patch(1, 1), (4, 6))
    saved = {"ablation": ds.Columns(2), "image_shape": (4, 6, 1), "labels": labels}
    for answer in (
        lambda s: ds.threshold_votes(s, 0.3),
        lambda s: ds.threshold_votes(s, float(exact[0, 0, 0]) or 0.5),
        ds.top_one_votes,
        lambda s: ds.graded_votes(s, 3.3).levels,
        lambda s: ds.uncertain_votes(s, 0.1, threshold=0.3),
        lambda s: ds.uncertain_votes(s, 1e-3, strength=3.3),
        lambda s: ds.base_accuracy(s, labels),
        lambda s: ds.choose_threshold(s, labels, touched),
        lambda s: ds.choose_strength(s, labels, touched),
        lambda s: ds.save_scores(tmp_path / str(s.dtype), s, **saved).read_all(),
    ):
        np.testing.assert_array_equal(answer(scores), answer(exact))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "float16", "float64"])
def test_narrow_scores_are_checked_too(name):
    # Protects against NaN and logits, which narrow types hold as well.
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    for value, shown in ((np.nan, "nan"), (-1, "-1"), (2, "2")):
        scores = np.array([[[0.5, value]]]).astype(dtype)
        with pytest.raises(ValueError, match=rf"scores\[0, 0, 1\] = {shown}"):
            ds.threshold_votes(scores, 0.3)


@pytest.mark.parametrize("name", ["int4", "uint2", "int8", "bool", "complex64", "O"])
def test_what_is_no_floating_type_is_refused(name):
    # Protects the message: integers are votes or labels, not scores.
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    with pytest.raises(TypeError, match="must be floating, softmax scores"):
        ds.threshold_votes(np.zeros((1, 1, 2)).astype(dtype), 0.3)


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
    graded = cast_votes(scores, "graded", strength=7)
    np.testing.assert_array_equal(graded.levels, ds.graded_votes(scores, 7).levels)
    assert graded.limit == ds.GRADES
    assert (by_threshold != by_top_one).any()


def test_some_graded_votes_keep_the_limit_of_all():
    # Protects chunks: a part is counted as the whole is, by indices and by flags.
    scores = np.random.default_rng(1).dirichlet(np.ones(3), (5, 4))
    graded = ds.graded_votes(scores, 3)
    assert (len(graded), graded.shape) == (5, (5, 4, 3))
    for images in (slice(1, 3), np.array([1, 2]), np.arange(5) % 4 > 0):
        part = graded[images]
        assert part.limit == ds.GRADES
        np.testing.assert_array_equal(part.levels, graded.levels[images])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arguments_are_not_changed(dtype):
    # Protects scores that a caller asks again, in every precision, read-only too.
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (2, 4)).astype(dtype)
    before = scores.copy()
    scores.flags.writeable = False
    ds.threshold_votes(scores, 0.3), ds.top_one_votes(scores)
    np.testing.assert_array_equal(scores, before)


@given(some_scores, st.sampled_from([1, 1.5, 2, 3.3, 5, 20, 99.9, 100]))
def test_grades_are_those_of_the_formula(scores, strength):
    # Protects the definition: rint(100 strength score) in float64, halves to even.
    grades = ds.graded_votes(scores, strength).levels
    assert grades.dtype == np.int16 and grades.shape == scores.shape
    for index in np.ndindex(scores.shape):
        exact = np.float64(100 * strength) * float(scores[index])
        assert grades[index] == round(exact)  # Python's round: halves to even


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_halves_are_graded_to_even(dtype):
    # Protects the rounding, and both ends of the strength: 10,000 fits into int16.
    scores = np.array([[[0.125, 0.375, 0.625, 0.875, 0.0, 1.0]]], dtype)
    assert ds.graded_votes(scores, 1).levels.tolist() == [[[12, 38, 62, 88, 0, 100]]]
    assert ds.graded_votes(scores, 100).levels[0, 0, -2:].tolist() == [0, 10_000]
    assert ds.graded_votes(scores / 8, 100).levels[0, 0, 0] == 156  # 156.25


@pytest.mark.parametrize("strength", [0, 0.99, -1, 100.1, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(strength):
    # Protects int16 levels from wrapping, and users from settings without a meaning.
    scores = np.full((1, 2, 2), 0.5)
    for call in (
        lambda: ds.graded_votes(scores, strength),
        lambda: ds.uncertain_votes(scores, 0.0, strength=strength),
    ):
        with pytest.raises(ValueError, match=r"strength=.*\[1, 100\]"):
            call()


def test_grades_need_numbers(without_shape_checks):
    # Protects from scores that are not a number, which a cast would make a level.
    with pytest.raises(ValueError, match=r"scores\[0, 0, 1\] = nan"):
        ds.graded_votes(np.array([[[0.5, np.nan]]]), 2)
    with pytest.raises(TypeError, match="strength='high' must be a number"):
        ds.graded_votes(np.full((1, 2, 2), 0.5), "high")
    with pytest.raises(TypeError, match="int64"):
        ds.graded_votes(np.ones((1, 2, 2), int), 2)


def near_scores(at, tolerance):
    """What another machine may compute in place of a score, to both ends."""
    score = float(np.float32(at))
    steps = [(i - 10) / 10 * tolerance for i in range(21)]
    return [score + step for step in steps]


@given(some_scores, st.sampled_from([0.1, 0.3, 0.5, 1.0]), st.floats(0, 0.3))
def test_a_vote_is_uncertain_iff_a_score_nearby_votes_otherwise(
    scores, threshold, tolerance
):
    # Protects doubtful votes: all of them are marked, and no other.
    marked = ds.uncertain_votes(scores, tolerance, threshold=threshold)
    assert marked.dtype == np.bool_ and marked.shape == scores.shape
    theta = float(np.float32(threshold))
    for index in np.ndindex(scores.shape):
        votes = {s >= theta for s in near_scores(scores[index], tolerance)}
        assert marked[index] == (len(votes) == 2)


@given(some_scores, st.sampled_from([1, 1.37, 5, 100]), st.floats(0, 0.99))
def test_a_grade_is_uncertain_iff_a_score_nearby_is_graded_otherwise(
    scores, strength, share
):
    # Protects doubtful levels, and that they move by one level at most.
    tolerance = share / (100 * strength)
    marked = ds.uncertain_votes(scores, tolerance, strength=strength)
    for index in np.ndindex(scores.shape):
        nominal = round(100 * strength * float(scores[index]))
        grades = [
            round(100 * strength * s) for s in near_scores(scores[index], tolerance)
        ]
        assert marked[index] == (len(set(grades)) > 1)
        assert all(abs(grade - nominal) <= 1 for grade in grades)


@given(some_scores, st.sampled_from([0.0, 1e-3, 0.05, 0.2]))
def test_a_top_vote_is_uncertain_iff_scores_nearby_give_it_to_another(
    scores, tolerance
):
    # Protects top-one votes: whoever may be on top is marked, where more than one may.
    marked = ds.uncertain_votes(scores, tolerance, top_one=True)
    for index in np.ndindex(scores.shape[:2]):
        row = scores[index].astype(float)
        possible = set()
        for k in range(len(row)):  # k as high as it can be, all others as low
            moved = row - tolerance
            moved[k] = row[k] + tolerance
            if moved[k] >= moved.max() and (tolerance or row.argmax() == k):
                possible.add(k)
        expected = possible if len(possible) > 1 else set()
        assert set(np.flatnonzero(marked[index]).tolist()) == expected


def test_doubts_are_cast_by_the_voting_of_this_name():
    # Protects what is certified by default: each voting's own doubts, none at 0.
    scores = np.array([[[0.3, 0.30001, 0.5], [0.5, 0.5, 0.0]]], np.float32)
    settings = {"threshold": 0.3, "strength": 2}
    for voting, own in (
        ("threshold", {"threshold": 0.3}),
        ("graded", {"strength": 2}),
        ("top_one", {"top_one": True}),
    ):
        assert cast_doubts(scores, voting, 0, **settings) is None
        doubt = cast_doubts(scores, voting, 1e-4, **settings)
        np.testing.assert_array_equal(doubt, ds.uncertain_votes(scores, 1e-4, **own))
    with pytest.raises(ValueError, match="tolerance=-1"):
        cast_doubts(scores, "graded", -1)


def test_a_tolerance_of_nothing_leaves_nothing_in_doubt():
    # Protects scores at the very edge: on the same machine they vote as they did.
    scores = np.array([[[0.3, 0.125, np.nextafter(np.float32(0.3), 0)]]], np.float32)
    assert not ds.uncertain_votes(scores, 0, threshold=0.3).any()
    assert not ds.uncertain_votes(scores, 0, strength=1).any()


@pytest.mark.parametrize(
    ("tolerance", "settings", "words"),
    [
        (0.1, {}, "exactly one"),
        (0.1, {"threshold": 0.3, "strength": 2}, "exactly one"),
        (-0.1, {"threshold": 0.3}, r"tolerance=-0\.1 .*\[0, 1\)"),
        (1, {"threshold": 0.3}, r"tolerance=1 .*\[0, 1\)"),
        (float("nan"), {"threshold": 0.3}, r"tolerance=nan .*\[0, 1\)"),
        (0.1, {"threshold": 0}, r"threshold=0 "),
        (0.005, {"strength": 2}, r"tolerance=0\.005 must be below 0\.005"),
    ],
)
def test_doubts_that_make_no_sense_are_refused(tolerance, settings, words):
    # Protects certificates: a level that may move by two is not counted as one.
    with pytest.raises(ValueError, match=words):
        ds.uncertain_votes(np.full((1, 2, 2), 0.5), tolerance, **settings)


def test_a_doubt_that_just_reaches_the_threshold_counts():
    # Protects the edge: a score that may equal the threshold may vote.
    scores = np.array([[[0.25, 0.5, 0.75]]], np.float32)
    marked = ds.uncertain_votes(scores, 0.25, threshold=0.5)
    assert marked.tolist() == [[[True, True, False]]]
