"""Questions to saved votes: each against a slow twin, and never more than is proven."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dsmooth_jax as ds
from dsmooth_jax import duels as duels_module
from dsmooth_jax import queries

# (ablation, image size): wrap, strides that do not divide, several windows.
GEOMETRIES = [
    (ds.Columns(2), (2, 6)),
    (ds.Columns(3, stride=2), (3, 7)),
    (ds.Rows(2, stride=3), (8, 2)),
    (ds.Blocks(2, stride=2), (4, 5)),
    (ds.MultiColumns(1, 2), (2, 4)),
]
# Wide enough to certify something against several patches.
WIDE = [
    (ds.Columns(1), (1, 20)),
    (ds.Columns(2), (1, 24)),
    (ds.Rows(3, stride=2), (31, 2)),
    (ds.Blocks(2, stride=2), (10, 9)),
]


def tables(rng, n, num_ablations, num_classes):
    """The same close races as votes and as levels far above their limit."""
    lean = rng.integers(0, num_classes, (n, 1, 1)) == np.arange(num_classes)
    chance = np.where(lean, rng.choice([0.5, 0.8, 1.0], (n, 1, 1)), 0.25)
    votes = rng.random((n, num_ablations, num_classes)) < chance
    levels = rng.integers(0, 4, votes.shape) + votes * rng.integers(0, 9, votes.shape)
    return votes, ds.GradedVotes(levels.astype(np.int16), 3)


def slow_duels(votes, image, row):
    """One image, one touched set: (prediction, what is left of each duel, ties in)."""
    is_graded = isinstance(votes, ds.GradedVotes)
    levels, limit = (votes.levels, votes.limit) if is_graded else (votes, 1)
    levels = levels[image].astype(int)
    num_classes = levels.shape[1]
    gains = np.clip(levels[:, :, None] - levels[:, None, :], -limit, limit)
    worst = gains.sum(axis=0) + 10**6 * np.eye(num_classes, dtype=int)
    c = int(worst.min(axis=1).argmax())
    left = {
        j: int(gains[~row, c, j].sum() - limit * row.sum() - (j < c))
        for j in range(num_classes)
        if j != c
    }
    return c, left


@pytest.mark.parametrize(
    ("percent", "size", "side"),
    [
        *(
            (p, (224, 224), side)
            for p, side in zip((1, 2, 3), (23, 32, 39), strict=True)
        ),
        *((p, (224, 224), side) for p, side in ((0.4, 14), (2.4, 35), (25, 112))),
        *((p, (32, 32), side) for p, side in ((0.4, 2), (2.4, 5))),
        (2, (299, 299), 42),
    ],
)
def test_a_percentage_is_the_square_of_the_literature(percent, size, side):
    # Protects comparisons: the sides of the papers; 25 % of a side's square.
    assert ds.square_of_percent(percent, size) == ds.Patch(side, side)


def test_every_percentage_gives_a_square_that_fits():
    # Protects the ends: at least one pixel, at most the shorter side.
    assert ds.square_of_percent(1e-9, (9, 9)) == ds.Patch(1, 1)
    assert ds.square_of_percent(100, (9, 9)) == ds.Patch(9, 9)
    assert ds.square_of_percent(100, (4, 25)) == ds.Patch(4, 4)
    sides = [ds.square_of_percent(p, (12, 20)).height for p in range(1, 101)]
    assert sides == sorted(sides)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (4, 4), (5, 7), (7, 3)])
def test_rectangles_of_an_area_are_all_that_matter(size):
    # Protects --area: every h x w <= area is inside one of them, and none is idle.
    height, width = size
    for area in range(1, height * width + 4):
        found = [(p.height, p.width) for p in ds.rectangles_of_area(area, size)]
        fits = [
            (h, w)
            for h, w in itertools.product(range(1, height + 1), range(1, width + 1))
            if h * w <= area
        ]
        maximal = [
            (h, w)
            for h, w in fits
            if not any(a >= h and b >= w and (a, b) != (h, w) for a, b in fits)
        ]
        assert found == sorted(maximal)
        assert all(any(h <= a and w <= b for a, b in found) for h, w in fits)


def test_against_any_of_several_patches_is_against_each():
    # Protects "against any of them at once": the least of the margins, exactly.
    rng = np.random.default_rng(0)
    outcomes = set()
    for ablation, size in GEOMETRIES + WIDE:
        patches = ds.rectangles_of_area(3, size)
        sets = ds.touched_by_any(ablation, patches, size)
        each = [ds.touched(ablation, patch, size) for patch in patches]
        distinct = {row.tobytes() for row in sets}
        assert sets.dtype == np.bool_ and len(distinct) == len(sets)
        assert distinct == {row.tobytes() for rows in each for row in rows}
        for votes in tables(rng, 60, sets.shape[1], 3):
            alone = [ds.certify(votes, rows) for rows in each]
            together = ds.certify(votes, sets)
            least = np.min([certificate.margin for certificate in alone], axis=0)
            np.testing.assert_array_equal(together.margin, least)
            certified = [certificate.is_certified for certificate in alone]
            np.testing.assert_array_equal(
                together.is_certified, np.logical_and.reduce(certified)
            )
            outcomes |= set(together.is_certified.tolist())
    assert outcomes == {True, False}


def equal(one, other):
    for name in ("prediction", "margin", "counts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("num_patches", [1, 2, 3])
def test_several_patches_are_every_union_of_touched_sets(num_patches):
    # Protects exactness: all pairs and triples of rows, equal and overlapping ones too.
    rng = np.random.default_rng(num_patches)
    certified = []
    for ablation, size in GEOMETRIES + WIDE:
        sets = ds.touched(ablation, ds.Patch(1, 1), size)
        several = itertools.combinations_with_replacement(sets, num_patches)
        unions = np.array([np.logical_or.reduce(rows) for rows in several])
        for votes in tables(rng, 60, sets.shape[1], 3):
            found, is_exact = ds.certify_several(votes, sets, num_patches)
            assert is_exact is True
            equal(found, ds.certify(votes, unions))
            certified += found.is_certified.tolist()
            if num_patches == 1:
                equal(found, ds.certify(votes, sets))
    assert 0 < sum(certified) < len(certified)


def test_where_unions_are_too_many_the_short_cut_is_sound(monkeypatch):
    # Protects the answer where pairs cannot be tried: it says so, and proves no more.
    rng = np.random.default_rng(0)
    num_exact = num_short = 0
    for ablation, size in GEOMETRIES + WIDE:
        sets = ds.touched(ablation, ds.Patch(1, 1), size)
        for num_patches in (2, 3):
            for votes in tables(rng, 40, sets.shape[1], 4):
                arguments = (votes, sets, num_patches)
                exact, _ = ds.certify_several(*arguments)
                with monkeypatch.context() as patched:
                    patched.setattr(queries, "MAX_UNION_ENTRIES", 0)
                    short, is_exact = ds.certify_several(*arguments)
                assert is_exact is False
                np.testing.assert_array_equal(short.prediction, exact.prediction)
                np.testing.assert_array_equal(short.counts, exact.counts)
                assert (short.margin <= exact.margin).all()
                assert not (short.is_certified & ~exact.is_certified).any()
                num_exact += int(exact.is_certified.sum())
                num_short += int(short.is_certified.sum())
    assert 0 < num_short < num_exact  # it certifies something, and really less


def test_the_short_cut_is_the_formula(monkeypatch):
    # Protects the short cut from being weaker than it must: METHOD's formula, by loops.
    monkeypatch.setattr(queries, "MAX_UNION_ENTRIES", 0)
    rng = np.random.default_rng(1)
    sets = rng.random((5, 8)) < 0.3
    nobody = np.zeros(8, bool)
    for votes in tables(rng, 30, 8, 3):
        found, _ = ds.certify_several(votes, sets, 2)
        for i in range(len(votes)):
            c, total = slow_duels(votes, i, nobody)
            margins = []
            for j, left in total.items():
                after = [slow_duels(votes, i, row)[1][j] for row in sets]
                margins.append(left - 2 * (left - min(after)))
            assert (found.prediction[i], found.margin[i]) == (c, min(margins))


def test_a_limit_between_pairs_and_triples_keeps_triples_sound(monkeypatch):
    # Protects the short cut from starting at the unions that were already made.
    rng = np.random.default_rng(2)
    sets = ds.touched(ds.Columns(1), ds.Patch(1, 1), (1, 9))
    votes = tables(rng, 60, 9, 3)[0]
    exact, _ = ds.certify_several(votes, sets, 3)
    monkeypatch.setattr(queries, "MAX_UNION_ENTRIES", len(sets) * sets.size)
    assert ds.certify_several(votes, sets, 2)[1] is True
    found, is_exact = ds.certify_several(votes, sets, 3)
    assert is_exact is False
    assert (found.margin <= exact.margin).all() and found.is_certified.any()


@pytest.mark.parametrize("max_entries", [0, 2**26])
@pytest.mark.parametrize("num_patches", [1, 2])
def test_several_patches_of_no_image(monkeypatch, max_entries, num_patches):
    # Protects N = 0, on both ways.
    monkeypatch.setattr(queries, "MAX_UNION_ENTRIES", max_entries)
    sets = np.eye(4, dtype=bool)
    for votes in tables(np.random.default_rng(0), 0, 4, 3):
        found, is_exact = ds.certify_several(votes, sets, num_patches)
        assert found.prediction.shape == found.margin.shape == (0,)
        assert found.counts.shape == (0, 3)
        assert is_exact is (num_patches == 1 or max_entries > 0)


def placements_by_hand(ablation, patch, size):
    """Corner and touched row of each placement, from the pixels that are kept."""
    kept = ablation.keep_masks(size)  # [P, H, W]
    for y in range(size[0] - patch.height + 1):
        for x in range(size[1] - patch.width + 1):
            inside = kept[:, y : y + patch.height, x : x + patch.width]
            yield (y, x), inside.any(axis=(1, 2))


@pytest.mark.parametrize(("ablation", "size"), GEOMETRIES, ids=str)
def test_a_vulnerability_map_is_a_certificate_at_each_corner(ablation, size):
    # Protects the map: each entry is its placement's margin, the least certify's.
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 1), (1, 2), size):
        patch = ds.Patch(*shape)
        num_ablations = ablation.num_ablations(size)
        for votes in tables(rng, 12, num_ablations, 3):
            margin, rival = ds.vulnerability_map(votes, ablation, patch, size)
            corners = (size[0] - patch.height + 1, size[1] - patch.width + 1)
            assert margin.shape == rival.shape == (12, *corners)
            whole = ds.certify(votes, ds.touched(ablation, patch, size))
            np.testing.assert_array_equal(margin.min(axis=(1, 2)), whole.margin)
            for (y, x), row in placements_by_hand(ablation, patch, size):
                alone = ds.certify(votes, row[None])
                np.testing.assert_array_equal(margin[:, y, x], alone.margin)
                for i in range(len(votes)):
                    _, left = slow_duels(votes, i, row)
                    assert rival[i, y, x] == min(left, key=lambda j: (left[j], j))


def test_where_a_map_is_negative_the_rival_really_wins():
    # Protects "who would win there": some rewriting of the touched votes does it.
    rng = np.random.default_rng(1)
    num_won = num_other = 0
    for ablation, size in GEOMETRIES:
        num_ablations = ablation.num_ablations(size)
        for num_classes in (2, 3, 4):
            votes, _ = tables(rng, 25, num_ablations, num_classes)
            patch = ds.Patch(1, 1)
            margin, rival = ds.vulnerability_map(votes, ablation, patch, size)
            clean = votes.sum(axis=1).argmax(axis=1)
            for (y, x), row in placements_by_hand(ablation, patch, size):
                gifts = itertools.product(range(row.sum() + 1), repeat=num_classes)
                kept = votes[:, ~row].sum(axis=1)
                winners = (kept[:, None] + np.array(list(gifts))).argmax(axis=2)
                for i in range(len(votes)):
                    if margin[i, y, x] < 0:
                        assert rival[i, y, x] in winners[i]
                        assert rival[i, y, x] != clean[i]
                        num_won += 1
                    else:
                        assert (winners[i] == clean[i]).all()
                        num_other += 1
    assert num_won > 500 and num_other > 500


@pytest.mark.parametrize(("ablation", "size"), GEOMETRIES)
def test_the_worst_placement_is_where_the_map_is_least(ablation, size):
    # Protects what is shown of an image: where, against whom, and by how much.
    rng = np.random.default_rng(2)
    for shape in ((1, 1), (2, 1), (1, 2), size):
        patch = ds.Patch(*shape)
        for votes in tables(rng, 12, ablation.num_ablations(size), 3):
            found = queries.worst_placement(votes, ablation, patch, size)
            maps = ds.vulnerability_map(votes, ablation, patch, size)
            for margin, rival, (y, x), at, by in zip(*found, *maps, strict=True):
                assert margin == at.min() == at[y, x]
                assert rival == by[y, x]
                assert (at.ravel()[: y * at.shape[1] + x] > margin).all()  # the first


@pytest.mark.parametrize(("ablation", "size"), WIDE)
def test_certified_rectangles_are_those_that_certify_certifies(ablation, size):
    # Protects the map over shapes: what is not asked is not certified either.
    rng, num = np.random.default_rng(3), 0
    heights, widths = [1, 2, *range(4, size[0] + 1)], range(1, size[1] + 1)
    heights = [h for h in heights if h <= size[0]]
    for votes in tables(rng, 20, ablation.num_ablations(size), 3):
        found = queries.certified_rectangles(votes, ablation, size, heights, widths)
        for i, h in enumerate(heights):
            for j, w in enumerate(widths):
                touched = ds.touched(ablation, ds.Patch(h, w), size)
                wanted = ds.certify(votes, touched).is_certified
                np.testing.assert_array_equal(found[:, i, j], wanted)
                num += wanted.sum()
    assert num
    for bad in ([], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="heights"):
            queries.certified_rectangles(votes, ablation, size, bad, [1])


def test_doubtful_votes_count_in_every_question(monkeypatch):
    # Protects the default: whatever is asked, what is certified is what certify says.
    rng = np.random.default_rng(4)
    num_changed = 0
    for ablation, size in WIDE[1:]:
        sets = ds.touched(ablation, ds.Patch(1, 1), size)
        for votes in tables(rng, 20, sets.shape[1], 3):
            options = {"uncertain": rng.random(votes.shape) < 0.1}
            unions = np.array([one | other for one in sets for other in sets])
            expected = ds.certify(votes, unions, **options)
            equal(ds.certify_several(votes, sets, 2, **options)[0], expected)
            with monkeypatch.context() as patched:
                patched.setattr(queries, "MAX_UNION_ENTRIES", 0)
                short, _ = ds.certify_several(votes, sets, 2, **options)
                single, _ = ds.certify_several(votes, sets, 1, **options)
            assert (short.margin <= expected.margin).all()
            assert single.margin.shape == expected.margin.shape
            for m in range(1, min(size) + 1):
                patch = ds.Patch(m, m)
                touched = ds.touched(ablation, patch, size)
                alone = ds.certify(votes, touched, **options)
                where = (votes, ablation, patch, size)
                maps = ds.vulnerability_map(*where, **options)
                np.testing.assert_array_equal(maps[0].min(axis=(1, 2)), alone.margin)
                worst = queries.worst_placement(*where, **options)
                np.testing.assert_array_equal(worst[0], alone.margin)
                largest = ds.largest_certified_patch(votes, ablation, size, **options)
                np.testing.assert_array_equal(largest >= m, alone.is_certified)
                shapes = queries.certified_rectangles(
                    votes, ablation, size, [m], [m], **options
                )
                np.testing.assert_array_equal(shapes[:, 0, 0], alone.is_certified)
                nominal = ds.certify(votes, touched)
                num_changed += int((nominal.margin != alone.margin).sum())
    assert num_changed > 50


def test_maps_and_runners_up_of_no_image():
    # Protects N = 0: maps keep the shape of the image.
    for votes in tables(np.random.default_rng(0), 0, 6, 3):
        margin, rival = ds.vulnerability_map(
            votes, ds.Columns(2), ds.Patch(2, 3), (4, 6)
        )
        assert margin.shape == rival.shape == (0, 3, 4)
        assert ds.runner_up(votes).shape == (0,)


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 7))
def test_the_runner_up_is_that_of_a_loop(seed, num_classes, num_ablations):
    # Protects who comes second, ties included, and that it is never the prediction.
    rng = np.random.default_rng(seed)
    nobody = np.zeros(num_ablations, bool)
    for votes in tables(rng, 8, num_ablations, num_classes):
        found = ds.runner_up(votes)
        assert found.dtype == np.int64 and found.shape == (8,)
        for i in range(len(votes)):
            c, left = slow_duels(votes, i, nobody)
            assert found[i] == min(left, key=lambda j: (left[j], j)) != c


def test_chunks_change_no_answer(monkeypatch):
    # Protects bounded memory: whatever the chunk, the same answers.
    rng = np.random.default_rng(3)

    def answers(votes):
        size, patch = (4, 6), ds.Patch(2, 2)
        sets = ds.touched(ds.Columns(2), patch, size)
        short, _ = ds.certify_several(votes, sets, 2)
        maps = ds.vulnerability_map(votes, ds.Columns(2), patch, size)
        return short.margin, *maps, ds.runner_up(votes)

    monkeypatch.setattr(queries, "MAX_UNION_ENTRIES", 0)
    for votes in tables(rng, 20, 6, 3):
        getattr(votes, "levels", votes).flags.writeable = False
        whole = answers(votes)
        with monkeypatch.context() as patched:
            patched.setattr(duels_module, "_CHUNK_BYTES", 1)
            parts = answers(votes)
        for one, other in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(one, other)
