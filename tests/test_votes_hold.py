"""Protects the exact attack on votes: it breaks what some rewriting breaks, no more."""

import itertools

import numpy as np
import pytest
from test_certificate import duel_winner, duels, geometries

import dsmooth_jax as ds


@pytest.mark.parametrize("num_classes", [2, 3])
def test_graded_votes_hold_exactly_where_no_rewriting_changes_the_prediction(
    num_classes,
):
    """Every rewriting of the levels of a touched set is tried, ties and circles too."""
    rng, limit = np.random.default_rng(num_classes), 2
    # 0, the limit and twice that give every preference between no and full.
    every = np.array(list(itertools.product(range(2 * limit + 1), repeat=num_classes)))
    every = np.unique(duels(every, limit), axis=0)  # [R, K, K]
    seen = []
    for touched in itertools.islice(geometries(), 0, None, 3):
        touched = touched[touched.sum(axis=1) <= 2]
        if not len(touched):
            continue
        shape = (12, touched.shape[1], num_classes)
        levels = rng.integers(0, 2 * limit + 1, shape)
        levels[::2, :, 0] += 1  # some hold
        table = duels(levels, limit)  # [n, P, K, K]
        clean = duel_winner(table.sum(axis=1))
        holds = np.ones(len(levels), bool)
        for row in touched:
            kept = table[:, ~row].sum(axis=1)[:, None]  # [n, 1, K, K]
            rewritten = np.zeros((1, *every.shape[1:]), int)
            for _ in range(row.sum()):
                rewritten = np.unique(
                    (rewritten[:, None] + every).reshape(-1, *every.shape[1:]), axis=0
                )
            holds &= (duel_winner(kept + rewritten) == clean[:, None]).all(axis=1)
        votes = ds.GradedVotes(levels, limit)
        np.testing.assert_array_equal(ds.votes_hold(votes, touched), holds)
        certified = ds.certify(votes, touched).is_certified
        assert not (certified & ~holds).any()
        seen.append(holds)
    assert 0.05 < np.concatenate(seen).mean() < 0.95


def test_a_winner_that_loses_a_duel_can_hold_and_is_not_certified():
    """A circle of duels: class 0 loses one by 2, the others one by 14."""
    levels = np.repeat([[4, 2, 0], [0, 4, 2], [2, 0, 4]], [7, 4, 4], axis=0)
    totals = duels(levels, 2).sum(axis=0)
    assert (totals[0, 2], totals[1, 0], totals[2, 1]) == (-2, -14, -14)
    votes = ds.GradedVotes(levels[None], 2)
    touched = np.eye(len(levels), dtype=bool)[:1]
    assert not ds.certify(votes, touched).is_certified
    assert ds.votes_hold(votes, touched)


def test_votes_hold_where_they_are_certified():
    """For 0/1 votes the certificate is exact, so both are the same."""
    rng = np.random.default_rng(0)
    votes = rng.random((200, 6, 3)) < [0.9, 0.4, 0.3]
    touched = np.eye(6, dtype=bool)
    certified = ds.certify(votes, touched).is_certified
    np.testing.assert_array_equal(ds.votes_hold(votes, touched), certified)
    assert certified.any() and not certified.all()
