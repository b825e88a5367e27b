"""Counterparts of forget rows: who gets which, and what is left of the valid split."""

import collections

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.data import TokenizedData, add_counterparts
from unlearn_trainer.errors import DataError

LANGUAGES = ["en", "sw"]


def split(items, languages, kinds=2, first=0):
    """Rows in as many kinds: those of a kind share their prompt and the number of labelled tokens."""
    rows = []
    for item in range(items):
        for language in languages:
            kind = item % kinds
            answer = [first + 100 + item + place for place in range(1 + kind)]
            prompt = [1, 10 * kind + 10, 10 * kind + 11, 50 + language]
            labels = [-100] * len(prompt) + answer
            rows.append({"input_ids": prompt + answer, "labels": labels, "language": language, "item": item})
    return Dataset.from_list(rows)


def data_of(forget, valid):
    datasets = {"forget": forget} | ({"valid": valid} if valid is not None else {})
    return TokenizedData(datasets, LANGUAGES, [], {})


@settings(max_examples=20, deadline=None)
@given(forget=st.integers(1, 9), valid=st.integers(4, 12), seed=st.integers(0, 3))
def test_each_row_gets_one_of_its_language_and_kind_and_all_serve_alike(forget, valid, seed):
    data = add_counterparts(data_of(split(forget, (0, 1)), split(valid, (0, 1), first=500)), seed)
    rows = data.datasets["forget"].to_list()
    used = collections.Counter()
    for row in rows:
        ids = row["counterpart_input_ids"]
        assert ids[3] == 50 + row["language"]
        used[tuple(ids)] += 1
        assert [label for label in row["counterpart_labels"] if label != -100] == ids[4:]
    given_away = valid // 2
    assert max(used.values()) <= -(-forget // given_away)
    again = add_counterparts(data_of(split(forget, (0, 1)), split(valid, (0, 1), first=500)), seed)
    assert again.datasets["forget"].to_list() == rows


def test_the_nearest_kind_is_chosen_where_there_are_enough_of_it():
    # Items 1, 3, 5, 7, ... are given away: of four kinds the second and the fourth.
    data = add_counterparts(data_of(split(8, (0,), kinds=4), split(32, (0, 1), kinds=4, first=500)), 0)
    for row in data.datasets["forget"].to_list():
        if row["item"] % 4 in (1, 3):
            assert row["counterpart_input_ids"][:4] == row["input_ids"][:4]
            assert len(row["counterpart_input_ids"]) == len(row["input_ids"])


def test_what_becomes_a_counterpart_leaves_the_valid_split():
    data = add_counterparts(data_of(split(4, (0, 1)), split(6, (0, 1), first=500)), 0)
    assert set(data.datasets["valid"]["item"][:]) == {0, 2, 4}
    measured = {tuple(ids) for ids in data.datasets["valid"]["input_ids"]}
    assert not measured & {tuple(ids) for ids in data.datasets["forget"]["counterpart_input_ids"]}


def test_a_language_without_never_seen_rows_takes_those_of_the_others():
    data = add_counterparts(data_of(split(4, (0, 1)), split(6, (0,), first=500)), 0)
    assert all(row["counterpart_input_ids"][3] == 50 for row in data.datasets["forget"].to_list())


def test_held_out_languages_get_none():
    data = TokenizedData({"forget": split(4, (0, 1)), "valid": split(6, (0, 1))}, ["en"], ["sw"], {})
    for row in add_counterparts(data, 0).datasets["forget"].to_list():
        assert bool(row["counterpart_input_ids"]) == (row["language"] == 0)


@pytest.mark.parametrize("valid", [None, split(1, (0, 1))])
def test_too_few_never_seen_rows_are_refused(valid):
    with pytest.raises(DataError, match="give --valid_file at least 2"):
        add_counterparts(data_of(split(4, (0, 1)), valid), 0)


def test_languages_whose_items_alternate_share_their_own_rows():
    # Flat rows without ids: every item is in one language.
    rows = [row for pair in zip(split(6, (0,)), split(6, (1,), first=300), strict=True) for row in pair]
    valid = Dataset.from_list([row | {"item": number} for number, row in enumerate(rows)])
    data = add_counterparts(data_of(split(4, (0, 1)), valid), 0)
    for row in data.datasets["forget"].to_list():
        assert row["counterpart_input_ids"][3] == 50 + row["language"]
    assert collections.Counter(data.datasets["valid"]["language"][:]) == {0: 3, 1: 3}


def test_the_only_valid_item_of_a_language_stays():
    valid = Dataset.from_list([*split(6, (0,)).to_list(), {**split(1, (1,)).to_list()[0], "item": 99}])
    data = add_counterparts(data_of(split(4, (0, 1)), valid), 0)
    assert 99 in data.datasets["valid"]["item"][:]
