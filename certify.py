"""Certifies a trained classifier against adversarial patches, and prints the table.

    python certify.py --workdir=runs/mnist5k --patches=2x2,5x5
    python certify.py --scores=runs/mnist5k/certify/test/scores --patches=3x7

The first form scores every ablation of every test image (the only costly part; a killed
run goes on where it was) and keeps the scores; the second only asks them again. Written
beside them: rows.csv (a row for each image), summary.json, certified_accuracy.png.
"""

import json
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

import dsmooth_jax as ds
from dsmooth_jax import checkpoint, cli, data, provenance, report, store
from dsmooth_jax.ablation import ablation_to_json
from dsmooth_jax.certificate import RULES, concatenate
from dsmooth_jax.scoring import MATMUL_PRECISION, check_positive, is_masked
from dsmooth_jax.smoothed import BEST
from dsmooth_jax.voting import VOTINGS, cast_votes, check_threshold, check_voting

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a training run, to certify its best.")
flags.DEFINE_string("scores", None, "Instead of --workdir: scores that are there.")
flags.DEFINE_string(
    "patches", "2x2,5x5", "Patches, HEIGHTxWIDTH in pixels, for example 1x1,2x2,3x7."
)
flags.DEFINE_string(
    "voting", None, f"{' or '.join(VOTINGS)}; what training saved if unset."
)
flags.DEFINE_float("threshold", None, "Least score that is a vote, in (0, 1].")
flags.DEFINE_string("split", "test", "Which images: test, validation or train.")
flags.DEFINE_integer("num_images", None, "Only so many, evenly spread over the split.")
flags.DEFINE_string("out", None, "Where to write; WORKDIR/certify/SPLIT if unset.")
flags.DEFINE_string("data_dir", None, "Where TFDS data sets are; its default if unset.")
flags.DEFINE_integer("batch_size", 32, "Images scored at a time; speed only.")
flags.DEFINE_integer("chunk_size", 8, "Ablations of each at a time; speed only.")


def main(_):
    if (FLAGS.workdir is None) == (FLAGS.scores is None):
        raise ValueError(
            "give either --workdir or --scores; for example --workdir=runs/demo"
        )
    # What cannot be is refused before the costly part, and leaves nothing behind.
    patches = cli.parse_patches(FLAGS.patches)
    check_positive("--batch_size", FLAGS.batch_size)
    check_positive("--chunk_size", FLAGS.chunk_size)
    if FLAGS.voting is not None:
        check_voting(FLAGS.voting)
    if FLAGS.threshold is not None:
        check_threshold(FLAGS.threshold)
    if FLAGS.scores is None:
        scores = score_workdir(pathlib.Path(FLAGS.workdir), patches)
        out = scores.path.parent
    else:
        scores = ds.open_scores(FLAGS.scores)
        out = pathlib.Path(FLAGS.out or scores.path.parent)
    answer(scores, patches, out)


def score_workdir(workdir, patches):
    """Scores a split with a run's best checkpoint, or takes up what is there."""
    smoothed = ds.load_smoothed(workdir, chunk_size=FLAGS.chunk_size)
    record = checkpoint.read_metadata(workdir / BEST)
    for patch in patches:
        ds.max_touched(smoothed.ablation, patch, smoothed.image_shape[:2])
    images = data.load(split=FLAGS.split, data_dir=FLAGS.data_dir, **record["data"])
    known = record["fingerprints"].get(FLAGS.split, images.fingerprint)
    if images.fingerprint != known:
        raise ValueError(
            f"the {FLAGS.split} images of {images.name} are not those that "
            f"{workdir} was trained with; check --data_dir"
        )
    if FLAGS.num_images is not None:
        if not 1 <= FLAGS.num_images <= len(images):
            raise ValueError(
                f"--num_images={FLAGS.num_images} must be in 1..{len(images)}, "
                f"the images in {FLAGS.split}"
            )
        spread = np.arange(FLAGS.num_images) * len(images) // FLAGS.num_images
        images = images.take(spread)
    out = pathlib.Path(FLAGS.out or workdir / "certify" / FLAGS.split)
    scores = store.create_store(
        out / "scores",
        ablation=smoothed.ablation,
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        labels=images.labels,
        ids=images.ids,
        made_by={
            "model": record["model"],
            "checkpoint": checkpoint.fingerprint(workdir / BEST),
            "data": {**record["data"], "split": FLAGS.split},
            "images": images.fingerprint,
            "voting": smoothed.voting,
            "threshold": smoothed.threshold,
            "device": jax.devices()[0].device_kind,
            "precision": MATMUL_PRECISION,
            "versions": provenance.versions(),
        },
    )
    todo = scores.missing
    if todo and not is_masked(smoothed.scores_fn):
        ds.check_locality(
            smoothed.scores_fn,
            smoothed.ablation,
            smoothed.image_shape,
            batch_size=FLAGS.batch_size,
        )
        print("checked: the score of each ablation depends on what it keeps, alone")
    started = time.time()
    for shard in tqdm(todo, unit="shard", disable=not sys.stderr.isatty()):
        part = images.images[scores.span(shard)]
        scored = smoothed.score(part, batch_size=FLAGS.batch_size)
        scores = store.write_shard(scores, shard, scored)
    if todo:
        num = sum(len(scores.labels[scores.span(shard)]) for shard in todo)
        seconds = time.time() - started
        print(f"scored {num} images in {seconds:.1f} s, {num / seconds:.1f} images/s")
    else:
        print(f"found the scores of all {len(scores)} images in {scores.path}")
    return scores


def answer(scores, patches, out):
    """Certifies against each patch by both rules; prints and writes what was found."""
    voting = FLAGS.voting or scores.made_by.get("voting", "threshold")
    threshold = FLAGS.threshold
    if threshold is None:
        threshold = scores.made_by.get("threshold", 0.3)
    questions = {
        (patch, rule): ds.touched(scores.ablation, patch, scores.image_size)
        for patch in patches
        for rule in RULES
    }
    certificates = {question: [] for question in questions}
    sides, hits = [], []
    for span, part in scores:  # a shard at a time: memory does not grow with the data
        votes = cast_votes(part, voting, threshold=threshold)
        for (patch, rule), touched in questions.items():
            certificate = ds.certify(votes, touched, rule=rule)
            certificates[patch, rule].append(certificate)
        sides.append(
            ds.largest_certified_patch(votes, scores.ablation, scores.image_size)
        )
        hits.append(ds.base_accuracy(part, scores.labels[span]) * len(part))
    certificates = {q: concatenate(parts) for q, parts in certificates.items()}
    results = {q: ds.evaluate(c, scores.labels) for q, c in certificates.items()}
    base_accuracy = float(np.sum(hits)) / len(scores)

    prediction = next(iter(certificates.values())).prediction
    rows = {
        "id": scores.ids,
        "label": scores.labels,
        "prediction": prediction,
        "largest_certified_square": np.concatenate(sides),
        **{f"margin_{p}_{rule}": c.margin for (p, rule), c in certificates.items()},
    }
    records = [
        report.accuracy_record(patch, voting, rule, result)
        for (patch, rule), result in results.items()
    ]
    split = scores.made_by.get("data", {}).get("split", "unknown")
    summary = {
        "num_images": len(scores),
        "split": split,
        "ablation": ablation_to_json(scores.ablation),
        "image_shape": list(scores.image_shape),
        "voting": voting,
        "threshold": threshold,
        "clean_accuracy": records[0]["clean_accuracy"],
        "base_accuracy": base_accuracy,
        "certificates": records,
        "made_by": scores.made_by,
    }
    caption = f"{len(scores):,} {split} images, {scores.ablation}, {voting} voting"
    if voting == "threshold":
        caption += f" at {threshold:g}"
    figure = report.accuracy_figure(
        results, base_accuracy=base_accuracy, caption=caption
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.csv").write_text(report.format_rows(rows))
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.write_figure(figure, out / "certified_accuracy.png")
    print(f"\n{caption}\n\n{report.format_table(results)}\n")
    print(
        "Certified: no patch of this size, anywhere in the image, with any content, "
        "changes the\n(right) prediction. Placement rule; base accuracy of single "
        f"ablations {100 * base_accuracy:.1f} %."
    )
    print(f"Written to {out}: summary.json, rows.csv, certified_accuracy.png, scores")


if __name__ == "__main__":
    cli.run("certify.py", main)
