"""Rows that go with the forget rows, as far as the objective asks for them."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .arguments import DataArguments, UnlearnConfig
from .data import Item, TokenizedData, add_alternatives, add_counterparts, find_alternatives


def add_companions(
    data: TokenizedData,
    forget: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    args: UnlearnConfig,
) -> TokenizedData:
    """The same data with alternative answers and counterparts, where ``--forget_objective`` needs them.

    Args:
        forget: the items that ``data`` was made of.
    """
    if args.needs_companion("alternative"):
        path = find_alternatives(data_args.alternative_answers, data_args.data_dir)
        data = add_alternatives(data, forget, tokenizer, data_args.max_seq_length, args.seed, path)
    if args.needs_companion("counterpart"):
        data = add_counterparts(data, args.seed)
    return data
