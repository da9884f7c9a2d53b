"""Bad scores, votes and labels: refused by name, with the remedy."""

import numpy as np
from refusals import (
    CERTIFICATE,
    COLUMNS,
    IMAGES,
    LABELS,
    LEVELS,
    SCORES,
    SIZE,
    SMOOTHED,
    TOUCHED,
    VOTES,
    at,
    check_refused,
    each,
    save,
    uniform,
)

import dsmooth_jax as ds


def certify_scores(scores, size=SIZE, **options):
    return SMOOTHED.certify_scores(scores, ds.Patch(1, 1), size, **options)


def calls():
    # Scores and thresholds.
    bad_scores = [
        ("integers", LEVELS, TypeError, ["scores", "int16", "floating"]),
        ("one image", SCORES[0], ValueError, ["scores", "(6, 3)", "[N, P, K]"]),
        ("one class", SCORES[:, :, :1], ValueError, ["(2, 6, 1)", "K >= 2"]),
        ("NaN", at(SCORES, np.nan), ValueError, ["scores[1, 2, 0] = nan", "softmax"]),
        ("infinite", at(SCORES, np.inf), ValueError, ["[1, 2, 0] = inf", "[0, 1]"]),
        ("logits", at(SCORES, -0.5), ValueError, ["[1, 2, 0] = -0.5", "not logits"]),
        ("above 1", at(SCORES, 1.5), ValueError, ["[1, 2, 0] = 1.5", "[0, 1]"]),
    ]
    for what, scores, error, words in bad_scores:
        for name, call in (
            ("threshold_votes", lambda s: ds.threshold_votes(s, 0.5)),
            ("top_one_votes", ds.top_one_votes),
            ("graded_votes", lambda s: ds.graded_votes(s, 2)),
            ("uncertain_votes", lambda s: ds.uncertain_votes(s, 0, strength=2)),
            ("base_accuracy", lambda s: ds.base_accuracy(s, LABELS)),
            ("choose_threshold", lambda s: ds.choose_threshold(s, LABELS, TOUCHED)),
            ("choose_strength", lambda s: ds.choose_strength(s, LABELS, TOUCHED)),
            ("save_scores", lambda s: save(scores=s)),
            ("SmoothedClassifier.vote", SMOOTHED.vote),
            ("SmoothedClassifier.certify_scores", certify_scores),
        ):
            yield f"{name}: scores {what}", lambda c=call, s=scores: c(s), error, words
    for value, error, words in (
        (0, ValueError, ["(0, 1]"]),
        (-0.1, ValueError, ["(0, 1]"]),
        (1.01, ValueError, ["(0, 1]"]),
        (float("nan"), ValueError, ["(0, 1]"]),
        (1e-60, ValueError, ["(0, 1]"]),
        ("low", TypeError, ["number"]),
        (None, TypeError, ["number"]),
    ):
        for name, call in (
            ("threshold_votes", lambda t: ds.threshold_votes(SCORES, t)),
            ("SmoothedClassifier", lambda t: ds.SmoothedClassifier(
                uniform, COLUMNS, threshold=t)),
        ):  # fmt: skip
            yield (
                f"{name}: threshold {value}",
                lambda c=call, v=value: c(v),
                error,
                [f"threshold={value!r}", *words],
            )
    for value, error in (
        (0.5, ValueError),
        (-1, ValueError),
        (101, ValueError),
        (float("nan"), ValueError),
        ("high", TypeError),
    ):
        for name, call in (
            ("graded_votes", lambda s: ds.graded_votes(SCORES, s)),
            ("uncertain_votes", lambda s: ds.uncertain_votes(SCORES, 0, strength=s)),
            ("SmoothedClassifier", lambda s: ds.SmoothedClassifier(
                uniform, COLUMNS, strength=s)),
        ):  # fmt: skip
            yield (
                f"{name}: strength {value}",
                lambda c=call, v=value: c(v),
                error,
                [
                    f"strength={value!r}",
                    "[1, 100]" if error is ValueError else "number",
                ],
            )
    for what, tolerance, settings, words in (
        ("of no voting", 0, {}, ["threshold=None", "strength=None", "exactly one"]),
        (
            "of two votings",
            0,
            {"threshold": 0.3, "strength": 2},
            ["threshold=0.3", "strength=2", "exactly one"],
        ),
        ("tolerance below 0", -0.1, {"threshold": 0.3}, ["tolerance=-0.1", "[0, 1)"]),
        ("tolerance 1", 1, {"threshold": 0.3}, ["tolerance=1", "[0, 1)"]),
        ("threshold 0", 0, {"threshold": 0}, ["threshold=0", "(0, 1]"]),
        ("two levels", 0.02, {"strength": 1}, ["tolerance=0.02", "below 0.01"]),
    ):
        yield (
            f"uncertain_votes: {what}",
            lambda t=tolerance, s=settings: ds.uncertain_votes(SCORES, t, **s),
            ValueError,
            words,
        )
    for value, words in (([], ["strengths", "at least one"]), ([2, 0], ["[1, 100]"])):
        yield (
            f"choose_strength: {value}",
            lambda v=value: ds.choose_strength(SCORES, LABELS, TOUCHED, strengths=v),
            ValueError,
            words,
        )
    yield (
        "sweep: labels of other images",
        lambda: ds.sweep(SCORES, LABELS[1:], {"a": TOUCHED}, thresholds=(0.3,)),
        ValueError,
        ["labels have shape"],
    )
    yield (
        "sweep: strength out of range",
        lambda: ds.sweep(SCORES, LABELS, {"a": TOUCHED}, strengths=(0,)),
        ValueError,
        ["strength=0", "[1, 100]"],
    )
    yield (
        "choose_strength: no image",
        lambda: ds.choose_strength(SCORES[:0], LABELS[:0], TOUCHED),
        ValueError,
        ["no image", "at least one"],
    )
    for value, words in (([], ["thresholds", "at least one"]), ([0.5, 0], ["(0, 1]"])):
        yield (
            f"choose_threshold: {value}",
            lambda v=value: ds.choose_threshold(SCORES, LABELS, TOUCHED, thresholds=v),
            ValueError,
            words,
        )
    yield (
        "choose_threshold: no image",
        lambda: ds.choose_threshold(SCORES[:0], LABELS[:0], TOUCHED),
        ValueError,
        ["no image", "at least one"],
    )

    # Votes, touched sets, rules.
    for what, levels, limit, error, words in (
        ("of votes", VOTES, 2, TypeError, ["bool", "integers", "as they are"]),
        ("scores", SCORES, 2, TypeError, ["float32", "integers"]),
        ("limit 0", LEVELS, 0, ValueError, ["limit=0", "1.."]),
        ("limit 1.5", LEVELS, 1.5, TypeError, ["limit=1.5", "integer"]),
    ):
        yield (
            f"GradedVotes: {what}",
            lambda v=levels, n=limit: ds.GradedVotes(v, n),
            error,
            words,
        )
    huge = np.full((1, 6, 2), 2**62)
    for what, votes, error, words in (
        ("scores", SCORES, TypeError, ["float32", "threshold_votes"]),
        ("of one image", VOTES[0], ValueError, ["(6, 3)", "[N, P, K]"]),
        ("of one class", VOTES[..., :1], ValueError, ["(2, 6, 1)", "K >= 2"]),
        ("levels, no limit", LEVELS, TypeError, ["int16", "GradedVotes(levels, limit"]),
        ("levels, huge", ds.GradedVotes(huge, 1), ValueError, ["2^62"]),
    ):
        for name, call in (
            ("certify", lambda v: ds.certify(v, TOUCHED)),
            ("certify_several", lambda v: ds.certify_several(v, TOUCHED, 2)),
            ("vulnerability_map", lambda v: ds.vulnerability_map(
                v, COLUMNS, ds.Patch(1, 1), SIZE)),
            ("votes_hold", lambda v: ds.votes_hold(v, TOUCHED)),
            ("runner_up", ds.runner_up),
            ("largest_certified_patch", lambda v: ds.largest_certified_patch(
                v, COLUMNS, SIZE)),
        ):  # fmt: skip
            yield f"{name}: votes {what}", lambda c=call, v=votes: c(v), error, words
    yield (
        "largest_certified_patch: votes of another ablation",
        lambda: ds.largest_certified_patch(VOTES, ds.Columns(2, stride=2), SIZE),
        ValueError,
        ["6 ablations", "stride=2", "3"],
    )
    for touched, error, words in (
        (TOUCHED.astype(int), TypeError, ["touched", "int64", "bool"]),
        (TOUCHED[0], ValueError, ["touched", "(6,)", "[L, 6]"]),
        (TOUCHED[:, :5], ValueError, ["touched", "(6, 5)", "[L, 6]"]),
        (TOUCHED[:0], ValueError, ["touched", "L", ">= 1"]),
    ):
        what = f"touched {touched.dtype}{list(touched.shape)}"
        yield f"certify: {what}", lambda t=touched: ds.certify(VOTES, t), error, words
        for name, call in (
            ("choose_threshold", lambda t: ds.choose_threshold(SCORES, LABELS, t)),
            ("choose_strength", lambda t: ds.choose_strength(SCORES, LABELS, t)),
            ("certify_several", lambda t: ds.certify_several(VOTES, t, 2)),
        ):
            yield f"{name}: {what}", lambda c=call, t=touched: c(t), error, words
    for number in (0, -1):
        yield (
            f"certify_several: {number} patches",
            lambda n=number: ds.certify_several(VOTES, TOUCHED, n),
            ValueError,
            [f"num_patches={number}", ">= 1"],
        )
    for name, argument, call, values, remedy in (
        (
            "square_of_percent",
            "percent",
            lambda v: ds.square_of_percent(v, SIZE),
            (0, -2, 100.5, float("nan")),
            "(0, 100]",
        ),
        (
            "rectangles_of_area",
            "area",
            lambda v: ds.rectangles_of_area(v, SIZE),
            (0, -4),
            ">= 1",
        ),
    ):
        for value in values:
            yield (
                f"{name}: {value}",
                lambda c=call, v=value: c(v),
                ValueError,
                [f"{argument}={value!r}", remedy],
            )
    for patches, error, words in (
        ((), ValueError, ["patches=()", "at least one"]),
        ((ds.Patch(1, 1), ds.Patch(5, 1)), ValueError, ["patch 5x1", "4x6"]),
        (((5, 5),), TypeError, ["patch=(5, 5)", "ds.Patch(5, 5)"]),
    ):
        yield (
            f"touched_by_any: {len(patches)} of {words[0]}",
            lambda p=patches: ds.touched_by_any(COLUMNS, p, SIZE),
            error,
            words,
        )
    for patch, error, words in (
        (ds.Patch(1, 7), ValueError, ["patch 1x7", "4x6"]),
        ((5, 5), TypeError, ["patch=(5, 5)", "ds.Patch(5, 5)"]),
    ):
        yield (
            f"vulnerability_map: {words[0]}",
            lambda p=patch: ds.vulnerability_map(VOTES, COLUMNS, p, SIZE),
            error,
            words,
        )
    words = ["rule='best'", "placement", "margin"]
    for name, call in (
        ("certify", lambda: ds.certify(VOTES, TOUCHED, rule="best")),
        ("largest_certified_patch", lambda: ds.largest_certified_patch(
            VOTES, COLUMNS, SIZE, rule="best")),
        ("choose_threshold", lambda: ds.choose_threshold(
            SCORES, LABELS, TOUCHED, rule="best")),
        ("choose_strength", lambda: ds.choose_strength(
            SCORES, LABELS, TOUCHED, rule="best")),
        ("SmoothedClassifier.certify", lambda: SMOOTHED.certify(
            IMAGES, ds.Patch(1, 1), rule="best")),
        ("SmoothedClassifier.certify_scores", lambda: certify_scores(
            SCORES, rule="best")),
    ):  # fmt: skip
        yield f"{name}: no such rule", call, ValueError, words
    for what, call, words in (
        (
            "of other images",
            lambda: certify_scores(SCORES, (6, 4)),
            ["(6, 4)", "(4, 6)"],
        ),
        ("other ablations", lambda: certify_scores(SCORES[:, 1:]), ["5", "6"]),
    ):
        yield f"SmoothedClassifier.certify_scores: {what}", call, ValueError, words
    for uncertain, error, words in (
        (LEVELS, TypeError, ["uncertain", "int16", "bool"]),
        (VOTES[:1], ValueError, ["uncertain", "(1, 6, 3)", "(2, 6, 3)"]),
    ):
        yield (
            f"certify: uncertain {uncertain.dtype}{uncertain.shape}",
            lambda u=uncertain: ds.certify(VOTES, TOUCHED, uncertain=u),
            error,
            words,
        )

    # Ranks and alarms.
    three = np.ones((2, 6, 3), bool)
    for what, options, error, words in (
        ("three votes", {"one_vote": True}, ValueError, ["gives 3 votes", "top_one"]),
        ("floats", {"classes": [[0.5], [1.0]]}, TypeError, ["classes", "float64"]),
        ("labels", {"classes": [0, 1]}, ValueError, ["(2,)", "labels[:, None]"]),
        ("class 3", {"classes": [[3], [0]]}, ValueError, ["classes", "3", "0..2"]),
        ("class -1", {"classes": [[-1], [0]]}, ValueError, ["classes", "-1", "0..2"]),
    ):
        yield (
            f"worst_rank: {what}",
            lambda o=options: ds.worst_rank(three, TOUCHED, **o),
            error,
            words,
        )
    yield (
        "worst_rank: one vote of levels",
        lambda: ds.worst_rank(ds.GradedVotes(LEVELS, 100), TOUCHED, one_vote=True),
        ValueError,
        ["one_vote=True", "leave it out"],
    )
    alarmed = ds.certify_with_alarm(VOTES, TOUCHED, alarm_margin=1)
    for margin, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        for name, call in (
            ("certify_with_alarm", lambda m: ds.certify_with_alarm(
                VOTES, TOUCHED, alarm_margin=m)),
            ("AlarmCertificate.at", alarmed.at),
        ):  # fmt: skip
            words = [f"alarm_margin={margin}"]
            yield f"{name}: {margin}", lambda c=call, m=margin: c(m), error, words
    for margins, rate, error, words in (
        (alarmed.margin, 1, ValueError, ["rate=1", "[0, 1)"]),
        (alarmed.margin[:0], 0.1, ValueError, ["margins", "(0,)", "N >= 1"]),
        ([0.5], 0.1, TypeError, ["margins", "float64", "integers"]),
    ):
        yield (
            f"choose_alarm_margin: {words}",
            lambda m=margins, r=rate: ds.choose_alarm_margin(m, r),
            error,
            words,
        )

    # Labels.
    for labels, error, words in (
        (LABELS.astype(float), TypeError, ["labels", "float64", "integers"]),
        (LABELS > 1, TypeError, ["labels", "bool", "integers"]),
        (LABELS[:1], ValueError, ["labels", "(1,)", "[2]"]),
        (np.eye(2, dtype=int), ValueError, ["labels", "(2, 2)", "[2]"]),
        (np.array([0, 3]), ValueError, ["labels[1] = 3", "0..2"]),
        (np.array([-1, 0]), ValueError, ["labels[0] = -1", "0..2"]),
    ):
        for name, call in (
            ("evaluate", lambda x: ds.evaluate(CERTIFICATE, x)),
            ("evaluate_alarm", lambda x: ds.evaluate_alarm(alarmed, x)),
            ("base_accuracy", lambda x: ds.base_accuracy(SCORES, x)),
            ("choose_threshold", lambda x: ds.choose_threshold(SCORES, x, TOUCHED)),
            ("choose_strength", lambda x: ds.choose_strength(SCORES, x, TOUCHED)),
            ("save_scores", lambda x: save(labels=x)),
        ):
            what = f"{name}: labels {labels.tolist()}"
            yield what, lambda c=call, x=labels: c(x), error, words


@each(calls())
def test_bad_input_is_refused_with_a_remedy(call, error, words, without_shape_checks):
    # Protects users: an error of ours, that names argument and value, in one line.
    check_refused(call, error, words)
