"""Items to tokenized rows: which tokens carry labels, what truncation leaves of them, and the cache on disk."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError
from .cache import ITEMS_PER_BATCH as ITEMS_PER_BATCH
from .cache import cached_rows
from .chat import label_ends
from .checks import check_languages, check_splits
from .contents import Rendered
from .encoding import IGNORE_INDEX as IGNORE_INDEX
from .encoding import encode, hash_tokenizer
from .items import Item, Passage
from .token_checks import check_same_tokens, count_dropped, count_truncated, warn_of_special_tokens, warn_of_unknown

IDS = datasets.Sequence(datasets.Value("int32"))
FEATURES = datasets.Features(
    {
        "input_ids": IDS,
        "labels": IDS,
        "language": datasets.Value("int32"),
        "item": datasets.Value("int32"),
        "candidate_input_ids": datasets.Sequence(IDS),
        "candidate_labels": datasets.Sequence(IDS),
        "candidate_correct": datasets.Sequence(datasets.Value("bool")),
    }
)
# What is said of the rows and then taken away: in the cache beside them, so that a second run can say it too.
# `further_input_ids`: the row with each of its further answers; `written`: special tokens that stand in its texts.
NOTES = datasets.Features(
    {
        "lost_labels": datasets.Value("int32"),
        "is_unknown": datasets.Value("bool"),
        "further_input_ids": datasets.Sequence(IDS),
        "written": IDS,
    }
)


@dataclass(frozen=True)
class TokenizedData:
    """Tokenized splits.

    Args:
        datasets: split to rows, item by item and within an item in the order of ``languages + heldout_languages``.
            Columns: ``input_ids`` and ``labels`` (equal lengths, not padded, at most ``max_seq_length``),
            ``language`` (index into ``languages + heldout_languages``), ``item`` (index within the split; translations
            share it), ``candidate_input_ids``, ``candidate_labels`` and ``candidate_correct`` (one entry a candidate).
        languages: languages to train in.
        heldout_languages: languages that are only evaluated; their rows are in every split.
        dropped_rows: split to language to the number of rows without a label left after truncation (also where 0).
        truncated_rows: the same of rows that are used, but lost labelled tokens to truncation (also where 0).
        max_seq_length: tokens that a row was cut to; ``None`` where nobody says.
    """

    datasets: dict[str, datasets.Dataset]
    languages: list[str]
    heldout_languages: list[str]
    dropped_rows: dict[str, dict[str, int]]
    truncated_rows: dict[str, dict[str, int]] = field(default_factory=dict)
    max_seq_length: int | None = None


def tokenize_splits(
    splits: Mapping[str, Sequence[Item] | None],
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str] | None,
    heldout_languages: Sequence[str] = (),
    max_seq_length: int = 256,
    max_samples: Mapping[str, int | None] | None = None,
    show_texts: bool = False,
) -> TokenizedData:
    """Check the splits (:func:`~unlearn_trainer.data.checks.check_splits`) and tokenize them.

    Every position of a text is labelled; of a cloze or qa row those tokens that hold a character of the answer.
    Sequences have the special tokens that the tokenizer adds by default and are cut at their end, whatever side the
    tokenizer truncates or pads on; what labels that costs is counted and warned of. A row without a label that has a
    predecessor is dropped. A candidate of which truncation leaves no token is left out; if that leaves no right one,
    the row keeps no candidates.

    Special tokens written out in a text become the tokens themselves and are warned of; where a text begins with the
    token that the tokenizer puts before every text, there is one of them, not two. The tokenizer is left as it was.

    The result is cached by ``datasets``, under a key made of the texts, the languages, the tokenizer and the length.
    With several processes on one machine let the first one go ahead (``TrainingArguments.main_process_first``).

    Args:
        splits: items of ``forget`` (required), ``retain``, ``valid``, ``test``; None counts as absent.
        languages: languages to train in; None for all of the forget split (in file order) that are not held out.
        heldout_languages: languages to evaluate and never to train in.
        max_seq_length: in tokens, special tokens included.
        max_samples: split to how many of its first items to use (None: all).
        show_texts: let errors and warnings quote the texts.

    Raises:
        ConfigError: languages that contradict each other; a length that leaves no room for text; a sample of nothing.
        DataError: splits that ``check_splits`` refuses; a row of the forget split and one of another that are the same
            token ids, whatever their texts; more than 5 % of the rows (or all) of a split in a language would be
            dropped.
    """
    languages = check_splits(splits, languages, heldout_languages, show_texts)
    if max_seq_length <= max(1, tokenizer.num_special_tokens_to_add()):
        raise ConfigError(f"--max_seq_length {max_seq_length} leaves no room for text; raise it")
    used: dict[str, list[Item]] = {}
    for split, items in splits.items():
        limit = (max_samples or {}).get(split)
        if limit is not None and limit < 1:
            raise ConfigError(f"{limit} samples of the {split} split are asked for; it must be at least 1")
        if items is not None:
            used[split] = list(items[:limit])
    if max_samples:  # a language may be left without rows
        check_languages(used, languages, heldout_languages)
    all_languages = [*languages, *heldout_languages]
    tokenizer_key = hash_tokenizer(tokenizer)
    rows = {
        split: _tokenize_split(split, items, tokenizer, tokenizer_key, all_languages, max_seq_length)
        for split, items in used.items()
    }
    dropped, truncated = {}, {}
    for split, items in used.items():
        dropped[split] = count_dropped(split, items, rows[split], tokenizer, all_languages, max_seq_length)
        cut = count_truncated(split, rows[split], all_languages, max_seq_length)
        truncated[split] = {language: cut[language] for language in dropped[split]}
        warn_of_unknown(split, items, rows[split], all_languages)
        warn_of_special_tokens(split, items, rows[split], tokenizer, all_languages)
    check_same_tokens(used, rows, all_languages, max_seq_length, show_texts)
    rows = {split: found.remove_columns(list(NOTES)) for split, found in rows.items()}
    return TokenizedData(rows, languages, list(heldout_languages), dropped, truncated, max_seq_length)


def _tokenize_split(
    split: str,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_key: str,
    languages: Sequence[str],
    max_seq_length: int,
) -> datasets.Dataset:
    def passages(item: Item) -> list[tuple[int, Passage, list[Passage], list[tuple[Passage, bool]]]]:
        contents = ((index, item.content.get(language)) for index, language in enumerate(languages))
        return [
            (index, content.target, content.further(), content.choices()) for index, content in contents if content
        ]

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        entries = [(index, *entry) for index in batch["index"] for entry in passages(items[index])]
        # The answer of a cloze row is also one of its candidates: encode it once.
        unique = list(
            dict.fromkeys(p for *_, t, more, choices in entries for p in (t, *more, *(c for c, _ in choices)))
        )
        encoded = dict(zip(unique, encode(tokenizer, unique, max_seq_length), strict=True))
        # Only a row that is as long as it may be can have lost something.
        targets = dict.fromkeys(target for _, _, target, _, _ in entries)
        full = [target for target in targets if len(encoded[target].input_ids) >= max_seq_length]
        whole = encoded | dict(zip(full, encode(tokenizer, full, None), strict=True))
        columns: dict[str, list[Any]] = {name: [] for name in (*FEATURES, *NOTES)}
        for index, language, target, further, choices in entries:
            if not encoded[target].counts:
                continue
            kept = [(encoded[passage], right) for passage, right in choices if encoded[passage].counts]
            if not any(right for _, right in kept):
                kept = []
            ids, labels = encoded[target].input_ids, encoded[target].labels
            if split == "retain" and isinstance(
                target, Rendered
            ):  # how to end a turn is to be kept, and no text to be forgotten
                labels = label_ends(ids, labels, IGNORE_INDEX)
            columns["input_ids"].append(ids)
            columns["labels"].append(labels)
            columns["language"].append(language)
            columns["item"].append(index)
            columns["candidate_input_ids"].append([candidate.input_ids for candidate, _ in kept])
            columns["candidate_labels"].append([candidate.labels for candidate, _ in kept])
            columns["candidate_correct"].append([right for _, right in kept])
            labelled = encoded[target].labelled
            columns["lost_labels"].append(len(whole[target].labelled) - len(labelled))
            columns["is_unknown"].append({*labelled} - special == {tokenizer.unk_token_id})
            columns["further_input_ids"].append([encoded[passage].input_ids for passage in further])
            written = {i for passage in (target, *further, *(c for c, _ in choices)) for i in encoded[passage].written}
            columns["written"].append(sorted(written))
        return columns

    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    digest = hashlib.sha256(tokenizer_key.encode())
    for item in items:
        digest.update(json.dumps([max_seq_length, split == "retain", passages(item)]).encode())
    features = datasets.Features(FEATURES | NOTES)
    return cached_rows(rows, len(items), features, digest.hexdigest()[:32], f"Tokenizing {split}")
