"""Bad masks and tables of double masking: refused by name, with the remedy."""

import numpy as np
from refusals import COLUMNS, SCORES, SIZE, at, check_refused, each

import dsmooth_jax as ds


def calls():
    levels = np.zeros((1, 6, 2), np.int16)
    out = np.eye(6, dtype=bool)
    table = np.zeros((1, 2, 2), np.int16)
    image = np.zeros((1, 6, 6, 1), np.float32)
    masks = ds.Masks(2, stride=2)
    masked = ds.MaskedClassifier(lambda x: x[:, 0, 0], masks, image_shape=(6, 6, 1))
    for value, error in ((0, ValueError), (2.0, TypeError)):
        yield (
            f"Masks: {value}",
            lambda v=value: ds.Masks(v, stride=1),
            error,
            ["height"],
        )
    for name in ("hide_masks", "num_masks", "starts"):
        yield (
            f"Masks.{name}: larger than the image",
            lambda n=name: getattr(ds.Masks(7, stride=1), n)((6, 6)),
            ValueError,
            ["height=7", "1..6"],
        )
    for name, call in (
        ("covering_masks", lambda p: ds.covering_masks(p, (6, 6))),
        ("covering", lambda p: ds.covering(masks, p, (6, 6))),
        ("design_masks", lambda p: ds.design_masks(COLUMNS, p, SIZE)),
        ("merged_masks", lambda p: ds.merged_masks(COLUMNS, p, SIZE)),
    ):
        large = ds.Patch(7, 7)
        yield f"{name}: too large", lambda c=call, p=large: c(p), ValueError, ["7x7"]
    floats = levels.astype(float)
    for name, call in (
        ("mask_table", ds.mask_table),
        ("certify_masked", lambda x, m: ds.certify_masked(x, m, out)),
    ):
        yield (
            f"{name}: levels of floats",
            lambda c=call: c(floats, out),
            TypeError,
            ["float64"],
        )
    many = np.zeros((1, out.shape[1], 32_767), np.int8)
    yield (
        "mask_table: more classes than a table has room for",
        lambda: ds.mask_table(many, out),
        ValueError,
        ["32767 classes", "32766 at most"],
    )
    for name, call in (
        ("ablation_masks", lambda: ds.ablation_masks(out.astype(int))),
        ("covering_touched", lambda: ds.covering_touched(out.astype(int), out)),
    ):
        yield f"{name}: integers", call, TypeError, ["int64", "bool"]
    for name, call in (
        ("double_masking_predict", lambda: ds.double_masking_predict(table[0])),
        (
            "certify_double_masking",
            lambda: ds.certify_double_masking(table[0], np.ones((1, 2), bool)),
        ),
    ):
        yield f"{name}: one image", call, ValueError, ["(2, 2)", "[N, M, M]"]
    for name, call in (("log_levels", ds.log_levels), ("log_doubts", ds.log_doubts)):
        yield (
            f"{name}: logits",
            lambda c=call: c(at(SCORES, 3.0)),
            ValueError,
            ["[1, 2, 0]", "[0, 1]", "softmax"],
        )
    yield (
        "MaskedClassifier: masks of another kind",
        lambda: ds.MaskedClassifier(lambda x: x, COLUMNS),
        TypeError,
        ["masks=", "ds.Masks"],
    )
    other = image[:, :5]
    for name, call in (
        ("label", lambda: masked.label(other)),
        ("predict", lambda: masked.predict(other)),
        ("certify", lambda: masked.certify(other, ds.Patch(1, 1))),
    ):
        words = ["(5, 6, 1)", "(6, 6, 1)"]
        yield f"MaskedClassifier.{name}: another shape", call, ValueError, words
    yield (
        "mask_labels: fill",
        lambda: ds.mask_labels(lambda x: x[:, 0, 0], masks, image, fill=2.0),
        ValueError,
        ["fill=2.0", "[0, 1]"],
    )
    yield (
        "open_labels: nothing there",
        lambda: ds.open_labels("/nowhere/labels"),
        ds.StoreError,
        ["/nowhere/labels"],
    )


@each(calls())
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    check_refused(call, error, words)
