"""Attacks and patches that cannot be: refused by name, with the remedy."""

import numpy as np
from refusals import (
    IMAGES,
    LABELS,
    NAN_IMAGES,
    SCORES,
    SIZE,
    SMOOTHED,
    check_refused,
    each,
)

import dsmooth_jax as ds

PIXELS = np.zeros((2, *SIZE, 1), np.uint8)
CONTENT = PIXELS[0, :2, :3]


def attack(classifier=SMOOTHED, **changes):
    arguments = {"images": PIXELS, "labels": LABELS, "patch": ds.Patch(2, 2)}
    return ds.attack(classifier, **arguments | changes)


def universal(**changes):
    arguments = {"images": PIXELS, "labels": LABELS, "patch": ds.Patch(2, 2)}
    return ds.universal_patch(SMOOTHED, **{"target": 1} | arguments | changes)


def apply_patch(images=PIXELS, contents=CONTENT, corners=(0, 0)):
    return ds.apply_patch(images, contents, corners)


def calls():
    for name, call in (
        ("attack", lambda x: attack(images=x)),
        ("apply_patch", lambda x: apply_patch(images=x)),
    ):
        for what, images, error, words in (
            ("a list", PIXELS.tolist(), TypeError, ["list", "array"]),
            ("int32", PIXELS.astype(np.int32), TypeError, ["int32", "uint8"]),
            ("one image", PIXELS[0], ValueError, ["(4, 6, 1)", "images[None]"]),
            ("NaN", NAN_IMAGES, ValueError, ["[0, 0, 3, 0] = nan", "[0, 1]"]),
        ):
            yield f"{name}: images {what}", lambda c=call, x=images: c(x), error, words
    rows = [
        ("floating", {"images": IMAGES}, TypeError, ["float32", "uint8", "saved"]),
        ("labels short", {"labels": LABELS[:1]}, ValueError, ["labels", "[2]"]),
        (
            "labels floating",
            {"labels": LABELS * 1.0},
            TypeError,
            ["labels", "integers"],
        ),
        ("labels below 0", {"labels": LABELS - 5}, ValueError, ["labels[0] = -5"]),
        ("patch text", {"patch": "2x2"}, TypeError, ["patch='2x2'", "ds.Patch(5, 5)"]),
        ("patch too large", {"patch": ds.Patch(5, 2)}, ValueError, ["5x2", "4x6"]),
        (
            "patch too large for any function",
            {"classifier": lambda x: x[:, 0, :, 0], "patch": ds.Patch(5, 2)},
            ValueError,
            ["5x2", "4x6"],
        ),
        ("scores of others", {"scores": SCORES[:1]}, ValueError, ["scores", "[2, P"]),
        ("scores short", {"scores": SCORES[:, 1:]}, ValueError, ["scores", "5", "6"]),
        (
            "scores integer",
            {"scores": PIXELS[..., 0]},
            TypeError,
            ["scores", "uint8", "floating"],
        ),
        (
            "scores of any function",
            {"classifier": len, "scores": SCORES},
            TypeError,
            ["scores", "SmoothedClassifier", "leave them out"],
        ),
        ("no classifier", {"classifier": 3}, TypeError, ["classifier=3", "function"]),
    ]
    for argument in ("num_candidates", "steps", "num_restarts", "batch_size"):
        words = [f"{argument}=0", ">= 1"]
        rows.append((f"{argument} 0", {argument: 0}, ValueError, words))
    for what, changes, error, words in rows:
        yield f"attack: {what}", lambda c=changes: attack(**c), error, words
    for what, changes, words in (
        ("target", {"target": 3}, ["target=3", "0..2"]),
        ("all of the target", {"labels": LABELS * 0, "target": 0}, ["target=0"]),
        ("steps 0", {"steps": 0}, ["steps=0", ">= 1"]),
        ("brightness", {"brightness": 1.0}, ["brightness=1.0", "< 1"]),
        ("scale 0", {"least_scale": 0.0}, ["least_scale=0.0", "> 0"]),
        ("scale", {"least_scale": 1.5}, ["least_scale=1.5", "<= 1"]),
        ("printable", {"printable": (9, 5)}, ["printable=(9, 5)", "0..255"]),
        ("images floating", {"images": IMAGES}, ["float32", "uint8"]),
    ):
        error = TypeError if "floating" in what else ValueError
        yield f"universal_patch: {what}", lambda c=changes: universal(**c), error, words
    yield (
        "undefended: a function",
        lambda: ds.undefended(len),
        TypeError,
        ["classifier=", "SmoothedClassifier", "as it is"],
    )
    for what, changes, error, words in (
        ("dtype", {"contents": CONTENT / 255}, TypeError, ["float64", "uint8"]),
        ("no image", {"contents": CONTENT[0]}, ValueError, ["(3, 1)", "[h, w, 1]"]),
        ("colors", {"contents": np.zeros((2, 2, 3), "u1")}, ValueError, ["(2, 2, 3)"]),
        ("floats", {"corners": (0.0, 1.0)}, TypeError, ["corners", "integers"]),
        ("outside", {"corners": (3, 0)}, ValueError, ["[3, 0]", "0..[2, 3]", "2x3"]),
        ("below 0", {"corners": (0, -1)}, ValueError, ["[0, -1]"]),
        ("how many", {"corners": [(0, 0)] * 3}, ValueError, ["(3, 2)", "each of 2"]),
    ):
        yield f"apply_patch: {what}", lambda c=changes: apply_patch(**c), error, words


@each(calls())
def test_attacks_that_cannot_be_are_refused(call, error, words, without_shape_checks):
    """Before anything is computed; the error says what to give instead."""
    check_refused(call, error, words)
