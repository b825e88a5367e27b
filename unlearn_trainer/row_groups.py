"""The groups of rows in a batch, and the labelled tokens of each."""

import dataclasses
from collections.abc import Mapping

import torch
from datasets import Dataset

from .data.collator import COMPANIONS, companion_columns, with_companions
from .errors import ConfigError
from .objectives import IGNORED, Objective

# Rows to forget, rows to keep, what the model shall say in place of the former, and never-seen rows like them.
GROUPS = ("forget", "retain", *COMPANIONS)


@dataclasses.dataclass
class GroupTokens:
    """The labelled tokens of one group of rows, in the order of rows and columns.

    Attributes:
        rows: [R] which rows of the batch belong to the group.
        row_of: [n] index into ``rows`` of each token.
        columns: [n] the column that *predicts* each token, or the one that carries it.
        targets: [n] token ids.
        row_languages: [R] language index of each row.
    """

    rows: torch.Tensor
    row_of: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    row_languages: torch.Tensor

    @property
    def languages(self) -> torch.Tensor:
        """[n] language index of each token."""
        return self.row_languages[self.row_of]

    @property
    def per_row(self) -> torch.Tensor:
        """[R] how many tokens each row has."""
        return torch.bincount(self.row_of, minlength=len(self.rows))

    @property
    def places(self) -> torch.Tensor:
        """[n] the number of each token within its row, from 0."""
        return torch.arange(len(self.row_of), device=self.row_of.device) - torch.searchsorted(self.row_of, self.row_of)

    def aligned(self, other: "GroupTokens") -> torch.Tensor:
        """[n] index into ``other``'s tokens of the one at the like place in the row of the same number."""
        counts, others = self.per_row[self.row_of], other.per_row[self.row_of]
        first = torch.searchsorted(other.row_of, self.row_of)
        return first + torch.where(counts == others, self.places, self.places * others // counts)

    def row_sums(self, values: torch.Tensor) -> torch.Tensor:
        """[R] sums over the tokens of each row of ``values`` [n]."""
        return values.new_zeros(len(self.rows)).index_add_(0, self.row_of, values)


def rows_of(batch: Mapping[str, torch.Tensor], group: str) -> torch.Tensor:
    """[rows] which rows of a batch belong to ``group``, as a mask."""
    if group != "retain":
        return batch[f"is_{group}"]
    return ~torch.stack([batch[f"is_{each}"] for each in GROUPS if each != "retain"]).any(0)


def group_tokens(batch: Mapping[str, torch.Tensor], group: str, at_label: bool = False) -> GroupTokens:
    """The labelled tokens of a group of rows of a batch.

    Args:
        at_label: give the columns that carry the labels, a row's first column too, instead of those that predict them.
    """
    rows = rows_of(batch, group).nonzero()[:, 0]
    labels = batch["labels"][rows]
    row_of, columns = (labels if at_label else labels[:, 1:]).ne(IGNORED).nonzero(as_tuple=True)
    targets = labels[row_of, columns if at_label else columns + 1]
    return GroupTokens(rows, row_of, columns, targets, batch["language"][rows])


def rows_in_use(
    objectives: Mapping[str, Objective | None], forget: Dataset | None, retain: Dataset | None
) -> dict[str, Dataset | None]:
    """The rows of both sides as far as an objective asks for them, alternative answers too.

    Raises:
        ConfigError: they are not there.
    """
    used = {}
    for side, rows in (("forget", forget), ("retain", retain)):
        objective = objectives[side]
        if objective is not None and rows is None:
            raise ConfigError(f"--{side}_objective {objective.name} needs {side} rows; give --{side}_file")
        used[side] = rows if objective is not None else None
        if objective is not None and side == "forget":
            needed = [each for each in COMPANIONS if each in objective.needs]
            used[side] = with_companions(rows, needed)
            for companion in needed:
                if companion_columns(companion)[0] not in rows.column_names:
                    raise ConfigError(
                        f"--forget_objective {objective.name} needs the {companion} of every row: add them with "
                        f"unlearn_trainer.data.add_{companion}s"
                    )
    return used
