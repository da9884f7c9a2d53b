"""The page: one HTML file that holds a whole report and opens from disk.

A Jinja2 template with everything inside it: style, script, figures as SVG, pictures and
what the explorer needs as JSON. Names of classes, images and models are data that
anybody may have written, so the template escapes them, and the script handles them as
text only.
"""

import base64
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmooth_jax.evaluation import Accuracy
from dsmooth_jax.report import more_tables, plot_style, summary
from dsmooth_jax.report.analysis import Analysis
from dsmooth_jax.report.attack_summary import FoundAttack
from dsmooth_jax.report.attacked_explorer import explore_attacks
from dsmooth_jax.report.explorer_data import explore, is_grid
from dsmooth_jax.report.request import DOUBLE_MASKING, Request
from dsmooth_jax.report.thumbnails import atlas, choose, load_thumbnails, shrink
from dsmooth_jax.storage.provenance import flatten
from dsmooth_jax.types import ImageSize
from dsmooth_jax.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = pathlib.Path(__file__).with_name("templates")

_FIGURES = {
    "certified_accuracy": (
        "Certified accuracy over the side of a square patch",
        "Images that are right and certified, by the side of the patch, for each "
        "voting. Bands are 95 % intervals. Crosses, where attack.py attacked the same "
        "images: those still right, which is no proof that they stay so.",
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
    "alarms": (
        "Detected and unwavering images over false alarms",
        "An alarm where the smallest duel is won by less than a margin. Detected: "
        "right, and under attack the answer stays or there is an alarm; unwavering: it "
        "stays, with none. Marks are the margins chosen on validation images.",
    ),
    "settings": (
        "Clean and certified accuracy over threshold and strength",
        "What other settings would have given on these images. The ring is the setting "
        "in use, which is not chosen here.",
    ),
}
"""{name: (what a reader hears, what stands below)}."""


def render(
    analysis: Analysis,
    figures: Mapping[str, "Figure"],
    attacks: Sequence[FoundAttack] = (),
) -> str:
    """Renders the page.

    Args:
      analysis: what was found.
      figures: {name: figure} of `draw_figures`.
      attacks: of `attacks_of`.

    Returns:
      HTML, complete.
    """
    from markupsafe import Markup

    store, request = analysis.store, analysis.request
    data = explore(analysis)
    sheets = {}
    pixels = _thumbnails(analysis)
    if pixels is not None:
        sheets["clean"], data["atlas"] = _sheet(pixels, store.image_size)
    data["attacks"] = []
    for page, attacked in explore_attacks(analysis, attacks):
        name = f"attacked-{len(data['attacks'])}"
        sheets[name], page["atlas"] = _sheet(shrink(attacked), store.image_size)
        data["attacks"].append({**page, "sheet": name})
    template = environment().get_template("report.html")
    return template.render(
        title=f"Certified against a {request.patch} patch",
        claim=summary.claim(analysis).replace(" %", "\u00a0%"),
        stats=_stats(analysis),
        rows=_rows(analysis),
        top_k=[
            {
                "attack": row.attack,
                "voting": row.voting.replace("_", " "),
                "k": row.k,
                "clean": cell(row.clean),
                "certified": cell(row.certified),
            }
            for row in more_tables.top_k_table(analysis)
        ],
        alarms=[
            {
                "attack": row.attack,
                "voting": row.voting.replace("_", " "),
                "alarm": more_tables.describe_alarm(row),
                "false_alarms": cell(row.false_alarms),
                "detected": cell(row.detected),
                "unwavering": row.unwavering and cell(row.unwavering),
            }
            for row in more_tables.alarm_table(analysis)
        ],
        figures=[
            {
                "name": name,
                "label": _FIGURES[name][0],
                "text": _FIGURES[name][1],
                "svg": inline_svg(figure, name),
                "caption": plot_style.get_caption(figure),
            }
            for name, figure in figures.items()
        ],
        num_images=len(store),
        images=counted(len(store), "image"),
        num_shown=len(request.sample),
        sees=summary.describe_ablation(store.ablation),
        image_size="{}x{}".format(*store.image_size),
        design=_shared_design(request),
        resized_to="x".join(map(str, store.origin.resized_to or ())),
        tolerance=f"{request.tolerance:g}",
        chosen_on=store.origin.chosen_on or "not recorded",
        provenance=_provenance(analysis),
        has_pictures=pixels is not None,
        sheets=sheets,
        is_map=is_grid(store.ablation, store.image_size),
        data=data,
        css=style(),
        js=Markup(
            "\n".join(
                (_TEMPLATES / name).read_text(encoding="utf-8")
                for name in ("attacks.js", "report.js")
            )
        ),
    )


def _stats(analysis: Analysis) -> list[dict[str, str]]:
    patch = analysis.request.patch
    found = analysis.results[analysis.way_against(str(patch)), str(patch), "placement"]
    return [
        _stat("Right, no patch", found.clean),
        _stat(f"Right and certified at {patch}", found.certified),
        _stat(f"Certified but wrong at {patch}", found.certified_wrong),
        {
            "name": "One ablation alone",
            "value": f"{100 * analysis.base_accuracy:.1f} %",
            "detail": "right, on average",
        },
    ]


def _stat(name: str, accuracy: Accuracy) -> dict[str, str]:
    text = cell(accuracy)
    detail = f"{accuracy.count:,} of {accuracy.num_images:,}; {text['interval']} %"
    return {"name": name, "value": f"{text['value']} %", "detail": detail}


def _rows(analysis: Analysis) -> list[dict[str, Any]]:
    """The table's rows: of each attack a row for each way to decide."""
    rows, request = [], analysis.request
    for attack in request.attacks:
        for way in (*request.votings, DOUBLE_MASKING):
            placement = analysis.results.get((way, attack.name, "placement"))
            margin = analysis.results.get((way, attack.name, "margin"))
            detected = analysis.detected.get(attack.name)
            is_masked = way == DOUBLE_MASKING
            row = {
                "attack": attack.name,
                "is_first": way == request.votings[0],
                "voting": way.replace("_", " "),
                "is_possible": placement is not None,
            }
            if placement is not None:
                row |= {
                    "clean": cell(placement.clean),
                    "certified": cell(placement.certified),
                    "margin": summary.percent(margin.certified) if margin else "",
                    "wrong": summary.percent(placement.certified_wrong),
                    "detected": summary.percent(detected)
                    if is_masked and detected
                    else "",
                }
            rows.append(row)
    return rows


def cell(accuracy: Accuracy) -> dict[str, str]:
    """An accuracy in a table of a page: per cent, and its interval."""
    low, high = accuracy.interval
    return {
        "value": summary.percent(accuracy),
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
    }


def _provenance(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(title, [(name, value)])]: settings, then what the store says of itself."""
    store, request = analysis.store, analysis.request
    settings = [
        ("images", f"{len(store):,}"),
        ("image shape", "x".join(map(str, store.image_shape))),
        ("ablation", str(store.ablation)),
        ("ablations", f"{store.ablation.num_ablations(store.image_size):,}"),
        ("classes", f"{store.num_classes:,}"),
        ("votings", ", ".join(request.votings)),
        ("figures of margins are by", request.voting),
        ("the classifier decides by", _decision(request)),
        ("threshold", f"{request.threshold:g}"),
        ("strength", f"{request.strength:g}"),
        ("tolerance", f"{request.tolerance:g}"),
    ]
    made_by = {k: v for k, v in store.made_by.items() if k != "class_names"}
    versions = made_by.pop("versions", {})
    groups = [("Settings", settings), ("Scores were made by", facts(made_by))]
    groups.append(("Versions", facts(versions)))
    return [(name, facts) for name, facts in groups if facts]


def _shared_design(request: Request) -> str:
    """The patch that the masks of all rows are made for; "" where each has its own."""
    is_own = all(attack.masked_for == attack.patch for attack in request.attacks)
    return "" if is_own else str(request.design)


def _decision(request: Request) -> str:
    if request.design is None:
        return f"{request.voting} votes"
    return f"double masking, made for {request.design}"


def environment() -> Any:
    """Jinja's, of our templates: what is filled in is escaped."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def style() -> Any:
    """The style of every page, not escaped."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))


def inline_svg(figure: "Figure", name: str) -> Any:
    """A figure as part of a page, not escaped."""
    from markupsafe import Markup

    return Markup(_inline(plot_style.svg(figure, has_caption=False), name))


def facts(record: Any) -> list[tuple[str, str]]:
    """What a record says, flat, as text."""
    record = record if isinstance(record, Mapping) else {"": record}
    return [(key, str(value)) for key, value in flatten(record).items() if record]


def _thumbnails(analysis: Analysis) -> np.ndarray | None:
    """The pictures of the sample, where there are any."""
    is_chosen = np.array_equal(analysis.request.sample, choose(analysis.store))
    return load_thumbnails(analysis.store) if is_chosen else None


def _sheet(
    pixels: np.ndarray, image_size: ImageSize
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pictures in one: what the style of a page says of it, and what its script."""
    media, content, columns, cell = atlas(pixels)
    size = pixels.shape[1:3]
    style = {
        "uri": f"data:{media};base64,{base64.b64encode(content).decode()}",
        "percent": 100 * columns * cell[1] / size[1],
        "is_whole": size == tuple(image_size),
    }
    return style, {"columns": columns, "cell": list(cell), "size": list(size)}


def _inline(svg: str, name: str) -> str:
    """An SVG file's text as part of a page: its ids its own, its colors the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for color, variable in {
        plot_style.INK: "ink",
        plot_style.MUTED: "muted",
        plot_style.FAINT: "rule",
        plot_style.PAPER: "card",
        plot_style.BLUE: "blue",
        plot_style.ORANGE: "orange",
        plot_style.GREEN: "green",
        plot_style.PURPLE: "purple",
        "#000000": "ink",
    }.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg
