"""Accuracies: counts by loops, intervals by the formula, choices by search."""

import math

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax import evaluation
from dsmooth_jax.evaluation import STRENGTHS

Z = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@pytest.mark.parametrize("num_images", [1, 2, 10, 1000])
def test_intervals_are_wilsons(num_images):
    # Protects the intervals that the table prints: 95 %, two-sided, no correction.
    counts = sorted({0, 1, num_images // 3, num_images - 1, num_images})
    for count in counts:
        p, n = count / num_images, num_images
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        accuracy = ds.Accuracy(count, num_images)
        low, high = accuracy.interval
        assert accuracy.value == p
        assert low == pytest.approx(max(0, middle - half), abs=1e-12)
        assert high == pytest.approx(min(1, middle + half), abs=1e-12)
        assert 0 <= low <= p <= high <= 1


def test_of_no_images_nothing_is_known():
    # Protects N = 0: no division by zero, and the whole range as interval.
    nothing = ds.Accuracy(0, 0)
    assert math.isnan(nothing.value) and nothing.interval == (0, 1)
    none = ds.certify(np.zeros((0, 2, 3), bool), np.eye(2, dtype=bool))
    assert ds.evaluate(none, np.zeros(0, int)).certified == nothing
    assert math.isnan(ds.base_accuracy(np.zeros((0, 2, 3)), np.zeros(0, int)))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_counts_are_those_of_a_loop(dtype):
    # Protects what each accuracy counts, and that margin 0 is certified.
    rng = np.random.default_rng(0)
    for _ in range(20):
        prediction, labels = rng.integers(0, 3, (2, 30))
        margin = rng.integers(-2, 3, 30)
        certificate = ds.Certificate(prediction, margin, np.zeros((30, 3), np.int64))
        clean = certified = wrong = 0
        for guess, truth, left in zip(prediction, labels, margin, strict=True):
            clean += int(guess == truth)
            certified += int(guess == truth and left >= 0)
            wrong += int(guess != truth and left >= 0)
        assert ds.evaluate(certificate, labels.astype(dtype)) == ds.Evaluation(
            ds.Accuracy(clean, 30), ds.Accuracy(certified, 30), ds.Accuracy(wrong, 30)
        )


def test_base_accuracy_is_that_of_a_loop():
    # Protects the mean over images and ablations, with ties to the smaller class; and
    # what each position contributes to it.
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (7, 5, 3)) / 2, rng.integers(0, 3, 7)
    hits = np.zeros(5, int)
    for n, p in np.ndindex(7, 5):
        row = scores[n, p].tolist()
        hits[p] += row.index(max(row)) == labels[n]
    assert ds.base_accuracy(scores, labels) == pytest.approx(hits.sum() / 35)
    assert evaluation.right_by_ablation(scores, labels).tolist() == hits.tolist()


@pytest.mark.parametrize("rule", ["placement", "margin"])
def test_the_chosen_threshold_is_the_best_of_all(rule):
    # Protects the choice, ties included: of coarse scores many thresholds are equal.
    rng = np.random.default_rng(0)
    candidates = np.round(np.arange(1, 20) * 0.05, 2)
    touched = ds.touched(ds.Columns(1), ds.Patch(1, 2), (1, 6))
    ties = 0
    for _ in range(40):
        labels = rng.integers(0, 3, 6)
        lean = 2.0 * (np.arange(3) == labels[:, None, None])
        scores = np.round(rng.dirichlet(np.ones(3), (6, 6)) * 5 + lean) / 10
        found = {}
        for threshold in candidates.tolist():
            votes = scores.astype(np.float32) >= np.float32(threshold)
            certificate = ds.certify(votes, touched, rule=rule)
            right = certificate.prediction == labels
            certified = (right & certificate.is_certified).sum()
            found[threshold] = (int(certified), int(right.sum()))
        best = [t for t in found if found[t] == max(found.values())]
        ties += len(best) > 1
        shuffled = rng.permutation(candidates).tolist()
        chosen = ds.choose_threshold(
            scores.astype(np.float32), labels, touched, thresholds=shuffled, rule=rule
        )
        assert chosen == min(best) and type(chosen) is float
    assert ties > 10  # or the ties were not tested


def test_certified_counts_before_clean():
    # Protects the order of the two: a threshold is chosen for what it can prove.
    touched = np.eye(4, dtype=bool)
    labels = np.array([0, 1, 1])
    # At 0.2 image 0 is certified and 1 and 2 are lost; at 0.6 only those two are right.
    scores = np.array(
        [
            [[0.3, 0.0]] * 4,
            [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0], [0.3, 0.7]],
            [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0], [0.3, 0.7]],
        ],
        np.float32,
    )
    found = {}
    for threshold in (0.2, 0.6):
        certificate = ds.certify(ds.threshold_votes(scores, threshold), touched)
        result = ds.evaluate(certificate, labels)
        found[threshold] = (result.certified.count, result.clean.count)
    assert found == {0.2: (1, 1), 0.6: (0, 3)}
    for order in ((0.2, 0.6), (0.6, 0.2)):
        chosen = ds.choose_threshold(scores, labels, touched, thresholds=order)
        assert chosen == 0.2


def test_the_rule_takes_part_in_the_choice():
    # Protects rule=: the rules certify different images, so they choose differently.
    rng = np.random.default_rng(0)
    touched = np.array([[1, 1, 0, 0, 0, 0, 0]], bool)
    chosen = []
    for _ in range(20):
        labels = rng.integers(0, 2, 5)
        lean = labels[:, None, None] == np.arange(2)
        scores = ((rng.dirichlet(np.ones(2), (5, 7)) + lean) / 2).astype(np.float32)
        chosen.append(
            [
                ds.choose_threshold(scores, labels, touched, rule=rule)
                for rule in ("placement", "margin")
            ]
        )
    assert any(a != b for a, b in chosen)


def test_evaluate_leaves_its_arguments_alone():
    # Protects labels that a caller goes on using.
    labels = np.array([0, 1])
    labels.flags.writeable = False
    certificate = ds.certify(np.eye(2, dtype=bool)[None].repeat(2, 0), np.eye(2) > 0)
    assert ds.evaluate(certificate, labels).clean.num_images == 2


@pytest.mark.parametrize("rule", ["placement", "margin"])
def test_the_chosen_strength_is_the_best_of_all(rule):
    # Protects the choice, ties included, as for thresholds: graded votes, their limit.
    rng = np.random.default_rng(0)
    candidates = [1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0]
    touched = ds.touched(ds.Columns(1), ds.Patch(1, 2), (1, 8))
    ties, choices = 0, set()
    for _ in range(40):
        labels = rng.integers(0, 3, 6)
        lean = np.arange(3) == labels[:, None, None]
        weight = rng.uniform(0, 0.4, (6, 1, 1))
        noise = rng.dirichlet(np.full(3, rng.choice([0.3, 3, 20])), (6, 8))
        scores = (weight * lean + (1 - weight) * noise).astype(np.float32)
        found = {}
        for strength in candidates:
            levels = np.rint(100 * strength * scores.astype(np.float64)).astype(int)
            certificate = ds.certify(ds.GradedVotes(levels, 100), touched, rule=rule)
            right = certificate.prediction == labels
            certified = (right & certificate.is_certified).sum()
            found[strength] = (int(certified), int(right.sum()))
        best = [s for s in found if found[s] == max(found.values())]
        ties += len(best) > 1
        chosen = ds.choose_strength(
            scores,
            labels,
            touched,
            strengths=rng.permutation(candidates).tolist(),
            rule=rule,
        )
        assert chosen == min(best) and type(chosen) is float
        choices.add(chosen)
    assert ties > 10 and len(choices) > 2  # or neither was tested


def test_strengths_have_candidates_of_their_own():
    # Protects the default: the choice is one of STRENGTHS, and each may be cast.
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(3), (6, 5)).astype(np.float32)
    labels, touched = rng.integers(0, 3, 6), np.eye(5, dtype=bool)
    assert ds.choose_strength(scores, labels, touched) in STRENGTHS
    assert all(1 <= strength <= 100 for strength in STRENGTHS)
    with pytest.raises(ValueError, match=r"strengths=\[\]"):
        ds.choose_strength(scores, labels, touched, strengths=[])
    with pytest.raises(ValueError, match="no image"):
        ds.choose_strength(scores[:0], labels[:0], touched)
    with pytest.raises(ValueError, match=r"strength=0\.5"):
        ds.choose_strength(scores, labels, touched, strengths=[2, 0.5])


def test_a_sweep_is_every_single_question():
    # Protects sweep.csv: each entry is what certify says alone; shards add up.
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 30)
    lean = 0.5 * (np.arange(3) == labels[:, None, None])
    scores = (rng.dirichlet(np.ones(3), (30, 8)) / 2 + lean).astype(np.float32)
    touched = {m: ds.touched(ds.Columns(2), ds.Patch(m, m), (4, 8)) for m in (1, 2, 4)}
    settings = {"thresholds": (0.3, 0.6), "strengths": (1, 5)}
    found = ds.sweep(scores, labels, touched, **settings)
    assert len(found) == 4 * 3 * 2
    for (voting, value, m, rule), result in found.items():
        cast = ds.graded_votes if voting == "graded" else ds.threshold_votes
        alone = ds.certify(cast(scores, value), touched[m], rule=rule)
        assert result == ds.evaluate(alone, labels)
    halves = [
        ds.sweep(scores[part], labels[part], touched, **settings)
        for part in (slice(0, 11), slice(11, 30))
    ]
    assert {key: halves[0][key] + halves[1][key] for key in found} == found
