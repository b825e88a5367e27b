import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.data.collator import COMPANIONS, TrainingRows, UnlearnCollator

PAD = 1
quick = settings(max_examples=40, deadline=None)


def companions(kind):
    """The columns of a companion that a forget row may or may not have; an empty one is none."""
    columns = st.lists(st.integers(0, 4), max_size=12).map(
        lambda ids: {f"{kind}_input_ids": ids, f"{kind}_labels": [-100, -100, *ids[2:]][: len(ids)]}
    )
    return st.one_of(st.just({}), columns)


rows = st.lists(
    st.builds(
        lambda ids, language, is_forget, alternative, counterpart: {
            "input_ids": ids,
            "labels": [-100, *ids[1:]],
            "language": language,
            "is_forget": is_forget,
            "row": len(ids),
            **(alternative | counterpart if is_forget else {}),
        },
        st.lists(st.integers(0, 4), min_size=1, max_size=9),  # often holds the pad id as a real token
        st.integers(0, 3),
        st.booleans(),
        companions("alternative"),
        companions("counterpart"),
    ),
    min_size=1,
    max_size=6,
)


@quick
@given(rows, st.sampled_from([0, 6]))
def test_batch_holds_the_rows_padded_right_forget_first_then_companions_then_retain(rows, at_least):
    batch = UnlearnCollator(PAD, width=at_least)(rows)
    forget, retain = ([row for row in rows if row["is_forget"] == side] for side in (True, False))
    groups = {"forget": forget}
    for kind in COMPANIONS:
        groups[kind] = [
            {**row, "input_ids": row[f"{kind}_input_ids"], "labels": row[f"{kind}_labels"]}
            for row in forget
            if row.get(f"{kind}_input_ids")
        ]
    groups["retain"] = retain
    expected = [row for group in groups.values() for row in group]
    longest = max(len(row["input_ids"]) for row in expected)
    width = batch["input_ids"].shape[1]
    assert width == max(longest, at_least)
    assert len(batch["input_ids"]) == len(expected)
    for index, row in enumerate(expected):
        n = len(row["input_ids"])
        assert batch["input_ids"][index].tolist() == row["input_ids"] + [PAD] * (width - n)
        assert batch["labels"][index].tolist() == row["labels"] + [-100] * (width - n)
        assert batch["attention_mask"][index].tolist() == [1] * n + [0] * (width - n)
    assert batch["language"].tolist() == [row["language"] for row in expected]
    assert batch["row"].tolist() == [row["row"] for row in expected]
    for kind in ("forget", *COMPANIONS):
        assert batch[f"is_{kind}"].tolist() == [group == kind for group, found in groups.items() for _ in found]
    dtypes = {name: torch.int64 for name in ("input_ids", "attention_mask", "labels", "language", "row")}
    dtypes |= dict.fromkeys(("is_forget", "is_alternative", "is_counterpart"), torch.bool)
    assert {name: tensor.dtype for name, tensor in batch.items()} == dtypes


def test_empty_batch_is_one_row_without_labels():
    batch = UnlearnCollator(PAD)([])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[PAD]],
        "attention_mask": [[1]],
        "labels": [[-100]],
        "language": [0],
        "row": [0],
        "is_forget": [False],
        "is_alternative": [False],
        "is_counterpart": [False],
    }


def split(first, num_rows):
    numbers = range(first, first + num_rows)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[i] * (i % 3 + 1) for i in numbers],
            "labels": [[i] * (i % 3 + 1) for i in numbers],
            "language": [i % 2 for i in numbers],
            "item": list(numbers),
            "candidate_input_ids": [[[i, i]] for i in numbers],
        }
    )


def with_answers(rows):
    """The same rows; all but every third have an alternative answer, longer than the row."""
    ids = [[] if i % 3 == 2 else [7, *row] * 4 for i, row in enumerate(rows["input_ids"])]
    return rows.add_column("alternative_input_ids", ids).add_column("alternative_labels", ids)


@quick
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=8), st.booleans())
def test_training_rows_keep_order_and_read_the_right_split(pairs, answers):
    forget = with_answers(split(0, 5)) if answers else split(0, 5)
    dataset = TrainingRows(forget, split(100, 7))
    assert len(dataset) == 12
    many = dataset.__getitems__(pairs)
    assert [(row["is_forget"], row["input_ids"][0]) for row in many] == [(f, i + (0 if f else 100)) for f, i in pairs]
    assert many == [dataset[pair] for pair in pairs]
    for row in many:
        has = answers and row["is_forget"]
        assert ("alternative_input_ids" in row, "alternative_labels" in row) == (has, has)
        assert not has or row["alternative_input_ids"] == forget[row["row"]]["alternative_input_ids"]


@pytest.mark.parametrize("is_forget", [True, False])
def test_training_rows_of_one_split(is_forget):
    dataset = TrainingRows(split(0, 5), None) if is_forget else TrainingRows(None, split(0, 5))
    assert len(dataset) == 5
    assert dataset[(is_forget, 3)] == {
        "input_ids": [3],
        "labels": [3],
        "language": 1,
        "is_forget": is_forget,
        "row": 3,
    }


def test_alternatives_count_in_digests_but_not_in_lengths():
    plain, answers = TrainingRows(split(0, 5), split(100, 7)), TrainingRows(with_answers(split(0, 5)), split(100, 7))
    assert answers.lengths() == plain.lengths() == {True: [1, 2, 3, 1, 2], False: [2, 3, 1, 2, 3, 1, 2]}
    assert answers.digests()["retain"] == plain.digests()["retain"]
    assert answers.digests()["forget"] != plain.digests()["forget"]
    other = with_answers(split(0, 5)).map(lambda row: {"alternative_labels": [-100, *row["alternative_labels"][1:]]})
    assert TrainingRows(other, None).digests()["forget"] != answers.digests()["forget"]
    assert TrainingRows(None, with_answers(split(100, 7))).digests()["retain"] == plain.digests()["retain"]


def test_a_batch_of_real_rows_with_alternatives():
    dataset = TrainingRows(with_answers(split(0, 5)), split(100, 7))
    batch = UnlearnCollator(PAD)(dataset.__getitems__([(False, 0), (True, 4), (True, 2), (True, 0)]))
    assert batch["row"].tolist() == [4, 2, 0, 4, 0, 0]
    assert batch["language"].tolist() == [0, 0, 0, 0, 0, 0]
    assert batch["is_forget"].tolist() == [True] * 3 + [False] * 3
    assert batch["is_alternative"].tolist() == [False] * 3 + [True] * 2 + [False]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 1, 12, 8, 2]
    assert batch["input_ids"][3].tolist() == [7, 4, 4] * 4
