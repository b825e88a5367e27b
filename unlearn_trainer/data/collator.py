"""From tokenized rows to one flat, padded batch that holds forget and retain rows side by side."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from .batch import RowGroup

IGNORE_INDEX = -100  # what PyTorch and transformers leave out of a loss
COLUMNS = ("input_ids", "labels", "language")
# Rows that may go with a forget row: what shall be said instead, and one like it that the model never saw.
COMPANIONS = (RowGroup.ALTERNATIVE, RowGroup.COUNTERPART)


def companion_columns(companion: str) -> tuple[str, str]:
    """The columns of the forget split that hold a companion's tokens and labels."""
    return f"{companion}_input_ids", f"{companion}_labels"


def with_companions(rows, companions: Collection[str]):
    """A tokenized split without the columns of all companions but these."""
    dropped = {name for each in COMPANIONS if each not in companions for name in companion_columns(each)}
    return rows.remove_columns([name for name in rows.column_names if name in dropped])


def rows_digest(rows, columns: Collection[str]) -> str:
    """A digest of a tokenized split's rows: equal for equal rows, whatever file or cache they came from."""
    digest = hashlib.sha256()
    for values in rows:
        digest.update(json.dumps([values[name] for name in columns]).encode())
    return digest.hexdigest()[:16]


class TrainingRows(Dataset):
    """The forget and the retain split as one dataset, indexed by the `(is_forget, row)` pairs of the sampler.

    Args:
        forget, retain: tokenized `datasets.Dataset` of each split, or `None` for a split that is not trained on.
            Companions are passed on where the forget split has them.
    """

    def __init__(self, forget, retain):
        self._splits = {}
        for is_forget, split in ((True, forget), (False, retain)):
            if split is not None:
                extra = [name for each in COMPANIONS for name in companion_columns(each)] if is_forget else []
                columns = [*COLUMNS, *(name for name in extra if name in split.column_names)]
                self._splits[is_forget] = split.select_columns(columns).with_format(None)

    def __len__(self) -> int:
        return sum(map(len, self._splits.values()))

    def digests(self) -> dict[str, str]:
        """A digest of the rows of each split, see :func:`rows_digest`."""
        return {
            "forget" if is_forget else "retain": rows_digest(split, split.column_names)
            for is_forget, split in self._splits.items()
        }

    def __getitem__(self, pair: tuple[bool, int]) -> dict:
        is_forget, row = pair
        return {**self._splits[is_forget][row], "is_forget": is_forget, "row": row}

    def lengths(self) -> dict[bool, list[int]]:
        """Tokens of every row of each split, those of its companions not counted."""
        return {is_forget: [len(ids) for ids in split["input_ids"]] for is_forget, split in self._splits.items()}

    def labels(self, group: RowGroup) -> list[list[int]]:
        """The labels of every row of `forget`, `retain`, or of one of the companions of forget."""
        return self._splits[group.split is RowGroup.FORGET][
            companion_columns(group)[1] if group in COMPANIONS else "labels"
        ][:]

    def __getitems__(self, pairs: list[tuple[bool, int]]) -> list[dict]:
        """All rows of a batch with one read of each split, which is what `DataLoader` prefers; keeps the order."""
        rows: list[dict | None] = [None] * len(pairs)
        for is_forget, split in self._splits.items():
            places = [place for place, pair in enumerate(pairs) if pair[0] == is_forget]
            if places:
                columns = split[[pairs[place][1] for place in places]]
                for place, *values in zip(places, *columns.values(), strict=True):
                    row = {"is_forget": is_forget, "row": pairs[place][1]}
                    rows[place] = {**dict(zip(columns, values, strict=True)), **row}
        return rows


@dataclass(frozen=True)
class UnlearnCollator:
    """Pads rows on the right, whatever the tokenizer's own padding side, and puts the forget rows first.

    Next come the companions of those forget rows that have them, kind by kind in the same order, then the retain rows.

    Which positions are real is read from the lengths alone: many tokenizers pad with their end-of-sequence token.

    Args:
        pad_token_id: id written at padded positions.
        width: of every batch, at least.
    """

    pad_token_id: int
    width: int = 0

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Makes a batch of B rows and T positions.

        Args:
            rows: dicts with `input_ids` and `labels` (equally long lists), `language`, `is_forget` and `row`, its
                number in its split; forget rows may have `<companion>_input_ids` and `<companion>_labels` (empty:
                there is none); other keys are left out. An empty list gives one row of one pad token without
                labels: a rank whose share of a step is empty still takes part in the step's collective operations.

        Returns:
            `input_ids`, `attention_mask`, `labels`: int64 [B, T], labels -100 where there is none;
            `language`, `row`: int64 [B], a companion's are those of its forget row;
            `is_forget`, `is_alternative`, `is_counterpart`: bool [B], all False for retain rows.
        """
        if not rows:
            rows = [
                {
                    "input_ids": [self.pad_token_id],
                    "labels": [IGNORE_INDEX],
                    "language": 0,
                    "is_forget": False,
                    "row": 0,
                }
            ]
        forget = [row for row in rows if row["is_forget"]]
        ordered = [(row, RowGroup.FORGET) for row in forget]
        for companion in COMPANIONS:
            ids, labels = companion_columns(companion)
            ordered += [
                ({**row, "input_ids": row[ids], "labels": row[labels]}, companion) for row in forget if row.get(ids)
            ]
        ordered += [(row, RowGroup.RETAIN) for row in rows if not row["is_forget"]]
        rows = [row for row, _ in ordered]
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        width = max(self.width, int(lengths.max()))

        def pad(name: str, value: int) -> torch.Tensor:
            return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows], dtype=torch.long)

        return {
            "input_ids": pad("input_ids", self.pad_token_id),
            "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
            "labels": pad("labels", IGNORE_INDEX),
            "language": torch.tensor([row["language"] for row in rows], dtype=torch.long),
            "row": torch.tensor([row["row"] for row in rows], dtype=torch.long),
            **{
                f"is_{group}": torch.tensor([found == group for _, found in ordered])
                for group in (RowGroup.FORGET, *COMPANIONS)
            },
        }
