"""Files that are there whole or not at all, and sums of what is in them."""

import hashlib
import os
import pathlib
from typing import TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".part")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sha256(content: bytes) -> str:
    """The checksum of a file's content, as hex."""
    return hashlib.sha256(content).hexdigest()
