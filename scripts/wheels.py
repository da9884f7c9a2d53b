"""Fills a folder with wheels of what a machine without internet lacks.

    python -m scripts.wheels FOLDER [REQUIREMENT ...] [--have=FILE] [--python=3.12]

Requirements are by default those of this package. FILE is what `python -m pip list
--format=freeze` prints on the other machine (Linux, x86-64); what is there already
stays, whatever its version, and so do packages that only what is there asks for. There:

    python -m pip install --no-index --no-deps --target=site FOLDER/*.whl
    PYTHONPATH=site python train.py ...
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Newest first; pip takes each literally, none for those below it.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 16, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def main():
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("folder", type=pathlib.Path)
    flags.add_argument("requirements", nargs="*")
    flags.add_argument("--have", type=pathlib.Path)
    flags.add_argument("--python", default="3.12")
    flags = flags.parse_args()
    present = {}
    if flags.have:
        for line in flags.have.read_text().splitlines():
            name, _, version = line.partition("==")
            present[normal(name)] = version
    target = ["--only-binary=:all:", f"--python-version={flags.python}"]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    wanted = flags.requirements or ["-r", str(ROOT / "requirements.txt")]
    flags.folder.mkdir(parents=True, exist_ok=True)
    missing = [
        (name, version)
        for name, version in resolved(wanted, target)
        if normal(name) not in present
    ]
    for name, version in missing:
        pip("download", "--no-deps", *target, f"-d{flags.folder}", f"{name}=={version}")
    size = sum(wheel.stat().st_size for wheel in flags.folder.glob("*.whl"))
    names = " ".join(f"{name}=={version}" for name, version in missing) or "nothing"
    print(f"{flags.folder}: {names}; {size / 2**20:.1f} MiB")


def resolved(wanted, target):
    """(name, version) of everything that pip would install on an empty machine."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.json")
        where = [f"--target={folder}/site", f"--report={report}"]
        pip("install", "--dry-run", "--ignore-installed", *where, *target, *wanted)
        entries = json.loads(report.read_text())["install"]
    found = (entry["metadata"] for entry in entries)
    return [(metadata["name"], metadata["version"]) for metadata in found]


def normal(name):
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


if __name__ == "__main__":
    main()
