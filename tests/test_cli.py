"""Protects what is typed: every way to name patches and numbers."""

import pytest

import dsmooth_jax as ds
from dsmooth_jax import cli


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5x5", ["5x5"]),
        (" 2X8 , 2x8,8x2", ["2x8", "8x2"]),  # each once, in the order given
        ("4%,50%", ["6x6", "20x20"]),
        ("0.1%", ["1x1"]),
        ("squares", [f"{m}x{m}" for m in range(1, 29)]),
        ("3x3,squares", ["3x3", "1x1", "2x2", *(f"{m}x{m}" for m in range(4, 29))]),
    ],
)
def test_patches_are_read_as_written(text, wanted):
    """Pixels, percent of the image, and all squares."""
    found = cli.parse_patches(text, (28, 30))
    assert [str(patch) for patch in found] == wanted
    assert all(isinstance(patch, ds.Patch) for patch in found)


def test_numbers_are_read_as_written():
    """Lists of settings; an empty one asks for nothing."""
    assert cli.parse_numbers("--strengths", "2, 5,10.5") == (2.0, 5.0, 10.5)
    assert cli.parse_numbers("--strengths", "") == ()
    with pytest.raises(ValueError, match="--strengths=2,many must be numbers"):
        cli.parse_numbers("--strengths", "2,many")
