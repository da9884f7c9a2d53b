"""Protects what is typed: every way to name patches and numbers."""

import pytest

import dsmooth_jax as ds
from dsmooth_jax.commands import cli


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5x5", ["5x5"]),
        (" 2X8 , 2x8,8x2", ["2x8", "8x2"]),  # each once, in the order given
        ("4%,50%", ["6x6", "21x21"]),
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


def test_counts_and_percentages_are_read_as_written():
    """Each once, in order; an empty one asks for nothing, nonsense is named."""
    assert cli.parse_counts("--top_k", " 3,5,3") == (3, 5)
    assert cli.parse_percents("--alarms", "1%, 2.5 %,0%") == (0.01, 0.025, 0.0)
    assert cli.parse_counts("--top_k", "") == cli.parse_percents("--alarms", "") == ()
    for bad in ("0", "-1", "2.5", "3,", "many"):
        with pytest.raises(ValueError, match=f"--top_k={bad} must be integers"):
            cli.parse_counts("--top_k", bad)
    for bad in ("1", "100%", "-1%", "1%,", "few"):
        with pytest.raises(ValueError, match=f"--alarms={bad} must be percentages"):
            cli.parse_percents("--alarms", bad)


def test_progress_is_a_line_at_times_where_there_is_no_terminal(capsys, monkeypatch):
    """Logs: every ten seconds how fast and how long still."""
    clock = iter([0.0, 0.5, 12.0, 13.0, 30.0])  # the start, four items
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    items = [range(5), range(10), range(5), range(20)]
    assert list(cli.progress(items, "scored", 40, len)) == items
    assert capsys.readouterr().out.splitlines() == [
        "scored 15 of 40 images, 1.2 images/s, 20 s to go",
    ]


def test_no_progress_of_nothing(capsys):
    """A store that is complete: nothing was scored, so nothing is said."""
    assert list(cli.progress([], "scored", 0, len)) == []
    assert capsys.readouterr().out == ""


def test_a_missing_library_is_named_with_the_remedy(capsys, monkeypatch):
    """What only drawing needs may not be installed: one line, not a traceback."""

    def main(argv):
        import a_library_that_nobody_has  # noqa: F401

    monkeypatch.setattr(cli.app, "run", lambda main, **_: main(["certify.py"]))
    with pytest.raises(SystemExit):
        cli.run("certify.py", main)
    said = capsys.readouterr().err
    assert said.startswith("certify.py: error: No module named 'a_library")
    assert "pip install a_library_that_nobody_has" in said and "'.[plot]'" in said
