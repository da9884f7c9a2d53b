"""Bad images, classifiers, batch sizes: refused by name, with the remedy."""

import numpy as np
from refusals import (
    COLUMNS,
    IMAGES,
    KEY,
    NAN_IMAGES,
    SIZE,
    SMOOTHED,
    VOTES,
    check_refused,
    each,
    leaky,
    mixing,
    save,
    uniform,
)

import dsmooth_jax as ds


def calls():
    # Images.
    takes_images = [
        ("ablate", lambda x: ds.ablate(x, COLUMNS)),
        ("crop", lambda x: ds.crop(x, COLUMNS)),
        ("random_ablate", lambda x: ds.random_ablate(KEY, x, COLUMNS)),
        ("score", lambda x: ds.score(uniform, x)),
        ("SmoothedClassifier.score", SMOOTHED.score),
        ("SmoothedClassifier.predict", SMOOTHED.predict),
        ("SmoothedClassifier.certify", lambda x: SMOOTHED.certify(x, ds.Patch(1, 1))),
    ]
    for what, images, error, words in (
        ("a list", IMAGES.tolist(), TypeError, ["list", "array"]),
        ("int32", IMAGES.astype(np.int32), TypeError, ["int32", "uint8", "[0, 1]"]),
        ("bool", IMAGES > 0, TypeError, ["bool", "uint8", "[0, 1]"]),
        ("one image", IMAGES[0], ValueError, ["(4, 6, 1)", "images[None]"]),
        (
            "no channel",
            IMAGES[:, :, :, :0],
            ValueError,
            ["(2, 4, 6, 0)", "[N, H, W, C]"],
        ),
        ("0..255", IMAGES + 200, ValueError, ["[0, 0, 0, 0] = 200", "divide", "uint8"]),
        ("below 0", IMAGES - 0.5, ValueError, ["[0, 0, 0, 0] = -0.5", "[0, 1]"]),
        ("NaN", NAN_IMAGES, ValueError, ["[0, 0, 3, 0] = nan", "[0, 1]"]),
    ):
        for name, call in takes_images:
            what_row = f"{name}: images {what}"
            yield what_row, lambda c=call, x=images: c(x), error, ["images", *words]
    for name, call in takes_images[4:]:
        yield (
            f"{name}: images of another size",
            lambda c=call: c(np.zeros((1, 5, 6, 1))),
            ValueError,
            ["images", "(5, 6, 1)", "(4, 6, 1)"],
        )

    # Functions of images and an ablation.
    for name, call in (
        ("ablate", lambda a: ds.ablate(IMAGES, a)),
        ("crop", lambda a: ds.crop(IMAGES, a)),
        ("random_ablate", lambda a: ds.random_ablate(KEY, IMAGES, a)),
    ):
        words = ["width=7", "1..6"]
        yield f"{name}: width", lambda c=call: c(ds.Columns(7)), ValueError, words
    yield (
        "crop: several windows",
        lambda: ds.crop(IMAGES, ds.MultiColumns(2, 2)),
        TypeError,
        ["MultiColumns(width=2, keep=2)", "several windows", "Columns, Rows or Blocks"],
    )
    for name, call in (
        ("ablate", lambda a: ds.ablate(IMAGES, a)),
        ("crop", lambda a: ds.crop(IMAGES, a)),
        ("random_ablate", lambda a: ds.random_ablate(KEY, IMAGES, a)),
        ("masked_scores", lambda a: ds.masked_scores(uniform, a)),
        ("cropped_scores", lambda a: ds.cropped_scores(uniform, a)),
        ("one_pass_scores", lambda a: ds.one_pass_scores(uniform, a)),
        ("check_locality", lambda a: ds.check_locality(uniform, a, (*SIZE, 1))),
        (
            "largest_certified_patch",
            lambda a: ds.largest_certified_patch(VOTES, a, SIZE),
        ),
        (
            "touched_by_any",
            lambda a: ds.touched_by_any(a, (ds.Patch(1, 1),), SIZE),
        ),
        (
            "vulnerability_map",
            lambda a: ds.vulnerability_map(VOTES, a, ds.Patch(1, 1), SIZE),
        ),
        ("save_scores", lambda a: save(ablation=a)),
        ("SmoothedClassifier", lambda a: ds.SmoothedClassifier(uniform, a)),
    ):
        words = ["ablation='Columns(4)'"]
        yield f"{name}: text", lambda c=call: c("Columns(4)"), TypeError, words

    empty = ["scores_fns=[]", "at least one"]
    yield "mean_scores: none", lambda: ds.mean_scores([]), ValueError, empty

    # Base classifiers and the settings that only run faster.
    for name, argument, call in (
        ("masked_scores", "chunk_size", lambda n: ds.masked_scores(
            uniform, COLUMNS, chunk_size=n)),
        ("cropped_scores", "chunk_size", lambda n: ds.cropped_scores(
            uniform, COLUMNS, chunk_size=n)),
        ("check_locality", "batch_size", lambda n: ds.check_locality(
            uniform, COLUMNS, (*SIZE, 1), batch_size=n)),
        ("score", "batch_size", lambda n: ds.score(uniform, IMAGES, batch_size=n)),
        ("SmoothedClassifier.predict", "batch_size", lambda n: SMOOTHED.predict(
            IMAGES, batch_size=n)),
    ):  # fmt: skip
        for value, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError)):
            yield (
                f"{name}: {argument}={value}",
                lambda c=call, v=value: c(v),
                error,
                [f"{argument}={value}", ">= 1" if error is ValueError else "integer"],
            )
    yield (
        "score: scores of another shape",
        lambda: ds.score(lambda x: x[..., 0, 0], IMAGES, batch_size=4),
        ValueError,
        ["scores_fn", "(4, 4)", "[B, P, K]"],
    )
    yield (
        "masked_scores: logits of another shape",
        lambda: ds.score(
            ds.masked_scores(lambda x: x.mean((0, 1, 2)), COLUMNS), IMAGES
        ),
        ValueError,
        ["logits_fn", "(2,)", "K]"],
    )
    yield (
        "one_pass_scores: logits of another ablation",
        lambda: ds.score(ds.one_pass_scores(uniform, ds.Rows(1)), IMAGES, batch_size=4),
        ValueError,
        ["logits_fn", "(4, 6, 3)", "[4, 4, K]", "Rows(height=1"],
    )
    yield (
        "cropped_scores: several windows",
        lambda: ds.cropped_scores(uniform, ds.MultiColumns(2, 2)),
        TypeError,
        ["MultiColumns(width=2, keep=2)", "several windows", "Columns, Rows or Blocks"],
    )
    for what, scores_fn, ablations, words in (
        ("no such ablation", uniform, [0, 6], ["ablations=[0, 6]", "0..5"]),
        ("none", uniform, [], ["ablations=[]", "0..5"]),
        (
            "of another ablation",
            lambda x: uniform(x)[:, 1:],
            None,
            ["(4, 5, 3)", "6, K"],
        ),
        ("a leak", leaky, None, ["ablation 0", "depends on", "Columns(width=2"]),
        ("of other images", mixing, None, ["image 0", "depend on", "other images"]),
    ):
        yield (
            f"check_locality: {what}",
            lambda f=scores_fn, a=ablations: ds.check_locality(
                f, COLUMNS, (*SIZE, 1), ablations=a, batch_size=4
            ),
            ValueError,
            words,
        )
    yield (
        "SmoothedClassifier.score: scores of another ablation",
        lambda: ds.SmoothedClassifier(uniform, ds.Rows(1)).score(IMAGES),
        ValueError,
        ["6 ablations", "Rows(height=1", "4"],
    )
    yield (
        "SmoothedClassifier: no function",
        lambda: ds.SmoothedClassifier("resnet18", COLUMNS),
        TypeError,
        ["scores_fn='resnet18'", "function"],
    )
    yield (
        "SmoothedClassifier: no such voting",
        lambda: ds.SmoothedClassifier(uniform, COLUMNS, voting="majority"),
        ValueError,
        ["voting='majority'", "threshold", "top_one"],
    )
    for patch, error, words in (
        (ds.Patch(5, 1), ValueError, ["patch 5x1", "4x6"]),
        ((2, 2), TypeError, ["patch=(2, 2)", "Patch"]),
    ):
        yield (
            f"SmoothedClassifier.certify: patch {patch}",
            lambda p=patch: SMOOTHED.certify(IMAGES, p),
            error,
            words,
        )
    for name, call in (
        ("masked_scores", lambda: ds.masked_scores("resnet18", COLUMNS)),
        ("cropped_scores", lambda: ds.cropped_scores("resnet18", COLUMNS)),
        ("one_pass_scores", lambda: ds.one_pass_scores("resnet18", COLUMNS)),
        ("mean_scores", lambda: ds.mean_scores([uniform, "resnet18"])),
        ("score", lambda: ds.score("resnet18", IMAGES)),
    ):
        words = ["'resnet18'", "function"]
        yield f"{name}: no function", call, TypeError, words


@each(calls())
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    check_refused(call, error, words)
