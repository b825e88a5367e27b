"""From tokenized rows to one flat, padded batch that holds forget and retain rows side by side."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

IGNORE_INDEX = -100  # what PyTorch and transformers leave out of a loss
COLUMNS = ("input_ids", "labels", "language")
ALTERNATIVE_COLUMNS = ("alternative_input_ids", "alternative_labels")


def without_alternatives(rows):
    """A tokenized split without the columns of alternative answers."""
    return rows.remove_columns([name for name in ALTERNATIVE_COLUMNS if name in rows.column_names])


class TrainingRows(Dataset):
    """The forget and the retain split as one dataset, indexed by the `(is_forget, row)` pairs of the sampler.

    Args:
        forget, retain: tokenized `datasets.Dataset` of each split, or `None` for a split that is not trained on.
            Alternative answers are passed on where the forget split has them.
    """

    def __init__(self, forget, retain):
        self._splits = {}
        for is_forget, split in ((True, forget), (False, retain)):
            if split is not None:
                extra = [name for name in ALTERNATIVE_COLUMNS if is_forget and name in split.column_names]
                self._splits[is_forget] = split.select_columns([*COLUMNS, *extra]).with_format(None)

    def __len__(self) -> int:
        return sum(map(len, self._splits.values()))

    def digests(self) -> dict[str, str]:
        """A digest of each split's rows: equal for equal rows, whatever file or cache they came from."""
        found = {}
        for is_forget, split in self._splits.items():
            digest = hashlib.sha256()
            for values in split:
                digest.update(json.dumps([values[name] for name in split.column_names]).encode())
            found["forget" if is_forget else "retain"] = digest.hexdigest()[:16]
        return found

    def __getitem__(self, pair: tuple[bool, int]) -> dict:
        is_forget, row = pair
        return {**self._splits[is_forget][row], "is_forget": is_forget, "row": row}

    def lengths(self) -> dict[bool, list[int]]:
        """Tokens of every row of each split, those of its alternative answer not counted."""
        return {is_forget: [len(ids) for ids in split["input_ids"]] for is_forget, split in self._splits.items()}

    def labels(self, group: str) -> list[list[int]]:
        """The labels of every row of `forget`, `retain` or `alternative`, the alternative answers to forget."""
        return self._splits[group != "retain"]["alternative_labels" if group == "alternative" else "labels"][:]

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

    Next come the alternative answers of those forget rows that have one, in the same order, and then the retain rows.

    Which positions are real is read from the lengths alone: many tokenizers pad with their end-of-sequence token.

    Args:
        pad_token_id: id written at padded positions.
        pad_to_multiple_of: rounds the width up to a multiple of this, for hardware that is faster so.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Makes a batch of B rows and T positions.

        Args:
            rows: dicts with `input_ids` and `labels` (equally long lists), `language`, `is_forget` and `row`, its
                number in its split; forget rows may have `alternative_input_ids` and `alternative_labels` (empty:
                there is none); other keys are left out. An empty list gives one row of one pad token without
                labels: a rank whose share of a step is empty still takes part in the step's collective operations.

        Returns:
            `input_ids`, `attention_mask`, `labels`: int64 [B, T], labels -100 where there is none;
            `language`, `row`: int64 [B], an alternative's are those of its forget row;
            `is_forget`, `is_alternative`: bool [B], both False for retain rows.
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
        alternatives = [
            {
                "input_ids": row["alternative_input_ids"],
                "labels": row["alternative_labels"],
                "language": row["language"],
                "is_forget": False,
                "row": row["row"],
            }
            for row in forget
            if row.get("alternative_input_ids")
        ]
        rows = [*forget, *alternatives, *(row for row in rows if not row["is_forget"])]
        places = torch.arange(len(rows))
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        width = int(lengths.max())
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of

        def pad(name: str, value: int) -> torch.Tensor:
            return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows], dtype=torch.long)

        return {
            "input_ids": pad("input_ids", self.pad_token_id),
            "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
            "labels": pad("labels", IGNORE_INDEX),
            "language": torch.tensor([row["language"] for row in rows], dtype=torch.long),
            "row": torch.tensor([row["row"] for row in rows], dtype=torch.long),
            "is_forget": torch.tensor([bool(row["is_forget"]) for row in rows]),
            "is_alternative": (places >= len(forget)) & (places < len(forget) + len(alternatives)),
        }
