"""Tables, figures and page: every number in them is one that evaluation counted."""

import csv
import html.parser
import io
import json
import re

import ml_dtypes
import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax.report import (
    comparison,
    explorer_data,
    figures,
    more_tables,
    plot_style,
    summary,
    thumbnails,
)
from dsmooth_jax.report.analysis import analyze
from dsmooth_jax.report.html import render
from dsmooth_jax.report.request import DOUBLE_MASKING, Attack, Request, attacks_on
from dsmooth_jax.report.write import draw_figures, write_report

NUM_IMAGES, NUM_CLASSES, SIZE = 60, 3, (8, 14)
PATCHES = [ds.Patch(*p) for p in ((1, 1), (5, 2), (2, 5), (2, 2), (4, 4))]
RULES = ("placement", "margin")
EVIL = ["<b>bold</b>", "</script><script>alert(1)</script>", "a & 'b' \"c\""]


def make_store(path, *, ablation=None, seed=0, made_by=None, num_images=NUM_IMAGES):
    """Scores of which some are certified by each rule, of images with odd names."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, num_images)
    ablation = ablation or ds.Columns(2)
    num = ablation.num_ablations(SIZE)
    lean = rng.random((num_images, 1, 1)) * (np.arange(3) == labels[:, None, None])
    scores = rng.dirichlet(np.ones(3), (num_images, num)) / 2 + lean / 2
    return ds.save_scores(
        path,
        scores.astype(np.float32),
        ablation=ablation,
        image_shape=(*SIZE, 1),
        labels=labels,
        ids=[f"{i} {EVIL[i % 3]}" for i in range(num_images)],
        made_by=made_by or {"class_names": EVIL, "model": EVIL[1], "voting": "graded"},
    )


def make_request(store, **changes):
    attacks = attacks_on(store.ablation, SIZE, PATCHES, num_patches=2, area=4)
    wanted = {"voting": "graded", "sample": thumbnails.choose(store), **changes}
    return Request(attacks, ("threshold", "graded"), 0.3, 3.0, **wanted)


ABLATIONS = [ds.Columns(2), ds.Rows(2), ds.Blocks(3, stride=2), ds.MultiColumns(2, 2)]


@pytest.fixture(scope="module", params=ABLATIONS, ids=lambda a: type(a).__name__)
def asked(request, tmp_path_factory):
    """What was found, for each kind of ablation."""
    path = tmp_path_factory.mktemp("asked") / "scores"
    store = make_store(path, ablation=request.param)
    alarms = {("threshold", 0.05): 1, ("graded", 0.05): 30, ("graded", 0.1): 60}
    return analyze(store, make_request(store, top_k=(2, 3), alarms=alarms))


@pytest.fixture(scope="module")
def drawings(asked):
    return draw_figures(asked)


@pytest.fixture(scope="module")
def written(asked, tmp_path_factory):
    """The folder that a report was written to."""
    out = tmp_path_factory.mktemp("written")
    names = write_report(asked, out)
    assert [name for name in names if not (out / name).exists()] == []
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What is found for images of which some are certified by each rule."""
    store = make_store(tmp_path_factory.mktemp("results") / "scores")
    votes = ds.threshold_votes(store.read_all(), 0.3)
    found = {}
    for patch in PATCHES:
        touched = ds.touched(store.ablation, patch, SIZE)
        for rule in RULES:
            certificate = ds.certify(votes, touched, rule=rule)
            found["threshold", patch, rule] = ds.evaluate(certificate, store.labels)
    shares = {(r.certified.count, rule) for (_, _, rule), r in found.items()}
    assert len(shares) >= 4  # or swapped columns would look the same
    return found


def by_name(results):
    """As `analyze` has them: {(voting, attack's name, rule): evaluation}."""
    return {
        (voting, str(a), rule): found for (voting, a, rule), found in results.items()
    }


def numbers(line):
    return [float(x) for x in re.findall(r"\d+\.\d", line)]


def percent(accuracy):
    return [100 * x for x in (accuracy.value, *accuracy.interval)]


# ---- In the terminal -------------------------------------------------------------


def test_the_table_prints_what_was_found(results):
    # Protects the table that users quote: a line for each patch, in the order asked.
    header = summary.format_table(by_name(results)).splitlines()[:3]
    assert "clean" in header[0] and "95 %" in header[1] and "margin rule" in header[0]
    lines = summary.format_table(by_name(results)).splitlines()[3:]
    assert [line.split()[0] for line in lines] == [str(patch) for patch in PATCHES]
    for patch, line in zip(PATCHES, lines, strict=True):
        placement, margin = (results["threshold", patch, rule] for rule in RULES)
        wanted = [
            *percent(placement.clean),
            *percent(placement.certified),
            100 * margin.certified.value,
            100 * placement.certified_wrong.value,
        ]
        assert numbers(line) == pytest.approx(wanted, abs=0.051)


def test_the_table_is_rectangular(results):
    # Protects its look: columns line up, at 0 % and 100 % too, and fit a terminal.
    none, every = ds.Accuracy(0, 1000), ds.Accuracy(1000, 1000)
    extreme = {
        ("threshold", attack, rule): ds.Evaluation(every, none, every)
        for rule in RULES
        for attack in (ds.Patch(224, 224), "12 x 224x224")
    }
    lines = summary.format_table(by_name(results | extreme)).splitlines()
    assert len({len(line.rstrip()) for line in lines[2:]}) == 1
    assert max(map(len, lines)) <= 100
    assert "nan" in summary.format_accuracy(ds.Accuracy(0, 0))


def test_a_record_holds_what_was_found(results):
    # Protects summary.json: names of the design, shares in [0, 1], nothing rounded.
    for (_, patch, rule), result in results.items():
        attack = Attack(str(patch), ds.touched(ds.Columns(2), patch, SIZE), patch=patch)
        assert summary.accuracy_record("threshold", attack, rule, result) == {
            "patch": [patch.height, patch.width],
            "attack": str(patch),
            "voting": "threshold",
            "rule": rule,
            "clean_accuracy": result.clean.value,
            "clean_interval": list(result.clean.interval),
            "certified_accuracy": result.certified.value,
            "certified_interval": list(result.certified.interval),
            "certified_wrong": result.certified_wrong.value,
        }


def test_the_claim_says_what_against_whom_on_what_and_by_what(asked):
    # Protects the sentence that is quoted: numbers of the focus, nothing left out.
    store, request, analysis = asked.store, asked.request, asked
    found = analysis.results["graded", str(request.patch), "placement"].certified
    text = summary.claim(analysis)
    assert text.startswith(f"{found.count:,} of 60 images")
    assert numbers(text)[:3] == pytest.approx(percent(found), abs=0.051)
    for word in (f"no {request.patch} patch", "any content", "knows everything"):
        assert word in text
    assert summary.describe_ablation(store.ablation) in text and EVIL[1] in text


def test_rows_come_back_from_csv():
    # Protects rows.csv: a line for each image, also where an id holds what CSV uses.
    columns = {
        "id": np.array(["plain", "with,comma", 'with"quote', "with\nline", ""]),
        "label": np.arange(5),
        "margin_2x2_placement": np.array([-3, 0, 7, 2**40, -(2**40)]),
    }
    text = summary.format_rows(columns)
    header, *rows = csv.reader(io.StringIO(text))
    assert header == list(columns)
    assert [row[0] for row in rows] == columns["id"].tolist()
    for i, name in enumerate(list(columns)[1:], start=1):
        assert [int(row[i]) for row in rows] == columns[name].tolist()
    assert "\r" not in text


def test_rows_of_unequal_length_are_refused():
    # Protects the pairing of images with certificates.
    with pytest.raises(ValueError):
        summary.format_rows({"id": ["a", "b"], "label": [0]})


# ---- Figures ---------------------------------------------------------------------


def drawn(axes, label):
    """(x, y) of the line of this label."""
    by_label = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    handle = by_label[label]
    line = handle.lines[0] if hasattr(handle, "lines") else handle
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_the_figure_draws_what_was_found(results, tmp_path):
    # Protects the picture in the talk: each point is a number of the table.
    figure = figures.accuracy_figure(results, base_accuracy=0.5, caption="60 images")
    (axes,) = figure.axes
    for rule in RULES:
        place, value = drawn(axes, f"threshold votes, {rule} rule")
        assert place.tolist() == list(range(1, len(PATCHES) + 1))  # not all squares
        found = [results["threshold", patch, rule].certified for patch in PATCHES]
        assert value == pytest.approx([100 * accuracy.value for accuracy in found])
    heights = [
        line.get_ydata()[0]
        for line in axes.get_lines()
        if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2
    ]
    clean = 100 * results["threshold", PATCHES[0], "placement"].clean.value
    assert pytest.approx(clean) in heights and pytest.approx(50) in heights
    ticks = " ".join(tick.get_text() for tick in axes.get_xticklabels())
    assert [patch for patch in PATCHES if str(patch) not in ticks] == []
    check_is_a_picture(figure, tmp_path / "figure.png")


def test_one_patch_makes_a_figure(tmp_path):
    # Protects --patches=5x5: a single point is drawn too, whatever was found.
    none = ds.Evaluation(*[ds.Accuracy(0, 9)] * 3)
    figure = figures.accuracy_figure(
        {("threshold", ds.Patch(5, 5), rule): none for rule in RULES},
        base_accuracy=0.0,
        caption="",
    )
    check_is_a_picture(figure, tmp_path / "figure.png")


def test_every_figure_of_a_report_is_drawn(drawings, written):
    # Protects the figures, for each kind of ablation: labels with units, n, ink.
    for name, figure in drawings.items():
        assert "60 images" in plot_style.get_caption(figure), name
        main = figure.axes[0]
        assert main.get_xlabel() and main.get_ylabel(), name
        check_picture_files(written / f"{name}.png")


def test_figures_show_the_answers(asked, drawings):
    # Protects each figure's numbers: those of evaluation, of the right array.
    store, request, analysis = asked.store, asked.request, asked
    squares = analysis.squares(range(1, 9))
    _, value = drawn(
        drawings["certified_accuracy"].axes[0], "graded votes, placement rule"
    )
    wanted = [
        100 * squares["graded", ds.Patch(m, m), "placement"].certified.value
        for m in range(1, len(value) + 1)
    ]
    assert value == pytest.approx(wanted)
    image = drawings["rectangles"].axes[0].get_images()[0].get_array()
    votes, doubt = request.cast(store.read_all(), "graded")
    for h, w in ((1, 1), (2, 1), (1, 2)):
        touched = ds.touched(store.ablation, ds.Patch(h, w), SIZE)
        certificate = ds.certify(votes, touched, uncertain=doubt)
        found = ds.evaluate(certificate, store.labels).certified
        if h <= image.shape[0] and w <= image.shape[1]:
            assert image[h - 1, w - 1] == pytest.approx(100 * found.value)
    lines = {line.get_label(): line for line in drawings["alarms"].axes[0].lines}
    alarms = analysis.alarms["graded", str(request.patch)]
    for name in ("detected", "unwavering"):
        rates, shares = lines[name].get_data()
        for t, place in ((0, 0), (int(alarms.rival_margin.max()) + 1, -1)):
            at = ds.evaluate_alarm(alarms.at(t), store.labels)
            share = getattr(at, name).value
            if place == 0:
                assert rates[0] == pytest.approx(100 * at.false_alarms.value)
                assert shares[0] == pytest.approx(100 * share)
            elif name == "detected":  # all that is right is, far enough up
                assert shares[-1] == pytest.approx(100 * share)
    bars = drawings["margins"].axes[0].containers
    margin = analysis.margins["graded", str(request.patch), "placement"]
    right = analysis.predictions["graded"] == store.labels
    for bar, mask in zip(bars, (right, ~right), strict=True):
        assert sum(one.get_height() for one in bar) == mask.sum()
        held = sum(one.get_height() for one in bar if one.get_x() >= -1e-9)
        assert held == (mask & (margin >= 0)).sum()  # zero is an edge
    here = drawings["map"].axes[0].get_images()[0].get_array()
    least = ds.vulnerability_map(
        votes, store.ablation, request.patch, SIZE, uncertain=doubt
    )[0]
    np.testing.assert_allclose(here, 100 * (least < 0).mean(axis=0))
    mean = np.mean(analysis.right_by_ablation / NUM_IMAGES)
    assert mean == pytest.approx(ds.base_accuracy(store.read_all(), store.labels))
    for axes, (voting, setting) in zip(
        drawings["settings"].axes, (("threshold", 0.3), ("graded", 3.0)), strict=True
    ):
        tried, value = drawn_line(axes, "right and certified")
        found = analysis.results[voting, str(request.patch), "placement"].certified
        assert value[tried.tolist().index(setting)] == pytest.approx(100 * found.value)


def drawn_line(axes, label):
    (line,) = [one for one in axes.get_lines() if one.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_an_svg_is_the_same_every_time(results):
    # Protects versioned figures and pages: no dates, no random names.
    first, second = (
        plot_style.svg(figures.accuracy_figure(results, base_accuracy=0.5, caption="n"))
        for _ in range(2)
    )
    assert first == second and "<text" in first


def test_the_curve_draws_the_metrics(tmp_path):
    # Protects curve.png: loss and accuracies of metrics.jsonl, over epochs.
    records = [
        {
            "epoch": epoch,
            "loss": 2.0 / epoch,
            "clean_accuracy": 0.5 + epoch / 10,
            "certified_accuracy": 0.3 + epoch / 10,
            "patch": [3, 3],
            "base_accuracy": 0.2 + epoch / 10,
        }
        for epoch in (1, 2, 4)
    ]
    figure = figures.curve_figure(records)
    left, right = figure.axes
    assert left.get_lines()[0].get_ydata() == pytest.approx([2, 1, 0.5])
    for name in ("clean", "certified", "base"):
        patch = " at 3x3" if name == "certified" else ""
        epochs, value = drawn(right, f"{name}{patch}")
        assert epochs.tolist() == [1, 2, 4]
        assert value == pytest.approx([100 * r[f"{name}_accuracy"] for r in records])
    # A run that is validated once has points, which lines alone do not show.
    lines = [*left.get_lines(), *right.get_lines()]
    assert {line.get_marker() for line in lines} == {"o"}
    check_is_a_picture(figure, tmp_path / "curve.png")


def check_is_a_picture(figure, path):
    """PNG and SVG; ink on it, and no mark of an overwritten or empty canvas."""
    plot_style.write_figure(figure, path)
    check_picture_files(path)


def check_picture_files(path):
    import matplotlib.image

    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.with_suffix(".svg").read_text().startswith("<?xml")
    pixels = matplotlib.image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) >= 400
    assert 0.01 < (pixels < 0.9).any(axis=-1).mean() < 0.8
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()  # nothing is cut off


# ---- The page --------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The structure of a page: tags, ids, text of the table, and the JSON inside."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.scripts = [], [], [], []
        self.table, self.links, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href")]
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th") and self.table:
            self.table[-1].append("")
        if tag == "script":
            self.scripts.append((found, ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "script" in self.open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + text)
        elif "style" not in self.open:
            self.text += text
            if "td" in self.open or "th" in self.open:
                self.table[-1][-1] += text


@pytest.fixture(scope="module")
def page(written):
    """(page, its JSON, its text)."""
    text = (written / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    return parsed, json.loads(parsed.scripts[0][1]), text


def test_the_page_is_whole_and_loads_nothing(page):
    # Protects "opens from disk": every tag closed, ids once, no address outside.
    parsed, _, text = page
    assert parsed.open == [] and text.startswith("<!doctype html>")
    assert len(set(parsed.ids)) == len(parsed.ids)
    outside = [x for x in parsed.links if not x.startswith(("#", "data:"))]
    assert outside == []
    assert {x[1:] for x in parsed.links if x.startswith("#")} <= set(parsed.ids)
    assert "default-src 'none'" in text and "@import" not in text
    assert parsed.tags.count("svg") == parsed.tags.count("figure") == 7


def test_names_are_text_wherever_they_come_from(page):
    # Protects readers: classes, ids and models may be called anything.
    parsed, data, text = page
    assert parsed.tags.count("b") == 0 and "alert(1)</script" not in text
    assert len(parsed.scripts) == 2  # the data and our own
    assert data["classes"] == EVIL and data["ids"][1] == f"1 {EVIL[1]}"
    assert EVIL[1] in parsed.text  # the model's name, as it is


def test_the_tables_of_the_page_are_evaluations(asked, page):
    # Protects the page's first numbers: one row for each attack and voting.
    request, analysis = asked.request, asked
    rows = [row for row in page[0].table if len(row) in (3, 7)][1:]
    ways = (*request.votings, DOUBLE_MASKING)
    wanted = [(a.name, way) for a in request.attacks for way in ways]
    assert len(rows) == len(wanted)
    for row, (attack, voting) in zip(rows, wanted, strict=True):
        assert attack in row[0] and row[1] == voting.replace("_", " ")
        if (voting, attack, "placement") not in analysis.results:
            assert row[2] == "too large for it"
            continue
        if voting == DOUBLE_MASKING:
            detected = 100 * analysis.detected[attack].value
            assert numbers(row[6]) == pytest.approx([detected], abs=0.051)
        found = analysis.results[voting, attack, "placement"]
        shown = numbers(" ".join(row[2:4])) + numbers(row[5])
        expected = [*percent(found.clean), *percent(found.certified)]
        expected.append(100 * found.certified_wrong.value)
        assert shown == pytest.approx(expected, abs=0.051)
    alarmed = more_tables.alarm_table(analysis)
    rows = [row for row in page[0].table if len(row) == 6][1 : len(alarmed) + 1]
    for row, found in zip(rows, alarmed, strict=True):
        assert found.attack in row[0] and more_tables.describe_alarm(found) == row[2]
        shares = [found.false_alarms, found.detected, found.unwavering]
        expected = [100 * share.value for share in shares if share]
        assert numbers(" ".join(row[3:])) == pytest.approx(expected, abs=0.051)
    ranked = more_tables.top_k_table(analysis)
    rows = [row for row in page[0].table if len(row) == 5 and row[2] in ("2", "3")]
    for row, found in zip(rows, ranked, strict=True):
        assert found.attack in row[0] and row[2] == str(found.k)
        expected = [*percent(found.clean), *percent(found.certified)]
        assert numbers(" ".join(row[3:])) == pytest.approx(expected, abs=0.051)


def test_the_data_of_the_page_are_evaluations(asked, page):
    # Protects slider and gallery: counts of all images, margins of each.
    store, request = asked.store, asked.request
    data, scores = page[1], store.read_all()
    assert data["ids"] == store.ids.tolist() and data["sides"] == list(range(1, 9))
    for voting, held in data["votings"].items():
        votes, doubt = request.cast(scores, voting)
        for index, m in enumerate(data["sides"]):
            touched = ds.touched(store.ablation, ds.Patch(m, m), SIZE)
            certificate = ds.certify(votes, touched, uncertain=doubt)
            found = ds.evaluate(certificate, store.labels)
            margins = [row[index] for row in held["margin"]]
            assert margins == certificate.margin.tolist()
            assert held["prediction"] == certificate.prediction.tolist()
            square = held["squares"][index]
            for shown, accuracy in (
                (held["clean"], found.clean),
                (square["certified"], found.certified),
                (square["wrong"], found.certified_wrong),
            ):
                assert shown == [accuracy.count, *accuracy.interval]
        largest = ds.largest_certified_patch(
            votes, store.ablation, SIZE, uncertain=doubt
        )
        assert held["largest"] == largest.tolist()


def test_the_page_says_of_an_image_what_ranks_and_alarms_say(asked, page):
    # Protects the detail of an image: each rank and each alarm is the functions' own.
    store, request, data = asked.store, asked.request, page[1]
    scores, states = store.read_all(), set()
    for voting, held in data["votings"].items():
        votes, doubt = request.cast(scores, voting)
        rates = {
            f"{100 * r:g} %": m for (v, r), m in request.alarms.items() if v == voting
        }
        single = [attack for attack in request.attacks if attack.num_patches == 1]
        for attack, one in zip(single, held["asked"], strict=True):
            assert one["attack"] == attack.name
            ranks = ds.worst_rank(
                votes,
                attack.touched,
                classes=store.labels[:, None],
                one_vote=voting == "top_one",
                uncertain=doubt,
            )
            assert one["worstRank"] == ranks[:, 0].tolist()
            assert (np.array(one["rank"]) <= ranks[:, 0]).all()
            assert set(one.get("alarms", {})) == set(rates)
            for rate, margin in rates.items():
                found = ds.certify_with_alarm(
                    votes, attack.touched, alarm_margin=margin, uncertain=doubt
                )
                for i, state in enumerate(one["alarms"][rate]):
                    states.add(state)
                    says = data["alarms"][state]
                    assert (says == "needs none") == found.is_unwavering[i]
                    assert (says == "raised as it is") == found.is_alarm[i]
                    assert (says == "may stay silent") == (
                        not (found.is_alarm[i] or found.is_detected[i])
                    )
    assert len(states) > 2


def test_the_duels_of_the_page_add_up_to_the_margins(asked, page):
    # Protects what is shown of an image: from the page alone, windows and votes give
    # the margin at the worst placement, as the script adds it up.
    import base64

    data = page[1]
    windows, width = data["windows"], data["imageSize"][1]

    def meets(band, start, m):
        return any(a < start + m and start < b for a, b in band)

    num_columns = len(windows["columns"])
    kept = windows["choices"]
    kept = kept or [[w] for w in range(len(windows["rows"]) * num_columns)]
    for held in data["votings"].values():
        for image in range(0, NUM_IMAGES, 7):
            for index, m in enumerate(data["sides"]):
                row, column = divmod(held["corner"][image][index], width)
                touched = np.array(
                    [
                        any(
                            meets(windows["rows"][w // num_columns], row, m)
                            and meets(windows["columns"][w % num_columns], column, m)
                            for w in choice
                        )
                        for choice in kept
                    ]
                )
                rival = held["rival"][image][index]
                coded = base64.b64decode(held["duels"][image][str(rival)])
                duel = np.frombuffer(coded, np.int8).astype(int)
                tie = rival < held["prediction"][image]
                left = duel[~touched].sum() - held["limit"] * touched.sum() - tie
                assert left == held["margin"][image][index]


# ---- Which images, and their pictures --------------------------------------------


def test_a_large_store_shows_every_class_its_share(tmp_path):
    # Protects 10,000 images: a fixed sample, in order, none twice, nobody's choice.
    store = make_store(tmp_path / "scores", num_images=2600)
    chosen = thumbnails.choose(store)
    assert len(chosen) == thumbnails.MOST_IMAGES and (np.diff(chosen) > 0).all()
    share = np.bincount(store.labels[chosen]) / len(chosen)
    assert share == pytest.approx(np.bincount(store.labels) / 2600, abs=0.001)
    request = make_request(store, has_figures=False)
    analysis = analyze(store, request)
    data = explorer_data.explore(analysis)
    assert data["numImages"] == 2600 and len(data["ids"]) == 1000
    found = analysis.results["graded", "2x2", "placement"]
    assert data["votings"]["graded"]["squares"][1]["certified"][0] == (
        found.certified.count
    )
    assert data["votings"]["graded"]["prediction"] == (
        analysis.predictions["graded"][chosen].tolist()
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pictures_are_of_the_images_shown(tmp_path, dtype):
    # Protects the gallery: the picture beside an image's votes is that image's.
    store = make_store(tmp_path / "scores")
    images = np.random.default_rng(1).integers(0, 256, (NUM_IMAGES, *SIZE, 1))
    given = images.astype(np.uint8)
    if dtype == np.float32:
        given = given.astype(np.float32) / 255
    assert thumbnails.load_thumbnails(store) is None
    ds.save_thumbnails(store, given)
    np.testing.assert_array_equal(thumbnails.load_thumbnails(store), images)
    other = make_store(tmp_path / "other", made_by={"images": "of another kind"})
    thumbnails.thumbnails_path(store).rename(thumbnails.thumbnails_path(other))
    assert thumbnails.load_thumbnails(other) is None
    thumbnails.thumbnails_path(other).write_bytes(b"no zip")
    assert thumbnails.load_thumbnails(other) is None


def test_pictures_of_narrow_floats_are_of_their_float32(tmp_path):
    # Protects bfloat16 images, whose own arithmetic has eight bits.
    store = make_store(tmp_path / "scores")
    images = np.random.default_rng(1).random((NUM_IMAGES, *SIZE, 1))
    images = images.astype(ml_dtypes.bfloat16)
    ds.save_thumbnails(store, images)
    wanted = np.rint(255 * images.astype(np.float32)).astype(np.uint8)
    np.testing.assert_array_equal(thumbnails.load_thumbnails(store), wanted)


@pytest.mark.parametrize("shape", [(5, 9, 7, 1), (3, 100, 150, 3), (0, 8, 8, 3)])
def test_an_atlas_holds_each_picture_in_its_cell(shape):
    # Protects the page's pictures: row by row, none over another's edge.
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    media, content, columns, (height, width) = thumbnails.atlas(pixels)
    assert media == "image/png"
    sheet = np.asarray(Image.open(io.BytesIO(content))).reshape(
        -1, columns * width, shape[3]
    )
    for i, one in enumerate(pixels):
        row, column = divmod(i, columns)
        cell = sheet[row * height :, column * width :][: shape[1], : shape[2]]
        np.testing.assert_array_equal(cell, one)


def test_a_page_with_pictures_holds_them_once(tmp_path):
    # Protects the size: one picture for all, and a page that names its cells.
    store = make_store(tmp_path / "scores")
    ds.save_thumbnails(store, np.zeros((NUM_IMAGES, *SIZE, 1), np.uint8))
    request = make_request(store)
    text = render(analyze(store, request), {})
    assert text.count("data:image/png;base64,") == 1
    data = json.loads(Page(text).scripts[0][1])
    assert data["atlas"]["size"] == list(SIZE) and data["atlas"]["columns"] == 8


def test_large_images_are_shrunk(tmp_path):
    # Protects the size where images are of photographs.
    shape = (96, 192, 3)
    store = ds.save_scores(
        tmp_path / "scores",
        np.full((2, 3, 2), 0.5, np.float32),
        ablation=ds.Columns(64, stride=64),
        image_shape=shape,
        labels=[0, 1],
    )
    images = np.broadcast_to(np.uint8([[0], [200]])[:, :, None, None], (2, *shape))
    ds.save_thumbnails(store, images)
    small = thumbnails.load_thumbnails(store)
    assert small.shape == (2, 32, 64, 3)
    assert small.mean(axis=(1, 2, 3)).tolist() == [0, 200]
    assert thumbnails.class_names(store) == ["class 0", "class 1"]


# ---- Runs side by side -----------------------------------------------------------


def test_runs_are_compared_image_by_image(tmp_path):
    # Protects a comparison: each run's own numbers, and which images made them differ.
    stores = {
        "one": make_store(tmp_path / "one", seed=1),
        "two": make_store(tmp_path / "two", ablation=ds.Columns(3), seed=2),
    }
    patches = [ds.Patch(1, 1), ds.Patch(2, 2)]
    runs = comparison.compare(stores, patches)
    rows = comparison.rows(runs)
    assert [(r["patch"], r["run"]) for r in rows] == [
        (str(p), name) for p in patches for name in stores
    ]
    for row, patch in zip(rows, np.repeat(patches, 2), strict=True):
        store = stores[row["run"]]
        levels = ds.graded_votes(store.read_all(), 5.0)
        touched = ds.touched(store.ablation, patch, SIZE)
        certificate = ds.certify(levels, touched)
        found = ds.evaluate(certificate, store.labels)
        assert (row["clean"], row["certified"]) == (found.clean, found.certified)
    for first, second in (rows[:2], rows[2:]):
        assert first["gained"] == first["lost"] == 0
        difference = second["certified"].count - first["certified"].count
        assert second["gained"] - second["lost"] == difference
        assert second["gained"] and second["lost"]
    text = comparison.format_comparison(runs)
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["one", "14"], ["two", "14"]]
    for row, line in zip(rows, lines[3:-4], strict=True):
        shown = [100 * row["clean"].value, *percent(row["certified"])]
        assert numbers(line) == pytest.approx(shown, abs=0.051)
    names = comparison.write(runs, tmp_path / "out")
    assert all((tmp_path / "out" / name).exists() for name in names)
    _, value = drawn_line(
        comparison.draw(runs).axes[0],
        f"two (clean {100 * rows[1]['clean'].value:.1f} %)",
    )
    assert value[:2] == pytest.approx(
        [100 * rows[1]["certified"].value, 100 * rows[3]["certified"].value]
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_images": 59}, "number of images differ, 60 and 59"),
        ({"made_by": {"images": "others"}}, "pixels differ, these and others"),
    ],
)
def test_runs_on_other_images_are_refused(tmp_path, change, word):
    # Protects from tables that compare nothing.
    one = make_store(tmp_path / "one", made_by={"images": "these"})
    two = make_store(tmp_path / "two", **{"made_by": {"images": "these"}} | change)
    with pytest.raises(ds.StoreError, match=word):
        comparison.compare({"one": one, "two": two}, PATCHES)
    with pytest.raises(ValueError, match="two or more"):
        comparison.compare({"one": one}, PATCHES)
    with pytest.raises(ds.StoreError, match=r"certify\.py --workdir"):
        comparison.find_scores(tmp_path / "nothing", "test")
    assert len(comparison.find_scores(tmp_path / "one", "test")) == NUM_IMAGES
