"""What each ablation keeps, and in which order: against a twin that asks each pixel."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmooth_jax import ablation as ablation_module
from dsmooth_jax.ablation import (
    MAX_ABLATIONS,
    Blocks,
    Columns,
    MultiBlocks,
    MultiColumns,
    Rows,
    ablation_from_json,
    ablation_to_json,
)

KINDS = (Columns, Rows, Blocks, MultiColumns, MultiBlocks)


@st.composite
def ablation_cases(draw, kinds=KINDS, max_side=10, max_stride=12):
    """(ablation, (H, W)): small, H and W apart, strides that do not divide them."""
    kind = draw(st.sampled_from(kinds))
    if kind is MultiColumns:
        width, bands = draw(st.integers(1, 3)), draw(st.integers(1, 6))
        height = draw(st.integers(1, max_side))
        keep = draw(st.integers(1, bands))
        return MultiColumns(width, keep), (height, width * bands)
    if kind is MultiBlocks:
        size, rows, columns = (draw(st.integers(1, 3)) for _ in range(3))
        keep = draw(st.integers(1, rows * columns))
        return MultiBlocks(size, keep), (size * rows, size * columns)
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    stride = draw(st.integers(1, max_stride))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    if kind is Columns:
        return Columns(w, stride=stride), (height, width)
    if kind is Rows:
        return Rows(h, stride=stride), (height, width)
    return Blocks(h, w, stride=stride), (height, width)


def slow_keep_masks(ablation, image_size):
    """bool [P, H, W]: asks of each pixel, in each ablation, whether it is kept."""
    height, width = image_size
    match ablation:
        case Columns(w, stride=t):
            keeps = [lambda i, j, s=s: (j - s) % width < w for s in range(0, width, t)]
        case Rows(h, stride=t):
            keeps = [
                lambda i, j, s=s: (i - s) % height < h for s in range(0, height, t)
            ]
        case Blocks(h, w, stride=t):
            keeps = [
                lambda i, j, r=r, s=s: (i - r) % height < h and (j - s) % width < w
                for r in range(0, height, t)
                for s in range(0, width, t)
            ]
        case MultiColumns(w, keep):
            keeps = [
                lambda i, j, kept=kept: j // w in kept
                for kept in itertools.combinations(range(width // w), keep)
            ]
        case MultiBlocks(b, keep):
            across = width // b
            keeps = [
                lambda i, j, kept=kept: i // b * across + j // b in kept
                for kept in itertools.combinations(range(height // b * across), keep)
            ]
    return np.array(
        [[[kept(i, j) for j in range(width)] for i in range(height)] for kept in keeps]
    )


@given(ablation_cases())
def test_keep_masks_equal_the_slow_twin(case):
    """Every kind keeps exactly the pixels it says, in the order it says."""
    ablation, image_size = case
    masks = ablation.keep_masks(image_size)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, slow_keep_masks(ablation, image_size))
    assert ablation.num_ablations(image_size) == len(masks)


@given(ablation_cases(kinds=(Columns, Rows, Blocks)))
def test_window_p_begins_at_start_p(case):
    """`starts` and `window_shape` describe the same windows as `keep_masks`."""
    ablation, (height, width) = case
    h, w = ablation.window_shape((height, width))
    starts = ablation.starts((height, width))
    masks = ablation.keep_masks((height, width))
    assert len(starts) == len(masks)
    for (i, j), mask in zip(starts, masks, strict=True):
        shifted = np.roll(mask, (-i, -j), axis=(0, 1))
        assert shifted[:h, :w].all()
        assert shifted.sum() == h * w


def test_order_of_ablations():
    """Index p means the same for ever: saved scores are ordered by it."""
    assert Columns(3, stride=4).starts((2, 10)).tolist() == [[0, 0], [0, 4], [0, 8]]
    assert Rows(1, stride=2).starts((5, 7)).tolist() == [[0, 0], [2, 0], [4, 0]]
    assert Blocks(2, 1, stride=3).starts((4, 5)).tolist() == [
        [0, 0],
        [0, 3],
        [3, 0],
        [3, 3],
    ]
    choices = MultiColumns(2, 2).windows((1, 8)).choices
    assert choices.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    third_block = MultiBlocks(2, 1).keep_masks((4, 6))[3]  # row-major: second row, left
    assert third_block[2:, :2].all()
    assert third_block.sum() == 4


def test_windows_wrap_around_the_edge():
    """The last windows reach over the edge and stay as wide as all others."""
    last = Columns(3).keep_masks((1, 5))[4, 0]
    assert last.tolist() == [True, True, False, False, True]
    corner = Blocks(2, 3).keep_masks((4, 5))[-1]
    assert np.argwhere(corner).tolist() == [
        [0, 0],
        [0, 1],
        [0, 4],
        [3, 0],
        [3, 1],
        [3, 4],
    ]


def test_a_window_as_large_as_the_image_fits_and_a_larger_one_does_not():
    """Limits are inclusive, and of the right axis (H != W)."""
    assert Columns(7).keep_masks((2, 7)).all()
    assert Rows(2).keep_masks((2, 7)).all()
    assert Blocks(2, 7).keep_masks((2, 7)).all()
    assert MultiColumns(7, 1).keep_masks((2, 7)).all()
    for ablation in (
        Columns(8),
        Rows(3),
        Blocks(3, 7),
        Blocks(2, 8),
        MultiColumns(8, 1),
    ):
        with pytest.raises(ValueError, match="must be in 1"):
            ablation.keep_masks((2, 7))


def test_multi_windows_must_divide_the_image():
    """A band that would not fit is refused, never cut or dropped."""
    for ablation in (MultiColumns(3, 1), MultiBlocks(3, 1)):
        with pytest.raises(ValueError, match="must divide the image width, 10"):
            ablation.keep_masks((9, 10))
    with pytest.raises(ValueError, match="must divide the image height, 10"):
        MultiBlocks(3, 1).keep_masks((10, 9))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ablation_cases())
def test_ablations_are_frozen_hashable_values(without_shape_checks, case):
    """Equal fields are one value (one compilation, one record); none can be changed."""
    ablation, _ = case
    fields = dataclasses.asdict(ablation)
    twin = type(ablation)(**{k: np.int32(v) for k, v in fields.items()})
    assert twin == ablation
    assert hash(twin) == hash(ablation)
    assert repr(twin) == repr(ablation)
    for name, value in fields.items():
        assert type(getattr(twin, name)) is int
        assert dataclasses.replace(ablation, **{name: value + 1}) != ablation
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(ablation, name, value)


def test_ablations_of_different_kinds_differ():
    """Columns(2) is not Rows(2), though their numbers agree."""
    values = [Columns(2), Rows(2), Blocks(2), MultiColumns(2, 2), MultiBlocks(2, 2)]
    assert len(set(values)) == len(values)
    assert Blocks(2) == Blocks(2, 2) != Blocks(2, 3)


@given(ablation_cases())
def test_json_round_trip(case):
    """What a checkpoint writes down comes back as the same value."""
    ablation, _ = case
    record = json.loads(json.dumps(ablation_to_json(ablation)))
    assert ablation_from_json(record) == ablation


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"kind": "Diagonals", "width": 2}, "Diagonals.*not in .'Columns'"),
        ({"width": 2}, "kind=None is unknown"),
        ({"kind": "Columns", "width": 2, "step": 1}, r"given are \['step', 'width'\]"),
        ({"kind": "Blocks", "width": 2}, r"needs \['height'\]"),
        ({"kind": "Columns", "width": 0}, "width=0 must be >= 1"),
    ],
)
def test_json_that_is_no_ablation_is_refused(record, words):
    """A record of another version or kind is named, not guessed at."""
    with pytest.raises(ValueError, match=words):
        ablation_from_json(record)


def test_max_ablations_is_the_most_and_not_one_less(monkeypatch):
    """C(B, keep) grows without warning: refused above the limit, and not at it."""
    total = math.comb(6, 3)
    monkeypatch.setattr(ablation_module, "MAX_ABLATIONS", total)
    assert MultiColumns(2, 3).num_ablations((1, 12)) == total
    assert MultiBlocks(1, 3).num_ablations((2, 3)) == total
    monkeypatch.setattr(ablation_module, "MAX_ABLATIONS", total - 1)
    for ablation, size in ((MultiColumns(2, 3), (1, 12)), (MultiBlocks(1, 3), (2, 3))):
        with pytest.raises(
            ValueError, match="20 ablations, more than MAX_ABLATIONS=19"
        ):
            ablation.num_ablations(size)


def test_too_many_ablations_are_refused_before_they_are_enumerated():
    """C(1024, 512) would never end; the error names the number and the remedy."""
    with pytest.raises(ValueError, match=f"{MAX_ABLATIONS:,}; keep fewer"):
        MultiBlocks(1, 512).keep_masks((32, 32))
    with pytest.raises(ValueError, match=r"keep=5 must be in 1\.\.4"):
        MultiColumns(8, 5).keep_masks((32, 32))
