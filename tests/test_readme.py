"""Protects the first page: what a newcomer pastes works."""

import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_blocks_run(capsys):
    """In order, in one namespace, as they are printed."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["certificate"].prediction.shape == (4,)
    assert namespace["found"].prediction == [1] and namespace["found"].is_certified
    assert len(capsys.readouterr().out.splitlines()) == 5


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
