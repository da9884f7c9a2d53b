"""Tables of what may be asked beside certified accuracy: top-k, and alarms."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsmooth_jax.alarms import evaluate_alarm
from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.ranking import within
from dsmooth_jax.report.summary import format_accuracy
from dsmooth_jax.voting import GRADES, Voting


@dataclasses.dataclass(frozen=True)
class TopK:
    """One row: images whose label is among the first k.

    Attributes:
      attack: by its name.
      voting: the voting.
      k: how many count as right.
      clean: as images are.
      certified: whatever the attack.
    """

    attack: str
    voting: Voting
    k: int
    clean: Accuracy
    certified: Accuracy


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One row: what a classifier with an alarm does.

    Attributes:
      attack: by its name.
      voting: the voting.
      rate: of false alarms, on the validation images where the margin was chosen; None
        for an alarm on whatever is not certified.
      margin: an alarm is raised where the smallest duel is won by less, in votes.
      false_alarms: images that raise one as they are.
      detected: right, and under attack the answer stays or there is an alarm.
      unwavering: right, and under attack the answer stays, with no alarm.
    """

    attack: str
    voting: Voting
    rate: float | None
    margin: float | None
    false_alarms: Accuracy
    detected: Accuracy
    unwavering: Accuracy | None


def top_k_table(analysis: Analysis) -> list[TopK]:
    """Of each attack by one patch, each voting and k a row."""
    request = analysis.request
    return [
        TopK(
            attack.name,
            voting,
            k,
            within(analysis.clean_ranks[voting], k),
            within(analysis.ranks[voting, attack.name], k),
        )
        for attack in request.single_attacks
        for voting in request.votings
        for k in request.top_k
    ]


def alarm_table(analysis: Analysis) -> list[Alarm]:
    """Of each attack by one patch and voting a row for each rate, and the sharp end."""
    rows, labels = [], analysis.store.labels
    for (attack, voting), asked in _by_attack(analysis).items():
        certified = analysis.results[voting, attack, "placement"]
        silent = certified.certified.count + certified.certified_wrong.count
        total = certified.clean.num_images
        refused = Accuracy(total - silent, total)
        rows.append(Alarm(attack, voting, None, None, refused, certified.clean, None))
        for rate, margin in asked:
            found = evaluate_alarm(analysis.alarms[voting, attack].at(margin), labels)
            rows.append(
                Alarm(
                    attack,
                    voting,
                    rate,
                    margin / unit(voting),
                    found.false_alarms,
                    found.detected,
                    found.unwavering,
                )
            )
    return rows


def unit(voting: Voting) -> int:
    """How many units of a margin are a vote."""
    return GRADES if voting == "graded" else 1


def texts(analysis: Analysis) -> list[str]:
    """The tables that were asked, laid out as text."""
    found = []
    if analysis.request.top_k:
        found.append(format_top_k(top_k_table(analysis)))
    if analysis.request.alarms:
        found.append(format_alarms(alarm_table(analysis)))
    return found


def format_top_k(rows: Sequence[TopK]) -> str:
    """Lays the rows out as text."""
    wide = max(9, *(len(row.attack) for row in rows))
    lines = [
        f"{'':{wide}} {'':9}  {'':6}  {'clean, among first k':^22}  {'certified':^22}",
        f"{'patch':{wide}} {'voting':9}  {'top':6}  {'%  (95 % interval)':^22}  "
        f"{'%  (95 % interval)':^22}",
    ]
    lines.append("-" * len(lines[1]))
    lines += [
        f"{row.attack:{wide}} {row.voting:9}  {row.k:<6}  "
        f"{format_accuracy(row.clean)}  {format_accuracy(row.certified)}"
        for row in rows
    ]
    return "\n".join(lines)


def format_alarms(rows: Sequence[Alarm]) -> str:
    """Lays the rows out as text."""
    wide = max(9, *(len(row.attack) for row in rows))
    header = (
        f"{'patch':{wide}} {'voting':9}  {'alarm':27}  {'false alarms':>12}  "
        f"{'detected':>8}  {'unwavering':>10}"
    )
    lines = [header, "-" * len(header)]
    lines += [
        f"{row.attack:{wide}} {row.voting:9}  {describe_alarm(row):27}  "
        f"{100 * row.false_alarms.value:10.1f} %  {100 * row.detected.value:6.1f} %"
        + (f"  {100 * row.unwavering.value:8.1f} %" if row.unwavering else "")
        for row in rows
    ]
    return "\n".join(lines)


def describe_alarm(row: Alarm) -> str:
    """Returns for example "won by < 0.93 votes (5 %)"."""
    if row.rate is None:
        return "unless certified"
    return f"won by < {row.margin:.3g} votes ({100 * row.rate:g} %)"


def records(rows: Sequence[TopK] | Sequence[Alarm]) -> list[dict[str, Any]]:
    """The rows as summary.json holds them: accuracies as shares."""
    return [
        {
            name: value.value if isinstance(value, Accuracy) else value
            for name, value in vars(row).items()
        }
        for row in rows
    ]


def columns(analysis: Analysis) -> dict[str, np.ndarray]:
    """What rows.csv holds of them, an entry for each image."""
    found = {
        f"worst_rank_{attack}_{voting}": rank
        for (voting, attack), rank in analysis.ranks.items()
    }
    for (voting, attack), certificate in analysis.alarms.items():
        found[f"smallest_duel_{voting}"] = certificate.margin
        found[f"least_margin_{attack}_{voting}"] = certificate.least_margin
        found[f"rival_margin_{attack}_{voting}"] = certificate.rival_margin
    return found


def _by_attack(
    analysis: Analysis,
) -> dict[tuple[str, Voting], list[tuple[float, int]]]:
    """{(attack, voting): [(rate, alarm margin)]}, in the order of the table."""
    request = analysis.request
    return {
        (attack.name, voting): [
            (rate, margin)
            for (v, rate), margin in request.alarms.items()
            if v == voting
        ]
        for attack in request.single_attacks
        for voting in request.votings
        if request.alarms
    }
