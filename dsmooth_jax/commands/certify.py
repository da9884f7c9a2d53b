"""Certifies a trained classifier against adversarial patches, and reports it.

    python certify.py --workdir=runs/mnist5k --patches=2x2,5x5
    python certify.py --scores=runs/mnist5k/certify/test/scores --patches=3x7,2%
    python certify.py --compare=runs/a,runs/b

The first form scores every ablation of every test image (the only costly part; a
killed run goes on where it was) and keeps the scores; the second only asks them again:
other patches, votings, settings, several patches at once. Written beside them:
report.html, figures, rows.csv (a row for each image), summary.json, and what else was
asked. The third sets runs on the same images side by side.
"""

import functools
from typing import Any

from absl import flags

from dsmooth_jax import distributed
from dsmooth_jax.checks import check_count, check_installed, user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.commands.certification import (
    ask,
    certify_scores,
    certify_workdir,
    compare_runs,
)
from dsmooth_jax.commands.label_certification import (
    certify_masked_workdir,
    certify_tables,
    is_masked_run,
)
from dsmooth_jax.masks import Masks
from dsmooth_jax.report.label_analysis import check_covered
from dsmooth_jax.report.request import DOUBLE_MASKING
from dsmooth_jax.storage.shards import is_tables
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import ImageSize
from dsmooth_jax.voting import (
    TOLERANCE,
    VOTINGS,
    check_strength,
    check_threshold,
    check_voting,
)

_OF_ABLATIONS = (
    "area",
    "num_patches",
    "voting",
    "threshold",
    "strength",
    "thresholds",
    "strengths",
    "design_patch",
    "tolerance",
    "top_k",
    "alarms",
    "validation_scores",
    "maps",
)


def main() -> None:
    """The command."""
    _define_flags()
    cli.explain(__doc__, __name__)
    cli.run(cli.program(), _main)


def _define_flags() -> None:
    text, number, size = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
    text("workdir", None, "Folder of a training run, to certify its best.")
    text("scores", None, "Instead of --workdir: scores that are there.")
    flags.DEFINE_list("compare", None, "Instead: two or more workdirs or scores.")
    text(
        "patches",
        "2x2,5x5",
        "HEIGHTxWIDTH in pixels, P% of the image, or squares (all).",
    )
    size("area", None, "Also: any rectangle of at most so many pixels.")
    size("num_patches", 1, "Also: so many patches of each kind at once.")
    votings = f"{', '.join(VOTINGS)}; threshold and graded side by side if unset."
    text("voting", None, votings)
    design = (
        "The masks of double masking are made for this patch, not for each its own."
    )
    text("design_patch", None, design)
    number("threshold", None, "Least score that is a vote, in (0, 1].")
    number("strength", None, "Strength of graded votes, in [1, 100].")
    text("thresholds", "", "Also: a sweep over these, into sweep.csv.")
    text("strengths", "", "Also: a sweep over these, into sweep.csv.")
    differ = "By how much scores may differ elsewhere; 0: they do not."
    number("tolerance", TOLERANCE, differ)
    least = "Of masks of pixels: least score under two masks that is believed, in "
    number("confidence", None, f"{least}[0, 1); the run's own if unset.")
    text("top_k", "", "Also: the label among the first k, for example 3,5.")
    text("alarms", "", "Also: an alarm where answers are close, for example for 1%,5%.")
    where = "Scores on which that many are false alarms; found beside those of a test."
    text("validation_scores", None, where)
    flags.DEFINE_bool(
        "maps", False, "Also: maps.npz, the first patch at each placement."
    )
    flags.DEFINE_bool("report", True, "Draw figures and write report.html.")
    text("split", "test", "Which images: test, validation or train.")
    size("num_images", None, "Only so many, evenly spread over the split.")
    text("out", None, "Where to write; WORKDIR/certify/SPLIT if unset.")
    cli.define_data_dir()
    cli.define_peers()
    flags.DEFINE_bool("overwrite", False, "Score anew, whatever scores are there.")
    size("batch_size", 32, "Images scored at a time; speed only.")
    size("chunk_size", 8, "Ablations of each at a time; speed only.")


def _main(_: list[str]) -> None:
    given = flags.FLAGS
    asked = [name for name in ("workdir", "scores", "compare") if given[name].value]
    if len(asked) != 1:
        raise ValueError(
            "give either --workdir, --scores or --compare; for example "
            "--workdir=runs/demo"
        )
    # What cannot be is refused before the costly part, and leaves nothing behind.
    for name in ("batch_size", "chunk_size", "num_patches"):
        check_count(f"--{name}", given[name].value)
    for name in ("num_images", "overwrite", "confidence"):
        if not given.workdir and given[name].value != given[name].default:
            raise ValueError(
                f"--{name} is of what is scored, and --{asked[0]} is scored already; "
                "leave it out, or give --workdir"
            )
    if given.voting == DOUBLE_MASKING and not given.compare:
        raise ValueError(
            "--voting=double_masking is for --compare; a table has its line anyway"
        )
    if given.voting not in (None, DOUBLE_MASKING):
        check_voting(given.voting)
    sweeps: dict[str, Any] = {}
    for name, check in (("threshold", check_threshold), ("strength", check_strength)):
        sweeps[f"{name}s"] = cli.parse_numbers(
            f"--{name}s", given[f"{name}s"].value or ""
        )
        for value in sweeps[f"{name}s"]:
            check(value)
        if given[name].value is not None:
            check(given[name].value)
    if given.report or given.compare:
        check_installed("matplotlib", "jinja2")
    out = None if given.out is None else user_path("--out", given.out)
    if given.compare:
        compare_runs(
            [str(user_path("--compare", path)) for path in given.compare],
            patches=given.patches,
            voting=given.voting,
            split=given.split,
            out=out,
        )
        return
    asks = functools.partial(
        ask,
        patches=given.patches,
        area=given.area,
        num_patches=given.num_patches,
        design_patch=given.design_patch,
        votings=(given.voting,) if given.voting else ("threshold", "graded"),
        threshold=given.threshold,
        strength=given.strength,
        tolerance=given.tolerance,
        top_k=cli.parse_counts("--top_k", given.top_k),
        **sweeps,
        has_maps=given.maps,
        has_figures=given.report,
        has_squares=given.report,
    )
    if given.scores and is_tables(user_path("--scores", given.scores)):
        certify_tables(
            user_path("--scores", given.scores),
            _ask_masks,
            out=out,
            has_figures=given.report,
        )
        return
    where = given.validation_scores
    alarms: dict[str, Any] = {
        "alarm_rates": cli.parse_percents("--alarms", given.alarms),
        "validation": None
        if where is None
        else user_path("--validation_scores", where),
    }
    if given.scores:
        certify_scores(user_path("--scores", given.scores), asks, out=out, **alarms)
        return
    peers = distributed.Peers(**cli.peer_flags())
    with distributed.session(peers, is_preemptible=False):
        distributed.check_devices()
        workdir = user_path("--workdir", given.workdir)
        which: dict[str, Any] = {
            "out": out,
            "split": given.split,
            "data_dir": cli.data_dir(),
            "num_images": given.num_images,
            "is_anew": given.overwrite,
        }
        if is_masked_run(workdir):
            passes = given.batch_size * given.chunk_size
            certify_masked_workdir(
                workdir,
                _ask_masks,
                **which,
                batch_size=passes,
                confidence=given.confidence,
                has_figures=given.report,
            )
            return
        if given.confidence is not None:
            raise ValueError(
                f"--confidence={given.confidence} is of masks of pixels, and {workdir} "
                "is of ablations; leave it out"
            )
        certify_workdir(
            workdir,
            asks,
            **which,
            **alarms,
            batch_size=given.batch_size,
            chunk_size=given.chunk_size,
        )


def _ask_masks(masks: Masks, image_size: ImageSize) -> list[Patch]:
    """The patches asked for, of masks that must cover all of them."""
    given = flags.FLAGS
    for name in _OF_ABLATIONS:
        if given[name].value != given[name].default:
            raise ValueError(
                f"--{name} is of ablations; leave it out for masks of pixels"
            )
    patches = list(cli.parse_patches(given.patches, image_size))
    check_covered(masks, patches, image_size)
    return patches
