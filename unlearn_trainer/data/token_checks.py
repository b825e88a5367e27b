"""Checks of tokenized rows: what truncation cost, what the tokenizer does not know, and what became the same."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import DataError, show_name
from .checks import counted
from .encoding import encode
from .items import Item, shorten

logger = logging.getLogger(__name__)

MAX_DROPPED = 0.05


def check_same_tokens(
    splits: Mapping[str, Sequence[Item]],
    rows: Mapping[str, datasets.Dataset],
    languages: Sequence[str],
    max_seq_length: int,
    show_texts: bool = False,
) -> None:
    """Refuse a row of the forget split that is, token for token, also a row of another split.

    What is trained and measured are token ids: texts that differ only in what the tokenizer folds together (width,
    direction marks, a byte order mark, ways to write an accent, case), or only behind the place where both are cut,
    are the same row, which cannot be forgotten and kept. A cloze row counts with each of its answers.

    Args:
        splits: the items of each split.
        rows: their tokenized rows, with the column ``further_input_ids``.

    Raises:
        DataError: names the places and languages of the first such pair, and the number of further ones.
    """
    if len(rows) == 1:
        return
    forget: dict[bytes, int] = {}
    for row, digest in _digests_of_answers(rows["forget"]):
        forget.setdefault(digest, row)
    for name, others in rows.items():
        if name == "forget":
            continue
        shared: dict[int, int] = {}
        for row, digest in _digests_of_answers(others):
            if digest in forget:
                shared.setdefault(row, forget[digest])
        if not shared:
            continue
        row, other = min(shared.items())
        (item, language), (other_item, other_language) = (
            (splits[split][of["item"]], languages[of["language"]])
            for split, of in ((name, others[row]), ("forget", rows["forget"][other]))
        )
        more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
        is_cut = len(others[row]["input_ids"]) >= max_seq_length
        texts = [shorten(i.content[at].target.text) for i, at in ((item, language), (other_item, other_language))]
        raise DataError(
            f"{item.where(language)}: the {language!r} text of the {name} split becomes the same tokens "
            f"{f'(cut to {max_seq_length}) ' if is_cut else ''}as one that is also in the forget split, "
            f"{other_item.where(other_language)} ({other_language!r}){more}: to the model they are one row, which "
            f"cannot be both forgotten and {'kept' if name == 'retain' else 'held against it'}"
            f"{': ' + ' and '.join(texts) if show_texts else ''}; remove it from one"
            f"{', or raise --max_seq_length' if is_cut else ''}"
        )


def _digests_of_answers(rows: datasets.Dataset) -> Iterator[tuple[int, bytes]]:
    """The number of each row and a digest of its token ids, and the same with each of its further answers."""
    start = 0
    for batch in rows.select_columns(["input_ids", "further_input_ids"]).with_format("arrow").iter(10_000):
        own, further = (batch[name].combine_chunks() for name in ("input_ids", "further_input_ids"))
        counts = np.diff(further.offsets.to_numpy())
        for lists, numbers in ((own, np.arange(len(own))), (further.flatten(), np.arange(len(own)).repeat(counts))):
            ids, bounds = lists.values.to_numpy(), lists.offsets.to_numpy()
            for number, left, right in zip(numbers.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                yield start + number, hashlib.blake2b(ids[left:right].tobytes(), digest_size=16).digest()
        start += len(batch)


def count_dropped(
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


def count_truncated(split: str, rows: datasets.Dataset, languages: Sequence[str], max_seq_length: int) -> Counter[str]:
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


def warn_of_special_tokens(
    split: str,
    items: Sequence[Item],
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str],
) -> None:
    """Say which special tokens stand in the split's texts, prompts, answers or candidates, and where the first is."""
    columns = (rows[name][:] for name in ("item", "language", "written"))
    having = [(items[at], languages[index], ids) for at, index, ids in zip(*columns, strict=True) if ids]
    if not having:
        return
    item, first, ids = having[0]
    counts = Counter(name for *_, ids in having for name in tokenizer.convert_ids_to_tokens(ids))
    names = ", ".join(f"{show_name(name)} in {count}" for name, count in counts.items())
    logger.warning(
        "the %s split: %d rows have special tokens of the tokenizer written in their texts, which become the tokens "
        "themselves (%s; rows: %s; the first: %s in language %r has %s); take them out, unless a text shall end or "
        "begin there",
        *(split, len(having), names, counted(Counter(language for _, language, _ in having))),
        *(item.where(first), first, " ".join(map(show_name, tokenizer.convert_ids_to_tokens(ids)))),
    )


def warn_of_unknown(split: str, items: Sequence[Item], rows: datasets.Dataset, languages: Sequence[str]) -> None:
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
