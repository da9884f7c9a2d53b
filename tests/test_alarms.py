"""Protects alarms: what is proven detected is, and for what is not an attack exists."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_certificate import (
    duel_winner,
    duels,
    racing_scores,
    random_votes,
    reachable_top_one_counts,
    reachable_vote_counts,
    tables,
)
from test_ranks import draw_top_one, some_geometries, worst_duel

import dsmooth_jax as ds
from dsmooth_jax import duels as duels_module
from dsmooth_jax import reach


def answers(counts):
    """[..., K] votes -> (winner, its smallest duel), both [...]."""
    ordered = np.sort(counts, axis=-1)
    return counts.argmax(axis=-1), ordered[..., -1] - ordered[..., -2]


def check_against(found, clean, attacked, t, is_exact=True):
    """A certificate is as it must be, given every outcome (winner, duel) [n, R]."""
    prediction, margin = clean
    winner, duel = attacked
    np.testing.assert_array_equal(found.prediction, prediction)
    np.testing.assert_array_equal(found.is_alarm, margin < t)
    is_silent = duel >= t
    is_changed = winner != prediction[:, None]
    is_detected = ~(is_silent & is_changed).any(axis=1)
    is_unwavering = (is_silent & ~is_changed).all(axis=1)
    assert not (found.is_detected & ~is_detected).any()
    assert not (found.is_unwavering & ~is_unwavering).any()
    if is_exact:
        np.testing.assert_array_equal(found.is_detected, is_detected)
        np.testing.assert_array_equal(found.is_unwavering, is_unwavering)


@pytest.mark.parametrize("is_top_one", [False, True])
def test_votes_are_detected_or_an_attack_is_silent(is_top_one):
    # Protects both claims, both directions, at every alarm margin, ties included.
    rng = np.random.default_rng(0)
    draw = draw_top_one if is_top_one else random_votes
    reachable = reachable_top_one_counts if is_top_one else reachable_vote_counts
    seen = []
    for touched in some_geometries():
        num_classes = int(rng.integers(2, 5))
        touched = touched[touched.sum(axis=1) <= (5 if num_classes < 4 else 4)]
        if not len(touched):
            continue
        votes = draw(rng, 24, touched.shape[1], num_classes)
        found = ds.certify_with_alarm(votes, touched, alarm_margin=0)
        outcomes = [
            votes[:, None, ~row].sum(axis=2) + reachable(int(row.sum()), num_classes)
            for row in touched
        ]
        attacked = answers(np.concatenate(outcomes, axis=1))
        for t in range(2 * touched.shape[1] + 2):
            at = found.at(t)
            check_against(at, answers(votes.sum(axis=1)), attacked, t)
            seen.append([at.is_alarm, at.is_detected, at.is_unwavering])
            if t > 2 * touched.sum(axis=1).max():
                assert (at.is_detected | at.is_alarm).all()
        certified = ds.certify(votes, touched).is_certified
        np.testing.assert_array_equal(found.is_unwavering, certified)
        np.testing.assert_array_equal(found.is_detected, certified)
    share = np.concatenate(seen, axis=1).mean(axis=1)
    assert (share > 0.02).all() and (share < 0.95).all()


def test_levels_are_detected_or_an_attack_is_silent():
    # Protects levels: one class has one best attack, so here, too, nothing is lost.
    rng = np.random.default_rng(1)
    seen = []
    for touched in some_geometries():
        num_classes, limit = int(rng.integers(2, 4)), int(rng.integers(1, 3))
        vectors = np.array(list(itertools.product(range(4), repeat=num_classes)))
        one = np.unique(duels(vectors, limit), axis=0)
        levels = rng.integers(0, 6, (12, touched.shape[1], num_classes))
        levels[:, :, 0] += rng.integers(0, 4, (12, 1))
        sums = {0: np.zeros((1, num_classes, num_classes), int)}
        for t in range(1, 4):
            every = sums[t - 1][:, None] + one
            sums[t] = np.unique(every.reshape(-1, *one.shape[1:]), axis=0)
        rows = touched[touched.sum(axis=1) < 4]
        if not len(rows):
            continue
        clean = duels(levels, limit).sum(axis=1)
        attacked = np.concatenate(
            [
                duels(levels[:, ~row], limit).sum(axis=1)[:, None] + sums[row.sum()]
                for row in rows
            ],
            axis=1,
        )
        clean, attacked = (
            (duel_winner(table), worst_duel(table).max(axis=-1))
            for table in (clean, attacked)
        )
        for t in (0, 1, 2, 3, 5, 9):
            found = ds.certify_with_alarm(
                ds.GradedVotes(levels, limit), rows, alarm_margin=t
            )
            check_against(found, clean, attacked, t, is_exact=t > 0)
            seen.append([found.is_alarm, found.is_detected, found.is_unwavering])
        certified = ds.certify(ds.GradedVotes(levels, limit), rows).is_certified
        np.testing.assert_array_equal(found.at(0).is_unwavering, certified)
    share = np.concatenate(seen, axis=1).mean(axis=1)
    assert (share > 0.02).all() and (share < 0.95).all()


def test_with_an_alarm_unless_certified_no_attack_is_silent():
    # Protects the sharp end: any image, certified or not, any attack within one set.
    rng = np.random.default_rng(2)
    num_silent = 0
    for touched in some_geometries():
        votes = random_votes(rng, 10, touched.shape[1], 3)
        clean = ds.certify(votes, touched)
        for row in touched:
            attacked = np.where(
                row[:, None], rng.random((40, 10, *row.shape, 3)) < 0.4, votes
            )
            attacked[:20, :, row, 1] = True  # half of the attacks favour one class
            found = ds.certify(attacked.reshape(-1, *votes.shape[1:]), touched)
            same = found.prediction.reshape(40, 10) == clean.prediction
            silent = found.is_certified.reshape(40, 10)
            assert same[silent].all()
            num_silent += int((silent & ~clean.is_certified).sum())
    assert num_silent > 100  # images that are not certified, and yet answered


def slow_margins(low, high, nominal, touched, limit, is_votes):
    """The rule, one number at a time, for one image: prediction and three margins."""
    num_ablations, num_classes = nominal.shape
    classes = range(num_classes)

    def preference(p, c, j, one, other):
        return max(-limit, min(limit, int(one[p, c]) - int(other[p, j])))

    def smallest(c, of_rival, is_lost_if_tied=True):
        """The least duel; a tie with a smaller index may be lost by 1."""
        pairs = [(of_rival(j), j) for j in classes if j != c]
        least = min(duel for duel, _ in pairs)
        is_tied = least == 0 and any(d == 0 and j < c for d, j in pairs)
        return -1 if is_tied and is_lost_if_tied else least

    every = range(num_ablations)
    worst = [
        min(
            sum(preference(p, c, j, nominal, nominal) for p in every)
            for j in classes
            if j != c
        )
        for c in classes
    ]
    c = worst.index(max(worst))
    margin = worst[c]
    least, rival = [], []
    for row in touched.tolist():
        kept = [p for p in every if not row[p]]
        taken = limit * sum(row)

        def left(j, kept=kept, taken=taken):
            return sum(preference(p, c, j, low, high) for p in kept) - taken

        least.append(smallest(c, left))
        for k in classes:
            if k != c:

                def best(j, k=k, kept=kept, taken=taken):
                    return sum(preference(p, k, j, high, low) for p in kept) + taken

                rival.append(smallest(k, best, is_votes))
    return c, margin, min(least), max(rival)


@given(tables(), st.booleans(), st.booleans())
def test_alarm_margins_equal_the_slow_twin(table, is_votes, is_doubtful):
    # Protects every margin, of votes and levels, doubtful ones included.
    levels, touched, limit, uncertain = table
    doubt = uncertain & is_doubtful
    votes, limit = (levels > 0, 1) if is_votes else (levels, limit)
    found = ds.certify_with_alarm(
        votes if is_votes else ds.GradedVotes(votes, limit),
        touched,
        alarm_margin=1,
        uncertain=doubt if is_doubtful else None,
    )
    for i, image in enumerate(votes):
        if is_votes:
            low, high = image & ~doubt[i], image | doubt[i]
        else:
            low, high = image - doubt[i], image + doubt[i]
        expected = slow_margins(low, high, image, touched, limit, is_votes)
        margins = (found.prediction, found.margin, found.least_margin)
        assert tuple(x[i] for x in (*margins, found.rival_margin)) == expected


def test_fewer_duels_prove_less_and_nothing_false(monkeypatch):
    # Protects many classes: leaving duels out only ever grants the attacker more.
    rng = np.random.default_rng(4)
    touched = ds.touched(ds.Columns(2), ds.Patch(1, 1), (1, 9))
    levels = ds.graded_votes(racing_scores(rng, 300, 9, 6), 6)

    def rivals():
        found = ds.certify_with_alarm(levels, touched, alarm_margin=50)
        return found.rival_margin

    exact = rivals()
    monkeypatch.setattr(reach, "NUM_STRONG", 2)
    fewer = rivals()
    assert (fewer >= exact).all() and (fewer > exact).any()
    assert (fewer == exact).mean() > 0.8  # the strong ones decide


@given(st.lists(st.integers(-3, 6), min_size=1, max_size=30), st.integers(0, 29))
def test_the_alarm_margin_is_the_largest_within_the_rate(margins, allowed):
    # Protects the rate of false alarms: not one more, and no smaller margin than need.
    margins, rate = np.array(margins), min(allowed, len(margins) - 1) / len(margins)
    t = ds.choose_alarm_margin(margins, rate)
    assert t == 0 or (margins < t).sum() <= rate * len(margins)
    assert (margins < t + 1).sum() > rate * len(margins)


def test_evaluation_counts_right_answers_alone():
    # Protects the table: false alarms are of all images, the rest of right answers.
    certificate = ds.AlarmCertificate(
        prediction=np.array([0, 1, 1, 0]),
        margin=np.array([9, 9, 1, 1]),
        least_margin=np.array([4, 4, -3, -3]),
        rival_margin=np.array([-5, -5, 1, 3]),
        counts=np.zeros((4, 2), int),
        alarm_margin=2,
    )
    found = ds.evaluate_alarm(certificate, np.array([0, 0, 1, 0]))
    counts = found.detected.count, found.unwavering.count, found.false_alarms.count
    assert counts == (2, 1, 2)
    assert found.detected.num_images == 4
    twice = found + found
    assert (twice.detected.count, twice.false_alarms.num_images) == (4, 8)
    assert twice.unwavering.count == 2


def test_chunks_change_no_margin_and_arguments_stay(monkeypatch):
    # Protects bounded memory; and arrays of the caller.
    rng = np.random.default_rng(5)
    levels = rng.integers(0, 300, (20, 7, 4)).astype(np.int16)
    votes, sets = random_votes(rng, 20, 7, 4), rng.random((5, 7)) < 0.3
    for array in (levels, votes, sets):
        array.flags.writeable = False

    def margins():
        for found in (
            ds.certify_with_alarm(ds.GradedVotes(levels, 100), sets, alarm_margin=3),
            ds.certify_with_alarm(votes, sets, alarm_margin=3),
        ):
            yield from (found.margin, found.least_margin, found.rival_margin)

    whole = list(margins())
    monkeypatch.setattr(duels_module, "_CHUNK_BYTES", 1)
    for one, other in zip(whole, margins(), strict=True):
        np.testing.assert_array_equal(one, other)
    empty = ds.certify_with_alarm(votes[:0], sets, alarm_margin=0)
    assert empty.rival_margin.shape == empty.is_detected.shape == (0,)
