"""What a trainer in Python is given at once: a model by name, and all splits together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.arguments import ModelArguments
from ..config.unlearn_config import UnlearnConfig
from ..data import Item, TokenizedData, add_alternatives, add_counterparts, tokenize_splits
from ..data.chat import find_template, with_template
from ..errors import ConfigError
from ..model.loading import check_given, load_model, load_tokenizer

MEASURED = ("forget", "retain", "valid")


@dataclass(frozen=True)
class Given:
    """Model, tokenizer and rows, loaded and tokenized."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    data: TokenizedData

    @property
    def measured(self) -> dict[str, Dataset]:
        """The splits that are measured at the start, during the training and at its end."""
        return {split: self.data.datasets[split] for split in MEASURED if split in self.data.datasets}

    @property
    def predicted(self) -> dict[str, Dataset]:
        """All others, which are measured at the start and at the end."""
        return {split: rows for split, rows in self.data.datasets.items() if split not in MEASURED}


def load_given(
    model: PreTrainedModel | str | Path,
    args: UnlearnConfig,
    data: TokenizedData | Mapping[str, Sequence[Item]],
    tokenizer: PreTrainedTokenizerBase | None,
    languages: Sequence[str] | None,
    heldout_languages: Sequence[str],
    max_seq_length: int | None,
) -> Given:
    """Load a model by its name, and tokenize splits of items with its tokenizer and chat template.

    Args:
        model: loaded, or its name or folder.
        args: of the run; says whether forget rows need companions.
        data: tokenized, or what ``load_splits`` returns.
        tokenizer: by default that of the model's name.
        languages, heldout_languages, max_seq_length: see :func:`unlearn_trainer.data.tokenize_splits`; the defaults
            are all languages of the forget split, and 256 tokens.

    Raises:
        ConfigError: the model or tokenizer cannot be loaded, or settings for tokenizing come with tokenized data.
        DataError: rows that cannot be used.
    """
    _check_data(data)
    if not isinstance(model, str | Path):
        check_given(model)
    named = ModelArguments(model_name_or_path=str(model)) if isinstance(model, str | Path) else None
    if tokenizer is None:
        name = named.model_name_or_path if named else getattr(model.config, "name_or_path", "")  # type: ignore[union-attr]
        if name:
            tokenizer = load_tokenizer(ModelArguments(model_name_or_path=name))
        elif not isinstance(data, TokenizedData):
            raise ConfigError("data holds texts, and the model does not say which tokenizer is its own; pass "
                              "processing_class=tokenizer")  # fmt: skip
    loaded = load_model(named, tokenizer) if named else model
    if isinstance(data, TokenizedData):
        if languages is not None or heldout_languages or max_seq_length is not None:
            raise ConfigError("data is tokenized already: its languages and length are its own; leave them out")
        return Given(loaded, tokenizer, data)  # type: ignore[arg-type]  # a name was loaded above
    assert tokenizer is not None
    chat = find_template(tokenizer)
    splits = {split: with_template(items, chat) for split, items in data.items() if items is not None}
    length = 256 if max_seq_length is None else max_seq_length
    rows = tokenize_splits(splits, tokenizer, languages, heldout_languages, length)
    if args.needs_companion("alternative"):
        rows = add_alternatives(rows, splits["forget"], tokenizer, length, args.seed)
    if args.needs_companion("counterpart"):
        rows = add_counterparts(rows, args.seed)
    return Given(loaded, tokenizer, rows)  # type: ignore[arg-type]  # a name was loaded above


def _check_data(data: object) -> None:
    """Refuse what is neither tokenized splits nor splits of items."""
    remedy = "pass what load_splits or tokenize_splits returns"
    if isinstance(data, TokenizedData):
        return
    if not isinstance(data, Mapping):
        raise ConfigError(f"data is a {type(data).__name__}; {remedy}: data=load_splits(folder)")
    for split, items in data.items():
        if items is None:
            continue
        if not isinstance(items, Sequence) or not all(isinstance(item, Item) for item in items):
            kind = type(items[0]).__name__ if isinstance(items, Sequence) and items else type(items).__name__
            raise ConfigError(f"data[{split!r}] holds {kind} in place of items; {remedy}")
    if not data.get("forget"):
        raise ConfigError(f"data has no forget split, only: {', '.join(map(str, data)) or 'nothing'}; {remedy}")
