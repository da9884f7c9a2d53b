"""Writes requirements.lock: what pip installs today, on each of the Pythons named.

    python scripts/lock.py python3.11 python3.12    # or: make lock
    python scripts/lock.py --direct                 # prints the direct requirements

Each Python gets a fresh virtual environment with requirements.txt and every extra of
pyproject.toml; what `pip freeze` then lists is what the lock says. Where two Pythons
got different versions, environment markers tell them apart. The Pythons are given
oldest first; the lock serves exactly those.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# Extras for machines with an accelerator, which the lock is not for.
ACCELERATORS = ("cuda12", "cuda13", "tpu")
ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The tested versions of everything that `make` installs, direct and transitive, for
# Python {versions}. Made by `make lock`: a fresh virtual environment for each,
# with requirements.txt and the extras of pyproject.toml, frozen. Do not edit by hand.
"""


def direct_requirements() -> list[str]:
    """requirements.txt and every extra but accelerators', as lines for pip."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    chosen = [extras[name] for name in extras if name not in ACCELERATORS]
    return lines + [requirement for extra in chosen for requirement in extra]


def frozen(python: str) -> tuple[str, dict[str, str]]:
    """That Python's version ("3.11") and what a fresh install gets, name -> version."""
    query = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = _output(python, "-c", query).strip()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        requirements = Path(folder, "direct.txt")
        requirements.write_text("\n".join(direct_requirements()))
        pip = (f"{folder}/venv/bin/python", "-m", "pip")
        print(f"Python {version}: installing", flush=True)
        subprocess.run([*pip, "install", "--quiet", "-r", requirements], check=True)
        subprocess.run([*pip, "check"], check=True)
        lines = _output(*pip, "freeze").splitlines()
    return version, dict(line.split("==") for line in lines)


def merged(locks: dict[str, dict[str, str]]) -> list[str]:
    """The lock's lines; `locks` maps each Python version, oldest first, to its pins."""
    pythons = list(locks)
    names = {name for pins in locks.values() for name in pins}
    lines = []
    for name in sorted(names, key=str.lower):
        found = {python: locks[python].get(name) for python in pythons}
        if len(set(found.values())) == 1:
            lines.append(f"{name}=={found[pythons[0]]}")
            continue
        for python, version in found.items():
            if version is not None:
                lines.append(f"{name}=={version}; {_marker(python, pythons)}")
    return lines


def _marker(python: str, pythons: list[str]) -> str:
    """What is true for `python` alone: the first and the last are open-ended."""
    if python == pythons[0]:
        return f'python_version < "{pythons[1]}"'
    if python == pythons[-1]:
        return f'python_version >= "{python}"'
    return f'python_version == "{python}"'


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str]) -> None:
    if arguments == ["--direct"]:
        print("\n".join(direct_requirements()))
        return
    if not arguments or arguments[0].startswith("-"):
        sys.exit("usage: lock.py python3.11 python3.12 | lock.py --direct")
    locks = dict(frozen(python) for python in arguments)
    header = HEADER.format(versions=" and ".join(locks))
    (ROOT / "requirements.lock").write_text(header + "\n".join(merged(locks)) + "\n")
    print(f"wrote requirements.lock for Python {', '.join(locks)}")


if __name__ == "__main__":
    main(sys.argv[1:])
