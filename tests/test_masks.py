"""Masks over pixels: what they hide and which cover a patch, pixel by pixel."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dsmooth_jax as ds
from dsmooth_jax.masks import covered_placements, masks_from_json, masks_to_json


def slow_hide_masks(masks, image_size):
    """The windows one by one: each start of the grid, then the one at the border."""
    axes = []
    for axis in (0, 1):
        last = image_size[axis] - masks.shape[axis]
        starts = [s for s in range(last) if s % masks.strides[axis] == 0]
        axes.append([*starts, last])
    found = []
    for row, column in itertools.product(*axes):
        hidden = np.zeros(image_size, bool)
        hidden[row : row + masks.shape[0], column : column + masks.shape[1]] = True
        found.append(hidden)
    return np.array(found)


def slow_covering(masks, patch, image_size):
    """{(row, column): tuple of bool}, by painting each placement."""
    hidden = slow_hide_masks(masks, image_size)
    found = {}
    for row in range(image_size[0] - patch.height + 1):
        for column in range(image_size[1] - patch.width + 1):
            painted = np.zeros(image_size, bool)
            painted[row : row + patch.height, column : column + patch.width] = True
            found[row, column] = tuple(not (painted & ~h).any() for h in hidden)
    return found


MASKS = [
    (ds.Masks(3, stride=2), (7, 9)),
    (ds.Masks(3, stride=2), (8, 6)),
    (ds.Masks(2, 4, stride=(1, 3)), (5, 11)),
    (ds.Masks(1, 2, stride=1), (1, 5)),
    (ds.Masks(4, 4, stride=1), (9, 5)),
]


@pytest.mark.parametrize(("masks", "image_size"), MASKS, ids=str)
def test_masks_hide_the_windows_of_the_grid_and_the_last_one(masks, image_size):
    # Protects the border: the last mask is flush, whatever the stride leaves over.
    hidden = masks.hide_masks(image_size)
    np.testing.assert_array_equal(hidden, slow_hide_masks(masks, image_size))
    assert masks.num_masks(image_size) == len(hidden)
    assert hidden[-1, -1, -1]


@pytest.mark.parametrize(("masks", "image_size"), MASKS, ids=str)
def test_covering_is_counted_for_every_placement(masks, image_size):
    # Protects certificates: a placement left out, or a mask said to cover what it does
    # not, would certify what can be broken.
    num_refused = num_counted = 0
    for height, width in itertools.product(range(1, 6), repeat=2):
        if height > image_size[0] or width > image_size[1]:
            continue
        patch = ds.Patch(height, width)
        expected = slow_covering(masks, patch, image_size)
        if not all(map(any, expected.values())):
            num_refused += 1
            with pytest.raises(ValueError, match="covers no patch of"):
                ds.covering(masks, patch, image_size)
            continue
        num_counted += 1
        found, row_of = covered_placements(masks, patch, image_size)
        assert set(map(tuple, found.tolist())) == set(expected.values())
        assert len(np.unique(found, axis=0)) == len(found)
        for corner, covers in expected.items():
            assert tuple(found[row_of[corner]].tolist()) == covers
    assert num_refused and num_counted


@given(st.data())
def test_covering_masks_cover_and_none_smaller_would(data):
    # Protects the claim "smallest": a pixel less along an axis leaves a placement bare.
    size = tuple(data.draw(st.integers(6, 16)) for _ in range(2))
    patch = ds.Patch(*(data.draw(st.integers(1, extent // 3)) for extent in size))
    per_axis = data.draw(st.integers(3, 6))
    masks = ds.covering_masks(patch, size, per_axis=per_axis)
    rows, columns = masks.starts(size)
    assert len(rows) <= per_axis and len(columns) <= per_axis
    covers = ds.covering(masks, patch, size)
    assert covers.any(axis=1).all()
    # The bound that no set can beat: k masks of m pixels hold k (m - p + 1) placements.
    for extent, length, mask in zip(
        (patch.height, patch.width), size, masks.shape, strict=True
    ):
        assert per_axis * (mask - extent) < length - extent + 1
    # A smaller patch is covered wherever the larger one was.
    smaller = ds.Patch(max(1, patch.height - 1), patch.width)
    assert ds.covering(masks, smaller, size).any(axis=1).all()


def test_the_sizes_of_the_paper():
    # Protects the sizes that others report: 32 pixels, 5x5, 6 x 6 masks of 9x9.
    sizes = {
        k: ds.covering_masks(ds.Patch(5, 5), (32, 32), per_axis=k) for k in (3, 4, 6)
    }
    assert {k: m.shape for k, m in sizes.items()} == {
        3: (14, 14),
        4: (11, 11),
        6: (9, 9),
    }
    assert sizes[6].starts((32, 32))[0] == [0, 5, 10, 15, 20, 23]
    assert sizes[6].num_masks((32, 32)) == 36


def test_masks_pass_through_json():
    # Protects stores and checkpoints.
    masks = ds.Masks(3, 4, stride=(1, 2))
    assert masks_from_json(masks_to_json(masks)) == masks
    assert ds.Masks(3, stride=2) == ds.Masks(3, 3, stride=(2, 2))
    with pytest.raises(ValueError, match=r"masks take .*'stride'"):
        masks_from_json({"height": 3})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ds.Masks(0, stride=1), ValueError, "Masks: height=0 must be >= 1"),
        (lambda: ds.Masks(3, 2.5, stride=1), TypeError, "width=2.5 must be an integer"),
        (lambda: ds.Masks(3, stride=(1, 0)), ValueError, "stride=0 must be >= 1"),
        (lambda: ds.Masks(3, stride=(1, 2, 3)), ValueError, "must be one number, or"),
        (lambda: ds.Masks(3, stride=1).starts((2, 9)), ValueError, r"height=3 .* 1..2"),
        (
            lambda: ds.Masks(2, 3, stride=1).hide_masks((2, 6)),
            ValueError,
            "masks 0 and 3 together hide all of an image of 2x6",
        ),
        (
            lambda: ds.covering_masks(ds.Patch(5, 5), (32, 32), per_axis=1),
            ValueError,
            "masks 0 and 0 together hide all",
        ),
        (
            lambda: ds.covering_masks(ds.Patch(5, 5), (32, 32), per_axis=0),
            ValueError,
            "per_axis=0 must be >= 1",
        ),
        (
            lambda: ds.covering_masks(ds.Patch(5, 9), (32, 8)),
            ValueError,
            "patch 5x9 must fit into the image, 32x8",
        ),
        (
            lambda: ds.covering(ds.Masks(9, stride=5), ds.Patch(6, 5), (32, 32)),
            ValueError,
            r"covers no patch of 6x5 at \(row, column\) \(4, 0\), and at 111 more",
        ),
        (
            lambda: ds.covering("masks", ds.Patch(6, 5), (32, 32)),
            TypeError,
            "masks='masks' must be ds.Masks",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, error, message, without_shape_checks):
    # Protects users: what was wrong and what to do, before anything is computed.
    with pytest.raises(error, match=message):
        call()
