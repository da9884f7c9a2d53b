"""The page: one HTML file that holds a whole report and opens from disk.

A Jinja2 template with everything inside it: style, script, figures as SVG, pictures and
what the explorer needs as JSON. Names of classes, images and models are data that
anybody may have written, so the template escapes them, and the script handles them as
text only.
"""

import base64
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax import drawing, tables
from dsmooth_jax.answers import Answers
from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.explorer import explore, is_grid
from dsmooth_jax.gallery import atlas, choose, load_thumbnails
from dsmooth_jax.inquiry import Question
from dsmooth_jax.provenance import flatten
from dsmooth_jax.store import ScoreStore
from dsmooth_jax.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = pathlib.Path(__file__).with_name("templates")

_FIGURES = {
    "certified_accuracy": (
        "Certified accuracy over the side of a square patch",
        "Images that are right and certified, by the side of the patch, for each "
        "voting. Bands are 95 % intervals.",
    ),
    "rectangles": (
        "Certified accuracy over height and width of the patch",
        "The same for every rectangle. Lines join equal shares.",
    ),
    "margins": (
        "Histogram of margins, right and wrong predictions",
        "By how many votes the closest duel is won after the worst placement; from "
        "zero on, the prediction is certified. It can be certified and wrong.",
    ),
    "map": (
        "Share of images that are not proven, by placement of the patch",
        "By the patch's upper left corner: the images whose prediction a patch there "
        "may change.",
    ),
    "positions": (
        "Accuracy of single ablations by their position",
        "How often the base classifier is right from one ablation alone, before any "
        "vote.",
    ),
    "settings": (
        "Clean and certified accuracy over threshold and strength",
        "What other settings would have given on these images. The ring is the setting "
        "in use, which is not chosen here.",
    ),
}
"""{name: (what a reader hears, what stands below)}."""


def render(
    store: ScoreStore,
    question: Question,
    answers: Answers,
    figures: Mapping[str, "Figure"],
) -> str:
    """Renders the page.

    Args:
      store: the scores.
      question: what was asked.
      answers: what was found.
      figures: {name: figure} of `report.draw`.

    Returns:
      HTML, complete.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    data = explore(store, question, answers)
    pictures = _atlas(store, question)
    if pictures is not None:
        data["atlas"] = {k: pictures[k] for k in ("columns", "cell", "size")}
    return environment.get_template("report.html").render(
        title=f"Certified against a {question.focus} patch",
        claim=tables.claim(store, question, answers).replace(" %", "\u00a0%"),
        stats=_stats(question, answers),
        rows=_rows(question, answers),
        figures=[
            {
                "name": name,
                "label": _FIGURES[name][0],
                "text": _FIGURES[name][1],
                "svg": Markup(_inline(drawing.svg(figure, has_caption=False), name)),
                "caption": drawing.get_caption(figure),
            }
            for name, figure in figures.items()
        ],
        num_images=len(store),
        images=counted(len(store), "image"),
        num_shown=len(question.sample),
        sees=tables.describe_ablation(store.ablation),
        image_size="{}x{}".format(*store.image_size),
        resized_to="x".join(map(str, tables.resized_to(store) or ())),
        tolerance=f"{question.tolerance:g}",
        chosen_on=store.made_by.get("chosen_on", "not recorded"),
        provenance=_provenance(store, question),
        atlas=pictures,
        is_map=is_grid(store.ablation, store.image_size),
        data=data,
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        js=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def _stats(question: Question, answers: Answers) -> list[dict[str, str]]:
    found = answers.results[question.main, question.focus, "placement"]
    focus = question.focus
    return [
        _stat("Right, no patch", found.clean),
        _stat(f"Right and certified at {focus}", found.certified),
        _stat(f"Certified but wrong at {focus}", found.certified_wrong),
        {
            "name": "One ablation alone",
            "value": f"{100 * answers.base_accuracy:.1f} %",
            "detail": "right, on average",
        },
    ]


def _stat(name: str, accuracy: Accuracy) -> dict[str, str]:
    text = _percent(accuracy)
    detail = f"{accuracy.count:,} of {accuracy.num_images:,}; {text['interval']} %"
    return {"name": name, "value": f"{text['value']} %", "detail": detail}


def _rows(question: Question, answers: Answers) -> list[dict[str, Any]]:
    """The table's rows: of each attack a row for each voting."""
    rows = []
    for attack in question.attacks:
        for voting in question.votings:
            placement = answers.results[voting, attack, "placement"]
            margin = answers.results.get((voting, attack, "margin"))
            rows.append(
                {
                    "attack": str(attack),
                    "is_first": voting == question.votings[0],
                    "voting": voting.replace("_", " "),
                    "clean": _percent(placement.clean),
                    "certified": _percent(placement.certified),
                    "margin": _percent(margin.certified)["value"] if margin else "",
                    "wrong": _percent(placement.certified_wrong)["value"],
                }
            )
    return rows


def _percent(accuracy: Accuracy) -> dict[str, str]:
    low, high = accuracy.interval
    return {
        "value": f"{100 * accuracy.value:.1f}",
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
    }


def _provenance(
    store: ScoreStore, question: Question
) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(title, [(name, value)])]: settings, then what the store says of itself."""
    settings = [
        ("images", f"{len(store):,}"),
        ("image shape", "x".join(map(str, store.image_shape))),
        ("ablation", str(store.ablation)),
        ("ablations", f"{store.ablation.num_ablations(store.image_size):,}"),
        ("classes", f"{store.num_classes:,}"),
        ("votings", ", ".join(question.votings)),
        ("figures are by", question.main),
        ("threshold", f"{question.threshold:g}"),
        ("strength", f"{question.strength:g}"),
        ("tolerance", f"{question.tolerance:g}"),
    ]
    made_by = {k: v for k, v in store.made_by.items() if k != "class_names"}
    versions = made_by.pop("versions", {})
    groups = [("Settings", settings), ("Scores were made by", _facts(made_by))]
    groups.append(("Versions", _facts(versions)))
    return [(name, facts) for name, facts in groups if facts]


def _facts(record: Any) -> list[tuple[str, str]]:
    record = record if isinstance(record, Mapping) else {"": record}
    return [(key, str(value)) for key, value in flatten(record).items() if record]


def _atlas(store: ScoreStore, question: Question) -> dict[str, Any] | None:
    """The pictures of the sample in one, where there are any."""
    pixels = load_thumbnails(store)
    if pixels is None or not np.array_equal(question.sample, choose(store)):
        return None
    media, content, columns, cell = atlas(pixels)
    return {
        "uri": f"data:{media};base64,{base64.b64encode(content).decode()}",
        "columns": columns,
        "cell": list(cell),
        "size": list(pixels.shape[1:3]),
        "is_whole": tuple(pixels.shape[1:3]) == tuple(store.image_size),
    }


def _inline(svg: str, name: str) -> str:
    """An SVG file's text as part of a page: its ids its own, its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for color, variable in {
        drawing.INK: "ink",
        drawing.MUTED: "muted",
        drawing.FAINT: "rule",
        drawing.PAPER: "card",
        drawing.BLUE: "blue",
        drawing.ORANGE: "orange",
        drawing.GREEN: "green",
        "#000000": "ink",
    }.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg
