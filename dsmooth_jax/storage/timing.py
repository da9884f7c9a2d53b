"""How long the shards of a store took, in a file beside it.

A store has the same bytes whoever made it; time has not. So ``scores.seconds.json``
lies beside ``scores``, and is written again with each shard. It says nothing of shards
that several processes made, which may share a machine, or another framework.
"""

import json
import pathlib

from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.shards import Shards


def enter_seconds(store: Shards, shard: int, seconds: float, *, is_first: bool) -> None:
    """Notes how long a shard took.

    Args:
      store: the store.
      shard: its number.
      seconds: from its images to its arrays, in one process that works alone.
      is_first: whether it is the first of this process, in which programs are compiled.
    """
    known = _read(store) | {str(shard): {"seconds": seconds, "is_first": is_first}}
    write_whole(seconds_path(store), json.dumps(known, indent=2).encode())


def forget_seconds(store: Shards) -> None:
    """Deletes what is noted, of a store that begins anew."""
    seconds_path(store).unlink(missing_ok=True)


def seconds_per_image(store: Shards) -> float | None:
    """Seconds an image took, on average; None unless every shard says it.

    The first shard of each process, in which programs are compiled, counts only where
    there are no others.

    Args:
      store: the store, finished.

    Returns:
      Seconds, of one process on the device that `made_by` names.
    """
    known, shards = _read(store), [str(shard) for shard in range(store.num_shards)]
    if not shards or any(shard not in known for shard in shards):
        return None
    counted = [s for s in shards if not known[s]["is_first"]] or shards
    spans = [store.span(int(shard)) for shard in counted]
    num_images = sum(span.stop - span.start for span in spans)
    return sum(known[shard]["seconds"] for shard in counted) / num_images


def seconds_path(store: Shards) -> pathlib.Path:
    """The file, beside the store."""
    return store.path.with_name(f"{store.path.name}.seconds.json")


def _read(store: Shards) -> dict[str, dict]:
    path = seconds_path(store)
    return json.loads(path.read_text()) if path.exists() else {}
