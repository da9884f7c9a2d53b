"""Kills a writer of a store again and again, and checks that nothing is lost.

    python -m scripts.kill_writer                # 25 kills, under a minute
    python -m scripts.kill_writer --kills=100 --seed=1

The writer is a process of its own that writes deterministic scores; it gets SIGKILL at
random moments and is started again until it finishes. The finished store must then hold
the files, byte for byte, of one whose writer was left alone. Should it finish before
enough kills, a new store is begun. Exit status 0 says that every store was equal.
"""

import argparse
import hashlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

import dsmooth_jax as ds
from dsmooth_jax.storage.score_store import ScoreStore

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_SHARDS, SHARD_SIZE, NUM_CLASSES = 40, 128, 256
ABLATION, IMAGE_SHAPE = ds.Columns(4), (32, 32, 3)  # 4 MiB a shard
NUM_IMAGES = NUM_SHARDS * SHARD_SIZE - 5  # the last shard is smaller
STARTED = "started"  # what the writer says once its imports are done


def write(path: pathlib.Path) -> None:
    """The writer: begins the store or takes it up, and writes what is missing."""
    print(STARTED, flush=True)
    written = ScoreStore.create(
        path,
        ablation=ABLATION,
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        labels=np.arange(NUM_IMAGES) % NUM_CLASSES,
        ids=np.arange(NUM_IMAGES).astype(str),
        made_by={"script": "kill_writer"},
        shard_size=SHARD_SIZE,
    )
    num_ablations = ABLATION.num_ablations(written.image_size)
    for shard in written.missing:
        span = written.span(shard)
        shape = (span.stop - span.start, num_ablations, NUM_CLASSES)
        scores = np.random.default_rng(shard).random(shape, np.float32)
        written = written.put(shard, scores)


def start_writer(path: pathlib.Path) -> subprocess.Popen:
    """Starts a writer and returns once it is about to write."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "scripts.kill_writer", f"--write={path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    if (line := writer.stdout.readline().strip()) != STARTED:
        raise RuntimeError(f"the writer said {line!r}; see its error above")
    return writer


def finish(writer: subprocess.Popen) -> None:
    """Waits for a writer that is left alone."""
    if writer.wait():
        raise RuntimeError(f"the writer failed with exit status {writer.returncode}")


def digests(path: pathlib.Path) -> dict[str, str]:
    """sha256 of every file in the folder, leftovers too, by name."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.iterdir())
    }


def describe(path: pathlib.Path) -> tuple[int, dict[str, int]]:
    """What a kill left: how many whole shards, and .part files with their times."""
    found = digests(path) if path.exists() else {}
    checksums = {}
    if "manifest.json" in found:
        checksums = json.loads((path / "manifest.json").read_text())["checksums"]
    for shard, checksum in checksums.items():
        if found.get(f"scores-{int(shard):05d}.npy") != checksum:
            raise RuntimeError(f"shard {shard} is in the manifest and not whole")
    parts = [name for name in found if name.endswith(".part")]
    return len(checksums), {name: (path / name).stat().st_mtime_ns for name in parts}


def kill_once(path: pathlib.Path, delay: float) -> None:
    """Starts a writer and kills it after so many seconds, unless it ended before."""
    writer = start_writer(path)
    try:
        writer.wait(delay)
    except subprocess.TimeoutExpired:
        writer.kill()
    if writer.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the writer failed with exit status {writer.returncode}")


def compare(path: pathlib.Path, wanted: dict[str, str]) -> bool:
    """Says whether the finished store holds these files, these alone, and opens."""
    ds.open_scores(path)
    found = digests(path)
    differing = [
        name
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    print(f"finished: {len(found)} files, {differing or 'none'} differing", flush=True)
    return not differing


def run(num_kills: int, seed: int, folder: pathlib.Path) -> bool:
    """Kills, restarts and compares; returns whether every store was equal."""
    rng = random.Random(seed)
    writer = start_writer(folder / "alone")
    started = time.monotonic()
    finish(writer)
    alone = time.monotonic() - started
    wanted = digests(folder / "alone")
    megabytes = sum(f.stat().st_size for f in (folder / "alone").iterdir()) / 1e6
    print(f"no kill: {NUM_SHARDS} shards, {megabytes:.0f} MB, in {alone:.2f} s")

    kills, inside, is_equal, path = 0, 0, True, folder / "killed_0"
    left: dict[str, int] = {}
    while kills < num_kills:
        # A writer lives for a small part of what a store takes: one store, many kills.
        delay = rng.uniform(0, 2 * alone / num_kills)
        kill_once(path, delay)
        whole, parts = describe(path)
        if whole == NUM_SHARDS:  # killed, if at all, with nothing left to write
            is_equal &= compare(path, wanted)
            path = folder / f"killed_{kills}"
            continue
        kills += 1
        # A file that an earlier kill left, and this writer had no time for, is no news.
        new = sorted(name for name, _ in parts.items() - left.items())
        left = parts
        inside += any(name.startswith("scores-") for name in new)
        print(
            f"kill {kills:3d} after {delay:.3f} s: {whole:2d} of {NUM_SHARDS} shards "
            f"whole, left {', '.join(new) or 'no new .part file'}",
            flush=True,
        )
    finish(start_writer(path))
    is_equal &= compare(path, wanted)
    print(
        f"{kills} kills, {inside} of them inside the writing of a shard: "
        + ("all stores equal, byte for byte" if is_equal else "STORES DIFFER")
    )
    return is_equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="how many; default 25")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write is not None:
        write(arguments.write)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(arguments.kills, arguments.seed, pathlib.Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
