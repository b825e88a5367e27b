"""The groups of rows in a batch, and the labelled tokens of each."""

import dataclasses
from collections.abc import Mapping

import torch
from datasets import Dataset

from .data.collator import ALTERNATIVE_COLUMNS, without_alternatives
from .errors import ConfigError
from .objectives import IGNORED, Objective

# Rows to forget, rows to keep, and what the model shall say in place of the former.
GROUPS = ("forget", "retain", "alternative")


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

    def row_sums(self, values: torch.Tensor) -> torch.Tensor:
        """[R] sums over the tokens of each row of ``values`` [n]."""
        return values.new_zeros(len(self.rows)).index_add_(0, self.row_of, values)


def rows_of(batch: Mapping[str, torch.Tensor], group: str) -> torch.Tensor:
    """[rows] which rows of a batch belong to ``group``, as a mask."""
    if group == "alternative":
        return batch["is_alternative"]
    return (batch["is_forget"] == (group == "forget")) & ~batch["is_alternative"]


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
            if "alternative" not in objective.needs:
                used[side] = without_alternatives(rows)
            elif ALTERNATIVE_COLUMNS[0] not in rows.column_names:
                raise ConfigError(
                    f"--forget_objective {objective.name} needs alternative answers: add them to the forget rows with "
                    "unlearn_trainer.data.add_alternatives"
                )
    return used
