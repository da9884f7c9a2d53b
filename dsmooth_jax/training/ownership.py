"""A run's folder: whose results it holds, and who is writing to it now.

Nothing is written into a folder that holds the results of another run, whatever is left
of them. Two commands that write to one folder at once would spoil each other's files:
the first takes a lock that ends with its process, the second says who has it.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dsmooth_jax import distributed
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.checkpoint import DamagedCheckpointError
from dsmooth_jax.storage.provenance import describe_difference
from dsmooth_jax.storage.shards import MANIFEST
from dsmooth_jax.storage.workdir import (
    BEST,
    CERTIFIED,
    COMPARISON,
    CONFIG,
    CURVE,
    LATEST,
    METRICS,
    SUMMARY,
    VALIDATION_IDS,
)
from dsmooth_jax.training import config


def check_settings(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Raises ValueError where the workdir holds a run of other settings or data.

    Only JSON is read: config.json, and that of every checkpoint; a damaged one is
    passed over.

    Args:
      workdir: it may be missing.
      record: with "config" and "fingerprints", of the run that is to begin or go on.
    """
    for saved in _claims(workdir):
        if unlike := describe_difference(
            {key: _comparable(key, saved[key]) for key in saved},
            {key: _comparable(key, record[key]) for key in saved},
        ):
            raise ValueError(
                f"{workdir} holds a run with other settings ({unlike}); give another "
                "--workdir, or the settings of that run"
            )


def check_free(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Raises ValueError unless a run may begin in a folder, or go on.

    Args:
      workdir: it may be missing.
      record: as of `check_settings`.
    """
    check_folder("--workdir", workdir)
    checkpoint.check_directory(workdir)
    check_settings(workdir, record)
    if not checkpoint.steps(workdir / LATEST) and (found := _results(workdir)):
        raise ValueError(
            f"{workdir} holds {found}, but nothing in {LATEST} to go on from; give "
            "another --workdir: here it would be lost"
        )


def check_folder(flag: str, folder: pathlib.Path) -> None:
    """Raises ValueError unless a command may write to a folder, or make it.

    Args:
      flag: that names the folder.
      folder: it may be missing.
    """
    there = folder.absolute()
    for parent in (there, *there.parents):
        is_checkpoint = parent.name in ("best", "latest") and checkpoint.steps(parent)
        if is_checkpoint and parent.parent.name == "checkpoints":
            raise ValueError(
                f"{flag}={folder} lies in {parent}, the checkpoints of a run; give "
                "another folder"
            )
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{flag}={folder}: {there} is no folder; give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{flag}={folder}: this user may not write to {there}; give another, or "
            "correct its permissions"
        )


@contextlib.contextmanager
def locked(flag: str, folder: pathlib.Path, name: str) -> Iterator[None]:
    """Holds a folder's lock; of several processes of a run, the first one does.

    The operating system ends the lock with the process, however that ends.

    Args:
      flag: that names the folder, for the error.
      folder: made if missing.
      name: of the lock's file; it stays there.

    Raises:
      ValueError: another process has it; the message says which, and where.
    """
    if not distributed.is_first():
        yield
        return
    import fcntl  # not on Windows: only when used

    folder.mkdir(parents=True, exist_ok=True)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with open(folder / name, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ValueError(
                f"{flag}={folder} is being written to by {who}; wait until it has "
                "ended, end it, or give another folder"
            ) from None
        except OSError as error:  # some network file systems have no locks
            print(f"{folder / name} cannot be locked: {error}", file=sys.stderr)
        file.truncate(0)
        file.write(me + "\n")
        file.flush()
        yield


def _claims(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
    """What lies in the folder says of the run that it is of."""
    path = workdir / CONFIG
    if path.exists():
        try:
            yield {"config": dict(json.loads(path.read_text()))}
        except (ValueError, TypeError):
            raise ValueError(
                f"{path} is not what train.py writes; give another --workdir"
            ) from None
    for folder in (workdir / LATEST, workdir / BEST):
        for step in checkpoint.steps(folder):
            with contextlib.suppress(DamagedCheckpointError):
                saved = checkpoint.read_metadata(folder, step=step)
                yield {key: saved.get(key, {}) for key in ("config", "fingerprints")}


def _comparable(key: str, value: Any) -> Any:
    return config.canonical(value) if key == "config" else value


def _results(workdir: pathlib.Path) -> str:
    """What of a run's results a folder holds, in words; "" where nothing."""
    for folder in (BEST, LATEST):
        kept = [
            path.name
            for path in sorted((workdir / folder).glob("*"))
            if not checkpoint.is_leftover(path)
        ]
        if kept:
            return f"{folder}/{kept[-1]}"
    lines = workdir / METRICS
    num_lines = len(lines.read_text().splitlines()) if lines.exists() else 0
    # A run killed before its first checkpoint leaves the config, and a line at most.
    is_begun = (workdir / CONFIG).exists()
    if num_lines > is_begun:
        return f"{METRICS} with {num_lines} validations"
    for name in (CURVE, CERTIFIED, MANIFEST, SUMMARY, COMPARISON):
        if (workdir / name).exists():
            return str(name)
    if (workdir / VALIDATION_IDS).exists() and not is_begun:
        return str(VALIDATION_IDS)
    return ""
