"""What train.py and certify.py share: patches as text, progress, errors in one line.

With DSMOOTH_TRACEBACK set, an error also shows where it came from.
"""

import contextlib
import io
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from absl import app, flags, logging
from tqdm import tqdm

from dsmooth_jax.checks import user_path
from dsmooth_jax.queries import square_of_percent
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import ImageSize

Item = TypeVar("Item")

_QUIET_SECONDS = 2  # what takes less needs no progress
_LINE_SECONDS = 10  # between two lines, where there is no terminal


def parse_patches(
    text: str, image_size: ImageSize, flag: str = "--patches"
) -> tuple[Patch, ...]:
    """Reads a list of patches such as ``"2x2,5x8,2%"``.

    Args:
      text: entries HEIGHTxWIDTH in pixels, or P%, the square that covers so much of the
        image, or "squares": every square, 1x1 to the largest.
      image_size: (H, W), pixels.
      flag: what errors call it.

    Raises:
      ValueError: an entry that is not of this form; it is named.

    >>> parse_patches("2x8,4%", (28, 28))
    (Patch(height=2, width=8), Patch(height=6, width=6))
    """
    example = "2x2,5x5" if flag == "--patches" else "5x5"
    patches: list[Patch] = []
    for entry in text.split(","):
        if entry.strip() == "squares":
            patches += [Patch(m, m) for m in range(1, min(image_size) + 1)]
            continue
        if percent := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", entry):
            patches.append(square_of_percent(float(percent[1]), image_size))
            continue
        match = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", entry)
        if not match or "0" in match.groups():
            raise ValueError(
                f"{flag}: {entry!r} must be HEIGHTxWIDTH in pixels, both >= 1, or "
                f"P% of the image, or squares; for example {flag}={example}"
            )
        patches.append(Patch(int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(patches))


def program() -> str:
    """The name of the program that runs, as errors begin."""
    return pathlib.Path(sys.argv[0]).name


def explain(text: str | None, module: str) -> None:
    """Makes a program's --help say this, and show the flags that a module defined."""
    sys.modules["__main__"].__doc__ = text
    by_module = flags.FLAGS.flags_by_module_dict()
    for flag in [*by_module.get(module, []), *by_module.get(__name__, [])]:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def define_data_dir() -> None:
    """Defines the flag that `data_dir` reads."""
    flags.DEFINE_string(
        "data_dir", None, "Where the data are; TFDS's own folder if unset."
    )


def data_dir() -> str | None:
    """The folder that --data_dir names; None where it is not given."""
    given = flags.FLAGS.data_dir
    return None if given is None else str(user_path("--data_dir", given))


def define_peers() -> None:
    """Defines the flags by which the processes of one run find each other."""
    flags.DEFINE_string(
        "distributed",
        None,
        "auto: one of several processes on a TPU pod, under Slurm, Kubernetes or Open "
        "MPI; the same command in each.",
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT where process 0 of several listens."
    )
    flags.DEFINE_integer("num_processes", None, "How many there are, with coordinator.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_integer(
        "peer_timeout", 120, "Seconds to wait for a process that does not answer."
    )


def peer_flags() -> dict[str, Any]:
    """What these flags were given, by the names of `distributed.Peers`."""
    values = flags.FLAGS
    return {
        "distributed": values.distributed,
        "coordinator": values.coordinator,
        "num_processes": values.num_processes,
        "process_id": values.process_id,
        "timeout": values.peer_timeout,
    }


def run(
    program: str,
    main: Callable[[list[str]], None],
    prepare: Callable[[list[str]], list[str]] = lambda argv: argv,
) -> None:
    """Prepares and parses the flags, runs main, says in one line what was wrong."""
    logging.set_verbosity(logging.WARNING)
    # A path that is not UTF-8, or a terminal that is ASCII, must not end a run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    def parse(argv: list[str]) -> list[str]:
        with _errors_in_one_line(program):
            return app.parse_flags_with_usage(prepare(argv))

    def checked_main(argv: list[str]) -> None:
        with _errors_in_one_line(program):
            if len(argv) > 1:
                raise ValueError(f"{argv[1]!r} is no flag; see {program} --help")
            main(argv)

    app.run(checked_main, flags_parser=parse)


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """Reads a list of numbers such as ``"0.1,0.2"``, given to the flag of this name."""
    try:
        return tuple(float(entry) for entry in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(
            f"{name}={text} must be numbers, for example {name}=0.2,0.3"
        ) from None


def parse_counts(name: str, text: str) -> tuple[int, ...]:
    """Reads a list of integers >= 1 such as ``"3,5"``, given to this flag."""
    entries = text.split(",") if text else []
    if not all(re.fullmatch(r"\s*[1-9]\d*\s*", entry) for entry in entries):
        raise ValueError(f"{name}={text} must be integers >= 1, for example {name}=3,5")
    return tuple(dict.fromkeys(map(int, entries)))


def parse_percents(name: str, text: str) -> tuple[float, ...]:
    """Reads a list of shares such as ``"1%,5%"``, given to this flag.

    >>> parse_percents("--alarms", "1%,2.5%")
    (0.01, 0.025)
    """
    entries = text.split(",") if text else []
    found = [re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", entry) for entry in entries]
    shares = [float(one[1]) / 100 if one else 1.0 for one in found]
    if not all(share < 1 for share in shares):
        raise ValueError(
            f"{name}={text} must be percentages below 100, for example {name}=1%,5%"
        )
    return tuple(dict.fromkeys(shares))


def progress(
    items: Iterable[Item],
    what: str,
    num_images: int,
    count: Callable[[Item], int],
) -> Iterator[Item]:
    """Passes items on and says how many images are done, a second, and still to go.

    A bar on a terminal, elsewhere a line every ten seconds; silent for two seconds.

    Args:
      items: what is worked through.
      what: what is done to the images, "scored" for example.
      num_images: in all items together.
      count: the images of an item.

    Yields:
      The items. One is done when the next is asked for.
    """
    started = said = time.monotonic()
    done = 0
    bar = tqdm(
        total=num_images,
        unit=" images",
        desc=what,
        delay=_QUIET_SECONDS,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        for item in items:
            yield item
            done += count(item)
            bar.update(count(item))
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            if bar.disable and now - said > _LINE_SECONDS and done < num_images:
                said = now
                print(
                    f"{what} {done:,} of {num_images:,} images, {rate:,.1f} images/s, "
                    f"{(num_images - done) / rate:.0f} s to go",
                    flush=True,
                )


@contextlib.contextmanager
def _errors_in_one_line(program: str) -> Iterator[None]:
    # AttributeError and KeyError are how ml_collections refuses a config's typo.
    user_errors = (ValueError, TypeError, OSError, AttributeError, KeyError)
    try:
        yield
    # Too large a batch, and a line in a config, are theirs, too.
    except (*user_errors, MemoryError, SyntaxError, ModuleNotFoundError) as error:
        # str() of a KeyError, which an AttributeError may stand for, is a repr.
        found = error.__context__ if isinstance(error, AttributeError) else error
        text = str(found.args[0] if isinstance(found, KeyError) else error)
        text = " ".join(text.split())
        if isinstance(error, MemoryError):
            text = (
                f"too little memory ({text}): lower --batch_size and --chunk_size of "
            )
            text += "certify.py, or train.batch_size and the model's size of train.py"
        if isinstance(error, ModuleNotFoundError):
            text += f": pip install {error.name}, or all that is used: pip install"
            text += " '.[plot]'"
        print(f"{program}: error: {text}", file=sys.stderr)
        if "DSMOOTH_TRACEBACK" in os.environ:
            raise
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(130)
