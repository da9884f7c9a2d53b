"""Bad ablations, patches and attackers: refused by name, with the remedy."""

from refusals import COLUMNS, SIZE, VOTES, check_refused, each

import dsmooth_jax as ds


def calls():
    # Ablations and patches: integers >= 1, checked where they are made.
    for cls, names in (
        (ds.Columns, ["width", "stride"]),
        (ds.Rows, ["height", "stride"]),
        (ds.Blocks, ["height", "width", "stride"]),
        (ds.MultiColumns, ["width", "keep"]),
        (ds.MultiBlocks, ["size", "keep"]),
        (ds.Patch, ["height", "width"]),
    ):
        good = dict.fromkeys(names, 1)
        for name in names:
            for value, error, words in (
                (0, ValueError, [">= 1"]),
                (-2, ValueError, [">= 1"]),
                (2.0, TypeError, ["integer"]),
                ("2", TypeError, ["integer"]),
                (True, TypeError, ["integer", "bool"]),
            ):
                arguments = good | {name: value}
                yield (
                    f"{cls.__name__}: {name}={value!r}",
                    lambda cls=cls, arguments=arguments: cls(**arguments),
                    error,
                    [cls.__name__, f"{name}={value!r}", *words],
                )

    # Ablations meet an image.
    for ablation, size, words in (
        (ds.Columns(7), SIZE, ["width=7", "1..6", "image width"]),
        (ds.Rows(5), SIZE, ["height=5", "1..4", "image height"]),
        (ds.Blocks(5, 1), SIZE, ["height=5", "1..4", "image height"]),
        (ds.Blocks(1, 7), SIZE, ["width=7", "1..6", "image width"]),
        (ds.MultiColumns(4, 1), SIZE, ["width=4", "divide", "width", "6"]),
        (ds.MultiColumns(2, 4), SIZE, ["keep=4", "1..3", "windows"]),
        (ds.MultiColumns(1, 14), (4, 28), ["keep=14", "40,116,600", "MAX_ABLATIONS"]),
        (ds.MultiBlocks(3, 1), SIZE, ["size=3", "divide", "height", "4"]),
        (ds.MultiBlocks(4, 1), SIZE, ["size=4", "divide", "width", "6"]),
        (ds.MultiBlocks(2, 7), SIZE, ["keep=7", "1..6", "windows"]),
    ):
        kind = type(ablation)
        for method in ("windows", "starts", "window_shape", "keep_masks"):
            if hasattr(kind, method):
                owner = kind if method in vars(kind) else ds.Ablation
                yield (
                    f"{owner.__name__}.{method}: {ablation} on {size}",
                    lambda a=ablation, s=size, m=method: getattr(a, m)(s),
                    ValueError,
                    words,
                )
    for size, error in (
        ((4, 6, 1), ValueError),
        ((4,), ValueError),
        ((0, 6), ValueError),
        (6, TypeError),
        ((4.0, 6.0), TypeError),
    ):
        words = ["image_size", repr(size), "(H, W)"]
        for name, call in (
            ("Ablation.num_ablations", COLUMNS.num_ablations),
            ("Ablation.keep_masks", COLUMNS.keep_masks),
            ("touched", lambda s: ds.touched(COLUMNS, ds.Patch(1, 1), s)),
            ("largest_certified_patch", lambda s: ds.largest_certified_patch(
                VOTES, COLUMNS, s)),
            ("square_of_percent", lambda s: ds.square_of_percent(2, s)),
            ("rectangles_of_area", lambda s: ds.rectangles_of_area(4, s)),
            ("touched_by_any", lambda s: ds.touched_by_any(
                COLUMNS, (ds.Patch(1, 1),), s)),
            ("vulnerability_map", lambda s: ds.vulnerability_map(
                VOTES, COLUMNS, ds.Patch(1, 1), s)),
        ):  # fmt: skip
            yield f"{name}: size {size}", lambda c=call, s=size: c(s), error, words

    # The attacker.
    for name in ("touched", "placements", "max_touched"):
        function = getattr(ds, name)
        rows = [
            (
                "Columns",
                ds.Patch(1, 1),
                TypeError,
                ["ablation='Columns'", "ds.Columns"],
            ),
            (COLUMNS, (5, 5), TypeError, ["patch=(5, 5)", "ds.Patch(5, 5)"]),
            (COLUMNS, ds.Patch(5, 1), ValueError, ["patch 5x1", "image", "4x6"]),
            (COLUMNS, ds.Patch(1, 7), ValueError, ["patch 1x7", "image", "4x6"]),
            (ds.Columns(7), ds.Patch(1, 1), ValueError, ["width=7", "1..6"]),
        ]
        for ablation, patch, error, words in rows:
            yield (
                f"{name}: {ablation}, {patch}",
                lambda f=function, a=ablation, p=patch: f(a, p, SIZE),
                error,
                words,
            )
    yield (
        "touched: too large to hold",
        lambda: ds.touched(ds.Blocks(1), ds.Patch(1, 1), (300, 300)),
        ValueError,
        ["8,100,000,000", "larger stride"],
    )


@each(calls())
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    check_refused(call, error, words)
