"""What train.py and certify.py share: patches as text, errors in one line."""

import contextlib
import re
import sys
from collections.abc import Iterator

from dsmooth_jax.threat import Patch


def parse_patches(text: str) -> tuple[Patch, ...]:
    """Reads a list of patches such as ``"2x2,5x8"``: height x width in pixels.

    Raises:
      ValueError: an entry that is not of this form; it is named.

    >>> parse_patches("2x2,5x8")
    (Patch(height=2, width=2), Patch(height=5, width=8))
    """
    patches = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", entry)
        if not match or "0" in match.groups():
            raise ValueError(
                f"--patches: {entry!r} must be HEIGHTxWIDTH in pixels, both >= 1; "
                "for example --patches=2x2,5x5"
            )
        patches.append(Patch(int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(patches))


@contextlib.contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """Ends the process with one line where a user's input or files are at fault."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(130)
