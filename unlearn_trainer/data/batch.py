"""The groups of rows in a batch, and the labelled tokens of each."""

import dataclasses
import enum
from collections.abc import Mapping

import torch

from ..objectives import IGNORED


class RowGroup(enum.StrEnum):
    """The part of a row in a batch; as text it is the word that stands in keys of batches, results and files.

    The forget and the retain rows come from splits of their own. The others are companions of forget rows, with which
    they share language and row number. A *side* is a group with an objective: forget, retain and counterpart.
    """

    FORGET = "forget"  # what the model shall no longer know
    RETAIN = "retain"  # what it shall keep
    ALTERNATIVE = "alternative"  # what it shall say in place of a forget row
    COUNTERPART = "counterpart"  # a row like a forget row, that it never saw

    @property
    def split(self) -> "RowGroup":
        """The split whose rows these are or accompany."""
        return RowGroup.RETAIN if self is RowGroup.RETAIN else RowGroup.FORGET


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


def rows_of(batch: Mapping[str, torch.Tensor], group: RowGroup) -> torch.Tensor:
    """[rows] which rows of a batch belong to ``group``, as a mask."""
    if group != RowGroup.RETAIN:
        return batch[f"is_{group}"]
    return ~torch.stack([batch[f"is_{each}"] for each in RowGroup if each is not RowGroup.RETAIN]).any(0)


def group_tokens(batch: Mapping[str, torch.Tensor], group: RowGroup, at_label: bool = False) -> GroupTokens:
    """The labelled tokens of a group of rows of a batch.

    Args:
        at_label: give the columns that carry the labels, a row's first column too, instead of those that predict them.
            Rows of which nothing is predicted are left out.
    """
    rows = rows_of(batch, group).nonzero()[:, 0]
    labels = batch["labels"][rows]
    is_predicted = labels[:, 1:].ne(IGNORED)
    at = labels.ne(IGNORED) & is_predicted.any(1, keepdim=True) if at_label else is_predicted
    row_of, columns = at.nonzero(as_tuple=True)
    targets = labels[row_of, columns if at_label else columns + 1]
    return GroupTokens(rows, row_of, columns, targets, batch["language"][rows])


@dataclasses.dataclass
class LabelTokens(GroupTokens):
    """The tokens of a loss that looks at positions which *carry* labels, and at what is predicted there or before.

    Attributes:
        columns: [n] the column that predicts ``targets``.
        label_columns: [n] the column that carries the label.
        labels: [n] token ids there.
        has_label: [n] whether there is one.
        has_target: [n] whether anything is predicted.
        is_own: [n] whether that is one of the row's labels, as it is not where the pad token is predicted. These are
            the tokens of :func:`group_tokens`, in their order.
    """

    label_columns: torch.Tensor
    labels: torch.Tensor
    has_label: torch.Tensor
    has_target: torch.Tensor
    is_own: torch.Tensor


def label_tokens(batch: Mapping[str, torch.Tensor], group: RowGroup, pad_token_id: int | None = None) -> LabelTokens:
    """The tokens of a group of rows at the columns that carry labels; rows of which nothing is predicted have none.

    Args:
        pad_token_id: predict at each of these columns the *next* token, and in the batch's last column this one;
            otherwise the column before predicts the label.
    """
    if pad_token_id is None:
        at = group_tokens(batch, group, at_label=True)
        yes, later = torch.ones_like(at.columns, dtype=torch.bool), at.columns > 0
        before = at.columns.clamp(min=1) - 1
        shared = at.rows, at.row_of, before, at.targets, at.row_languages
        return LabelTokens(*shared, at.columns, at.targets, yes, later, later)
    rows = rows_of(batch, group).nonzero()[:, 0]
    labels = batch["labels"][rows]
    is_used = labels[:, 1:].ne(IGNORED).any(1, keepdim=True)
    following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], pad_token_id)], 1)
    row_of, columns = ((labels.ne(IGNORED) | following.ne(IGNORED)) & is_used).nonzero(as_tuple=True)
    own, targets = labels[row_of, columns], following[row_of, columns]
    return LabelTokens(
        *(rows, row_of, columns, targets.clamp(min=0), batch["language"][rows]),
        *(columns, own.clamp(min=0), own.ne(IGNORED), targets.ne(IGNORED)),
        targets.ne(IGNORED) & (columns < labels.shape[1] - 1),
    )
