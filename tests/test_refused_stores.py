"""Bad questions, stores and checkpoints: refused by name, with the remedy."""

from refusals import (
    COLUMNS,
    IMAGES,
    LABELS,
    SCORES,
    SIZE,
    TOUCHED,
    VOTES,
    check_refused,
    each,
    folder,
    save,
)

import dsmooth_jax as ds


def calls():
    # What is asked of scores.
    asked = {"votings": ("threshold",), "voting": "threshold", "threshold": 0.3}
    asked |= {
        "attacks": ds.attacks_on(COLUMNS, SIZE, [ds.Patch(1, 1)]),
        "strength": 5.0,
    }
    for name, call, error, words in (
        (
            "attacks_on: patch",
            lambda: ds.attacks_on(COLUMNS, SIZE, [ds.Patch(5, 1)]),
            ValueError,
            ["patch 5x1", "4x6"],
        ),
        (
            "Request: threshold",
            lambda: ds.Request(**asked | {"threshold": 1.5}),
            ValueError,
            ["threshold=1.5", "(0, 1]"],
        ),
        (
            "Request: two of a name",
            lambda: ds.Request(**asked | {"attacks": 2 * asked["attacks"]}),
            ValueError,
            ["1x1", "names"],
        ),
        (
            "Request.cast: voting",
            lambda: ds.Request(**asked).cast(SCORES, "majority"),
            ValueError,
            ["voting='majority'", "graded"],
        ),
        (
            "request_of: strength",
            lambda: ds.request_of(ds.Origin(), asked["attacks"], strength=0.5),
            ValueError,
            ["strength=0.5"],
        ),
        (
            "analyze: other ablations",
            lambda: ds.analyze(
                save(folder() / "s"),
                ds.Request(
                    **asked
                    | {"attacks": ds.attacks_on(ds.Rows(1), SIZE, [ds.Patch(1, 1)])}
                ),
            ),
            ValueError,
            ["touched", "[L, 6]"],
        ),
        (
            "write_report: a file in the way",
            lambda: ds.write_report(
                ds.analyze(
                    save(folder() / "s"), ds.Request(**asked, has_figures=False)
                ),
                folder(x_y="") / "x.y",
            ),
            FileExistsError,
            ["x.y"],
        ),
        (
            "cast_votes: voting",
            lambda: ds.cast_votes(SCORES, "majority"),
            ValueError,
            ["voting='majority'", "graded"],
        ),
        (
            "choose_voting: no image",
            lambda: ds.choose_voting(SCORES[:0], LABELS[:0], TOUCHED),
            ValueError,
            ["no image"],
        ),
        (
            "ablation_from_json: kind",
            lambda: ds.ablation_from_json({"kind": "Rings"}),
            ValueError,
            ["kind='Rings'", "Columns"],
        ),
        (
            "worst_placement: patch",
            lambda: ds.worst_placement(VOTES, COLUMNS, ds.Patch(5, 1), SIZE),
            ValueError,
            ["patch 5x1", "4x6"],
        ),
        (
            "certified_rectangles: sizes",
            lambda: ds.certified_rectangles(VOTES, COLUMNS, SIZE, [2, 1], [1]),
            ValueError,
            ["heights=(2, 1)"],
        ),
    ):
        yield name, call, error, words

    # Stores and checkpoints.
    yield (
        "save_scores: scores of another ablation",
        lambda: save(ablation=ds.Columns(2, stride=2)),
        ValueError,
        ["6 ablations", "stride=2", "3"],
    )
    yield (
        "save_scores: image_shape without channels",
        lambda: save(folder() / "scores", image_shape=SIZE),
        ValueError,
        ["image_shape=(4, 6)", "(H, W, C)"],
    )
    for what, images, error, words in (
        ("other images", IMAGES[:1], ValueError, ["(1, 4, 6, 1)", "(2, 4, 6, 1)"]),
        ("of integers", IMAGES.astype(int), TypeError, ["int64", "uint8"]),
        ("out of range", IMAGES + 2, ValueError, ["[0, 1]"]),
    ):
        yield (
            f"save_thumbnails: {what}",
            lambda images=images: ds.save_thumbnails(save(folder() / "s"), images),
            error,
            words,
        )
    for what, path, words in (
        ("nothing there", lambda: folder() / "scores", ["no store", "manifest.json"]),
        ("a file", lambda: folder(scores="") / "scores", ["scores", "no store"]),
        ("no JSON", lambda: folder(manifest_json="{"), ["manifest.json", "damaged"]),
        ("a list", lambda: folder(manifest_json="[]"), ["manifest.json"]),
        ("newer", lambda: folder(manifest_json='{"format": 99}'), ["99"]),
    ):
        yield (
            f"open_scores: {what}",
            lambda p=path: ds.open_scores(p()),
            ds.StoreError,
            words,
        )
    yield (
        "ScoreStore.read: no such shard",
        lambda: save(folder() / "scores").read(1),
        ds.StoreError,
        ["scores-00001.npy", "missing"],
    )
    yield (
        "load_masked: nothing there",
        lambda: ds.load_masked(folder()),
        ds.CheckpointError,
        ["no checkpoint", "train"],
    )
    yield (
        "load_smoothed: nothing there",
        lambda: ds.load_smoothed(folder()),
        ds.CheckpointError,
        ["no checkpoint", "train"],
    )


@each(calls())
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    check_refused(call, error, words)
