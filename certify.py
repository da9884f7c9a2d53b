"""Certifies a trained classifier against adversarial patches, and prints the table.

    python certify.py --workdir=runs/mnist5k --patches=2x2,5x5
    python certify.py --scores=runs/mnist5k/certify/test/scores --patches=3x7,2%

The first form scores every ablation of every test image (the only costly part; a
killed run goes on where it was) and keeps the scores; the second only asks them again:
other patches, votings, settings, several patches at once. Written beside them: rows.csv
(a row for each image), summary.json, certified_accuracy.png, and what else was asked.
"""

import functools
import json
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

import dsmooth_jax as ds
from dsmooth_jax import (
    checkpoint,
    cli,
    data,
    distributed,
    filling,
    provenance,
    report,
    store,
)
from dsmooth_jax.ablation import ablation_to_json
from dsmooth_jax.certificate import RULES, concatenate
from dsmooth_jax.checks import check_count
from dsmooth_jax.scoring import MATMUL_PRECISION, is_masked
from dsmooth_jax.smoothed import BEST
from dsmooth_jax.voting import (
    VOTINGS,
    cast_votes,
    check_strength,
    check_threshold,
    check_voting,
)

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a training run, to certify its best.")
flags.DEFINE_string("scores", None, "Instead of --workdir: scores that are there.")
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
flags.DEFINE_bool("maps", False, "Also: maps of where the first patch does most.")
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
    if (FLAGS.workdir is None) == (FLAGS.scores is None):
        raise ValueError(
            "give either --workdir or --scores; for example --workdir=runs/demo"
        )
    # What cannot be is refused before the costly part, and leaves nothing behind.
    for name in ("batch_size", "chunk_size", "num_patches"):
        check_count(f"--{name}", FLAGS[name].value)
    if FLAGS.voting is not None:
        check_voting(FLAGS.voting)
    for value in (
        FLAGS.threshold,
        *cli.parse_numbers("--thresholds", FLAGS.thresholds),
    ):
        if value is not None:
            check_threshold(value)
    for value in (FLAGS.strength, *cli.parse_numbers("--strengths", FLAGS.strengths)):
        if value is not None:
            check_strength(value)
    if FLAGS.scores is not None:
        scores = ds.open_scores(FLAGS.scores)
        out = pathlib.Path(FLAGS.out or scores.path.parent)
        answer(scores, parse_attacks(scores.ablation, scores.image_size), out)
        return
    with distributed.session(
        distributed.Peers(**cli.peer_flags()), is_preemptible=False
    ):
        certify_workdir(pathlib.Path(FLAGS.workdir))


def certify_workdir(workdir):
    """Scores the images of a split, and asks their scores; all processes together."""
    smoothed = ds.load_smoothed(workdir, chunk_size=FLAGS.chunk_size)
    attacks = parse_attacks(smoothed.ablation, smoothed.image_shape[:2])
    scores = score_workdir(workdir, smoothed)
    if distributed.is_first():
        answer(ds.open_scores(scores), attacks, scores.parent)


def parse_attacks(ablation, image_size):
    """What is asked: {patch or name: (touched sets, number of patches)}."""
    patches = cli.parse_patches(FLAGS.patches, image_size)
    attacks = {p: (ds.touched(ablation, p, image_size), 1) for p in patches}
    if FLAGS.area is not None:
        rectangles = ds.rectangles_of_area(FLAGS.area, image_size)
        attacks |= {p: (ds.touched(ablation, p, image_size), 1) for p in rectangles}
        name = f"area <={FLAGS.area}"
        attacks[name] = ds.touched_by_any(ablation, rectangles, image_size), 1
    if FLAGS.num_patches > 1:
        attacks |= {
            f"{FLAGS.num_patches} x {p}": (attacks[p][0], FLAGS.num_patches)
            for p in patches
        }
    return attacks


def score_workdir(workdir, smoothed):
    """Scores a split with a run's best checkpoint, or takes up what is there."""
    record = checkpoint.read_metadata(workdir / BEST)
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
    is_first = distributed.is_first()
    if FLAGS.overwrite and is_first:
        shutil.rmtree(out / "scores", ignore_errors=True)
    distributed.barrier("old scores removed")
    is_new = not (out / "scores" / "manifest.json").exists()
    if is_new and not is_masked(smoothed.scores_fn):
        ds.check_locality(
            smoothed.scores_fn,
            smoothed.ablation,
            smoothed.image_shape,
            batch_size=FLAGS.batch_size,
        )
        if is_first:
            print("checked: the score of each ablation depends on what it keeps, alone")
    create = functools.partial(
        store.create_store,
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
            "strength": smoothed.strength,
            "chosen_on": "validation",
            "device": jax.devices()[0].device_kind,
            "precision": MATMUL_PRECISION,
            "versions": provenance.versions(),
        },
    )
    scores = filling.take_up(out / "scores", create)
    if not (todo := scores.missing):
        print(f"found the scores of all {len(scores)} images in {scores.path}")
        return scores.path
    # Each process says how it gets on with its own share.
    index, count = distributed.share()
    total = sum(len(scores.labels[scores.span(s)]) for s in todo[index::count])
    is_terminal = sys.stderr.isatty() and is_first
    started = said = time.time()
    num = 0  # images scored by this process
    score = functools.partial(smoothed.score, batch_size=FLAGS.batch_size)
    with tqdm(total=total, unit="image", disable=not is_terminal) as bar:
        for done in filling.fill(scores, images.images, score):
            num += done
            bar.update(done)
            if is_first and not is_terminal and time.time() - said > 10:
                said = time.time()
                rate = num / (said - started)
                left = (total - num) / rate
                print(f"{num} scored, {rate:.1f} images/s, {left:.0f} s to go")
    if is_first:
        seconds = time.time() - started
        every = sum(len(scores.labels[scores.span(s)]) for s in todo)
        rate = every / seconds
        print(f"scored {every} images in {seconds:.1f} s, {rate:.1f} images/s")
    return scores.path


def answer(scores, attacks, out):
    """Certifies against each attack; prints and writes what was found."""
    settings = {
        "threshold": FLAGS.threshold or scores.made_by.get("threshold", 0.3),
        "strength": FLAGS.strength or scores.made_by.get("strength", 5.0),
    }
    votings = (FLAGS.voting,) if FLAGS.voting else ("threshold", "graded")
    saved = scores.made_by.get("voting", "threshold")
    main_voting = saved if saved in votings else votings[0]
    out.mkdir(parents=True, exist_ok=True)
    certificates, records = ask(scores, attacks, votings, settings)
    results = {
        key: ds.evaluate(found, scores.labels) for key, found in certificates.items()
    }
    for record, (key, result) in zip(records, results.items(), strict=True):
        record.update(report.accuracy_record(*key, result))
    first = next(iter(attacks))
    base_accuracy = float(
        np.sum([ds.base_accuracy(p, scores.labels[s]) * len(p) for s, p in scores])
    ) / len(scores)
    source = scores.made_by.get("data", {})
    split, size = source.get("split", "unknown"), source.get("size")
    summary = {
        "num_images": len(scores),
        "split": split,
        "ablation": ablation_to_json(scores.ablation),
        "image_shape": list(scores.image_shape),
        "resized_to": size,
        "voting": main_voting,
        **settings,
        "settings_chosen_on": scores.made_by.get("chosen_on", "not recorded"),
        "tolerance": FLAGS.tolerance,
        "clean_accuracy": results[main_voting, first, "placement"].clean.value,
        "base_accuracy": base_accuracy,
        "certificates": records,
        "made_by": scores.made_by,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    main = certificates[main_voting, first, "placement"]
    rows = {"id": scores.ids, "label": scores.labels, "prediction": main.prediction}
    rows |= each_image(scores, votings, settings, main_voting)
    for (voting, attack, rule), found in certificates.items():
        rows[f"margin_{attack}_{voting}_{rule}"] = found.margin
    (out / "rows.csv").write_text(report.format_rows(rows))

    shown = {"threshold": "threshold {threshold:g}", "graded": "strength {strength:g}"}
    how = [shown.get(v, v.replace("_", " ")).format(**settings) for v in votings]
    caption = f"{len(scores):,} {split} images, {scores.ablation}, {', '.join(how)}"
    figure = report.accuracy_figure(
        results, base_accuracy=base_accuracy, caption=caption
    )
    report.write_figure(figure, out / "certified_accuracy.png")
    written = ["summary.json", "rows.csv", "certified_accuracy.png", "scores"]
    if FLAGS.thresholds or FLAGS.strengths:
        (out / "sweep.csv").write_text(format_sweep(scores, attacks))
        written.append("sweep.csv")
    if FLAGS.maps:
        patch = next(a for a in attacks if isinstance(a, ds.Patch))
        write_maps(scores, patch, main_voting, settings, out, caption)
        written += ["maps.npz", "map.png"]
    print(f"\n{caption}\n\n{report.format_table(results)}\n")
    print(
        "Certified: no patch of this size, anywhere in the image, with any content, "
        "changes the\n(right) prediction. Placement rule; base accuracy of single "
        f"ablations {100 * base_accuracy:.1f} %."
    )
    if size is not None:
        print(
            f"The data source resized the images to {size[0]}x{size[1]}: patches are "
            "in pixels of the\nresized image, the one that this attacker changes."
        )
    print(f"Written to {out}: {', '.join(written)}")


# Each of these reads the scores a shard at a time: memory is bounded.


def ask(scores, attacks, votings, settings):
    """({(voting, attack, rule): certificate}, what else summary.json says of each)."""
    certificates, extras = {}, {}
    for span, part in scores:
        for voting in votings:
            votes, limit = cast_votes(part, voting, **settings)
            doubt = doubtful(part, voting, settings)
            for attack, (touched, num_patches) in attacks.items():
                key = voting, attack, "placement"
                extra = extras.setdefault(key, {})
                if num_patches > 1:
                    found, extra["is_exact"] = ds.certify_several(
                        votes, touched, num_patches, limit=limit
                    )
                    certificates.setdefault(key, []).append(found)
                    continue
                for rule in RULES:
                    found = ds.certify(votes, touched, rule=rule, limit=limit)
                    key = voting, attack, rule
                    certificates.setdefault(key, []).append(found)
                    extras.setdefault(key, {})
                if doubt is not None:
                    found = ds.certify(votes, touched, limit=limit, uncertain=doubt)
                    result = ds.evaluate(found, scores.labels[span])
                    name = "certified_accuracy_uncertain"
                    share = result.certified.count / len(scores)
                    extra[name] = extra.get(name, 0.0) + share
    joined = {key: concatenate(parts) for key, parts in certificates.items()}
    return joined, [extras[key] for key in joined]


def each_image(scores, votings, settings, main_voting):
    """Columns of rows.csv that belong to no attack."""
    columns = {"runner_up": []}
    for voting in votings:
        columns[f"largest_certified_square_{voting}"] = []
    for _, part in scores:
        for voting in votings:
            votes, limit = cast_votes(part, voting, **settings)
            columns[f"largest_certified_square_{voting}"].append(
                ds.largest_certified_patch(
                    votes, scores.ablation, scores.image_size, limit=limit
                )
            )
            if voting == main_voting:
                columns["runner_up"].append(ds.runner_up(votes, limit=limit))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def write_maps(scores, patch, voting, settings, out, caption):
    """The margin and the rival at each placement, and the mean as a figure."""
    maps = []
    for _, part in scores:
        votes, limit = cast_votes(part, voting, **settings)
        maps.append(
            ds.vulnerability_map(
                votes, scores.ablation, patch, scores.image_size, limit=limit
            )
        )
    margin, rival = (np.concatenate(parts) for parts in zip(*maps, strict=True))
    np.savez_compressed(out / "maps.npz", margin=margin, rival=rival)
    mean = margin.mean(axis=0) / (ds.GRADES if voting == "graded" else 1)
    figure = report.map_figure(mean, patch, caption=caption)
    report.write_figure(figure, out / "map.png")


def doubtful(scores, voting, settings):
    """Votes within the tolerance of being cast otherwise; None where not defined."""
    if voting == "top_one":
        return None
    name = {"threshold": "threshold", "graded": "strength"}[voting]
    return ds.uncertain_votes(scores, FLAGS.tolerance, **{name: settings[name]})


def format_sweep(scores, attacks):
    """sweep.csv: every threshold and strength asked for, every attack, both rules."""
    found = {}
    for span, part in scores:
        results = ds.sweep(
            part,
            scores.labels[span],
            {a: touched for a, (touched, num) in attacks.items() if num == 1},
            thresholds=cli.parse_numbers("--thresholds", FLAGS.thresholds),
            strengths=cli.parse_numbers("--strengths", FLAGS.strengths),
        )
        found = {k: found[k] + r if k in found else r for k, r in results.items()}
    names = ("voting", "setting", "attack", "rule", "clean", "certified", "num_images")
    lines = [
        (*key, result.clean.count, result.certified.count, len(scores))
        for key, result in found.items()
    ]
    return report.format_rows(dict(zip(names, zip(*lines, strict=True), strict=True)))


if __name__ == "__main__":
    cli.run("certify.py", main)
