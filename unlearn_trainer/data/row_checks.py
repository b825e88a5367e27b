"""Tokenized rows that a user passes, held against the model and the languages."""

import re
from collections.abc import Mapping, Sequence

from datasets import Dataset
from torch import nn

from ..errors import ConfigError

# Of a split of tokenized rows; ``language`` is an index, ``item`` ties translations together.
ROW_COLUMNS = ("input_ids", "labels", "language", "item")


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
