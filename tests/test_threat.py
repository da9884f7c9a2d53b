"""Which ablations a patch touches: against a twin that looks at every pixel."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ablation import ablation_cases

from dsmooth_jax import threat
from dsmooth_jax.ablation import Blocks, Columns, MultiBlocks, MultiColumns, Rows
from dsmooth_jax.threat import Patch, max_touched, placements, touched


@st.composite
def threat_cases(draw):
    """(ablation, patch, (H, W)), the patch inside the image."""
    ablation, (height, width) = draw(ablation_cases())
    patch = Patch(draw(st.integers(1, height)), draw(st.integers(1, width)))
    return ablation, patch, (height, width)


def slow_touched(ablation, patch, image_size):
    """bool [Dh, Dw, P]: counts the kept pixels under each placement, one at a time."""
    masks = ablation.keep_masks(image_size)
    height, width = image_size
    return np.array(
        [
            [
                masks[:, i : i + patch.height, j : j + patch.width].sum(axis=(1, 2)) > 0
                for j in range(width - patch.width + 1)
            ]
            for i in range(height - patch.height + 1)
        ]
    )


def as_sets(rows):
    """Each row as the tuple of the ablations it holds."""
    return [tuple(np.flatnonzero(row)) for row in rows]


@given(threat_cases())
def test_touched_sets_equal_the_slow_twin(case):
    """Every distinct set is there exactly once, the empty one too, and nothing else."""
    twin = slow_touched(*case)
    sets = as_sets(touched(*case))
    assert len(set(sets)) == len(sets)
    assert sets == list(dict.fromkeys(as_sets(twin.reshape(-1, twin.shape[-1]))))


@given(threat_cases())
def test_placements_point_to_their_own_touched_set(case):
    """Maps of the image show what each placement touches."""
    sets, row = placements(*case)
    np.testing.assert_array_equal(sets[row], slow_touched(*case))
    np.testing.assert_array_equal(sets, touched(*case))


@given(threat_cases())
def test_max_touched_equals_the_slow_twin(case):
    """The paper's Delta is the largest count over every placement."""
    assert max_touched(*case) == slow_touched(*case).sum(axis=-1).max()


@given(threat_cases(), st.data())
def test_a_smaller_or_overhanging_patch_touches_no_more(case, data):
    """What is certified for a patch holds for each smaller one and at the border."""
    ablation, patch, (height, width) = case
    rows = touched(ablation, patch, (height, width))
    smaller = Patch(
        data.draw(st.integers(1, patch.height)), data.draw(st.integers(1, patch.width))
    )
    for subset in touched(ablation, smaller, (height, width)):
        assert (rows | ~subset).all(axis=1).any()
    i = data.draw(st.integers(1 - patch.height, height - 1))
    j = data.draw(st.integers(1 - patch.width, width - 1))
    masks = ablation.keep_masks((height, width))
    seen = masks[:, max(i, 0) : i + patch.height, max(j, 0) : j + patch.width]
    assert (rows | ~seen.any(axis=(1, 2))).all(axis=1).any()


def test_a_placement_that_touches_nothing_is_the_empty_set():
    """Where strides leave gaps a patch may hide: that row is kept, not dropped."""
    sets, row = placements(Columns(1, stride=4), Patch(1, 2), (1, 8))
    assert as_sets(sets) == [(0,), (), (1,)]
    assert row.tolist() == [[0, 1, 1, 2, 2, 1, 1]]


@pytest.mark.parametrize(
    ("ablation", "patch", "size", "expected"),
    [
        (Columns(19, stride=10), 32, 224, 6),  # ceil((m + s - 1) / stride) says 5
        (Columns(19, stride=5), 32, 224, 11),  # 10
        (Rows(19, stride=10), 32, 224, 6),
        (Blocks(75, stride=10), 32, 224, 12 * 12),  # 11 per axis
        (Columns(4), 5, 32, 8),
    ],
)
def test_strides_that_do_not_divide_the_image(ablation, patch, size, expected):
    """The counts that published formulas get wrong, where windows wrap."""
    assert max_touched(ablation, Patch(patch, patch), (size, size)) == expected


def test_the_placement_that_breaks_the_published_formula():
    """A patch at column 0 meets two windows that reach over the right edge."""
    ablation = Columns(19, stride=10)
    sets, row = placements(ablation, Patch(32, 32), (224, 224))
    starts = ablation.starts((224, 224))[sets[row[0, 0]], 1]
    assert starts.tolist() == [0, 10, 20, 30, 210, 220]


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_closed_forms_of_the_paper_at_stride_one(height, width, data):
    """Columns, rows, blocks: min(side, m + s - 1) along each axis."""
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    m_h, m_w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    size, patch = (height, width), Patch(m_h, m_w)
    rows, columns = min(height, m_h + h - 1), min(width, m_w + w - 1)
    assert max_touched(Columns(w), patch, size) == columns
    assert max_touched(Rows(h), patch, size) == rows
    assert max_touched(Blocks(h, w), patch, size) == rows * columns


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.data())
def test_closed_forms_of_the_paper_for_disjoint_windows(down, across, b, data):
    """Multi-column, multi-block: C(B, k) - C(B - a, k)."""
    size = (down * b, across * b)
    m_h, m_w = (data.draw(st.integers(1, side)) for side in size)
    a_h = min(down, math.ceil((m_h - 1) / b) + 1)
    a_w = min(across, math.ceil((m_w - 1) / b) + 1)
    for num, hit, kind in (
        (across, a_w, MultiColumns),
        (down * across, a_h * a_w, MultiBlocks),
    ):
        k = data.draw(st.integers(1, min(num, 4)))
        expected = math.comb(num, k) - math.comb(num - hit, k)
        assert max_touched(kind(b, k), Patch(m_h, m_w), size) == expected


def test_imagenet_columns():
    """The paper's ImageNet setting: 299 x 299, columns of 25, a patch of 42 x 42."""
    sets = touched(Columns(25), Patch(42, 42), (299, 299))
    assert sets.shape == (258, 299)
    assert (sets.sum(axis=1) == 42 + 25 - 1).all()


def test_cifar10_blocks():
    """The paper's CIFAR-10 blocks: 1,024 ablations, 28 x 28 distinct placements."""
    sets, row = placements(Blocks(12), Patch(5, 5), (32, 32))
    assert sets.shape == (784, 1024)
    assert (sets.sum(axis=1) == (5 + 12 - 1) ** 2).all()
    np.testing.assert_array_equal(row, np.arange(784).reshape(28, 28))


def test_too_large_to_hold_is_refused_but_can_be_counted():
    """89,401 blocks: `touched` refuses at once, `max_touched` needs no such memory."""
    case = Blocks(42), Patch(42, 42), (299, 299)
    assert max_touched(*case) == (42 + 42 - 1) ** 2
    with pytest.raises(ValueError, match=r"66,564 touched sets.*use a larger stride"):
        touched(*case)


def test_blocks_of_memory_do_not_change_the_count(monkeypatch):
    """`max_touched` goes through every placement, however few it takes at a time."""
    case = MultiBlocks(2, 3), Patch(2, 3), (6, 8)
    expected = slow_touched(*case).sum(axis=-1).max()
    for entries in (1, 2000, 2**24):
        monkeypatch.setattr(threat, "_BLOCK_ENTRIES", entries)
        assert max_touched(*case) == expected


def test_the_patch_may_fill_the_image_and_not_more():
    """One placement then, that touches all; a larger patch is refused, per axis."""
    sets, row = placements(Columns(2), Patch(3, 5), (3, 5))
    assert sets.all()
    assert sets.shape == (1, 5)
    assert row.shape == (1, 1)
    for patch in (Patch(4, 5), Patch(3, 6), Patch(5, 3)):
        with pytest.raises(ValueError, match=f"patch {patch} must fit"):
            touched(Columns(2), patch, (3, 5))
