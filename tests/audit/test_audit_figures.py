"""Intervals, positions and verdicts of an audit, against independent computations and by the written rule."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.audit import verdict
from unlearn_trainer.audit.checks.memorization import privacy_leakage
from unlearn_trainer.audit.figures import (
    bootstrap,
    excess,
    mean,
    mean_figure,
    paired,
    perplexity_of_sums,
    position,
    ratio_of_sums,
    rows_by_language,
    seed_of,
)
from unlearn_trainer.audit.results import Estimate, Name, Variant, read_figures
from unlearn_trainer.evaluation.membership import area, auc


def naive_interval(values, statistic, resamples=4000):
    """A percentile interval with the standard library alone."""
    generator = random.Random(7)
    drawn = sorted(statistic(generator.choices(values, k=len(values))) for _ in range(resamples))
    return drawn[int(0.025 * resamples)], drawn[int(0.975 * resamples)]


def test_the_interval_of_a_mean_is_the_bootstrap_s():
    generator = random.Random(1)
    values = [generator.random() ** 3 for _ in range(80)]
    found = mean_figure(values, seed=3)
    low, high = naive_interval(values, statistics.fmean)
    assert found["value"] == pytest.approx(statistics.fmean(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.01)
    assert found["n"] == 80
    assert found == mean_figure(values, seed=3) != mean_figure(values, seed=4)


def test_sums_of_nll_and_tokens_stay_together():
    rows = np.array([[10.0, 5], [1.0, 1], [40.0, 8], [3.0, 30]])
    loss = bootstrap(ratio_of_sums, rows, seed=0)
    assert loss["value"] == pytest.approx(54 / 44)
    possible = {
        (a[0] + b[0] + c[0] + d[0]) / (a[1] + b[1] + c[1] + d[1])
        for a, b, c, d in itertools.product(rows.tolist(), repeat=4)
    }
    assert min(possible) <= loss["low"] <= loss["value"] <= loss["high"] <= max(possible)
    perplexity = bootstrap(perplexity_of_sums, rows, seed=0)
    assert perplexity["high"] == pytest.approx(math.exp(loss["high"]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_the_area_counts_pairs(members, others):
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    found = bootstrap(area, members, others, seed=0, resamples=20)
    assert found["value"] == pytest.approx(statistics.fmean(pairs)) == pytest.approx(auc(members, others))
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert found["n"] == min(len(members), len(others))


def test_a_score_that_is_no_number_has_no_rank():
    members, others = np.array([[math.nan, 2.0], [3.0, 0.0], [3.0, 2.0]]), np.array([[1.0], [1.0], [math.nan]])
    assert area(members, others) == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)
    assert math.isnan(bootstrap(area, [math.nan] * 4, [1.0, 2.0, 3.0], seed=0)["value"])


def test_many_resamples_are_drawn_in_parts_that_do_not_show(monkeypatch):
    values = np.arange(50.0)
    whole = bootstrap(mean, values, seed=5, resamples=300)
    monkeypatch.setattr("unlearn_trainer.audit.figures._DRAWN", 700)
    assert bootstrap(mean, values, seed=5, resamples=300) == whole


def test_an_empty_sample_has_no_figure():
    with pytest.raises(ValueError, match="empty"):
        mean_figure([], seed=0)


def test_a_single_row_has_no_width_and_adds_none():
    assert mean_figure([3.0], seed=0) == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 1}
    pair = bootstrap(ratio_of_sums, [[3.0, 4.0]], seed=0)
    assert pair == {"value": 0.75, "low": 0.75, "high": 0.75, "n": 1}
    generator = np.random.default_rng(5)
    values = generator.normal(size=60)
    low, high = naive_interval(values.tolist(), statistics.fmean)
    with_one = bootstrap(lambda drawn, one: mean(drawn) - mean(one), values, [10.0], seed=0)
    assert (with_one["low"] + 10, with_one["high"] + 10, with_one["n"]) == pytest.approx((low, high, 1), abs=0.05)


def test_resamples_without_a_value_are_left_out(recwarn):
    # The ratio of a resample whose denominators are all 0 is no number.
    rows_of_two = np.array([[1.0, 0.0], [1.0, 1.0], [3.0, 1.0]])

    def ratio(drawn):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(drawn[..., 1].sum(1) > 0, ratio_of_sums(drawn), np.nan)

    found = bootstrap(ratio, rows_of_two, seed=0)
    assert 1 <= found["low"] <= found["value"] == 2.5 <= found["high"] < math.inf
    assert math.isnan(bootstrap(ratio, np.array([[1.0, 0.0], [2.0, 0.0]]), seed=0)["low"])
    assert not [warning for warning in recwarn if "Degenerate" in warning.category.__name__]


def test_rows_are_paired_by_item_in_any_order():
    first = {"items": [4, 2, 9], "values": [0.4, 0.2, 0.9]}
    second = {"items": [9, 7, 4], "values": [9.0, 7.0, 4.0]}
    assert paired(first, second).tolist() == [[0.4, 4.0], [0.9, 9.0]]


def rows(values, start=0):
    return {"items": list(range(start, start + len(values))), "values": list(values)}


@pytest.mark.parametrize("same_rows", [True, False])
def test_the_position_is_a_share_of_the_way_back(same_rows):
    before, never_seen = rows([1.0] * 40), rows([0.0, 0.2] * 20)
    half = position(rows([0.5, 0.6] * 20), never_seen, before, 0, same_rows)
    assert half["value"] == pytest.approx((0.55 - 0.1) / 0.9)
    assert position(before, never_seen, before, 0, same_rows)["low"] == 1
    same = position(never_seen, never_seen, before, 0, same_rows)
    assert same["value"] == pytest.approx(0)
    # The very same rows under the very same model leave nothing to chance; other rows do.
    assert (same["low"] == same["high"]) == same_rows
    assert excess(before, never_seen, 0, same_rows)["value"] == pytest.approx(0.9)
    assert position(before, before, before, 0, same_rows) is None
    # An attack that tells a model nine tenths which never saw them is no leak where it tells the audited one as much.
    taught = rows([0.9] * 40)
    assert position(taught, taught, before, 0, same_rows, never_seen)["value"] == pytest.approx(0)
    more = position(rows([0.99] * 40), taught, before, 0, same_rows, never_seen)
    assert more["value"] == pytest.approx(0.09 / 0.9) and more["high"] < 0.15


def test_without_a_common_item_there_is_no_position():
    assert position(rows([1.0]), rows([0.0]), rows([1.0], start=5), 0) is None
    assert excess(rows([1.0]), rows([0.0], start=5), 0) is None


def test_rows_by_language_leaves_out_languages_without_rows():
    columns = {
        "language": np.array([0, 2, 0]),
        "item": np.array([5, 5, 6]),
        "memorization_accuracy": np.array([0.1, 0.2, 0.3]),
    }
    found = rows_by_language(columns, ["en", "sw", "zh"], ["memorization_accuracy"])
    assert found == {
        "memorization_accuracy": {
            "en": {"items": [5, 6], "values": [0.1, 0.3]},
            "zh": {"items": [5], "values": [0.2]},
        }
    }


def test_seeds_differ_by_purpose_and_repeat():
    assert seed_of(1, "a", "b") == seed_of(1, "a", "b")
    assert len({seed_of(1, "a", "b"), seed_of(2, "a", "b"), seed_of(1, "ab"), seed_of(1, "b", "a")}) == 4


@pytest.mark.parametrize(("auc_now", "leak", "score"), [(0.5, 0, 1), (1.0, -100, 0), (0.0, 100, 0), (0.75, -50, 0.5)])
def test_privacy_leakage_by_its_definition(auc_now, leak, score):
    figure = {"value": auc_now, "low": max(0, auc_now - 0.1), "high": min(1, auc_now + 0.1), "n": 9}
    leakage = privacy_leakage(Estimate(**figure), Estimate(0.5))
    found = {str(name): each.as_json() for name, each in leakage.items()}
    assert found["privleak"]["value"] == pytest.approx(leak)
    assert found["privacy_score"]["value"] == pytest.approx(score)
    for each in found.values():
        assert each["low"] <= each["value"] <= each["high"]
        assert each["n"] == 9


# ---- verdicts -------------------------------------------------------------------------------------------------------


def figure(value, never_seen=0.02, before=1.0, width=0.02):
    def around(middle):
        return {"value": middle, "low": middle - width, "high": middle + width, "n": 80}

    share = (value - never_seen) / (before - never_seen)
    place = {
        "value": share,
        "low": share - width / abs(before - never_seen),
        "high": share + width / abs(before - never_seen),
    }
    known = {"value": before - never_seen, "low": before - never_seen - width, "high": before - never_seen + width}
    return around(value) | {
        "known": known,
        "never_seen": around(never_seen),
        "before": around(before),
        "position": place,
    }


def unplaced(value, never_seen=0.02, before=1.0, width=0.02):
    """Before and never seen are too near each other for a share of the way between them."""
    found = figure(value, never_seen, before, width)
    del found["position"]
    return found | {"excess": {"value": value - never_seen, "low": value - never_seen - width, "high": value}}


def judge(figures, doubts=None, withheld=None):
    doubts = {Variant.named(name): reason for name, reason in (doubts or {}).items()}
    return verdict.judge(read_figures(figures), doubts, withheld)


def nothing_to_forget(figures):
    return verdict.nothing_to_forget(read_figures(figures))


def surely_beyond(width, high=-0.15):
    """Row by row it differs from the never-seen figure, which intervals over unlike rows do not show."""
    return figure(11.0, 9.0, 0.1, width) | {"position": {"value": -0.2, "low": -0.25, "high": high}}


NO_NUMBER = {"value": None, "low": None, "high": None}
UNSEEN_LOSS = figure(9.1, never_seen=9.0, before=0.1, width=0.4)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"memorization_accuracy": figure(0.03)}, "forgotten"),
        ({"memorization_accuracy": figure(0.9)}, "leaks"),
        ({"memorization_accuracy": figure(0.03), "extraction_strength": figure(0.3, 0.0)}, "leaks"),
        ({"memorization_accuracy": figure(0.03), "int4/memorization_accuracy": figure(0.4)}, "leaks"),
        ({"memorization_accuracy": figure(0.03), "random_direction/memorization_accuracy": figure(0.4)}, "forgotten"),
        ({"memorization_accuracy": figure(0.03), "retain/memorization_accuracy": figure(1.0)}, "forgotten"),
        ({"memorization_accuracy": figure(0.03), "relearned/memorization_accuracy": figure(0.3, 0.28)}, "forgotten"),
        ({"memorization_accuracy": figure(0.03), "loss": figure(18.0, 9.0, 0.1, 0.4)}, "over-unlearned"),
        ({"memorization_accuracy": figure(0.9), "loss": figure(18.0, 9.0, 0.1, 0.4)}, "leaks"),
        ({"memorization_accuracy": figure(0.1, width=0.3)}, "undecided"),
        ({"memorization_accuracy": unplaced(0.05, before=0.03)}, "undecided"),
        ({"memorization_accuracy": unplaced(0.4, before=0.03)}, "leaks"),
        ({"memorization_accuracy": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9}}, "undecided"),
        # By whole intervals: a value beyond a bound alone says nothing.
        ({"memorization_accuracy": figure(0.15, width=0.08)}, "forgotten"),
        ({"memorization_accuracy": figure(0.03) | {"n": 10}}, "forgotten"),
        (
            {"memorization_accuracy": figure(0.03) | {"position": {"value": None, "low": None, "high": None}}},
            "undecided",
        ),
        (
            {"memorization_accuracy": figure(0.03) | {"position": {"value": 0.0, "low": 0.0, "high": None}}},
            "undecided",
        ),
        # Over-unlearned by both: far beyond the never-seen model, and surely.
        ({"memorization_accuracy": figure(0.03), "loss": figure(9.6, 9.0, 0.1, 0.1)}, "forgotten"),
        ({"memorization_accuracy": figure(0.03), "loss": surely_beyond(1.5)}, "forgotten"),
        ({"memorization_accuracy": figure(0.03), "loss": surely_beyond(0.4)}, "over-unlearned"),
        ({"memorization_accuracy": figure(0.03), "loss": surely_beyond(0.4, high=-0.05)}, "forgotten"),
    ],
)
def test_the_rule(figures, expected):
    found, reasons = judge({"loss": UNSEEN_LOSS, **figures})
    assert found == expected
    assert reasons


def test_a_figure_that_nothing_can_be_said_of_leaves_a_language_undecided():
    plain = {"memorization_accuracy": figure(0.03), "loss": UNSEEN_LOSS}
    assert judge(plain)[0] == "forgotten"
    # No never-seen model was asked the same; the attack did nothing; next to no rows.
    alone = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 80}
    found, reasons = judge(plain | {"asked_in_another_language/memorization_accuracy": alone})
    assert found == "undecided" and "no such figure of a never-seen model" in reasons[0]
    attacked = plain | {"relearned/memorization_accuracy": figure(0.03)}
    assert judge(attacked)[0] == "forgotten"
    assert judge(attacked, {"relearned": "it learned nothing"})[0] == "undecided"
    assert judge(plain | {"memorization_accuracy": figure(0.03) | {"n": 9}})[0] == "undecided"
    assert judge(plain | {"memorization_accuracy": figure(0.9) | {"n": 1}})[0] == "leaks"


def test_where_nothing_was_to_forget_a_place_leaks_nothing():
    # Between two models that hardly differ it is anywhere.
    nothing = {"memorization_accuracy": figure(0.05, never_seen=0.04, before=0.05)}
    attacked = unplaced(0.057, never_seen=0.0, before=0.05) | {"position": {"value": 1.1, "low": 0.9, "high": 1.3}}
    assert judge({**nothing, "logit_lens/memorization_accuracy": attacked})[0] == "undecided"


def test_the_reasons_say_whether_it_was_attacked_and_whether_it_ever_knew():
    plain = {"memorization_accuracy": figure(0.03), "loss": UNSEEN_LOSS}
    assert "it was not attacked" in judge(plain)[1][0]
    assert judge(plain | {"int4/extraction_strength": figure(0.03)})[1][0].startswith("no attack made found more")
    unknown = {key: value for key, value in figure(0.03).items() if key not in ("known", "position")}
    unknown["excess"] = {"value": 0.01, "low": 0.0, "high": 0.02}
    found, reasons = judge({"memorization_accuracy": unknown})
    assert found == "forgotten" and "no --model_before" in reasons[0]


@pytest.mark.parametrize("attack", ["logit_lens", "steering"])
def test_an_attack_that_cannot_be_made_leaves_open_whether_it_is_forgotten(attack):
    plain = {"memorization_accuracy": figure(0.03), "int4/extraction_strength": figure(0.03), "loss": UNSEEN_LOSS}
    found, reasons = judge(plain, {}, {attack: "no single state"})
    assert found == "undecided" and reasons == [f"{attack.replace('_', ' ')} cannot be made: no single state"]
    leaking = plain | {"memorization_accuracy": figure(0.7)}
    assert judge(leaking, {}, {attack: "no single state"}) == judge(leaking)


def test_the_worst_reason_comes_first_and_says_what_was_compared():
    figures = {
        "memorization_accuracy": figure(0.3),
        "relearned/memorization_accuracy": figure(0.7),
        "loss": UNSEEN_LOSS,
    }
    _, reasons = judge(figures)
    assert reasons == [
        "memorization accuracy, relearned, is 0.700 against 0.020 never seen",
        "memorization accuracy is 0.300 against 0.020 never seen",
    ]


def test_what_counts_as_knowledge():
    known = ["memorization_accuracy", "int4/extraction_strength", "forgotten_1/memorization_accuracy"]
    others = [
        "loss",
        "int4/probability",
        "int4/retain/memorization_accuracy",
        "relearned_from_other_text/extraction_strength",
    ]
    assert [name for name in known + others if Name.read(name).counts_as_knowledge] == known


def test_nothing_to_forget_needs_both_models():
    assert nothing_to_forget({"memorization_accuracy": figure(0.3, never_seen=0.3, before=0.31)})
    assert nothing_to_forget({"memorization_accuracy": figure(0.3, never_seen=0.3, before=0.4, width=0.2)})
    assert not nothing_to_forget({"memorization_accuracy": figure(0.3, never_seen=0.3, before=0.4)})
    assert not nothing_to_forget({"memorization_accuracy": {"value": 0.3}})
