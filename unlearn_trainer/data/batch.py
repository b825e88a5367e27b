"""The groups of rows in a batch, and the labelled tokens of each."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import ConfigError
from ..objectives import IGNORED, Objective
from .collator import COMPANIONS, UnlearnCollator, companion_columns, with_companions

# Rows to forget, rows to keep, what the model shall say in place of the former, and never-seen rows like them.
GROUPS = ("forget", "retain", *COMPANIONS)
# Of a split of tokenized rows; ``language`` is an index, ``item`` ties translations together.
ROW_COLUMNS = ("input_ids", "labels", "language", "item")


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


def label_tokens(batch: Mapping[str, torch.Tensor], group: str, pad_token_id: int | None = None) -> LabelTokens:
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


def rows_in_use(
    objectives: Mapping[str, Objective | None], forget: Dataset | None, retain: Dataset | None, num_trained: int
) -> dict[str, Dataset | None]:
    """The rows of both sides as far as an objective asks for them, alternative answers too.

    Args:
        num_trained: rows of the languages below this index are trained on.

    Raises:
        ConfigError: they are not there, or none of them has a label.
    """
    used = {}
    for side, rows in (("forget", forget), ("retain", retain)):
        objective = objectives[side]
        if objective is not None and rows is None:
            raise ConfigError(f"--{side}_objective {objective.name} needs {side} rows; give --{side}_file")
        if objective is not None and not _has_labels(rows, num_trained):
            raise ConfigError(
                f"--{side}_objective {objective.name} has nothing to work on: no row of the {side} split in a trained "
                "language has a label other than -100 behind its first token; give rows that do"
            )
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


def collator_for(
    objectives: Mapping[str, Objective | None],
    used: Mapping[str, Dataset | None],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    max_seq_length: int | None,
) -> UnlearnCollator:
    """What makes batches of ``used``: each as wide as its longest row, or all alike where padding counts in the loss.

    Args:
        config: of the language model, for the pad token where there is no tokenizer.
        max_seq_length: the width of all batches where padding counts; by default that of the longest row of all,
            rounded up to a multiple of 8.
    """
    pad_token_id = getattr(tokenizer, "pad_token_id", None)
    if not any(objective and objective.predicts_next for objective in objectives.values()):
        if pad_token_id is None:
            pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
        return UnlearnCollator(pad_token_id)
    if pad_token_id is None:
        # In XGLM's vocabulary 0 begins a text: where a configuration pads with it, it names no pad token.
        pad_token_id = config.pad_token_id or type(config)().pad_token_id
    columns = [
        rows.with_format(None)[name]
        for rows in used.values()
        if rows is not None
        for name in rows.column_names
        if name.endswith("input_ids")
    ]
    longest = max(len(ids) for column in columns for ids in column)
    return UnlearnCollator(pad_token_id, width=max(longest, max_seq_length or -(-longest // 8) * 8))


def _has_labels(rows: Dataset, num_trained: int) -> bool:
    plain = rows.select_columns(["language", "labels"]).with_format(None)
    return any(row["language"] < num_trained and set(row["labels"][1:]) - {IGNORED} for row in plain)


def check_rows(splits: Mapping[str, Dataset | None], languages: Sequence[str], positions: int | None) -> None:
    """Refuse what is no split of tokenized rows of these languages.

    Args:
        splits: ``{split: rows}``; ``None`` for one that is not there.
        languages: codes that the column ``language`` indexes.
        positions: tokens a row may have at most, where there is a limit.

    Raises:
        ConfigError: names the split, and what it should be.
    """
    for split, rows in splits.items():
        if rows is None:
            continue
        missing = [name for name in ROW_COLUMNS if name not in getattr(rows, "column_names", ())]
        if not isinstance(rows, Dataset) or missing:
            found = f"lacks {', '.join(missing)}" if isinstance(rows, Dataset) else f"is a {type(rows).__name__}"
            raise ConfigError(
                f"the {split} split {found}; pass a datasets.Dataset with the columns {', '.join(ROW_COLUMNS)}, such "
                "as unlearn_trainer.data.tokenize_splits makes"
            )
        plain = rows.with_format(None)
        unknown = [each for each in dict.fromkeys(plain["language"]) if each not in range(len(languages))]
        if unknown:
            raise ConfigError(
                f"the {split} split has {unknown[0]!r} in its column language, which holds for each row the place of "
                f"its language, from 0, in languages and heldout_languages: {', '.join(languages)}"
            )
        if positions is None:
            continue
        for name in (name for name in rows.column_names if name.endswith("input_ids")):
            longest = max((_longest(ids) for ids in plain[name]), default=0)
            if longest > positions:
                raise ConfigError(
                    f"the {split} split has a row of {longest} tokens, and the model's table of positions ends at "
                    f"{positions}; give --max_seq_length {positions} or less"
                )


def _longest(ids: list) -> int:
    return max(map(_longest, ids)) if ids and isinstance(ids[0], list) else len(ids)


# What families call the number of positions that a table of theirs is made for.
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions")
_OTHER_SENSES = re.compile(r"vision|visual|image|audio")


def learned_positions(model: nn.Module) -> int | None:
    """How many tokens a text may have for a model with a table of positions that ends; else ``None``.

    The table may be learned or computed, or be the mask of a causal attention. Rotations that are computed for any
    position do not end, nor do tables that grow.
    """
    config = model.config.get_text_config()
    limits = {getattr(config, name, None) for name in _LIMITS} - {None}
    found = []
    for name, module in model.named_modules():
        if _OTHER_SENSES.search(name) or module is model.get_input_embeddings():
            continue
        if isinstance(module, nn.Embedding):
            # Some keep places for padding: OPT two, RoBERTa those up to the padding token's own.
            offset = getattr(module, "offset", None)
            if offset is None:
                padding = module.padding_idx if type(module) is nn.Embedding else None
                offset = 0 if padding is None else padding + 1
            if module.num_embeddings in limits | {limit + offset for limit in limits}:
                found.append(module.num_embeddings - offset)
        elif not hasattr(module, "make_weights"):  # which makes a longer table when it is needed
            buffers = module.named_buffers(recurse=False)
            found += [limit for _, table in buffers for limit in limits if table.dim() > 1 and limit in table.shape]
    if hasattr(config, "attn_config") and getattr(config.attn_config, "alibi", False):
        found.append(config.max_seq_len)  # MPT's slopes are laid out for that many
    if getattr(config, "axial_pos_embds", False):
        found.append(config.max_position_embeddings)  # Reformer's table is a product of two
    return min(found, default=None)
