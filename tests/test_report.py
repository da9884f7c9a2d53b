"""Tables, rows and figures: every number in them is one that evaluation counted."""

import csv
import io
import re

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import report

NUM_IMAGES = 40
PATCHES = [
    ds.Patch(1, 1),
    ds.Patch(5, 2),
    ds.Patch(2, 5),
    ds.Patch(2, 2),
    ds.Patch(4, 4),
]
RULES = ("placement", "margin")


@pytest.fixture(scope="module")
def results():
    """What certify.py finds, for images of which some are certified by each rule."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, NUM_IMAGES)
    ablation, size = ds.Columns(2), (8, 14)
    lean = rng.random((NUM_IMAGES, 1, 1)) * (np.arange(3) == labels[:, None, None])
    scores = rng.dirichlet(np.ones(3), (NUM_IMAGES, 14)) / 2 + 2 * lean / 4
    votes = ds.threshold_votes(scores.astype(np.float32), 0.3)
    found = {}
    for patch in PATCHES:
        touched = ds.touched(ablation, patch, size)
        for rule in RULES:
            certificate = ds.certify(votes, touched, rule=rule)
            found["threshold", patch, rule] = ds.evaluate(certificate, labels)
    shares = {(r.certified.count, rule) for (_, _, rule), r in found.items()}
    assert len(shares) >= 4  # or swapped columns would look the same
    return found


def numbers(line):
    return [float(x) for x in re.findall(r"\d+\.\d", line)]


def percent(accuracy):
    return [100 * x for x in (accuracy.value, *accuracy.interval)]


def test_the_table_prints_what_was_found(results):
    # Protects the table that users quote: a line for each patch, in the order asked.
    header = report.format_table(results).splitlines()[:3]
    assert "clean" in header[0] and "95 %" in header[1] and "margin rule" in header[0]
    lines = report.format_table(results).splitlines()[3:]
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
        ("threshold", ds.Patch(224, 224), rule): ds.Evaluation(every, none, every)
        for rule in RULES
    }
    lines = report.format_table(results | extreme).splitlines()
    assert len({len(line.rstrip()) for line in lines[2:]}) == 1
    assert max(map(len, lines)) <= 100
    assert "nan" in report.format_accuracy(ds.Accuracy(0, 0))


def test_a_record_holds_what_was_found(results):
    # Protects summary.json: names of the design, shares in [0, 1], nothing rounded.
    for (_, patch, rule), result in results.items():
        assert report.accuracy_record("threshold", patch, rule, result) == {
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


def test_rows_come_back_from_csv():
    # Protects rows.csv: a line for each image, also where an id holds what CSV uses.
    columns = {
        "id": np.array(["plain", "with,comma", 'with"quote', "with\nline", ""]),
        "label": np.arange(5),
        "margin_2x2_placement": np.array([-3, 0, 7, 2**40, -(2**40)]),
    }
    text = report.format_rows(columns)
    header, *rows = csv.reader(io.StringIO(text))
    assert header == list(columns)
    assert [row[0] for row in rows] == columns["id"].tolist()
    for i, name in enumerate(list(columns)[1:], start=1):
        assert [int(row[i]) for row in rows] == columns[name].tolist()
    assert "\r" not in text


def test_rows_of_unequal_length_are_refused():
    # Protects the pairing of images with certificates.
    with pytest.raises(ValueError):
        report.format_rows({"id": ["a", "b"], "label": [0]})


def drawn(axes, label):
    """(x, y) of the line of this label."""
    by_label = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    handle = by_label[label]
    line = handle.lines[0] if hasattr(handle, "lines") else handle
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_the_figure_draws_what_was_found(results, tmp_path):
    # Protects the picture in the talk: each point is a number of the table.
    figure = report.accuracy_figure(results, base_accuracy=0.5, caption="40 images")
    (axes,) = figure.axes
    for rule in RULES:
        place, value = drawn(axes, f"threshold votes, {rule} rule")
        assert place.tolist() == list(range(1, len(PATCHES) + 1))  # not all squares
        found = [results["threshold", patch, rule].certified for patch in PATCHES]
        wanted = [100 * accuracy.value for accuracy in found]
        assert value == pytest.approx(wanted)
    heights = [
        line.get_ydata()[0]
        for line in axes.get_lines()
        if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2
    ]
    clean = 100 * results["threshold", PATCHES[0], "placement"].clean.value
    assert pytest.approx(clean) in heights and pytest.approx(50) in heights
    assert axes.get_xlabel() and axes.get_ylabel()
    check_is_a_picture(figure, tmp_path / "figure.png")


def test_every_patch_is_named_on_the_axis(results):
    # Protects shapes of equal area, 5x2 and 2x5: neither may vanish from the labels.
    figure = report.accuracy_figure(results, base_accuracy=0.5, caption="")
    ticks = " ".join(tick.get_text() for tick in figure.axes[0].get_xticklabels())
    assert [patch for patch in PATCHES if str(patch) not in ticks] == []


def test_one_patch_makes_a_figure(results, tmp_path):
    # Protects --patches=5x5: a single point is drawn too, whatever was found.
    none = ds.Evaluation(*[ds.Accuracy(0, 9)] * 3)
    figure = report.accuracy_figure(
        {("threshold", ds.Patch(5, 5), rule): none for rule in RULES},
        base_accuracy=0.0,
        caption="",
    )
    check_is_a_picture(figure, tmp_path / "figure.png")


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
    figure = report.curve_figure(records)
    left, right = figure.axes
    assert left.get_lines()[0].get_ydata() == pytest.approx([2, 1, 0.5])
    for name in ("clean", "certified", "base"):
        patch = " at 3x3" if name == "certified" else ""
        epochs, value = drawn(right, f"{name} accuracy{patch}")
        assert epochs.tolist() == [1, 2, 4]
        assert value == pytest.approx([100 * r[f"{name}_accuracy"] for r in records])
    check_is_a_picture(figure, tmp_path / "curve.png")


def check_is_a_picture(figure, path):
    """A PNG with ink on it, and no mark of an overwritten or empty canvas."""
    import matplotlib.image

    report.write_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = matplotlib.image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) >= 400
    assert 0.01 < (pixels < 0.9).any(axis=-1).mean() < 0.5
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()  # nothing is cut off
