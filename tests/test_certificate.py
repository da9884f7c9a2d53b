"""Protects the product: that no certified prediction can be changed, and nothing less.

Every rule is attacked by trying every outcome that the touched ablations can reach, and
compared with a slow twin that follows the formulas of the method literally.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dsmooth_jax as ds
from dsmooth_jax import duels as duels_module
from dsmooth_jax.certificate import predict_votes

# (ablation, image size): at most 8 ablations; wrap, strides that do not divide, multi.
GEOMETRIES = [
    (ds.Columns(1), (2, 6)),
    (ds.Columns(2), (1, 7)),
    (ds.Columns(3, stride=2), (3, 7)),
    (ds.Columns(2, stride=3), (2, 8)),
    (ds.Rows(2), (8, 2)),
    (ds.Rows(3, stride=3), (7, 1)),
    (ds.Blocks(2), (2, 4)),
    (ds.Blocks(1, 2, stride=2), (3, 7)),
    (ds.Blocks(2, stride=2), (4, 4)),
    (ds.MultiColumns(2, 2), (2, 8)),
    (ds.MultiColumns(1, 1), (1, 8)),
    (ds.MultiBlocks(2, 2), (4, 4)),
]


def geometries():
    """Each geometry with each patch that fits: (touched sets, a label for failures)."""
    for ablation, (height, width) in GEOMETRIES:
        for patch in itertools.product(range(1, height + 1), range(1, width + 1)):
            yield ds.touched(ablation, ds.Patch(*patch), (height, width))


def random_votes(rng, n, num_ablations, num_classes):
    """Votes with many ties and close races: each table leans to one class, or none."""
    lean = rng.integers(0, num_classes, (n, 1, 1)) == np.arange(num_classes)
    high, low = (
        rng.choice([0.5, 0.9, 1.0], (n, 1, 1)),
        rng.choice([0.0, 0.3], (n, 1, 1)),
    )
    return rng.random((n, num_ablations, num_classes)) < np.where(lean, high, low)


def reachable_vote_counts(num_touched, num_classes):
    """Any class may get any number of votes of the touched ablations."""
    counts = range(num_touched + 1)
    return np.array(list(itertools.product(counts, repeat=num_classes)))


def reachable_top_one_counts(num_touched, num_classes):
    """Every touched ablation votes for exactly one class."""
    every = reachable_vote_counts(num_touched, num_classes)
    return every[every.sum(axis=1) == num_touched]


def can_break(votes, touched_row, outcomes):
    """[n] bool: some outcome of the touched ablations changes the prediction."""
    clean = votes.sum(axis=1).argmax(axis=1)  # argmax: ties to the smaller index
    kept = votes[:, ~touched_row].sum(axis=1)  # [n, K]
    attacked = (kept[:, None, :] + outcomes).argmax(axis=2)  # [n, outcomes]
    return (attacked != clean[:, None]).any(axis=1)


@pytest.mark.parametrize(
    ("draw", "reachable"),
    [
        (random_votes, reachable_vote_counts),
        (
            lambda *args: ds.top_one_votes(random_votes(*args).astype(np.float32)),
            reachable_top_one_counts,
        ),
    ],
    ids=["threshold", "top one"],
)
def test_no_rewriting_of_touched_votes_changes_a_certified_prediction(draw, reachable):
    """Over 100,000 (table, placement) cases; and what is refused can be broken."""
    rng = np.random.default_rng(0)
    num_cases = num_certified = 0
    for touched in geometries():
        num_classes = int(rng.integers(2, 5))
        votes = draw(rng, 180, touched.shape[1], num_classes)
        broken = np.zeros((len(votes), len(touched)), bool)
        for i, row in enumerate(touched):
            broken[:, i] = can_break(votes, row, reachable(row.sum(), num_classes))
            alone = ds.certify(votes, row[None])
            np.testing.assert_array_equal(alone.is_certified, ~broken[:, i])
        together = ds.certify(votes, touched)
        np.testing.assert_array_equal(together.is_certified, ~broken.any(axis=1))
        margin = ds.certify(votes, touched, rule="margin")
        assert not (margin.is_certified & ~together.is_certified).any()
        assert (margin.margin <= together.margin).all()
        num_cases += broken.size
        num_certified += int((~broken).sum())
    assert num_cases > 100_000
    assert 0.1 < num_certified / num_cases < 0.9  # both outcomes are really tried


def duels(levels, limit):
    """[..., P, K] -> [..., P, K, K]: preferences, from the definition."""
    return np.clip(levels[..., :, None] - levels[..., None, :], -limit, limit)


def duel_winner(totals):
    """[..., K, K] -> [...]: the class whose worst duel is best, smaller index first."""
    num_classes = totals.shape[-1]
    own = np.eye(num_classes, dtype=bool)
    return np.where(own, 10**9, totals).min(axis=-1).argmax(axis=-1)


def test_no_rewriting_of_touched_levels_changes_a_certified_prediction():
    """Random integer levels with a limit: every sum of touched preferences is tried."""
    rng = np.random.default_rng(1)
    num_cases = num_certified = 0
    for touched in geometries():
        num_classes = int(rng.integers(2, 4))
        limit = int(rng.integers(1, 4))
        vectors = np.array(list(itertools.product(range(4), repeat=num_classes)))
        one = np.unique(duels(vectors, limit), axis=0)  # what one ablation can prefer
        levels = rng.integers(0, 6, (40, touched.shape[1], num_classes))
        levels[:, :, 0] += rng.integers(
            0, 4, (40, 1)
        )  # some tables have a clear winner
        clean = duel_winner(duels(levels, limit).sum(axis=1))
        sums = {0: np.zeros((1, num_classes, num_classes), int)}
        for t in range(1, 4):
            every = sums[t - 1][:, None] + one
            sums[t] = np.unique(every.reshape(-1, *one.shape[1:]), axis=0)
        for row in touched[touched.sum(axis=1) < 4]:
            found = ds.certify(ds.GradedVotes(levels, limit), row[None])
            np.testing.assert_array_equal(found.prediction, clean)
            kept = duels(levels[:, ~row], limit).sum(axis=1)  # [n, K, K]
            attacked = duel_winner(kept[:, None] + sums[int(row.sum())])
            survives = (attacked == clean[:, None]).all(axis=1)
            assert not (found.is_certified & ~survives).any()
            margin = ds.certify(ds.GradedVotes(levels, limit), row[None], rule="margin")
            assert not (margin.is_certified & ~found.is_certified).any()
            num_cases += len(levels)
            num_certified += int(found.is_certified.sum())
    assert num_cases > 5_000
    assert 0.05 < num_certified / num_cases < 0.95


def slow_certify(levels, touched, limit, rule, low=None, high=None):
    """The method's formulas, one number at a time, for one image."""
    low, high = (levels if x is None else x for x in (low, high))
    num_ablations, num_classes = levels.shape

    def preference(p, c, j, of=levels, against=levels):
        return max(-limit, min(limit, int(of[p, c]) - int(against[p, j])))

    worst = [
        min(
            sum(preference(p, c, j) for p in range(num_ablations))
            for j in range(num_classes)
            if j != c
        )
        for c in range(num_classes)
    ]
    c = worst.index(max(worst))
    most = max(sum(row) for row in touched.tolist())
    margins = []
    for j in set(range(num_classes)) - {c}:
        gains = [preference(p, c, j, low, high) for p in range(num_ablations)]
        if rule == "margin":
            margins.append(sum(gains) - 2 * limit * most - (j < c))
        for row in touched.tolist() if rule == "placement" else []:
            kept = sum(g for g, hit in zip(gains, row, strict=True) if not hit)
            margins.append(kept - limit * sum(row) - (j < c))
    return c, min(margins), worst


@st.composite
def tables(draw):
    num_ablations, num_classes = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    size, n = draw(st.integers(1, 4)), 3
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    limit = draw(st.sampled_from([1, 2, 5, 100, 10**7]))
    levels = rng.integers(-3 * limit, 3 * limit + 1, (n, num_ablations, num_classes))
    touched = rng.random((size, num_ablations)) < 0.4
    uncertain = rng.random(levels.shape) < 0.3
    return levels, touched, limit, uncertain


@given(tables(), st.sampled_from(["placement", "margin"]), st.booleans())
def test_levels_equal_the_slow_twin(table, rule, is_doubtful):
    """Prediction, margin and worst duels, any limit, float32 and float64 products."""
    levels, touched, limit, uncertain = table
    doubt = uncertain if is_doubtful else np.zeros_like(uncertain)
    found = ds.certify(
        ds.GradedVotes(levels, limit),
        touched,
        rule=rule,
        uncertain=doubt if is_doubtful else None,
    )
    for i, image in enumerate(levels):
        low, high = image - doubt[i], image + doubt[i]
        prediction, margin, worst = slow_certify(image, touched, limit, rule, low, high)
        assert (found.prediction[i], found.margin[i]) == (prediction, margin)
        assert found.counts[i].tolist() == worst


@given(tables(), st.sampled_from(["placement", "margin"]), st.booleans())
def test_votes_equal_the_slow_twin(table, rule, is_doubtful):
    """Votes are levels 0 and 1 with limit 1; a doubtful vote is 0 for c, 1 for j."""
    levels, touched, _, uncertain = table
    votes = levels > 0
    found = ds.certify(
        votes, touched, rule=rule, uncertain=uncertain if is_doubtful else None
    )
    doubt = uncertain & is_doubtful
    for i, image in enumerate(votes):
        prediction, margin, _ = slow_certify(
            image.astype(int), touched, 1, rule, image & ~doubt[i], image | doubt[i]
        )
        assert (found.prediction[i], found.margin[i]) == (prediction, margin)
        assert found.counts[i].tolist() == image.sum(axis=0).tolist()


def test_doubtful_votes_cast_either_way_leave_certified_predictions_alone():
    """Every way to cast the doubtful votes, attacked: the nominal prediction stands."""
    rng = np.random.default_rng(2)
    touched = ds.touched(ds.Columns(1), ds.Patch(1, 1), (1, 6))
    num_certified = 0
    for _ in range(60):
        votes = random_votes(rng, 1, 6, 3)
        doubt = np.zeros_like(votes)
        doubt.reshape(-1)[rng.choice(18, 4, replace=False)] = True
        found = ds.certify(votes, touched, uncertain=doubt)
        if not found.is_certified[0]:
            continue
        num_certified += 1
        for flips in itertools.product([False, True], repeat=4):
            cast = votes.copy()
            cast[doubt] ^= np.array(flips)
            assert cast.sum(axis=1).argmax() == found.prediction[0]
            assert not any(
                can_break(cast, row, reachable_vote_counts(int(row.sum()), 3))[0]
                for row in touched
            )
    assert num_certified > 10


def test_runner_up_with_equal_count_and_smaller_index_is_seen():
    """The published failure: [2, 14, 2, 1] against 6 becomes [8, 8, 2, 1], class 0."""
    votes = np.zeros((1, 19, 4), bool)
    for k, (start, count) in enumerate([(0, 2), (2, 14), (16, 2), (18, 1)]):
        votes[0, start : start + count, k] = True
    touched = np.zeros((1, 19), bool)
    touched[0, 2:8] = True  # six of the votes for class 1
    for rule in ("placement", "margin"):
        found = ds.certify(votes, touched, rule=rule)
        assert found.prediction[0] == 1
        assert found.margin[0] == -1


def test_the_dangerous_class_need_not_be_the_runner_up():
    """At one placement a third class wins although the runner-up cannot."""
    votes = np.zeros((1, 12, 3), bool)
    votes[0, :6, 0] = True  # class 0: six votes, far from the patch
    votes[0, [6, 7, 8, 9, 10], 1] = True  # runner-up: five, all inside the patch
    votes[0, [0, 1, 2, 3], 2] = True  # third: four, outside
    touched = np.zeros((1, 12), bool)
    touched[0, 6:11] = True
    found = ds.certify(votes, touched)
    assert not found.is_certified[0]
    assert can_break(votes, touched[0], reachable_vote_counts(5, 3))[0]


def test_chunks_and_products_change_nothing(monkeypatch):
    """Images are taken in chunks: any chunk size gives the same integers."""
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 3000, (50, 9, 7)).astype(np.int16)
    votes = random_votes(rng, 50, 9, 7)
    touched = rng.random((5, 9)) < 0.3
    whole = ds.certify(ds.GradedVotes(levels, 100), touched), ds.certify(votes, touched)
    monkeypatch.setattr(duels_module, "_CHUNK_BYTES", 1)
    parts = ds.certify(ds.GradedVotes(levels, 100), touched), ds.certify(votes, touched)
    for a, b in zip(whole, parts, strict=True):
        for name in ("prediction", "margin", "counts"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_int16_levels_do_not_wrap():
    """Differences of extreme int16 levels exceed int16; sums exceed it by far."""
    levels = np.zeros((1, 400, 2), np.int16)
    levels[0, :, 0] = 32767
    levels[0, :, 1] = -32768
    found = ds.certify(ds.GradedVotes(levels, 100), np.zeros((1, 400), bool))
    assert found.prediction[0] == 0
    assert found.margin[0] == 400 * 100


def test_many_classes_and_image_net_shapes():
    """K = 1,000 and P = 299 against the slow twin's linear form, for one image."""
    rng = np.random.default_rng(4)
    votes = rng.random((3, 299, 1000)) < 0.01
    votes[:, :, 500] |= rng.random((3, 299)) < 0.7
    touched = ds.touched(ds.Columns(25), ds.Patch(42, 42), (299, 299))
    found = ds.certify(votes, touched)
    for i in range(3):
        kept = (~touched).astype(int) @ votes[i].astype(int)  # [L, K]
        left = kept[:, [500]] - kept - (np.arange(1000) < 500)
        left = left - touched.sum(axis=1)[:, None]
        left[:, 500] = 10**9
        assert found.margin[i] == left.min()


@given(st.integers(0, 10**6), st.sampled_from(["placement", "margin"]))
def test_largest_certified_patch_is_the_largest_square(seed, rule):
    """The same as asking for every square, one after the other."""
    rng = np.random.default_rng(seed)
    ablation, size = ds.Blocks(2, 3, stride=2), (5, 6)
    num_ablations = ablation.num_ablations(size)
    votes = random_votes(rng, 20, num_ablations, 3)
    expected = np.zeros(20, int)
    for m in range(1, 6):
        touched = ds.touched(ablation, ds.Patch(m, m), size)
        certified = ds.certify(votes, touched, rule=rule).is_certified
        expected[certified] = m
    found = ds.largest_certified_patch(votes, ablation, size, rule=rule)
    np.testing.assert_array_equal(found, expected)


def test_arguments_stay_as_they_are():
    """Nothing is changed in place, not even through views."""
    rng = np.random.default_rng(5)
    votes, touched = random_votes(rng, 8, 6, 3), rng.random((4, 6)) < 0.3
    levels = rng.integers(0, 9, (8, 6, 3)).astype(np.int16)
    for array in (votes, touched, levels):
        array.flags.writeable = False
    ds.certify(votes, touched, uncertain=votes)
    ds.certify(ds.GradedVotes(levels, 3), touched, uncertain=votes)
    assert ds.certify(votes[:0], touched).prediction.shape == (0,)


GRADED_GEOMETRIES = [
    (ds.Columns(2), (2, 7), ds.Patch(1, 1)),
    (ds.Columns(3, stride=2), (3, 9), ds.Patch(2, 2)),
    (ds.Rows(2), (9, 1), ds.Patch(1, 1)),
    (ds.Rows(3, stride=3), (8, 2), ds.Patch(1, 2)),
    (ds.Blocks(2, stride=2), (4, 6), ds.Patch(1, 1)),
    (ds.Blocks(1, 2, stride=2), (3, 7), ds.Patch(2, 1)),
]


def racing_scores(rng, n, num_ablations, num_classes):
    """Softmax scores that lean to one class by more or less, some of them corners."""
    lean = rng.integers(0, num_classes, (n, 1, 1)) == np.arange(num_classes)
    weight = rng.choice([0.0, 0.3, 0.6, 0.9, 1.0], (n, 1, 1))
    noise = rng.dirichlet(np.full(num_classes, 0.5), (n, num_ablations))
    return (weight * lean + (1 - weight) * noise).astype(np.float32)


def rewritten_scores(rng, scores, num_classes):
    """[n, t, K] -> [R, n, t, K]: every touched score replaced, in R ways."""
    shape = (40, *scores.shape[:2])
    corners = np.eye(num_classes)
    yield from (np.broadcast_to(corner, scores.shape) for corner in corners)
    for j, k in itertools.combinations(range(num_classes), 2):  # ties of two
        yield np.broadcast_to((corners[j] + corners[k]) / 2, scores.shape)
    yield from corners[rng.integers(0, num_classes, shape)]
    yield from rng.dirichlet(np.full(num_classes, 0.3), shape)
    yield from rng.random((*shape, num_classes))  # no softmax: refused by nobody
    yield np.zeros(scores.shape)
    yield np.ones(scores.shape)


@pytest.mark.parametrize("strength", [1, 3, 10, 100])
def test_no_rewriting_of_touched_scores_changes_a_certified_prediction(strength):
    """Graded votes, from scores to prediction; what is refused is often broken."""
    rng = np.random.default_rng(int(strength))
    num_certified = num_refused = num_broken = 0
    for ablation, size, patch in GRADED_GEOMETRIES:
        touched = ds.touched(ablation, patch, size)
        for num_classes in (2, 3, 5):
            scores = racing_scores(rng, 30, touched.shape[1], num_classes)
            levels = ds.graded_votes(scores, strength)
            whole = ds.certify(levels, touched)
            margin = ds.certify(levels, touched, rule="margin")
            assert not (margin.is_certified & ~whole.is_certified).any()
            assert (margin.margin <= whole.margin).all()
            clean = predict_votes(levels)
            np.testing.assert_array_equal(whole.prediction, clean)
            broken = np.zeros((len(scores), len(touched)), bool)
            certified = np.zeros_like(broken)
            for i, row in enumerate(touched):
                alone = ds.certify(levels, row[None])
                certified[:, i] = alone.is_certified
                ways = rewritten_scores(rng, scores[:, row], num_classes)
                attacked = []
                for touched_scores in ways:
                    attacked.append(scores.copy())
                    attacked[-1][:, row] = touched_scores
                votes = ds.graded_votes(np.concatenate(attacked), strength)
                predicted = predict_votes(votes).reshape(-1, 30)
                broken[:, i] = (predicted != clean).any(axis=0)
            assert not (certified & broken).any()
            np.testing.assert_array_equal(whole.is_certified, certified.all(axis=1))
            num_certified += int(certified.sum())
            num_refused += int((~certified).sum())
            num_broken += int(broken.sum())
    assert num_certified > 500
    assert num_broken > 0.5 * num_refused > 250  # the attacks are no straw men


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_worst_duels_of_levels_far_above_the_limit(num_classes):
    """Levels cut off at the limit are corrected: all, some, two or none above it."""
    rng = np.random.default_rng(num_classes)
    num_tied = num_cycles = 0
    for limit, dtype in itertools.product([1, 3, 100], [np.int8, np.int16, np.int64]):
        for top in (1, limit, limit + 1, 3 * limit, 50 * limit):
            top = min(top, np.iinfo(dtype).max)
            coarse = max(1, top // 4)  # few distinct levels: many ties
            shape = (40, 7, num_classes)
            levels = rng.integers(0, top // coarse + 1, shape) * coarse
            levels -= rng.integers(0, 2, (40, 7, 1)) * top
            levels = levels.astype(dtype)
            totals = duels(levels.astype(int), limit).sum(axis=1)
            own = np.eye(num_classes, dtype=bool)
            worst = np.where(own, 10**9, totals).min(axis=2)
            before = levels.copy()
            found = ds.certify(ds.GradedVotes(levels, limit), np.zeros((1, 7), bool))
            np.testing.assert_array_equal(found.counts, worst)
            np.testing.assert_array_equal(found.prediction, worst.argmax(axis=1))
            np.testing.assert_array_equal(
                predict_votes(ds.GradedVotes(levels, limit)), found.prediction
            )
            np.testing.assert_array_equal(levels, before)
            best = worst.max(axis=1, keepdims=True)
            num_tied += int(((worst == best).sum(axis=1) > 1).sum())
            num_cycles += int((best < 0).sum())  # no class wins all its duels
    assert num_tied > 50
    assert num_cycles > 0 or num_classes == 2


def test_a_limit_far_above_all_levels():
    """The limit need not fit into the dtype of the levels: clipping never acts."""
    levels = np.random.default_rng(0).integers(0, 9, (20, 5, 3)).astype(np.int16)
    touched = np.zeros((1, 5), bool)
    wide = ds.certify(ds.GradedVotes(levels.astype(np.int64) * 10**5, 10**6), touched)
    for limit in (10, 2**15 - 1, 2**15, 2**31 - 1):
        found = ds.certify(ds.GradedVotes(levels, limit), touched)
        np.testing.assert_array_equal(found.prediction, wide.prediction)
        np.testing.assert_array_equal(found.counts * 10**5, wide.counts)


def test_strength_one_predicts_by_the_sum_of_levels():
    """Soft voting: where no level exceeds the limit the worst duel is a difference."""
    rng = np.random.default_rng(0)
    for num_classes in (2, 3, 7):
        scores = racing_scores(rng, 300, 9, num_classes)
        levels = ds.graded_votes(scores, 1)
        summed = levels.levels.sum(axis=1, dtype=int)
        np.testing.assert_array_equal(predict_votes(levels), summed.argmax(axis=1))


def test_scores_within_the_tolerance_leave_certified_predictions_alone():
    """Another machine's scores, attacked: every voting keeps its nominal prediction."""
    rng = np.random.default_rng(0)
    touched = ds.touched(ds.Columns(1), ds.Patch(1, 1), (1, 7))
    tolerance, num_certified, num_doubts = 0.0015, 0, 0
    for setting in (
        {"threshold": 0.3},
        {"strength": 1},
        {"strength": 6},
        {"top_one": True},
    ):

        def cast(scores, setting=setting):
            if "threshold" in setting:
                return ds.threshold_votes(scores, **setting)
            if "top_one" in setting:
                return ds.top_one_votes(scores)
            return ds.graded_votes(scores, **setting)

        scores = racing_scores(rng, 200, 7, 3)
        close = rng.random(scores.shape) < 0.3
        scores[close] = 0.3 + rng.uniform(-0.001, 0.001, close.sum())
        doubt = ds.uncertain_votes(scores, tolerance, **setting)
        votes = cast(scores)
        found = ds.certify(votes, touched, uncertain=doubt)
        num_certified += int(found.is_certified.sum())
        num_doubts += int(doubt.sum())
        for _ in range(20):
            moves = rng.choice([-1, 0, 1], scores.shape) * tolerance * 0.999
            other = np.clip(scores + moves, 0, 1)
            for row in touched:
                other_attacked = other.copy()
                corner = rng.integers(0, 3, (200, int(row.sum())))
                other_attacked[:, row] = np.eye(3)[corner]
                for machine in (other, other_attacked):
                    there = cast(machine.astype(np.float32))
                    predicted = predict_votes(there)
                    changed = predicted != found.prediction
                    assert not (changed & found.is_certified).any()
    assert num_certified > 100 and num_doubts > 500
