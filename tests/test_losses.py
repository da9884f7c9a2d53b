"""Protects the losses: the margin's limit is the certificate, gradients are right."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import dsmooth_jax as ds
from dsmooth_jax.training import losses

ABLATIONS = {
    "columns": (ds.Columns(3), ds.Patch(2, 2), (8, 14)),
    "strided columns": (ds.Columns(4, stride=3), ds.Patch(5, 1), (8, 16)),
    "rows": (ds.Rows(2), ds.Patch(3, 1), (11, 4)),
    "blocks": (ds.Blocks(3, 2), ds.Patch(2, 2), (5, 6)),
    "multi-columns": (ds.MultiColumns(2, 2), ds.Patch(2, 1), (8, 12)),
}
is_each_ablation = pytest.mark.parametrize("case", ABLATIONS.values(), ids=ABLATIONS)


def sharp(case, num_classes=4, batch=64):
    """Logits so far apart that every preference is whole, and the touched sets."""
    ablation, patch, size = case
    touched = ds.touched(ablation, patch, size)
    rng = np.random.default_rng(0)
    ranks = np.argsort(rng.random((batch, touched.shape[1], num_classes)), axis=-1)
    # One class is preferred more often, by degrees: margins of both signs.
    favour = np.linspace(0, 1, batch)[:, None] > rng.random((batch, touched.shape[1]))
    ranks[..., 1] = np.where(favour, num_classes, ranks[..., 1])
    return ranks.astype(np.int64), touched


@is_each_ablation
def test_the_hard_limit_is_the_certificate(case):
    """Of sharp logits the margin is `certify`'s for their ranks with limit 1."""
    ranks, touched = sharp(case)
    found = ds.certify(ds.GradedVotes(ranks, 1), touched)
    assert len(np.unique(found.margin)) > 3 and found.is_certified.any()
    labels = jnp.asarray(found.prediction, jnp.int32)
    logits = jnp.asarray(100 * ranks, jnp.float32)
    margins = losses.certified_margin(logits, labels, jnp.asarray(touched))
    ties = np.arange(ranks.shape[-1])[None] < found.prediction[:, None]
    worst = (np.asarray(margins, np.float64) - ties).min(axis=1)
    np.testing.assert_array_equal(worst, found.margin)


@is_each_ablation
def test_the_margin_of_soft_logits_against_a_slow_twin(case):
    """Loops over images, rivals, placements and ablations."""
    _, touched = sharp(case)
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, touched.shape[1], 3))
    labels = np.array([0, 2, 1])
    margins = losses.certified_margin(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(touched)
    )
    for image, rival in itertools.product(range(3), range(3)):
        own = labels[image]
        if rival == own:
            assert margins[image, rival] == np.inf
            continue
        kept = []
        for placement in touched:
            total = 0.0
            for ablation, is_touched in enumerate(placement):
                a, b = np.exp(logits[image, ablation, [own, rival]])
                total += -1.0 if is_touched else (a - b) / (a + b)
            kept.append(total)
        assert float(margins[image, rival]) == pytest.approx(min(kept), abs=1e-4)


def test_gradients_by_finite_differences():
    """Both losses, where no maximum is tied."""
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(4, 8, 3)), jnp.float32)
    labels = jnp.asarray([0, 1, 2, 1])
    touched = jnp.asarray(ds.touched(ds.Columns(3), ds.Patch(2, 2), (8, 8)))

    def on_margin(logits):
        margins = losses.certified_margin(jnp.asarray(logits), labels, touched)
        return losses.margin_loss(margins, target=1.0, temperature=4.0)

    def on_votes(logits):
        return losses.cross_entropy(jnp.asarray(logits), labels, 0.1)

    def on_masked(logits):
        margins = losses.masked_margins(
            jnp.asarray(logits), labels, jnp.asarray(ds.ablation_masks(touched))
        )
        return losses.margin_loss(margins, target=2.0, temperature=4.0)

    for loss in (on_margin, on_votes, on_masked):
        check_grads(loss, (logits,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_the_margin_loss_is_small_only_for_certified_images():
    """Softplus: zero far above the target, the gap over the temperature far below."""
    margins = jnp.asarray([[jnp.inf, 50.0, 60.0]])
    assert float(losses.margin_loss(margins, target=1.0, temperature=4.0)) < 1e-4
    margins = jnp.asarray([[-39.0, jnp.inf, 60.0]])
    found = float(losses.margin_loss(margins, target=1.0, temperature=4.0))
    assert found == pytest.approx(10.0, abs=1e-3)


def test_label_smoothing_is_cross_entropy_with_mixed_targets():
    """Against the definition, of the mean over images and ablations."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 5, 4)).astype(np.float32)
    labels = np.array([3, 0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.stack([log_p[i, :, label] for i, label in enumerate(labels)])
    expected = -(0.8 * own + 0.2 * log_p.mean(-1)).mean()
    found = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.2)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@is_each_ablation
def test_the_hard_limit_of_double_masking_is_its_certificate(case):
    """Margins are above 0 where all pairs of masks say the class, and only there."""
    ablation, patch, size = case
    sets = ds.touched(ablation, patch, size)
    masks = ds.ablation_masks(sets)
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(200, sets.shape[1], 3)).astype(np.float32)
    logits += np.linspace(0, 4, 200)[:, None, None] * np.eye(3, dtype=np.float32)[1]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    table = ds.mask_table(ds.log_levels(np.exp(log_p)), masks)
    found = ds.certify_double_masking(table, ds.covering_touched(masks, sets))
    labels = jnp.asarray(found.prediction, jnp.int32)
    margins = np.asarray(
        losses.masked_margins(jnp.asarray(logits), labels, jnp.asarray(masks))
    )
    worst = margins.min(axis=(1, 2))
    # Levels are rounded: nearer to 0 than their sum can move, either may be.
    is_clear = np.abs(worst) > 0.001 * sets.shape[1]
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(
        (worst > 0)[is_clear], found.is_unanimous[is_clear], strict=True
    )
    assert 0.1 < found.is_unanimous.mean() < 0.9


def test_masked_margins_against_a_slow_twin():
    """Loops over pairs and ablations; scores below the floor count as the floor."""
    rng = np.random.default_rng(5)
    logits = 5 * rng.normal(size=(2, 5, 3))
    labels = np.array([2, 0])
    masks = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]], bool)
    margins = losses.masked_margins(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(masks)
    )
    pairs = list(itertools.combinations_with_replacement(range(3), 2))
    assert margins.shape == (2, len(pairs), 3)
    for image, (q, (i, j)), rival in itertools.product(
        range(2), enumerate(pairs), range(3)
    ):
        own = labels[image]
        if rival == own:
            assert margins[image, q, rival] == np.inf
            continue
        total = 0.0
        for ablation in range(5):
            if not masks[i, ablation] and not masks[j, ablation]:
                p = np.exp(logits[image, ablation])
                p = np.maximum(p / p.sum(), 1e-4)
                total += np.log(p[own] / p[rival])
        assert float(margins[image, q, rival]) == pytest.approx(total, abs=1e-3)


def test_soft_labels_of_one_class_are_hard_ones():
    """Cross-entropy of soft labels is the expectation of that of hard ones."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 5, 4)), jnp.float32)
    soft = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    each = [
        [losses.cross_entropy(logits[i : i + 1], jnp.array([k]), 0.1) for k in range(4)]
        for i in range(6)
    ]
    expected = (soft * np.array(each)).sum(1).mean()
    found = losses.cross_entropy(logits, jnp.asarray(soft), 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    ones = jnp.asarray(np.eye(4)[[2] * 6], jnp.float32)
    hard = losses.cross_entropy(logits, jnp.full(6, 2), 0.1)
    assert float(losses.cross_entropy(logits, ones, 0.1)) == pytest.approx(
        float(hard), rel=1e-6
    )
