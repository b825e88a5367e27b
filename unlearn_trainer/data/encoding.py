"""Passages to token ids, and which of them carry labels; leaves the tokenizer as it was."""

import hashlib
import json
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError
from .contents import Passage, Rendered

IGNORE_INDEX = -100
REPLACEMENT = "\ufffd"
# The modules that turn passages into rows: rows that other code cached are not read.
CODE = ("encoding.py", "tokenize.py", "alternatives.py", "chat.py", "contents.py")


class Encoded(NamedTuple):
    """A passage's token ids after truncation, its labels (ids, or -100 where there is none), and what to warn of.

    Args:
        written: ids of the special tokens that stand in the text itself, as often as they do.
    """

    input_ids: list[int]
    labels: list[int]
    written: tuple[int, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether a labelled token has a predecessor that can predict it."""
        return any(label != IGNORE_INDEX for label in self.labels[1:])

    @property
    def labelled(self) -> list[int]:
        """Ids of the labelled tokens."""
        return [label for label in self.labels if label != IGNORE_INDEX]


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
    if rendered := [passage for passage in passages if isinstance(passage, Rendered)]:
        plain = iter(
            encode(tokenizer, [passage for passage in passages if not isinstance(passage, Rendered)], max_seq_length)
        )
        chats = iter(_encode_rendered(tokenizer, rendered, max_seq_length))
        return [next(chats if isinstance(passage, Rendered) else plain) for passage in passages]
    special = special_ids(tokenizer)
    encoded = []
    with unchanged(tokenizer):
        names = tuple(tokenizer.convert_ids_to_tokens(sorted(special)))
        passages = [_with_one_first_token(p, tokenizer) if p.text.startswith(names) else p for p in passages]
        texts = [passage.text for passage in passages]
        batch = tokenizer(
            texts,
            truncation=max_seq_length is not None,
            max_length=max_seq_length,
            verbose=False,  # else a whole text that is longer than the model's limit is warned of
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=tokenizer.is_fast,
        )
        bare = None if tokenizer.is_fast else tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for row, (passage, ids) in enumerate(zip(passages, batch["input_ids"], strict=True)):
            if tokenizer.is_fast:  # what the tokenizer adds stands for no characters
                offsets = batch["offset_mapping"][row]
                from_text = [i for i, (left, right) in zip(ids, offsets, strict=True) if left < right]
            else:
                from_text = bare[row]
            written = tuple(i for i in from_text if i in special)
            if passage.span is None:
                encoded.append(Encoded(ids, ids, written))
                continue
            if tokenizer.is_fast:
                start, end = passage.span
                labelled = [max(start, left) < min(end, right) for left, right in offsets]
            else:
                labelled = _labelled_without_offsets(tokenizer, passage.text, passage.span, len(ids))
            labels = [i if mark else IGNORE_INDEX for i, mark in zip(ids, labelled, strict=True)]
            encoded.append(Encoded(ids, labels, written))
    return encoded


def _encode_rendered(
    tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage], max_seq_length: int | None
) -> list[Encoded]:
    """The same of what a chat template has made: nothing is put around it, and its special tokens are no surprise."""
    if not tokenizer.is_fast:
        raise ConfigError(
            "rows that go through a chat template need a tokenizer that tells where its tokens stand (a fast one); "
            "give --chat_template none, or a model with a tokenizer.json"
        )
    with unchanged(tokenizer):
        batch = tokenizer(
            [passage.text for passage in passages],
            add_special_tokens=False,
            truncation=max_seq_length is not None,
            max_length=max_seq_length,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
        )
    encoded = []
    for passage, ids, offsets in zip(passages, batch["input_ids"], batch["offset_mapping"], strict=True):
        start, end = passage.span or (0, len(passage.text))
        labels = [
            i if max(start, left) < min(end, right) else IGNORE_INDEX
            for i, (left, right) in zip(ids, offsets, strict=True)
        ]
        encoded.append(Encoded(ids, labels))
    return encoded


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens that frame or steer a text and are no part of one; without that for unknown words."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | {*tokenizer.all_special_ids}) - {tokenizer.unk_token_id, None}


@contextmanager
def unchanged(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Within the context the tokenizer truncates at the end; afterwards it is as it was, and is saved as such.

    A fast tokenizer keeps the length that it last truncated to, writes it into its file, and others who read that file
    would truncate to it.
    """
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    kept = backend and (backend.truncation, backend.padding)
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side
        if kept:
            truncation, padding = kept
            backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
            backend.no_padding() if padding is None else backend.enable_padding(**padding)


def _with_one_first_token(passage: Passage, tokenizer: PreTrainedTokenizerBase) -> Passage:
    """The passage without those of its first tokens that the tokenizer puts before every text by itself."""
    framed, bare = (
        tokenizer(passage.text, add_special_tokens=frame, verbose=False)["input_ids"] for frame in (True, False)
    )
    first = framed[0]
    if bare[0] != first or framed[1 : 1 + len(bare)] != bare or all(token == first for token in bare):
        return passage
    text, span = passage
    name = tokenizer.convert_ids_to_tokens(first)
    while text.startswith(name):
        text = text.removeprefix(name)
        span = span and (max(0, span[0] - len(name)), max(0, span[1] - len(name)))
    return Passage(text, span)


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


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides what a passage becomes, apart from the passage: the tokenizer's files and the code."""
    digest = hashlib.sha256()
    for code in CODE:
        digest.update(Path(__file__).with_name(code).read_bytes())
    digest.update(f"{transformers.__version__} {tokenizers.__version__} {type(tokenizer).__qualname__}".encode())
    if not tokenizer.is_fast:  # its files do not tell what it adds to a text
        digest.update(json.dumps(tokenizer("", verbose=False)["input_ids"]).encode())
    digest.update(str(getattr(tokenizer, "split_special_tokens", None)).encode())
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
