"""Makes of a trained run what travels with the repository.

    python -m scripts.ship --workdir=runs/mine --out=pretrained/mine [--to=bfloat16]
        [--per_axis=7] [--confidence=0.5]

Weights are rounded to the nearest float16 and stored as the float32 they then are:
compressed they take little more than half the space (of bfloat16 less than that), and
nothing else need know. What is shipped is another function than what was trained, if
only just: it is put to the validation images beside the original, and what differs is
printed. Its decision and its settings are chosen there anew; how many masks of pixels
there are, and how sure they must be, is given. Its own accuracy is what
certify.py then measures.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.ablation import ablation_from_json
from dsmooth_jax.checks import user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.workdir import BEST
from dsmooth_jax.training import masked, run
from dsmooth_jax.training.config import from_json
from dsmooth_jax.voting import cast_votes
from dsmooth_jax.wording import counted
from scripts import run_folder

FLAGS = flags.FLAGS


def main(_):
    workdir = user_path("--workdir", FLAGS.workdir)
    out = user_path("--out", FLAGS.out)
    run_folder.check_new(out)
    named = {"per_axis": FLAGS.per_axis, "confidence": FLAGS.confidence}
    given = {name: value for name, value in named.items() if value is not None}
    ship(workdir, out, FLAGS.data_dir, FLAGS.to, given)


def ship(workdir, out, data_dir, to, given):
    classifier, variables, record = run_folder.restore(workdir)
    if given:
        record = with_masks(record, given)
    rounded = jax.tree.map(functools.partial(rounded_leaf, to=to), variables)
    both = (variables, rounded)
    choose = choose_masked if "masks" in record else choose_smoothed
    choice = choose(classifier, both, record, data_dir)
    step = record["step"]
    metadata = {**record, **choice.to_json(), "step": step, "rounded_to": to}
    run_folder.write(out, rounded, metadata, like=workdir)
    # Orbax says in it which folder of this machine it wrote.
    for done in out.rglob("commit_success.txt"):
        done.write_text("done\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    arrays = checkpoint.fingerprint(out / BEST)
    print(f"{out}: {size / 1e6:.1f} MB, arrays {arrays}")


def with_masks(record, given):
    if "masks" not in record:
        raise ValueError(f"--{next(iter(given))} is of masks of pixels; leave it out")
    config = {**record["config"], "masks": {**record["config"]["masks"], **given}}
    return {**record, "config": config} | masked.masks_record(
        from_json(config), record["image_shape"][:2]
    )


def rounded_leaf(leaf, to):
    rounded = np.asarray(leaf).astype(jnp.dtype(to)).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError(f"a weight is too large for {to}; give another --to")
    return rounded


def choose_masked(classifier, both, record, data_dir):
    images = data.load(split="validation", data_dir=data_dir, **record["data"])
    config = from_json(record["config"])
    before, after = (
        masked.validate(classifier.logits_fn(v), config, images) for v in both
    )
    print(f"{counted(len(images), 'validation image')}: {before}")
    print(f"after rounding: {after}")
    return after


def choose_smoothed(classifier, both, record, data_dir):
    images = data.load(split="validation", data_dir=data_dir, **record["data"])
    ablation = ablation_from_json(record["ablation"])
    touched = ds.touched(ablation, ds.Patch(*record["patch"]), images.image_shape[:2])
    scores = [ds.score(classifier.scores_fn(v), images.images) for v in both]
    print(f"{counted(len(images), 'validation image')}, before and after rounding:")
    print(f"  largest change of a score {np.abs(scores[1] - scores[0]).max():.2g}")
    for voting in ("threshold", "graded"):
        votes, certificates = [], []
        for each in scores:
            cast = cast_votes(
                each,
                voting,
                threshold=record["threshold"],
                strength=record["strength"],
            )
            votes.append(cast)
            certificates.append(ds.certify(cast, touched))
        if voting == "graded":
            votes = [cast.levels for cast in votes]
        before, after = (ds.evaluate(c, images.labels) for c in certificates)
        moved = sum(
            (getattr(certificates[0], field) != getattr(certificates[1], field)).sum()
            for field in ("prediction", "is_certified")
        )
        print(
            f"  {voting}: {np.mean(votes[0] != votes[1]):.2e} of the votes changed, "
            f"{moved} predictions or certificates; clean {before.clean.value:.4f} to "
            f"{after.clean.value:.4f}, certified {before.certified.value:.4f} to "
            f"{after.certified.value:.4f}"
        )
    size = images.image_shape[:2]
    masks = run.masks_for(record["patch"], record, size)
    choice = run.choose(scores[1], images.labels, record["patch"], touched, masks)
    print(f"chosen: {choice}")
    return choice


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_string("out", None, "Where to write; must not exist.", required=True)
    flags.DEFINE_string(
        "data_dir", None, "Where the data set is; its default if unset."
    )
    flags.DEFINE_integer("per_axis", None, "Of masks of pixels; the run's if unset.")
    flags.DEFINE_float("confidence", None, "Likewise, in [0, 1).")
    flags.DEFINE_enum("to", "float16", ["float16", "bfloat16"], "Rounded to.")
    cli.run("scripts.ship", main)
