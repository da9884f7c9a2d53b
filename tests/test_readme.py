"""Protects the first page: what a newcomer pastes works."""

import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_blocks_run(capsys):
    """In order, in one namespace; the certificate is printed as README says."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["certificate"].prediction.shape == (4,)
    assert namespace["found"].prediction == [1] and namespace["found"].is_certified
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and f"```text\n{lines[0]}\n```" in README


def test_the_commands_name_what_is_there():
    """Every config, script and make target that README names exists."""
    root = pathlib.Path(__file__).parents[1]
    for name in re.findall(
        r"configs/\w+\.py|tests/\w+\.py|dsmooth_jax/\w+\.py", README
    ):
        assert (root / name).exists(), name
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_no_line_is_longer_than_a_window():
    """README is read in terminals and in diffs, too: 100 columns."""
    assert max(map(len, README.splitlines())) <= 100


def test_every_link_leads_somewhere():
    """Files that README links or shows are there."""
    root = pathlib.Path(__file__).parents[1]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert "docs/figures/proof.png" in links
    assert [link for link in links if not (root / link).exists()] == []
