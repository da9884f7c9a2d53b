"""Protects top-k: no attack pushes a class further down, and some attack so far."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_certificate import (
    duels,
    geometries,
    racing_scores,
    random_votes,
    reachable_top_one_counts,
    reachable_vote_counts,
    tables,
)

import dsmooth_jax as ds
from dsmooth_jax import duels as duels_module
from dsmooth_jax import reach


def some_geometries():
    """Every fifth, of each ablation some."""
    return itertools.islice(geometries(), 0, None, 5)


def ranks(counts):
    """[..., K] -> [..., K]: ranks by count, ties to the smaller index, from 1."""
    index = np.arange(counts.shape[-1])
    one, other = counts[..., :, None], counts[..., None, :]
    is_above = (other > one) | ((other == one) & (index < index[:, None]))
    return 1 + is_above.sum(axis=-1)


def draw_top_one(rng, n, num_ablations, num_classes):
    votes = random_votes(rng, n, num_ablations, num_classes)
    noise = rng.random(votes.shape) / 4  # so that no index is favoured
    return ds.top_one_votes((0.7 * votes + noise).astype(np.float32))


@pytest.mark.parametrize("one_vote", [False, True])
def test_the_worst_rank_is_that_of_the_worst_rewriting(one_vote):
    # Protects exactness, both directions, all classes, ties: every outcome is tried.
    rng = np.random.default_rng(0)
    draw = draw_top_one if one_vote else random_votes
    reachable = reachable_top_one_counts if one_vote else reachable_vote_counts
    seen = np.zeros(6, int)
    num_tighter = 0
    for touched in some_geometries():
        touched = touched[touched.sum(axis=1) <= 5]
        if not len(touched):
            continue
        num_classes = int(rng.integers(2, 5))
        votes = draw(rng, 24, touched.shape[1], num_classes)
        worst = np.zeros((24, num_classes), int)
        for row in touched:
            kept = votes[:, ~row].sum(axis=1)  # [n, K]
            attacked = kept[:, None] + reachable(int(row.sum()), num_classes)
            worst = np.maximum(worst, ranks(attacked).max(axis=1))
            alone = ds.worst_rank(votes, row[None], one_vote=one_vote)
            np.testing.assert_array_equal(alone, ranks(attacked).max(axis=1))
        found = ds.worst_rank(votes, touched, one_vote=one_vote)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, worst)
        certificate = ds.certify(votes, touched)
        first = np.take_along_axis(found, certificate.prediction[:, None], axis=1)
        np.testing.assert_array_equal(first[:, 0] == 1, certificate.is_certified)
        seen += np.bincount(found.ravel(), minlength=6)
        num_tighter += int((found < ds.worst_rank(votes, touched)).sum())
    assert (seen[1:4] > 50).all()
    assert (num_tighter > 100) == one_vote  # votes that are spent once reach less


def worst_duel(totals):
    """[..., K, K] -> [..., K]: the least entry of each row but for the diagonal."""
    own = np.eye(totals.shape[-1], dtype=bool)
    return np.where(own, 10**9, totals).min(axis=-1)


def test_no_rewriting_of_levels_gives_a_worse_rank():
    # Protects the bound for levels, and how close it is: every sum is tried.
    rng = np.random.default_rng(1)
    num_cases = num_equal = num_better = 0
    for touched in some_geometries():
        num_classes, limit = int(rng.integers(2, 4)), int(rng.integers(1, 3))
        vectors = np.array(list(itertools.product(range(4), repeat=num_classes)))
        one = np.unique(duels(vectors, limit), axis=0)
        levels = rng.integers(0, 6, (20, touched.shape[1], num_classes))
        levels[:, :, 0] += rng.integers(0, 4, (20, 1))
        sums = {0: np.zeros((1, num_classes, num_classes), int)}
        for t in range(1, 4):
            every = sums[t - 1][:, None] + one
            sums[t] = np.unique(every.reshape(-1, *one.shape[1:]), axis=0)
        for row in touched[touched.sum(axis=1) < 4]:
            found = ds.worst_rank(ds.GradedVotes(levels, limit), row[None])
            kept = duels(levels[:, ~row], limit).sum(axis=1)
            attacked = worst_duel(kept[:, None] + sums[int(row.sum())])
            worst = ranks(attacked).max(axis=1)
            assert (found >= worst).all()
            certificate = ds.certify(ds.GradedVotes(levels, limit), row[None])
            own = certificate.prediction[:, None]
            first = np.take_along_axis(found, own, axis=1)[:, 0] == 1
            assert not (certificate.is_certified & ~first).any()
            num_cases += found.size
            num_equal += int((found == worst).sum())
            num_better += int((found < num_classes).sum())
    assert num_cases > 2_000 and num_better > 0.1 * num_cases
    assert num_equal > 0.97 * num_cases


def slow_rank(low, high, y, touched, limit, is_votes, one_vote=False):
    """The rule, one number at a time, for one image: the worst rank of class y."""
    num_ablations, num_classes = low.shape

    def duel(c, j, kept):  # the least that c can have against j, of what is kept
        parts = [int(low[p, c]) - int(high[p, j]) for p in kept]
        return sum(max(-limit, min(limit, part)) for part in parts)

    rivals, worst = set(range(num_classes)) - {y}, 0
    for row in touched.tolist():
        kept, size = [p for p in range(num_ablations) if not row[p]], sum(row)
        if one_vote:
            own = sum(int(low[p, y]) for p in kept)
            costs = sorted(
                max(0, own - sum(int(high[p, j]) for p in kept) + (j > y))
                for j in rivals
            )
            above = sum(sum(costs[: i + 1]) <= size for i in range(len(costs)))
        elif is_votes:
            own = sum(int(low[p, y]) for p in kept)
            counts = {j: size + sum(int(high[p, j]) for p in kept) for j in rivals}
            above = sum(n > own or (n == own and j < y) for j, n in counts.items())
        else:
            own = min(duel(y, j, kept) for j in rivals) - limit * size
            above = 0
            for j in rivals:
                others = set(range(num_classes)) - {j}
                best = min(-duel(i, j, kept) for i in others) + limit * size
                above += best > own or (best == own and j < y)
        worst = max(worst, above)
    return 1 + worst


@given(tables(), st.sampled_from(["votes", "one vote", "levels"]), st.booleans())
def test_worst_ranks_equal_the_slow_twin(table, kind, is_doubtful):
    # Protects every branch, doubtful votes and some of the classes included.
    levels, touched, limit, uncertain = table
    votes = levels
    if kind != "levels":
        limit = 1
        is_best = levels.argmax(axis=2)[..., None] == np.arange(levels.shape[2])
        votes = is_best if kind == "one vote" else levels > 0
    doubt = uncertain & is_doubtful
    classes = np.arange(2 * len(votes)).reshape(-1, 2) % levels.shape[2]
    found = ds.worst_rank(
        ds.GradedVotes(votes, limit) if kind == "levels" else votes,
        touched,
        classes=classes,
        one_vote=kind == "one vote",
        uncertain=doubt if is_doubtful else None,
    )
    for i, image in enumerate(votes):
        if kind == "levels":
            low, high = image - doubt[i], image + doubt[i]
        else:
            low, high = image & ~doubt[i], image | doubt[i]
        for m, y in enumerate(classes[i]):
            arguments = (low, high, y, touched, limit, kind != "levels")
            assert found[i, m] == slow_rank(*arguments, kind == "one vote")


def test_fewer_duels_prove_less_and_nothing_false(monkeypatch):
    # Protects many classes: leaving duels out only ever grants the attacker more.
    rng = np.random.default_rng(2)
    touched = ds.touched(ds.Columns(2), ds.Patch(1, 1), (1, 16))
    levels = ds.graded_votes(racing_scores(rng, 300, 16, 6), 6)
    exact = ds.worst_rank(levels, touched)
    monkeypatch.setattr(reach, "NUM_STRONG", 2)
    fewer = ds.worst_rank(levels, touched)
    assert (fewer >= exact).all() and (fewer > exact).any()
    assert (fewer == exact).mean() > 0.9  # the strong ones decide


def test_chunks_change_no_rank_and_arguments_stay(monkeypatch):
    # Protects bounded memory; and arrays of the caller.
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 300, (20, 7, 4)).astype(np.int16)
    votes, sets = random_votes(rng, 20, 7, 4), rng.random((5, 7)) < 0.3
    for array in (levels, votes, sets):
        array.flags.writeable = False
    whole = ds.worst_rank(ds.GradedVotes(levels, 100), sets), ds.worst_rank(votes, sets)
    monkeypatch.setattr(duels_module, "_CHUNK_BYTES", 1)
    parts = ds.worst_rank(ds.GradedVotes(levels, 100), sets), ds.worst_rank(votes, sets)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert ds.worst_rank(votes[:0], sets).shape == (0, 4)
