"""What differs between two records, in words that a user can act on."""

import numpy as np
import pytest

from dsmooth_jax.storage.provenance import describe_difference

SUM, OTHER = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    ("saved", "wanted", "words"),
    [
        ({"ids": SUM}, {"ids": OTHER}, "ids: other images"),
        ({"labels": SUM}, {"labels": OTHER}, "labels: other labels"),
        (
            {"made_by": {"checkpoint": SUM, "images": SUM}},
            {"made_by": {"checkpoint": OTHER, "images": OTHER}},
            "made_by.checkpoint: another classifier, or trained further; "
            "made_by.images: other pixels",
        ),
        (
            {"fingerprints": {"train": SUM, "validation": SUM}},
            {"fingerprints": {"train": OTHER, "validation": OTHER}},
            "fingerprints.train: other training images; "
            "fingerprints.validation: other validation images",
        ),
        ({"unknown": SUM}, {"unknown": OTHER}, "unknown: another one"),
        ({"ids": SUM}, {}, "ids: other images"),
        ({"n": 12}, {"n": 5}, "n: saved 12, wanted 5"),
        ({}, {"n": [1]}, "n: saved nothing, wanted [1]"),
        ({"n": None}, {}, "n: saved null, wanted nothing"),
        (
            {"a": {}},
            {"a": {"b": 1}},
            "a: saved {}, wanted nothing; a.b: saved nothing, wanted 1",
        ),
        ({"a": (1, 2), "b": 1.0}, {"a": [1, 2], "b": 1}, ""),
    ],
)
def test_a_difference_is_said_in_words_never_by_checksums(saved, wanted, words):
    """No user can compare checksums; what they stand for is said instead."""
    assert describe_difference(saved, wanted) == words


def test_long_lists_are_not_shown():
    """1,000 class names are no line that anybody reads."""
    names = np.arange(1000).astype(str).tolist()
    found = describe_difference({"names": names}, {"names": names[:-1]})
    assert found == "names: another one"
