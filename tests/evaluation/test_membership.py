"""Membership AUC against a double loop, and which way it points."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.evaluation.membership import SCORES, auc, membership_auc, recognisability

# Few different values, so that ties abound.
SCORE_LISTS = st.lists(st.sampled_from([-math.inf, -1.5, 0.0, 0.25, 3.0, math.inf]), min_size=1, max_size=12)


def naive_auc(members, non_members):
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in members for b in non_members]
    return sum(wins) / len(wins)


@settings(deadline=None)  # the first call imports SciPy
@given(SCORE_LISTS, SCORE_LISTS)
def test_auc_is_the_chance_that_a_member_scores_higher(members, non_members):
    found = auc(members, non_members)
    assert found == pytest.approx(naive_auc(members, non_members), abs=1e-12)
    assert auc(non_members, members) == pytest.approx(1 - found, abs=1e-12)


def test_auc_points_from_members_to_non_members():
    assert auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auc([1.0, 2.0], [3.0, 4.0]) == 0.0
    assert auc([1.0, 1.0, 1.0], [1.0]) == 0.5
    assert auc([1.0, 4.0], [2.0]) == 0.5


@pytest.mark.parametrize(
    "members, non_members", [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [0, math.nan])]
)
def test_no_auc_of_nothing_and_of_nan(members, non_members):
    with pytest.raises(ValueError, match="no AUC"):
        auc(members, non_members)


def test_over_unlearned_rows_are_as_recognisable_as_remembered_ones():
    assert recognisability(0.0) == recognisability(1.0) == 1.0
    assert recognisability(0.5) == 0.5
    assert recognisability(0.3) == pytest.approx(0.7)


def columns(language, **scores):
    return {"language": np.array(language), **{name: np.array(values, float) for name, values in scores.items()}}


def test_languages_and_scores_are_judged_apart():
    # en: remembered by the loss, over-unlearned by Min-K, unrecognisable by Min-K++; sw: the other way round.
    members = columns(
        [0, 1, 0, 1, 2],
        loss=[0.1, 9.0, 0.2, 8.0, 1.0],
        min_k=[9.0, 0.1, 8.0, 0.2, 1.0],
        min_k_plus_plus=[1.0, 1.0, 1.0, 1.0, 1.0],
    )
    non_members = columns([1, 0, 3], loss=[5.0, 5.0, 1.0], min_k=[5.0, 5.0, 1.0], min_k_plus_plus=[1.0, 1.0, 1.0])
    found = membership_auc(members, non_members, ["en", "sw", "zh", "de"])
    assert found == {
        "en": {"loss": 1.0, "min_k": 0.0, "min_k_plus_plus": 0.5},
        "sw": {"loss": 0.0, "min_k": 1.0, "min_k_plus_plus": 0.5},
    }
    assert tuple(found["en"]) == SCORES


def test_the_auc_of_scores_that_are_no_numbers_is_nan_in_that_language_alone():
    scores = {key: [math.nan, 1.0, 3.0] for key in SCORES}
    members = columns([0, 0, 1], **scores)
    found = membership_auc(members, columns([0, 1], **{key: [2.0, math.inf] for key in SCORES}), ["en", "sw"])
    assert all(math.isnan(found["en"][name]) and found["sw"][name] == 1.0 for name in SCORES)
