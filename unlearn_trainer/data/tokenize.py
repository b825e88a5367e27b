"""Items to tokenized rows: which tokens carry labels, what truncation leaves of them, and the cache on disk."""

import hashlib
import json
import logging
import tempfile
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from .checks import check_languages, check_splits, counted
from .rows import Item, Passage

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
REPLACEMENT = "\ufffd"
MAX_DROPPED = 0.05
ITEMS_PER_BATCH = 50

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
NOTES = datasets.Features({"lost_labels": datasets.Value("int32"), "is_unknown": datasets.Value("bool")})


class Encoded(NamedTuple):
    """Token ids of a passage after truncation, and its labels (ids, or -100 where there is none)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def counts(self) -> bool:
        """Whether a labelled token has a predecessor that can predict it."""
        return any(label != IGNORE_INDEX for label in self.labels[1:])

    @property
    def labelled(self) -> list[int]:
        """Ids of the labelled tokens."""
        return [label for label in self.labels if label != IGNORE_INDEX]


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
    """

    datasets: dict[str, datasets.Dataset]
    languages: list[str]
    heldout_languages: list[str]
    dropped_rows: dict[str, dict[str, int]]
    truncated_rows: dict[str, dict[str, int]] = field(default_factory=dict)


def tokenize_splits(
    splits: Mapping[str, Sequence[Item] | None],
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str] | None,
    heldout_languages: Sequence[str] = (),
    max_seq_length: int = 256,
    max_samples: Mapping[str, int | None] | None = None,
) -> TokenizedData:
    """Check the splits (:func:`~unlearn_trainer.data.checks.check_splits`) and tokenize them.

    Every position of a text is labelled; of a cloze or qa row those tokens that hold a character of the answer.
    Sequences have the special tokens that the tokenizer adds by default and are cut at their end, whatever side the
    tokenizer truncates or pads on; what labels that costs is counted and warned of. A row without a label that has a
    predecessor is dropped. A candidate of which truncation leaves no token is left out; if that leaves no right one,
    the row keeps no candidates.

    The result is cached by ``datasets``, under a key made of the texts, the languages, the tokenizer and the length.
    With several processes on one machine let the first one go ahead (``TrainingArguments.main_process_first``).

    Args:
        splits: items of ``forget`` (required), ``retain``, ``valid``, ``test``; None counts as absent.
        languages: languages to train in; None for all of the forget split (in file order) that are not held out.
        heldout_languages: languages to evaluate and never to train in.
        max_seq_length: in tokens, special tokens included.
        max_samples: split to how many of its first items to use (None: all).

    Raises:
        ConfigError: languages that contradict each other; a length that leaves no room for text; a sample of nothing.
        DataError: splits that ``check_splits`` refuses, or more than 5 % of the rows (or all) of a split in a language
            would be dropped.
    """
    languages = check_splits(splits, languages, heldout_languages)
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
        found = rows[split]
        dropped[split] = _count_dropped(split, items, found, tokenizer, all_languages, max_seq_length)
        cut = _count_truncated(split, found, all_languages, max_seq_length)
        truncated[split] = {language: cut[language] for language in dropped[split]}
        _warn_of_unknown(split, items, found, all_languages)
        rows[split] = found.remove_columns(list(NOTES))
    return TokenizedData(rows, languages, list(heldout_languages), dropped, truncated)


def _tokenize_split(
    split: str,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_key: str,
    languages: Sequence[str],
    max_seq_length: int,
) -> datasets.Dataset:
    def passages(item: Item) -> list[tuple[int, Passage, list[tuple[Passage, bool]]]]:
        contents = ((index, item.content.get(language)) for index, language in enumerate(languages))
        return [(index, content.target, content.choices()) for index, content in contents if content]

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        entries = [(index, *entry) for index in batch["index"] for entry in passages(items[index])]
        # The answer of a cloze row is also one of its candidates: encode it once.
        unique = list(dict.fromkeys(p for *_, target, choices in entries for p in (target, *(c for c, _ in choices))))
        encoded = dict(zip(unique, encode(tokenizer, unique, max_seq_length), strict=True))
        # Only a row that is as long as it may be can have lost something.
        targets = dict.fromkeys(target for _, _, target, _ in entries)
        full = [target for target in targets if len(encoded[target].input_ids) >= max_seq_length]
        whole = encoded | dict(zip(full, encode(tokenizer, full, None), strict=True))
        columns: dict[str, list[Any]] = {name: [] for name in (*FEATURES, *NOTES)}
        for index, language, target, choices in entries:
            if not encoded[target].counts:
                continue
            kept = [(encoded[passage], right) for passage, right in choices if encoded[passage].counts]
            if not any(right for _, right in kept):
                kept = []
            columns["input_ids"].append(encoded[target].input_ids)
            columns["labels"].append(encoded[target].labels)
            columns["language"].append(language)
            columns["item"].append(index)
            columns["candidate_input_ids"].append([candidate.input_ids for candidate, _ in kept])
            columns["candidate_labels"].append([candidate.labels for candidate, _ in kept])
            columns["candidate_correct"].append([right for _, right in kept])
            labelled = encoded[target].labelled
            columns["lost_labels"].append(len(whole[target].labelled) - len(labelled))
            columns["is_unknown"].append({*labelled} - special == {tokenizer.unk_token_id})
        return columns

    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    digest = hashlib.sha256(tokenizer_key.encode())
    for item in items:
        digest.update(json.dumps([max_seq_length, passages(item)]).encode())
    features = datasets.Features(FEATURES | NOTES)
    return cached_rows(rows, len(items), features, digest.hexdigest()[:32], f"Tokenizing {split}")


def cached_rows(
    build: Callable[[dict[str, list[int]]], dict[str, list[Any]]],
    size: int,
    features: datasets.Features,
    key: str,
    description: str,
) -> datasets.Dataset:
    """The rows that ``build`` makes of batches of ``{"index": [...]}`` out of ``range(size)``.

    Read from the cache where it has ``key``, which must name all that decides what the rows are.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "unlearn_trainer"
    folder.mkdir(parents=True, exist_ok=True)
    return datasets.Dataset.from_dict({"index": range(size)}).map(
        build,
        batched=True,
        batch_size=ITEMS_PER_BATCH,
        remove_columns=["index"],
        features=features,
        cache_file_name=str(folder / f"{key}.arrow"),
        new_fingerprint=key,
        desc=description,
    )


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides what a passage becomes, apart from the passage: the tokenizer's files and the code."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(f"{transformers.__version__} {tokenizers.__version__} {type(tokenizer).__qualname__}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.name == "tokenizer.json":
                # Leave out what the last call happened to truncate and pad to.
                state = json.loads(path.read_text(encoding="utf-8")) | {"truncation": None, "padding": None}
                digest.update(json.dumps(state).encode())
            elif path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _count_dropped(
    split: str,
    items: Sequence[Item],
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str],
    max_seq_length: int,
) -> dict[str, int]:
    kept = {*zip(rows["item"][:], rows["language"][:], strict=True)}
    dropped = {}
    for index, language in enumerate(languages):
        present = [at for at, item in enumerate(items) if language in item.content]
        if not present:
            continue
        gone = [items[at] for at in present if (at, index) not in kept]
        dropped[language] = len(gone)
        if not gone:
            continue
        # Rows that are of no use at any length call for another remedy than those that are too long.
        whole = encode(tokenizer, [item.content[language].target for item in gone], None)
        long = [item.where(language) for item, row in zip(gone, whole, strict=True) if row.counts]
        first = [item.where(language) for item, row in zip(gone, whole, strict=True) if not row.counts]
        reasons = []
        if long:
            reasons.append(
                f"{len(long)} keep no label within {max_seq_length} tokens ({_few(long)}), raise --max_seq_length"
            )
        if first:
            reasons.append(
                f"{len(first)} have no label with a token before it that could predict it, at any length "
                f"({_few(first)}), put text before the answer or make the text longer than one token"
            )
        if len(gone) == len(present) or len(gone) > MAX_DROPPED * len(present):
            raise DataError(
                f"the {split} split in language {language!r}: {len(gone)} of {len(present)} rows cannot be used "
                f"(at most 5 % may be dropped): {'; '.join(reasons)}; or take these rows out"
            )
        logger.warning(
            "the %s split in language %r: dropped %d of %d rows: %s",
            *(split, language, len(gone), len(present), "; ".join(reasons)),
        )
    return dropped


def _few(places: Sequence[str]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


def _count_truncated(
    split: str, rows: datasets.Dataset, languages: Sequence[str], max_seq_length: int
) -> Counter[str]:
    cut: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for index, count in zip(rows["language"][:], rows["lost_labels"][:], strict=True):
        cut[languages[index]] += count > 0
        lost[languages[index]] += count
    if lost.total():
        logger.warning(
            "the %s split: %d of %d rows are longer than %d tokens, and %d labelled tokens at their ends are neither "
            "trained on nor measured (rows: %s; tokens: %s); raise --max_seq_length, or split the texts into several "
            "rows",
            *(split, cut.total(), len(rows), max_seq_length, lost.total(), counted(cut), counted(lost)),
        )
    return cut


def _warn_of_unknown(split: str, items: Sequence[Item], rows: datasets.Dataset, languages: Sequence[str]) -> None:
    columns = (rows[name][:] for name in ("item", "language", "is_unknown"))
    unknown = [(items[at], languages[index]) for at, index, mark in zip(*columns, strict=True) if mark]
    if unknown:
        item, first = unknown[0]
        counts = Counter(language for _, language in unknown)
        logger.warning(
            "the %s split: the labelled tokens of %d rows are nothing but <unk> (%s; the first: %s in language %r); "
            "take them out, or choose a model that knows their script",
            *(split, len(unknown), counted(counts), item.where(first), first),
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage], max_seq_length: int | None
) -> list[Encoded]:
    """Token ids and labels of each passage, cut at the end to ``max_seq_length`` tokens (None: whole).

    A passage without a span has a label at every position, special tokens included. Elsewhere a token is labelled when
    its characters overlap the span: also one that carries the space before it or holds one byte of a character; never
    a special token.
    """
    if not passages:
        return []
    with _truncating_right(tokenizer):
        batch = tokenizer(
            [passage.text for passage in passages],
            truncation=max_seq_length is not None,
            max_length=max_seq_length,
            verbose=False,  # else a whole text that is longer than the model's limit is warned of
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=tokenizer.is_fast,
        )
    encoded = []
    for row, (passage, ids) in enumerate(zip(passages, batch["input_ids"], strict=True)):
        if passage.span is None:
            encoded.append(Encoded(ids, ids))
            continue
        if tokenizer.is_fast:
            start, end = passage.span
            labelled = [max(start, left) < min(end, right) for left, right in batch["offset_mapping"][row]]
        else:
            labelled = _labelled_without_offsets(tokenizer, passage.text, passage.span, len(ids))
        encoded.append(Encoded(ids, [i if mark else IGNORE_INDEX for i, mark in zip(ids, labelled, strict=True)]))
    return encoded


@contextmanager
def _truncating_right(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side


def _labelled_without_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, span: tuple[int, int], length: int
) -> list[bool]:
    """Which of the first ``length`` tokens overlap ``span``, for a tokenizer that gives no offsets.

    Decoding ever longer beginnings tells which token completes which character. Characters are counted after a round
    trip through the tokenizer, so that lower-casing or Unicode normalisation shifts both counts alike, and without
    white space, which tokenizers add and drop at will. Where a token stands for whole unknown words the labels are
    approximate. Takes one decoding a token: fast tokenizers do not come here.
    """

    def tokens(part: str, special: bool) -> list[int]:
        return tokenizer(part, add_special_tokens=special, verbose=False)["input_ids"]

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def characters(ids: list[int]) -> int:
        return len("".join(decoded(ids).rstrip(REPLACEMENT).split()))

    def ends_within_character(ids: list[int]) -> bool:
        # A character of which some bytes are missing shows as U+FFFD, or not at all.
        return decoded(ids).endswith(REPLACEMENT) or decoded(ids) == decoded(ids[:-1])

    whole, body = tokens(text, True), tokens(text, False)
    front = next(at for at in range(len(whole)) if whole[at : at + len(body)] == body)
    back = len(whole) - len(body) - front
    start, end = (characters(tokens(text[:position], False)) for position in span)
    # The maximum, because some decoders show a run of bytes as U+FFFD altogether until its last character is complete.
    # reached[n]: characters that the first n tokens complete.
    reached = list(accumulate((characters(body[:count]) for count in range(len(body) + 1)), max))
    first, last = bisect_right(reached, start) - 1, bisect_left(reached, end) - 1
    while first > 0 and ends_within_character(body[:first]):
        first -= 1
        if reached[first + 1] > reached[first]:
            break  # this token also completes the character before: no earlier one is the answer's
    return [front + first <= position <= front + last and position < length - back for position in range(length)]
