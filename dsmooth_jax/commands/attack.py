"""Attacks a trained classifier with adversarial patches: the other side of certify.py.

    python attack.py --workdir=runs/mnist5k --patches=5x5 --num_images=200
    python attack.py --workdir=runs/mnist5k --patches=5x5 --num_images=200 --undefended

Looks for a patch that makes each image misclassified, placement and content, and says
how many are still right, beside how many are certified: what lies between, nobody
knows. An image counts as broken only if the classifier errs on the 8-bit image; an
attack that fails proves nothing. A killed attack goes on where it was. Written to
WORKDIR/attack/SPLIT: summary.json, rows.csv (a row for each image and patch), and for
each patch a folder with what was found and broken images as PNG.
"""

from absl import flags

from dsmooth_jax.checks import check_count, user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.commands.attacking import VICTIMS, attack_workdir


def main() -> None:
    """The command."""
    _define_flags()
    cli.explain(__doc__, __name__)
    cli.run(cli.program(), _main)


def _define_flags() -> None:
    text, size = flags.DEFINE_string, flags.DEFINE_integer
    text("workdir", None, "Folder of a training run, to attack its best.")
    text("patches", "5x5", "HEIGHTxWIDTH in pixels, or P% of the image.")
    text("split", "test", "Which images: test, validation or train.")
    size("num_images", None, "Only so many, evenly spread over the split.")
    decides = "How it decides, of ablations: votes or double_masking; its own if unset."
    text("decision", None, decides)
    flags.DEFINE_bool(
        "undefended", False, "Attack the network behind the defence, shown the whole."
    )
    size(
        "num_candidates", 8, "Placements and rivals of each image that are begun with."
    )
    size("steps", 32, "Gradient steps of the last candidate; those before take fewer.")
    size("num_restarts", 3, "So often anew, elsewhere, where nothing was found.")
    size("seed", 0, "Of the contents that are begun with.")
    flags.DEFINE_bool(
        "certified", False, "Attack what is certified, too: it must stand."
    )
    size("num_pictures", 100, "Broken images written as PNG, at most.")
    text("out", None, "Where to write; WORKDIR/attack/SPLIT if unset.")
    cli.define_data_dir()
    flags.DEFINE_bool("overwrite", False, "Attack anew, whatever is there.")
    size("batch_size", 16, "Candidates at a time; speed only.")
    size("chunk_size", 8, "Ablations of each at a time; speed only.")


def _main(_: list[str]) -> None:
    given = flags.FLAGS
    if given.workdir is None:
        raise ValueError("give --workdir; for example --workdir=runs/demo")
    counts = ("num_candidates", "steps", "num_restarts", "batch_size", "chunk_size")
    for name in counts:
        check_count(f"--{name}", given[name].value)
    if given.num_pictures < 0 or given.seed < 0:
        raise ValueError(
            f"--num_pictures={given.num_pictures} and --seed={given.seed} must be >= 0"
        )
    if given.undefended and (given.decision or given.certified):
        raise ValueError(
            "--undefended has no decision and certifies nothing; leave out --decision "
            "and --certified"
        )
    if given.decision not in (None, *VICTIMS):
        raise ValueError(f"--decision={given.decision} must be one of {VICTIMS}")
    attack_workdir(
        user_path("--workdir", given.workdir),
        lambda size: cli.parse_patches(given.patches, size),
        out=None if given.out is None else user_path("--out", given.out),
        decision="undefended" if given.undefended else given.decision,
        split=given.split,
        data_dir=cli.data_dir(),
        num_images=given.num_images,
        num_candidates=given.num_candidates,
        steps=given.steps,
        num_restarts=given.num_restarts,
        attacks_certified=given.certified,
        seed=given.seed,
        num_pictures=given.num_pictures,
        is_anew=given.overwrite,
        batch_size=given.batch_size,
        chunk_size=given.chunk_size,
    )
