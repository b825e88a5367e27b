"""Rows of text, cloze and question-answer data, parallel over languages; refuses what cannot be used.

The kind of a JSONL line is recognised by its keys:

- text: ``{"en": "...", "sw": "..."}``
- cloze: ``{"prompt": {"en": "... <mask> ..."}, "answers": {"en": ["..."]}, "candidates": {"en": ["...", "..."]}}``
- qa: ``{"question": {...}, "answer": {...}}`` and optionally ``paraphrased_answer``, ``perturbed_answer`` (a list a
  language) and ``paraphrased_question``
- flat: ``{"text": "...", "language": "sw"}``
- messages: ``{"messages": {"en": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}}``

Cloze, qa, messages and flat lines may have an ``id``, a string or an integer that ties translations on several lines
together. In a text line ``id`` is the language code of Indonesian.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, quote_name, without_controls
from .contents import MASK as MASK
from .contents import QA as QA
from .contents import Cloze as Cloze
from .contents import Conversation as Conversation
from .contents import Passage as Passage
from .contents import Text as Text
from .contents import Turn as Turn
from .formats import foreign_format

REQUIRED_KEYS = {
    "cloze": ("prompt", "answers"),
    "qa": ("question", "answer"),
    "flat": ("text", "language"),
    "messages": ("messages",),
}
OPTIONAL_KEYS = {
    "cloze": ("candidates", "id"),
    "qa": ("paraphrased_answer", "perturbed_answer", "paraphrased_question", "id"),
    "flat": ("id",),
    "messages": ("id",),
}
ROLES = ("system", "user", "assistant")
LIST_KEYS = ("answers", "candidates", "perturbed_answer")
NO_IDENTIFIER = (
    "'id' beside translations is the language code of Indonesian; take an identifier out of the row, or write one "
    'line per translation: {"text": "...", "language": "en", "id": "..."}'
)
A_LANGUAGE_CODE = "a language code such as en, zh-Hans or eng_Latn"
# A capital stands first only in a tag with subtags (EN-us): ID and the like are heads of columns.
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*|[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})+")


@dataclass(frozen=True)
class Item:
    """One fact or text in the languages it exists in.

    Args:
        kind: ``text``, ``cloze``, ``qa`` or ``messages``.
        source: ``file:line`` (of its first line, where lines with one id were merged).
        content: language to :class:`Text`, :class:`Cloze`, :class:`QA` or :class:`Conversation`, in the file's order.
        id: the ``id`` of cloze, qa and flat lines.
        sources: language to ``file:line``, where it differs from ``source``.
    """

    kind: str
    source: str
    content: Mapping[str, Text | Cloze | QA | Conversation]
    id: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def where(self, language: str) -> str:
        """``file:line`` of this item in ``language``."""
        return self.sources.get(language, self.source)


def read_jsonl(path: str | Path) -> list[Item]:
    """Items of a JSONL file in file order; lines with the same id are merged into the first of them.

    Raises:
        DataError: the file cannot be read or a line cannot be used; names file, line, language and the remedy.
    """
    name = without_controls(str(path))
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        remedy = "name one file of this folder" if Path(path).is_dir() else "check the path"
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: cannot be read ({reason}); {remedy}") from error
    other = foreign_format(path, content)
    if other is not None:
        raise DataError(f"{name}:1: {other}")
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return merge_by_id(
        parse_line(line, f"{name}:{number}") for number, line in enumerate(lines, start=1) if line.strip()
    )


def parse_line(line: str | bytes, source: str) -> Item:
    """The item of one JSONL line; ``source`` (``file:line``) starts the message of every error.

    Raises:
        DataError: broken JSON, or a row that :func:`parse_row` refuses.
    """
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        row = json.loads(text, object_pairs_hook=_object_without_repeated_keys)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not valid UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source}: broken JSON at column {error.colno} ({error.msg}); one line must hold one whole JSON object"
        ) from error
    except _RepeatedKey as error:
        raise DataError(
            f"{source}: the key {quote_name(error.args[0])} occurs twice in one object; keep one"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        raise DataError(f"{source}: broken JSON ({error}); one line must hold one whole JSON object") from error
    return parse_row(row, source)


def parse_row(row: Any, source: str) -> Item:
    """The item of one decoded row; a flat row becomes a text item with one language.

    Raises:
        DataError: unknown or missing keys, wrong types, empty text, an answer that is not among its candidates, not
            exactly one ``<mask>``, a language that only some fields have.
    """
    if not isinstance(row, dict) or not row:
        raise DataError(f"{source}: a row must be a JSON object with keys, not {describe(row)}")
    kind = _kind(row)
    if kind == "text":
        if isinstance(row.get("id"), int | float):
            raise DataError(f"{source}: {describe(row['id'])} is no text: {NO_IDENTIFIER}")
        return Item("text", source, {_language(k, source): Text(_text(v, "text", source, k)) for k, v in row.items()})
    known = REQUIRED_KEYS[kind] + OPTIONAL_KEYS[kind]
    for key in row:
        if key not in known:
            raise DataError(f"{source}: unknown key {quote_name(key)} in a {kind} row{_nearest(key, known)}")
    for key in REQUIRED_KEYS[kind]:
        if key not in row:
            raise DataError(f"{source}: a {kind} row needs the key {key!r}")
    if kind == "flat":
        language = _text(row["language"], "'language'", source)
        if not LANGUAGE_CODE.fullmatch(language):
            raise DataError(f"{source}: 'language' must be {A_LANGUAGE_CODE}, not {quote_name(language)}")
        content = {language: Text(_text(row["text"], "'text'", source, language))}
        return Item("text", source, content, _identifier(row, source))
    if kind == "messages":
        return Item("messages", source, _conversations(row["messages"], source), _identifier(row, source))
    columns = {key: _column(key, row[key], source) for key in known if key in row and key != "id"}
    _same_languages(columns, source)
    build = Cloze if kind == "cloze" else QA
    languages = columns[known[0]]
    content = {language: build(**{key: column[language] for key, column in columns.items()}) for language in languages}
    if kind == "cloze":
        for language, cloze in content.items():
            _check_cloze(cloze, f"{source}: language {language!r}")
    return Item(kind, source, content, _identifier(row, source))


def merge_by_id(items: Iterable[Item]) -> list[Item]:
    """Merge items that share an id into the first of them; keeps the order of the rest.

    Raises:
        DataError: an id occurs twice in one language, or in rows of different kinds.
    """
    merged: list[Item] = []
    position: dict[str, int] = {}
    for item in items:
        if item.id is None:
            merged.append(item)
        elif item.id not in position:
            position[item.id] = len(merged)
            merged.append(replace(item, sources=dict.fromkeys(item.content, item.source)))
        else:
            first = merged[position[item.id]]
            if item.kind != first.kind:
                raise DataError(
                    f"{item.source}: id {quote_name(item.id)} of a {item.kind} row is also that of a {first.kind} row "
                    f"({first.source}); give one of them another id, or leave the id out"
                )
            for language in item.content:
                if language in first.content:
                    raise DataError(
                        f"{item.source}: id {quote_name(item.id)} already has a text in {language!r} "
                        f"({first.where(language)}); give every text its own id, or leave the id out"
                    )
            merged[position[item.id]] = replace(
                first,
                content={**first.content, **item.content},
                sources={**first.sources, **dict.fromkeys(item.content, item.source)},
            )
    return merged


class _RepeatedKey(Exception):
    pass


def _object_without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        raise _RepeatedKey(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return row


def _kind(row: Mapping[str, Any]) -> str:
    # "id" alone says nothing: it is also the code of Indonesian.
    hits = {kind: len({*REQUIRED_KEYS[kind], *OPTIONAL_KEYS[kind]} & row.keys() - {"id"}) for kind in REQUIRED_KEYS}
    best = max(hits, key=hits.__getitem__)
    return best if hits[best] else "text"


def _language(code: str, source: str) -> str:
    if not LANGUAGE_CODE.fullmatch(code):
        known = list(dict.fromkeys(key for kind in REQUIRED_KEYS for key in REQUIRED_KEYS[kind] + OPTIONAL_KEYS[kind]))
        raise DataError(
            f"{source}: {quote_name(code)} is neither a known key nor {A_LANGUAGE_CODE}{_nearest(code, known)}; "
            "take out of the row what is no translation"
        )
    return code


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"


def _identifier(row: Mapping[str, Any], source: str) -> str | None:
    if "id" not in row:
        return None
    value = row["id"]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{source}: 'id' must be a string or an integer, not {describe(value)}")
    return str(value)


def _text(value: Any, name: str, source: str, language: str | None = None) -> str:
    place = f"{source}: language {language!r}: {name}" if language else f"{source}: {name}"
    if not isinstance(value, str):
        hint = "; leave out a language that an item lacks" if value is None else ""
        raise DataError(f"{place} must be a string, not {describe(value)}{hint}")
    if not value.strip():
        raise DataError(f"{place} is empty; write the text, or leave the language out of the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds half of a surrogate pair; write the character itself") from error
    return value


def _column(key: str, column: Any, source: str) -> dict[str, Any]:
    """One field of a cloze or qa row: language to a string, or to a tuple of strings without repetitions."""
    if not isinstance(column, dict) or not column:
        raise DataError(f"{source}: {key!r} must be an object from language codes to values, not {describe(column)}")
    parsed = {}
    for language, value in column.items():
        if not LANGUAGE_CODE.fullmatch(language):
            raise DataError(f"{source}: {quote_name(language)} in {key!r} is not {A_LANGUAGE_CODE}")
        if key not in LIST_KEYS:
            parsed[language] = _text(value, repr(key), source, language)
        elif not isinstance(value, list) or not value:
            raise DataError(
                f"{source}: language {language!r}: {key!r} must be a list of one string or more, not {describe(value)}"
            )
        else:
            parsed[language] = tuple(dict.fromkeys(_text(each, repr(key), source, language) for each in value))
    return parsed


def _conversations(column: Any, source: str) -> dict[str, Conversation]:
    """The field ``messages``: language to turns, the last of which is the assistant's."""
    if not isinstance(column, dict) or not column:
        raise DataError(f"{source}: 'messages' must be an object from language codes to turns, not {describe(column)}")
    found = {}
    for code, turns in column.items():
        language, place = _language(code, source), f"{source}: language {code!r}: 'messages'"
        if not isinstance(turns, list) or len(turns) < 2:
            raise DataError(f"{place} must be a list of two turns or more, not {describe(turns)}")
        parsed = []
        for number, turn in enumerate(turns, start=1):
            if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
                raise DataError(f'{place}: turn {number} must be {{"role": "...", "content": "..."}}')
            if turn["role"] not in ROLES:
                raise DataError(f"{place}: turn {number}: 'role' must be one of {', '.join(ROLES)}")
            parsed.append(Turn(turn["role"], _text(turn["content"], f"turn {number}", source, language)))
        if parsed[-1].role != "assistant":
            raise DataError(f"{place} must end with a turn of the assistant, whose words are learned or forgotten")
        found[language] = Conversation(tuple(parsed[:-1]), parsed[-1].content)
    return found


def _same_languages(columns: Mapping[str, Mapping[str, Any]], source: str) -> None:
    for first, languages in columns.items():
        for second, others in columns.items():
            for language in languages:
                if language not in others:
                    raise DataError(
                        f"{source}: language {language!r} is in {first!r} but not in {second!r}; "
                        "add it there, or leave the language out of the whole row"
                    )


def _check_cloze(cloze: Cloze, place: str) -> None:
    count = cloze.prompt.count(MASK)
    if count != 1:
        raise DataError(f"{place}: 'prompt' has {count or 'no'} {MASK}; write exactly one, where the answer goes")
    for number, answer in enumerate(cloze.answers, start=1):
        if cloze.candidates and answer not in cloze.candidates:
            raise DataError(f"{place}: answer {number} is not among its candidates; add it to them")


def describe(value: Any) -> str:
    """What kind of JSON value it is, without what it says: messages end in logs."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1000):
        return json.dumps(value)
    kinds = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object", tuple: "a list"}
    empty = isinstance(value, (list, dict)) and not value
    return "nothing" if empty else kinds.get(type(value), "something else")


def shorten(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 80 else shown[:77] + "..."
