"""What was found, in words, tables, rows and records.

Every number comes from `analysis`, none is made here.
"""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsmooth_jax.ablation import (
    Ablation,
    Blocks,
    Columns,
    MultiBlocks,
    MultiColumns,
    Rows,
    ablation_to_json,
)
from dsmooth_jax.evaluation import Accuracy, Evaluation
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.request import DOUBLE_MASKING, Attack, Key, Request, Way
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.storage.shards import Shards
from dsmooth_jax.storage.timing import seconds_per_image
from dsmooth_jax.wording import counted, csv_text, one_line

Results = Mapping[Key, Evaluation]
"""What was found for each way to decide, attack (by its name) and rule."""

SHORT = {DOUBLE_MASKING: "masking"}  # in a table of 100 columns


def format_table(
    results: Results, detected: Mapping[str, Accuracy] | None = None
) -> str:
    """Lays out accuracies in per cent with 95 % intervals.

    A line for each patch and way to decide. Double masking decides by masks made for
    the patch of the line, or for one that all lines share; where it cannot certify
    against a patch, the line says so.

    Args:
      results: of each attack at least the placement rule of each voting.
      detected: of double masking, by attack.
    """
    wide = max(9, *(len(attack) for _, attack, _ in results))
    lines = [
        f"{'':{wide}} {'':9}  {'clean accuracy':^22}  {'certified accuracy':^22}  "
        f"{'margin rule':^11}  {'certified':>9}",
        f"{'patch':{wide}} {'decision':9}  {'%  (95 % interval)':^22}  "
        f"{'%  (95 % interval)':^22}  {'(paper)':^11}  {'but wrong':>9}"
        + (" detected" if detected else ""),
    ]
    lines.append("-" * len(lines[1]))
    last = None
    order = [list(dict.fromkeys(names)) for names in zip(*results, strict=True)]
    for way, attack in ((w, a) for a in order[1] for w in order[0]):
        start = f"{'' if attack == last else attack:{wide}} {SHORT.get(way, way):9}  "
        last = attack
        placement = results.get((way, attack, "placement"))
        if placement is None:
            lines.append(f"{start}too large for it")
            continue
        margin = results.get((way, attack, "margin"))
        line = (
            f"{start}{format_accuracy(placement.clean)}  "
            f"{format_accuracy(placement.certified)}  "
            + (f"{percent(margin.certified):>7}    " if margin else " " * 11)
            + f"  {percent(placement.certified_wrong):>9}"
        )
        if way == DOUBLE_MASKING and detected:
            line += f" {percent(detected[attack]):>8}"
        lines.append(line)
    return "\n".join(lines)


def percent(accuracy: Accuracy) -> str:
    """Returns for example ``"78.2"``."""
    return f"{100 * accuracy.value:.1f}"


def format_accuracy(accuracy: Accuracy) -> str:
    """Returns for example ``' 78.2 ( 75.5 to  80.7)'``: per cent, 95 % interval."""
    low, high = accuracy.interval
    return f"{100 * accuracy.value:5.1f} ({100 * low:5.1f} to {100 * high:5.1f})"


def accuracy_record(
    voting: str, attack: Attack, rule: str, result: Evaluation
) -> dict[str, Any]:
    """One entry of summary.json's "certificates"."""
    patch = attack.patch
    return {
        "patch": None if patch is None else [patch.height, patch.width],
        "attack": attack.name,
        "voting": voting,
        "rule": rule,
        "clean_accuracy": result.clean.value,
        "clean_interval": list(result.clean.interval),
        "certified_accuracy": result.certified.value,
        "certified_interval": list(result.certified.interval),
        "certified_wrong": result.certified_wrong.value,
    }


def format_rows(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> str:
    """Writes columns of equal length as CSV: a line for each image, after a header.

    A text that a program for tables would calculate has an apostrophe in front.
    """
    text = io.StringIO()
    # All text is in quotes: a reader ends a line at a bare carriage return, too.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([csv_text(v) if isinstance(v, str) else v for v in row])
    return text.getvalue()


def write_rows(
    path: pathlib.Path, columns: Mapping[str, Sequence[Any] | np.ndarray]
) -> None:
    """Writes `format_rows` as UTF-8; what is no text there is written as an escape."""
    path.write_text(format_rows(columns), "utf-8", "backslashreplace", newline="")


def claim(analysis: Analysis) -> str:
    """Says in a sentence what is proven, against whom, for which images and model."""
    store, request = analysis.store, analysis.request
    patch = request.patch
    way = analysis.way_against(str(patch))
    accuracy = analysis.results[way, str(patch), "placement"].certified
    low, high = (100 * bound for bound in accuracy.interval)
    return (
        f"{accuracy.count:,} of {describe_images(store)} "
        f"({100 * accuracy.value:.1f} %, 95 % interval {low:.1f} to {high:.1f}) "
        f"{'is' if accuracy.count == 1 else 'are'} classified right, and proven to "
        f"stay so: no {patch} patch, anywhere in the image, with any content, by an "
        "attacker who knows everything, changes the prediction of "
        f"{describe_model(store)}, decided by {describe_way(request, way)}."
    )


def caption(analysis: Analysis, votings: Sequence[str]) -> str:
    """The small print of a figure: number of images, which, ablation, settings."""
    store, request = analysis.store, analysis.request
    texts = {
        "threshold": f"threshold {request.threshold:g}",
        "graded": f"strength {request.strength:g}",
        "top_one": "top one",
    }
    about = [describe_images(store), str(store.ablation)]
    return ", ".join([*about, *(texts[voting] for voting in votings)])


def describe_images(store: Shards) -> str:
    """Returns for example "1,000 test images of mnist5k"."""
    split, name = store.origin.split, store.origin.data_name
    images = counted(len(store), f"{one_line(str(split))} image" if split else "image")
    return images + (f" of {one_line(str(name))}" if name else "")


def describe_model(store: ScoreStore) -> str:
    """Returns for example "bandnet, which sees 2 adjacent columns at a time"."""
    name, sees = store.origin.model_name, describe_ablation(store.ablation)
    return f"{one_line(str(name or 'the classifier'))}, which sees {sees} at a time"


def describe_ablation(ablation: Ablation) -> str:
    """Says what one ablation keeps.

    >>> describe_ablation(Columns(4))
    '4 adjacent columns'
    """
    match ablation:
        case Columns(width=1) | Rows(height=1):
            return "one " + ("column" if isinstance(ablation, Columns) else "row")
        case Columns(width=width):
            return f"{width} adjacent columns"
        case Rows(height=height):
            return f"{height} adjacent rows"
        case Blocks(height=height, width=width):
            return f"a block of {height}x{width} pixels"
        case MultiColumns(width=width, keep=keep):
            return f"{counted(keep, 'band')} of {counted(width, 'column')}"
        case MultiBlocks(size=size, keep=keep):
            return f"{counted(keep, 'block')} of {size}x{size} pixels"
    return str(ablation)


def describe_way(request: Request, way: Way) -> str:
    """Returns for example "graded votes (strength 5)"."""
    if way == DOUBLE_MASKING:
        return f"double masking, made for {request.attack.masked_for}"
    setting = {
        "threshold": f" (threshold {request.threshold:g})",
        "graded": f" (strength {request.strength:g})",
    }
    return f"{way.replace('_', ' ')} votes{setting.get(way, '')}"


def summarize(analysis: Analysis) -> dict[str, Any]:
    """What summary.json holds."""
    store, request = analysis.store, analysis.request
    attacks = {attack.name: attack for attack in request.attacks}
    records = []
    for (voting, name, rule), result in analysis.results.items():
        record = accuracy_record(voting, attacks[name], rule, result)
        if rule == "placement" and (voting, name) in analysis.nominal:
            nominal = analysis.nominal[voting, name]
            record["certified_accuracy_nominal"] = nominal.value
        if (voting, name) in analysis.is_exact:
            record["is_exact"] = analysis.is_exact[voting, name]
        if voting == DOUBLE_MASKING:
            record["detected_accuracy"] = analysis.detected[name].value
        records.append(record)
    return {
        "num_images": len(store),
        "split": store.origin.split or "unknown",
        "ablation": ablation_to_json(store.ablation),
        "image_shape": list(store.image_shape),
        "resized_to": store.origin.resized_to,
        "decision": "votes" if request.design is None else DOUBLE_MASKING,
        "design_patch": str(request.design) if request.design else None,
        "voting": request.voting,
        "threshold": request.threshold,
        "strength": request.strength,
        "settings_chosen_on": store.origin.chosen_on or "not recorded",
        "tolerance": request.tolerance,
        "clean_accuracy": analysis.clean.value,
        "base_accuracy": analysis.base_accuracy,
        "seconds_per_image": seconds_per_image(store),
        "certificates": records,
        "made_by": store.made_by,
    }


def image_rows(analysis: Analysis) -> dict[str, np.ndarray]:
    """The columns of rows.csv, a row for each image."""
    store = analysis.store
    return {
        "id": store.ids,
        "label": store.labels,
        "prediction": analysis.prediction,
        "runner_up": analysis.runner_up,
        **{
            f"prediction_{voting}": classes
            for voting, classes in analysis.predictions.items()
        },
        **{
            f"largest_certified_square_{voting}": side
            for voting, side in analysis.largest.items()
        },
        **{
            f"margin_{attack}_{voting}_{rule}": margin
            for (voting, attack, rule), margin in analysis.margins.items()
        },
        **{
            f"{name}_{attack}_{DOUBLE_MASKING}": getattr(found, name).astype(np.int64)
            for attack, found in analysis.masked.items()
            for name in ("prediction", "is_certified", "is_detected")
        },
    }


def sweep_rows(analysis: Analysis) -> dict[str, Sequence[Any]]:
    """The columns of sweep.csv: every setting, attack and rule that was asked for.

    Of top-k, where it was asked, ``certified_top_K``: by the placement rule, of votes.
    """
    top_k = analysis.request.top_k
    names = ["voting", "setting", "attack", "rule", "clean", "certified", "num_images"]
    names += [f"certified_top_{k}" for k in top_k]
    masked = {
        (way, "", attack, rule): result  # it has no setting
        for (way, attack, rule), result in analysis.results.items()
        if way == DOUBLE_MASKING
    }
    rows = []
    for key, result in {**analysis.sweep, **masked}.items():
        voting, value, attack, rule = key
        counts = [result.clean.count, result.certified.count, result.clean.num_images]
        swept = ((voting, value, attack, k) for k in top_k)
        has_ranks = rule == "placement" and voting != DOUBLE_MASKING
        ranked = [analysis.sweep_ranks[k].count if has_ranks else "" for k in swept]
        rows.append((*key, *counts, *ranked))
    return dict(zip(names, zip(*rows, strict=True), strict=True))
