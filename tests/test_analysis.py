"""One pass over a store answers what the library's own functions would."""

import dataclasses

import numpy as np
import pytest

import dsmooth_jax as ds
from dsmooth_jax.report import analysis as analysis_module
from dsmooth_jax.report import groups, more_tables, thumbnails
from dsmooth_jax.report.analysis import Analysis, analyze
from dsmooth_jax.report.ranking import alarm_margins
from dsmooth_jax.report.request import DOUBLE_MASKING, NUM_SIZES, Request, attacks_on
from dsmooth_jax.report.thumbnails import choose_drawn, choose_num_sizes

SIZE, NUM_IMAGES = (6, 9), 37
PATCHES = [ds.Patch(2, 2), ds.Patch(1, 1), ds.Patch(2, 3)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, NUM_IMAGES)
    lean = rng.random((NUM_IMAGES, 1, 1)) * (np.arange(4) == labels[:, None, None])
    scores = rng.dirichlet(np.ones(4), (NUM_IMAGES, 9)) / 2 + lean / 2
    return ds.save_scores(
        tmp_path_factory.mktemp("answers") / "scores",
        scores.astype(np.float32),
        ablation=ds.Columns(2),
        image_shape=(*SIZE, 1),
        labels=labels,
    )


def make_request(store, **changes):
    attacks = attacks_on(store.ablation, SIZE, PATCHES, area=3, num_patches=2)
    wanted = {"voting": "graded", "has_maps": True, "thresholds": (0.2, 0.4)}
    wanted |= {"sample": np.array([0, 5, 36]), "strengths": (2.0,), **changes}
    wanted = {"tolerance": 2e-4, **wanted}  # so that some votes are in doubt
    return Request(attacks, ("threshold", "top_one", "graded"), 0.3, 4.0, **wanted)


def test_every_answer_is_what_the_functions_say(store):
    # Protects the report: each number against the function that defines it.
    request = make_request(store)
    found, scores = analyze(store, request), store.read_all()
    names = {"2x2", "1x1", "2x3", "1x3", "3x1", "area <=3", "2 x 2x2", "2 x 1x1"}
    assert {attack.name for attack in request.attacks} == {*names, "2 x 2x3"}
    for voting in request.votings:
        votes, doubt = request.cast(scores, voting)
        assert (found.largest[voting] == largest(votes, store, doubt)).all()
        for attack in request.attacks:
            touched = attack.touched
            if attack.num_patches > 1:
                certificate, is_exact = ds.certify_several(
                    votes, touched, 2, uncertain=doubt
                )
                assert found.is_exact[voting, attack.name] is is_exact
                wanted = {"placement": certificate}
            else:
                wanted = {
                    rule: ds.certify(votes, touched, rule=rule, uncertain=doubt)
                    for rule in ("placement", "margin")
                }
            for rule, certificate in wanted.items():
                key = voting, attack.name, rule
                assert found.results[key] == ds.evaluate(certificate, store.labels)
                np.testing.assert_array_equal(found.margins[key], certificate.margin)
                np.testing.assert_array_equal(
                    found.predictions[voting], certificate.prediction
                )
    for voting, setting in (("threshold", 0.3), ("graded", 4.0)):
        votes, uncertain = request.cast(scores, voting)
        name = {"threshold": "threshold", "graded": "strength"}[voting]
        doubt = ds.uncertain_votes(scores, request.tolerance, **{name: setting})
        np.testing.assert_array_equal(uncertain, doubt)
        touched = ds.touched(store.ablation, PATCHES[0], SIZE)
        certificate = ds.certify(votes, touched)
        wanted = ds.evaluate(certificate, store.labels).certified
        assert found.nominal[voting, str(PATCHES[0])] == wanted
        sweep = ds.sweep(
            scores,
            store.labels,
            {request.patch: ds.touched(store.ablation, request.patch, SIZE)},
            thresholds=[0.2, 0.3, 0.4],
            strengths=[2.0, 4.0],
            tolerance=request.tolerance,
        )
        assert (
            found.settings[voting, setting]
            == (sweep[voting, setting, request.patch, "placement"])
        )
    votes, doubt = request.cast(scores, "graded")
    maps = ds.vulnerability_map(
        votes, store.ablation, PATCHES[0], SIZE, uncertain=doubt
    )
    for name, wanted in zip(("margin", "rival"), maps, strict=True):
        np.testing.assert_array_equal(found.maps[name], wanted)
    np.testing.assert_array_equal(found.runner_up, ds.runner_up(votes))
    assert found.base_accuracy == ds.base_accuracy(scores, store.labels)
    np.testing.assert_array_equal(found.sample, scores[request.sample])


def test_ranks_and_alarms_are_what_the_functions_say(store):
    # Protects top-k and alarms: of every attack by one patch, every voting and setting.
    alarms = {("threshold", 0.01): 1, ("graded", 0.01): 30, ("graded", 0.05): 80}
    request = make_request(store, top_k=(1, 3), alarms=alarms)
    found, scores, labels = analyze(store, request), store.read_all(), store.labels
    single = [attack for attack in request.attacks if attack.num_patches == 1]
    assert {name for _, name in found.ranks} == {attack.name for attack in single}
    for voting in request.votings:
        votes, doubt = request.cast(scores, voting)
        one_vote = {"one_vote": voting == "top_one"}
        nothing = np.zeros((1, 9), bool)
        ranks = ds.worst_rank(votes, nothing, **one_vote)
        wanted = ranks[np.arange(NUM_IMAGES), labels]
        np.testing.assert_array_equal(found.clean_ranks[voting], wanted)
        for attack in single:
            ranks = ds.worst_rank(votes, attack.touched, **one_vote, uncertain=doubt)
            wanted = ranks[np.arange(NUM_IMAGES), labels]
            np.testing.assert_array_equal(found.ranks[voting, attack.name], wanted)
            wanted = ds.certify_with_alarm(
                votes, attack.touched, alarm_margin=0, uncertain=doubt
            )
            held = found.alarms[voting, attack.name]
            for name in ("margin", "least_margin", "rival_margin", "prediction"):
                np.testing.assert_array_equal(
                    getattr(held, name), getattr(wanted, name)
                )
    votes = ds.threshold_votes(scores, 0.4)
    doubt = ds.uncertain_votes(scores, request.tolerance, threshold=0.4)
    ranks = ds.worst_rank(votes, single[0].touched, uncertain=doubt)
    wanted = int((ranks[np.arange(NUM_IMAGES), labels] <= 3).sum())
    assert found.sweep_ranks["threshold", 0.4, single[0].name, 3].count == wanted
    assert len(found.sweep_ranks) == 3 * len(single) * 2


def test_tables_of_ranks_and_alarms_count_what_was_found(store):
    # Protects what is printed: each row against the arrays it is counted from.
    alarms = {("threshold", 0.01): 1, ("graded", 0.01): 30, ("graded", 0.05): 80}
    found = analyze(store, make_request(store, top_k=(1, 3), alarms=alarms))
    ranks = more_tables.top_k_table(found)
    assert len(ranks) == 6 * 3 * 2
    for row in ranks:
        at = found.ranks[row.voting, row.attack]
        assert row.certified.count == (at <= row.k).sum()
        assert row.clean.count == (found.clean_ranks[row.voting] <= row.k).sum()
    rows = more_tables.alarm_table(found)
    assert len(rows) == 6 * (3 + 3)
    for row in rows:
        margin = found.margins[row.voting, row.attack, "placement"]
        is_right = found.is_right(row.voting)
        if row.rate is None:
            assert row.false_alarms.count == (margin < 0).sum()
            assert row.detected.count == is_right.sum() and row.unwavering is None
            continue
        t = alarms[row.voting, row.rate]
        assert row.margin == (t / 100 if row.voting == "graded" else t)
        at = found.alarms[row.voting, row.attack]
        assert row.false_alarms.count == (at.margin < t).sum()
        assert row.detected.count == (is_right & (at.rival_margin < t)).sum()
        assert row.unwavering.count == (is_right & (at.least_margin >= t)).sum()
    one, two = more_tables.texts(found)
    assert "2x2       graded     3" in one and "unless certified" in two
    assert "won by < 0.8 votes (5 %)" in two
    assert max(map(len, [*one.splitlines(), *two.splitlines()])) <= 100
    assert {"worst_rank_2x2_graded", "rival_margin_2x2_graded"} <= set(
        more_tables.columns(found)
    )


def test_alarm_margins_meet_their_rate_on_validation_images(store):
    # Protects the choice: of each voting by itself, all shards together.
    request = make_request(store)
    found = alarm_margins(store, request, [0.1, 0.3])
    assert set(found) == {(v, r) for v in request.votings for r in (0.1, 0.3)}
    for (voting, rate), margin in found.items():
        votes, _ = request.cast(store.read_all(), voting)
        nothing = np.zeros((1, 9), bool)
        certificate = ds.certify_with_alarm(votes, nothing, alarm_margin=margin)
        assert margin == 0 or certificate.is_alarm.mean() <= rate
        assert certificate.at(margin + 1).is_alarm.mean() > rate


def largest(votes, store, doubt):
    return ds.largest_certified_patch(votes, store.ablation, SIZE, uncertain=doubt)


def test_squares_are_those_that_are_certified(store):
    # Protects the curve over all squares, which is made of the largest one alone.
    request = make_request(store)
    found = analyze(store, request)
    squares = found.squares(range(1, 7))
    masked = [key for key in squares if key[0] == DOUBLE_MASKING]
    assert len(squares) == 18 + len(masked) and len(masked) > 1
    for (voting, patch, rule), result in squares.items():
        if voting == DOUBLE_MASKING:
            continue
        votes, doubt = request.cast(store.read_all(), voting)
        touched = ds.touched(store.ablation, patch, SIZE)
        certificate = ds.certify(votes, touched, rule=rule, uncertain=doubt)
        assert result == ds.evaluate(certificate, store.labels)


@pytest.mark.parametrize("group", [10, 36])
def test_how_many_images_are_asked_at_a_time_changes_nothing(
    store, group, monkeypatch, tmp_path
):
    # Protects large stores: groups of shards, joined, say what all images say.
    alarms = {("graded", 0.1): 5}
    request = make_request(store, top_k=(2,), alarms=alarms)
    wanted = analyze(store, request)
    small = ds.open_scores(remake(store, tmp_path / "scores", group))
    monkeypatch.setattr(groups, "_GROUP_IMAGES", group)
    seen = []

    def watch(given):
        for span, scores in given:
            seen.append(span.stop - span.start)
            yield span, scores

    found = analyze(small, request, watch=watch)
    assert seen[0] == group and sum(seen) == NUM_IMAGES
    for field in dataclasses.fields(Analysis)[2:]:  # not store and request
        one, two = getattr(wanted, field.name), getattr(found, field.name)
        assert_equal(one, two)


def test_figures_of_a_sample_count_the_sample_and_tables_all(store):
    # Protects large stores: what is drawn of some is what they alone would give.
    some = np.array([1, 4, 5, 20, 36])
    found = analyze(store, make_request(store, drawn=some))
    whole = analyze(store, make_request(store))
    for name in ("results", "largest", "margins", "nominal"):
        assert_equal(getattr(found, name), getattr(whole, name))
    scores, labels = store.read_all()[some], store.labels[some]
    votes, doubt = found.request.cast(scores, "graded")
    margin, _ = ds.vulnerability_map(
        votes, store.ablation, found.request.patch, SIZE, uncertain=doubt
    )
    np.testing.assert_array_equal(found.unproven, (margin < 0).sum(axis=0))
    touched = ds.touched(store.ablation, ds.Patch(2, 3), SIZE)
    certified = ds.evaluate(
        ds.certify(votes, touched, uncertain=doubt), labels
    ).certified
    assert found.rectangles[1, 2] == certified.count
    assert {e.clean.num_images for e in found.settings.values()} == {5}
    assert choose_drawn(store).tolist() == list(range(NUM_IMAGES))


def test_few_images_are_drawn_where_tables_are_large(store, monkeypatch):
    # Protects time: as many as the work allows, of every class.
    monkeypatch.setattr(thumbnails, "_MOST_DRAWN", 8 * 9 * 4)
    few = choose_drawn(store)
    assert len(few) == 8 and (np.diff(few) > 0).all()
    assert set(store.labels[few]) == set(store.labels)


def test_a_field_that_does_not_say_how_it_is_combined_is_refused():
    # Protects from a new number per image being added up without a word.
    @dataclasses.dataclass(frozen=True)
    class More(Analysis):
        entropy: np.ndarray

    with pytest.raises(TypeError, match=r"More\.entropy must say how it is combined"):
        analysis_module.ways_to_combine(More)
    fields = len(dataclasses.fields(Analysis))
    assert len(analysis_module.ways_to_combine(Analysis)) == fields


def remake(store, path, shard_size):
    """The same scores, in shards of another size."""
    from dsmooth_jax.storage.score_store import ScoreStore

    scores = store.read_all()
    small = ScoreStore.create(
        path,
        ablation=store.ablation,
        image_shape=store.image_shape,
        num_classes=store.num_classes,
        labels=store.labels,
        ids=store.ids,
        made_by={},
        shard_size=shard_size,
    )
    for shard in small.missing:
        small = small.put(shard, scores[small.span(shard)])
    return path


def assert_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, ds.AlarmCertificate):
        assert_equal(vars(one), vars(two))
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, two, strict=True)
    elif isinstance(one, ds.MaskedCertificate):
        assert_equal(vars(one), vars(two))
    else:
        assert one == two


def slow_certificate(store, patch, designed_for):
    """Double masking of all images by the core functions alone."""
    masks = ds.design_masks(store.ablation, designed_for, SIZE)
    table = ds.mask_table(ds.log_levels(store.read_all()), masks)
    touched = ds.touched(store.ablation, patch, SIZE)
    return ds.certify_double_masking(table, ds.covering_touched(masks, touched))


def test_double_masking_is_asked_beside_votes(store):
    # Protects the third line of each patch: by masks made for it, or for one patch.
    found = analyze(store, make_request(store))
    for patch in found.request.patches:
        wanted = slow_certificate(store, patch, patch)
        assert_equal(found.masked[str(patch)], wanted)
        result = found.results[DOUBLE_MASKING, str(patch), "placement"]
        assert result == ds.evaluate(wanted, store.labels)
        is_right = wanted.prediction == store.labels
        detected = int((wanted.is_detected & is_right).sum())
        assert found.detected[str(patch)] == ds.Accuracy(detected, len(store))
        if patch.height == patch.width:
            assert_equal(found.masked_squares[patch.height], wanted)
    design = PATCHES[0]
    attacks = attacks_on(store.ablation, SIZE, [ds.Patch(1, 1), design], design=design)
    assert [attack.masked_for for attack in attacks] == [design, design]
    request = dataclasses.replace(make_request(store), attacks=attacks, design=design)
    fixed = analyze(store, request)
    assert_equal(fixed.masked["1x1"], slow_certificate(store, ds.Patch(1, 1), design))
    assert_equal(fixed.prediction, slow_certificate(store, design, design).prediction)


def test_what_double_masking_cannot_certify_has_no_masks(store):
    # Protects from certifying by masks that do not hold what is touched.
    def has_masks(*patches, **settings):
        attacks = attacks_on(store.ablation, SIZE, patches, **settings)
        return [attack.masks is not None for attack in attacks]

    largest = ds.Patch(*SIZE)
    assert has_masks(ds.Patch(1, 1), largest) == [True, False]
    assert has_masks(ds.Patch(1, 1), ds.Patch(2, 2), design=ds.Patch(1, 1)) == [
        True,
        False,
    ]
    assert has_masks(ds.Patch(1, 1), num_patches=2) == [True, True]
    assert has_masks(ds.Patch(1, 1), num_patches=2, design=ds.Patch(1, 1)) == [
        True,
        False,
    ]
    with pytest.raises(ValueError, match="leave no ablation"):
        attacks_on(store.ablation, SIZE, [ds.Patch(1, 1)], design=largest)


def test_several_patches_are_left_out_together(store):
    # Protects unions: whatever two patches touch lies in a mask, and is certified so.
    patch = ds.Patch(1, 1)
    attack = attacks_on(store.ablation, SIZE, [patch], num_patches=2)[-1]
    touched = ds.touched(store.ablation, patch, SIZE)
    pairs = (touched[:, None] | touched).reshape(-1, touched.shape[1])
    covering = ds.covering_touched(attack.masks, pairs)
    levels = ds.log_levels(store.read_all())
    wanted = ds.certify_masked(levels, attack.masks, covering)
    request = dataclasses.replace(
        make_request(store),
        attacks=[*attacks_on(store.ablation, SIZE, [patch]), attack],
    )
    assert_equal(analyze(store, request).masked[attack.name], wanted)


def test_a_store_of_no_image_is_answered(tmp_path):
    # Protects N = 0, which works everywhere.
    store = ds.save_scores(
        tmp_path / "scores",
        np.empty((0, 9, 4), np.float32),
        ablation=ds.Columns(2),
        image_shape=(*SIZE, 1),
        labels=np.empty(0, np.int64),
    )
    request = make_request(store, has_figures=False, sample=np.empty(0, np.int64))
    found = analyze(store, request)
    assert np.isnan(found.base_accuracy) and len(found.runner_up) == 0


def test_the_focus_is_the_middle_patch(store):
    # Protects which patch figures and the claim are about.
    for patches, middle in ((PATCHES, PATCHES[0]), (PATCHES[:2], PATCHES[0])):
        attacks = attacks_on(store.ablation, SIZE, patches)
        request = Request(attacks, ("graded",), 0.3, 5.0, voting="graded")
        assert request.patch == middle


@pytest.mark.parametrize(
    ("extent", "wanted"),
    [(1, [1]), (4, [1, 2, 3, 4]), (32, list(range(1, 33)))],
)
def test_few_sizes_are_all_shown(store, extent, wanted):
    # Protects sliders and maps: every size, where there are few.
    assert make_request(store).sizes(extent) == wanted


def test_many_sizes_are_thinned_out(store, monkeypatch):
    # Protects pages of large images: ends included, none twice; large stores show few.
    monkeypatch.setattr(thumbnails, "_MANY_SCORES", 1)
    for num_sizes, wanted in ((choose_num_sizes(store), 8), (NUM_SIZES, 32)):
        sizes = make_request(store, num_sizes=num_sizes).sizes(224)
        assert len(sizes) == wanted and (sizes[0], sizes[-1]) == (1, 224)
        assert (np.diff(sizes) > 0).all()
    monkeypatch.undo()
    assert choose_num_sizes(store) == NUM_SIZES


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"voting": "majority"}, "voting='majority' must be one of"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"strength": 0.5}, "strength=0.5"),
        ({"votings": ("majority",)}, "voting='majority'"),
        ({"attacks": []}, "attacks must hold a patch"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    store, without_shape_checks, change, word
):
    # Protects from reports of nothing: refused where it is asked.
    good = {"attacks": attacks_on(store.ablation, SIZE, PATCHES), "strength": 5.0}
    good |= {"votings": ("threshold",), "threshold": 0.3, "voting": "threshold"}
    with pytest.raises(ValueError, match=word):
        Request(**good | change)
