"""Examples: they run as printed, and what they say is true."""

import pathlib
import runpy

import numpy as np

import dsmooth_jax as ds

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def test_scores_from_numpy_certifies_what_no_patch_changes(tmp_path, capsys):
    # Protects users with scores of another framework: the whole way from their scores
    # to a certificate, which patches on the *images*, scored anew, cannot break.
    example = runpy.run_path(str(EXAMPLES / "scores_from_numpy.py"))
    example["main"](tmp_path / "scores")
    printed = capsys.readouterr().out
    images, labels, patterns = example["make_data"]()
    store = ds.open_scores(tmp_path / "scores")
    scores = store.read_all()
    np.testing.assert_array_equal(store.labels, labels)
    np.testing.assert_array_equal(
        scores, example["score"](images, patterns).astype(np.float32)
    )

    rng, num_changed = np.random.default_rng(1), 0
    for patch in example["PATCHES"]:
        touched = ds.touched(store.ablation, patch, store.image_size)
        certificates = {
            name: ds.certify(votes, touched)
            for name, votes in example["cast_votes"](scores).items()
        }
        for name, certificate in certificates.items():
            result = ds.evaluate(certificate, labels)
            assert name in printed
            assert f"certified at {patch}  {100 * result.certified.value:5.1f} %" in (
                printed
            )
            assert 0.5 < result.certified.value < result.clean.value < 1
        for target in range(store.num_classes):  # the pattern's extreme, per class
            row, column = rng.integers(np.array(store.image_size) - [5, 8] + 1)
            here = np.s_[row : row + patch.height, column : column + patch.width]
            attacked = images.copy()
            attacked[:, *here] = patterns[target][here] > 0.5
            rescored = example["score"](attacked, patterns)
            for name, votes in example["cast_votes"](rescored).items():
                found = ds.certify(votes, touched).prediction
                changed = found != certificates[name].prediction
                assert not (changed & certificates[name].is_certified).any()
                num_changed += changed.sum()
    assert num_changed  # the attack is one: it does change what is not certified


def test_the_photograph_is_certified_as_printed(capsys):
    # Protects the first thing that a new user runs: the shipped model on a picture.
    runpy.run_path(str(EXAMPLES / "certify_photograph.py"))["main"]()
    assert capsys.readouterr().out.splitlines() == [
        "photograph.png: automobile",
        "certified: no patch of 5x5 pixels, anywhere, can change that",
        "the largest square that is proven harmless: 11x11 pixels",
    ]
