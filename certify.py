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

import dataclasses
import functools
import textwrap
import time

import jax
import numpy as np
from absl import flags

import dsmooth_jax as ds
from dsmooth_jax import data, distributed, distributed_scoring
from dsmooth_jax.checks import check_count, user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.report import comparison, summary
from dsmooth_jax.report.analysis import analyze
from dsmooth_jax.report.request import attacks_on, request_of
from dsmooth_jax.report.thumbnails import choose, load_thumbnails
from dsmooth_jax.report.write import write_report
from dsmooth_jax.scoring import MATMUL_PRECISION, is_masked
from dsmooth_jax.storage import checkpoint, provenance
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.storage.shards import is_store
from dsmooth_jax.storage.workdir import BEST, CERTIFIED, SCORES
from dsmooth_jax.training.ownership import check_folder, locked
from dsmooth_jax.voting import (
    VOTINGS,
    check_strength,
    check_threshold,
    check_voting,
)
from dsmooth_jax.wording import counted

LOCK = "certify.lock"
SETTINGS = ("voting", "threshold", "strength")

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a training run, to certify its best.")
flags.DEFINE_string("scores", None, "Instead of --workdir: scores that are there.")
flags.DEFINE_list("compare", None, "Instead: two or more workdirs or scores.")
flags.DEFINE_string(
    "patches", "2x2,5x5", "HEIGHTxWIDTH in pixels, P% of the image, or squares (all)."
)
flags.DEFINE_integer("area", None, "Also: any rectangle of at most so many pixels.")
flags.DEFINE_integer("num_patches", 1, "Also: so many patches of each kind at once.")
flags.DEFINE_string(
    "voting", None, f"{', '.join(VOTINGS)}; threshold and graded side by side if unset."
)
flags.DEFINE_float("threshold", None, "Least score that is a vote, in (0, 1].")
flags.DEFINE_float("strength", None, "Strength of graded votes, in [1, 100].")
flags.DEFINE_string("thresholds", "", "Also: a sweep over these, into sweep.csv.")
flags.DEFINE_string("strengths", "", "Also: a sweep over these, into sweep.csv.")
flags.DEFINE_float(
    "tolerance", 1e-6, "Scores this close to a vote's edge count for the attacker too."
)
flags.DEFINE_bool("maps", False, "Also: maps.npz, the first patch at each placement.")
flags.DEFINE_bool("report", True, "Draw figures and write report.html.")
flags.DEFINE_string("split", "test", "Which images: test, validation or train.")
flags.DEFINE_integer("num_images", None, "Only so many, evenly spread over the split.")
flags.DEFINE_string("out", None, "Where to write; WORKDIR/certify/SPLIT if unset.")
flags.DEFINE_string("data_dir", None, "Where the data are; TFDS's own folder if unset.")
cli.define_peers()
flags.adopt_module_key_flags(cli)
flags.DEFINE_bool("overwrite", False, "Score anew, whatever scores are there.")
flags.DEFINE_integer("batch_size", 32, "Images scored at a time; speed only.")
flags.DEFINE_integer("chunk_size", 8, "Ablations of each at a time; speed only.")


def main(_):
    asked = [name for name in ("workdir", "scores", "compare") if FLAGS[name].value]
    if len(asked) != 1:
        raise ValueError(
            "give either --workdir, --scores or --compare; for example "
            "--workdir=runs/demo"
        )
    # What cannot be is refused before the costly part, and leaves nothing behind.
    for name in ("batch_size", "chunk_size", "num_patches"):
        check_count(f"--{name}", FLAGS[name].value)
    if FLAGS.voting is not None:
        check_voting(FLAGS.voting)
    for name, check in (("threshold", check_threshold), ("strength", check_strength)):
        one, several = FLAGS[name].value, FLAGS[f"{name}s"].value
        for value in cli.parse_numbers(f"--{name}s", several):
            check(value)
        if one is not None:
            check(one)
    if FLAGS.report or FLAGS.compare:
        cli.check_installed("matplotlib", "jinja2")
    if FLAGS.compare:
        compare()
    elif FLAGS.scores:
        scores = ds.open_scores(user_path("--scores", FLAGS.scores))
        request = ask_for(scores.ablation, scores.image_size, scores.origin)
        out = out_folder(scores.path.parent, scores)
        with locked("--out", out, LOCK):
            answer(scores, request, out)
    else:
        peers = distributed.Peers(**cli.peer_flags())
        with distributed.session(peers, is_preemptible=False):
            distributed.check_devices()
            certify_workdir(user_path("--workdir", FLAGS.workdir))


def certify_workdir(workdir):
    """Scores the images of a split, and asks their scores; all processes together."""
    smoothed = ds.load_smoothed(workdir, chunk_size=FLAGS.chunk_size)
    chosen = {name: getattr(smoothed, name) for name in SETTINGS}
    origin = provenance.Origin(**chosen)
    request = ask_for(smoothed.ablation, smoothed.image_shape[:2], origin)
    images, record = open_images(workdir, smoothed)
    out = out_folder(workdir / CERTIFIED / FLAGS.split)
    is_new = FLAGS.overwrite or not is_store(out / SCORES)
    if is_new and not is_masked(smoothed.scores_fn):
        ds.check_locality(
            smoothed.scores_fn,
            smoothed.ablation,
            smoothed.image_shape,
            batch_size=FLAGS.batch_size,
        )
        if distributed.is_first():
            print("checked: the score of each ablation depends on what it keeps, alone")
    with locked("--out", out, LOCK):
        scores = score_images(workdir, smoothed, images, record, out)
        if distributed.is_first():
            answer(ds.open_scores(scores), request, out)


def ask_for(ablation, image_size, origin):
    """What is asked, by flags and by what was chosen in training; all is checked."""
    return request_of(
        origin,
        attacks_on(
            ablation,
            image_size,
            cli.parse_patches(FLAGS.patches, image_size),
            area=FLAGS.area,
            num_patches=FLAGS.num_patches,
        ),
        (FLAGS.voting,) if FLAGS.voting else ("threshold", "graded"),
        threshold=FLAGS.threshold,
        strength=FLAGS.strength,
        tolerance=FLAGS.tolerance,
        thresholds=cli.parse_numbers("--thresholds", FLAGS.thresholds),
        strengths=cli.parse_numbers("--strengths", FLAGS.strengths),
        has_maps=FLAGS.maps,
        has_figures=FLAGS.report,
    )


def out_folder(default, scores=None):
    """Where to write: nothing that another command wrote there may be lost."""
    out = default if FLAGS.out is None else user_path("--out", FLAGS.out)
    check_folder("--out", out)
    there = out / SCORES
    if scores is not None and there.exists() and not there.samefile(scores.path):
        raise ValueError(
            f"--out={out} holds what was found of other scores, {there}; give another"
        )
    return out


def open_images(workdir, smoothed):
    """The images of the split, and the record of the checkpoint."""
    record = checkpoint.read_metadata(workdir / BEST)
    images = data.load(split=FLAGS.split, data_dir=cli.data_dir(), **record["data"])
    if distributed.is_first():
        print(images, flush=True)
    known = record["fingerprints"].get(FLAGS.split, images.fingerprint)
    if images.fingerprint != known:
        raise ValueError(
            f"the {FLAGS.split} images of {images.name} are not those that "
            f"{workdir} was trained with; check --data_dir"
        )
    for what, found, wanted in (
        ("images of shape", images.image_shape, smoothed.image_shape),
        ("a number of classes of", images.num_classes, record["num_classes"]),
    ):
        if found != wanted:
            raise ValueError(
                f"the {FLAGS.split} images of {images.name} have {what} {found}, but "
                f"{workdir} was trained on {wanted}; check --data_dir"
            )
    if FLAGS.num_images is not None:
        if not 1 <= FLAGS.num_images <= len(images):
            raise ValueError(
                f"--num_images={FLAGS.num_images} must be in 1..{len(images)}, "
                f"the images in {FLAGS.split}"
            )
        spread = np.arange(FLAGS.num_images) * len(images) // FLAGS.num_images
        images = images.take(spread)
    return images, record


def score_images(workdir, smoothed, images, record, out):
    """Scores images with a run's best checkpoint, or takes up what is there."""
    is_first = distributed.is_first()
    if FLAGS.overwrite and is_first:
        distributed_scoring.remove(out / SCORES)
    distributed.barrier("old scores removed")
    create = functools.partial(
        ScoreStore.create,
        out / SCORES,
        ablation=smoothed.ablation,
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        labels=images.labels,
        ids=images.ids,
        made_by=provenance.Origin(
            model=record["model"],
            checkpoint=checkpoint.fingerprint(workdir / BEST),
            data={**record["data"], "split": FLAGS.split},
            images=images.fingerprint,
            class_names=images.class_names,
            voting=smoothed.voting,
            threshold=smoothed.threshold,
            strength=smoothed.strength,
            chosen_on="validation",
            device=jax.devices()[0].device_kind,
            precision=MATMUL_PRECISION,
            versions=provenance.versions(),
        ).to_json(),
    )
    scores = distributed_scoring.take_up(out / SCORES, create)
    if is_first and images.image_shape[2] in (1, 3) and load_thumbnails(scores) is None:
        ds.save_thumbnails(scores, images.images)
    if not (todo := scores.missing):
        print(f"found all scores, of {counted(len(scores), 'image')}, in {scores.path}")
        return scores.path
    # Each process says how it gets on with its own share.
    index, count = distributed.share()
    total = sum(len(scores.labels[scores.span(s)]) for s in todo[index::count])
    score = functools.partial(smoothed.score, batch_size=FLAGS.batch_size)
    filled = distributed_scoring.fill(scores, images.images, score)
    started = time.time()
    for _ in cli.progress(filled, "scored", total, int) if is_first else filled:
        pass
    if is_first:
        seconds = time.time() - started
        every = sum(len(scores.labels[scores.span(s)]) for s in todo)
        rate = every / seconds
        print(
            f"scored {counted(every, 'image')} in {seconds:.1f} s, {rate:.1f} images/s"
        )
    return scores.path


def answer(scores, request, out):
    """Certifies against each attack; prints and writes what was found."""
    request = dataclasses.replace(
        request,
        has_figures=request.has_figures and len(scores) > 0,
        sample=choose(scores),
    )
    analysis = analyze(scores, request, watch=watch(len(scores)))
    about = summary.caption(analysis, request.votings)
    print(f"\n{wrapped(about)}\n\n{summary.format_table(analysis.results)}\n")
    print(wrapped(summary.claim(analysis)))
    print(f"Base accuracy of single ablations: {100 * analysis.base_accuracy:.1f} %.")
    if size := scores.origin.resized_to:
        print(
            f"The data source resized the images to {size[0]}x{size[1]}: patches are "
            "in pixels of the\nresized image, the one that this attacker changes."
        )
    if request.has_figures:
        print("Drawing figures and page ...", flush=True)
    written = write_report(analysis, out)
    say_written(out, written)


def compare():
    """Sets runs on the same images side by side; prints and writes what was found."""
    paths = [str(user_path("--compare", path)) for path in FLAGS.compare]
    stores = {
        name: comparison.find_scores(path, FLAGS.split)
        for name, path in zip(comparison.short_names(paths), paths, strict=True)
    }
    first = next(iter(stores.values()))
    patches = cli.parse_patches(FLAGS.patches, first.image_size)
    out = out_folder(first.path.parent)
    runs = comparison.compare(
        stores, patches, voting=FLAGS.voting, watch=watch(len(first))
    )
    print(f"\n{comparison.format_comparison(runs)}\n")
    say_written(out, comparison.write(runs, out))


def say_written(out, names):
    print(wrapped(f"Written to {out}: {', '.join(names)}"))


def wrapped(text):
    """Lines for a terminal; a path stays whole."""
    return textwrap.fill(text, 96, break_long_words=False, break_on_hyphens=False)


def watch(num_images):
    """Says how far the pass over the scores of so many images is."""

    def passed_on(groups):
        return cli.progress(groups, "certified", num_images, lambda one: len(one[1]))

    return passed_on


if __name__ == "__main__":
    cli.run("certify.py", main)
