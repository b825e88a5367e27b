import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.data.collator import TrainingRows, UnlearnCollator

PAD = 1
quick = settings(max_examples=40, deadline=None)

rows = st.lists(
    st.builds(
        lambda ids, language, is_forget: {
            "input_ids": ids,
            "labels": [-100, *ids[1:]],
            "language": language,
            "is_forget": is_forget,
            "row": len(ids),
        },
        st.lists(st.integers(0, 4), min_size=1, max_size=9),  # often holds the pad id as a real token
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@quick
@given(rows, st.sampled_from([None, 4]))
def test_batch_holds_the_rows_padded_right_and_forget_first(rows, multiple):
    batch = UnlearnCollator(PAD, pad_to_multiple_of=multiple)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    width = batch["input_ids"].shape[1]
    assert width == (longest if multiple is None else -(-longest // 4) * 4)
    expected = [row for row in rows if row["is_forget"]] + [row for row in rows if not row["is_forget"]]
    for index, row in enumerate(expected):
        n = len(row["input_ids"])
        assert batch["input_ids"][index].tolist() == row["input_ids"] + [PAD] * (width - n)
        assert batch["labels"][index].tolist() == row["labels"] + [-100] * (width - n)
        assert batch["attention_mask"][index].tolist() == [1] * n + [0] * (width - n)
    assert batch["language"].tolist() == [row["language"] for row in expected]
    assert batch["is_forget"].tolist() == [row["is_forget"] for row in expected]
    assert batch["row"].tolist() == [row["row"] for row in expected]
    dtypes = {name: torch.int64 for name in ("input_ids", "attention_mask", "labels", "language", "row")}
    assert {name: tensor.dtype for name, tensor in batch.items()} == {**dtypes, "is_forget": torch.bool}


def test_empty_batch_is_one_row_without_labels():
    batch = UnlearnCollator(PAD)([])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[PAD]],
        "attention_mask": [[1]],
        "labels": [[-100]],
        "language": [0],
        "row": [0],
        "is_forget": [False],
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


@quick
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=8))
def test_training_rows_keep_order_and_read_the_right_split(pairs):
    dataset = TrainingRows(split(0, 5), split(100, 7))
    assert len(dataset) == 12
    many = dataset.__getitems__(pairs)
    assert [(row["is_forget"], row["input_ids"][0]) for row in many] == [(f, i + (0 if f else 100)) for f, i in pairs]
    assert many == [dataset[pair] for pair in pairs]


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
