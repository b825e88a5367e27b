"""Texts, or questions and answers, from tables: CSV as programs and Excel write it, TSV, JSON, Parquet, datasets."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.formats import STARTS, foreign_format
from ..data.items import REQUIRED_KEYS, read_jsonl
from ..errors import ConfigError, did_you_mean, show_name
from .collection import TRAIN, Collection, Row, file_source, load_dataset
from .languages import is_language

# As FLORES's dev; without a test split of its own, the second half of valid is that.
TABLE_CUT = {TRAIN: 640, "valid": 179, "test": 178}
NAMES_OF_LANGUAGE = ("language", "lang", "language_code")
DELIMITERS = "\t;,|"
WHERE = "give a CSV, TSV, JSONL or Parquet file, or a folder that save_to_disk wrote"
Records = list[tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, as far as that was said.

    Args:
        language: names the language of a line.
        text, question, answer: hold the words.
        identifier: ties translations on several lines together.
        only: the one language of all lines, where no column names one.
    """

    language: str | None = None
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    identifier: str | None = None
    only: str | None = None


def read_table(source: str, columns: Columns, lenient: bool = False) -> Collection:
    """The rows of a file, or of a dataset, as the pool.

    Args:
        source: a file, a folder of ``save_to_disk``, or the name of a dataset.
        columns: what is known of the columns; without any, columns whose heads are languages hold the texts. A column
            called language or lang names the language where nothing else is said to.
        lenient: whether columns that are not there are forgotten, as those of another table may be.

    Raises:
        ConfigError: it cannot be read, a column is missing, or there is no text in it; names file, line and column.
    """
    path = Path(source)
    if path.suffix.lower() in (".jsonl", ".json", ".ndjson") and path.is_file() and (ready := _ready_rows(path)):
        languages = list(dict.fromkeys(code for row in ready for code in row.languages))
        return Collection(languages, ready, cut=TABLE_CUT, sources=[file_source(path)])
    if path.is_file():
        records, sources = _read_file(path), [file_source(path)]
    else:
        records, sources = _read_dataset(source)
    if not records:
        raise ConfigError(f"{source}: there are no rows; {WHERE}")
    if lenient:
        heads = {name for record, _ in records for name in record}
        kept = {name: value for name, value in vars(columns).items() if value in heads or name == "only"}
        columns = Columns(**kept)
    rows, languages = _rows(records, columns, source)
    if not rows:
        raise ConfigError(f"{source}: none of its {len(records)} rows holds a text; look at the columns")
    return Collection(languages, rows, cut=TABLE_CUT, sources=sources)


# ---- reading --------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Records:
    start = path.read_bytes()[:4096]
    if start.startswith(b"PAR1"):
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{path}: cannot be read as Parquet ({error}); get the file again") from error
        return [(row, f"{path}:{number}") for number, row in enumerate(table, start=1)]
    if start.startswith((*STARTS, b"PK\x03\x04")):
        raise ConfigError(f"{path}: {foreign_format(path, path.read_bytes())}")
    text = _decoded(path)
    first = text.lstrip()[:1]
    if first == "{":
        return list(_json_lines(text, path))
    if first == "[":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}: broken JSON ({error}); it begins as an array of objects") from error
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise ConfigError(f"{path}: row {number} is no JSON object with columns")
        return [(row, f"{path}:{number}") for number, row in enumerate(rows, start=1)]
    return _csv(text, path)


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # Excel's "Unicode text"
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: begins as UTF-16 and is none ({error}); save it again as UTF-8") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        other = foreign_format(path, content)
        if other and "UTF-8" not in other and "separated" not in other:
            raise ConfigError(f"{path}: {other}") from error
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: not valid UTF-8 (byte {error.start + 1} of the file); save it again as UTF-8, in Excel "
            "as 'CSV UTF-8'"
        ) from error


def _csv(text: str, path: Path) -> Records:
    if text.startswith("sep=") and "\n" in text:  # a line by which Excel names the delimiter
        mark, text = text.split("\n", 1)
        delimiter, skipped = mark.strip()[4:5] or ",", 1
    else:
        head = text.split("\n", 1)[0]
        delimiter, skipped = max(DELIMITERS, key=lambda mark: _outside_quotes(head, mark)), 0
        if not _outside_quotes(head, delimiter):
            delimiter = ","
    # Not by splitlines(): a text may hold U+2028 and others that csv does not take for the end of a line.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise ConfigError(f"{path}:1: the column {show_name(twice[0])} stands there twice; rename one")
        records, begins = [], reader.line_num + 1 + skipped
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                    raise ConfigError(
                        f"{path}:{begins}: {len(cells)} cells where the head has {len(names)}; put a text that holds "
                        f"{delimiter!r} in quotes"
                    )
                records.append((dict(zip(names, cells, strict=False)), f"{path}:{begins}"))
            begins = reader.line_num + 1 + skipped
    except StopIteration:
        return []
    except csv.Error as error:
        raise ConfigError(
            f"{path}:{reader.line_num + skipped}: no CSV ({error}); put texts with quotes in quotes"
        ) from error
    return records


def _outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


def _json_lines(text: str, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"{path}:{number}: broken JSON ({error}); one line holds one whole object"
                ) from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path}:{number}: a row is a JSON object with columns")
            yield row, f"{path}:{number}"


def _ready_rows(path: Path) -> list[Row]:
    """Rows that are written as a run reads them: cloze, questions, or texts by language."""
    first = next((line for line in _decoded(path).split("\n") if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return []
    if not isinstance(row, dict) or not any(isinstance(row.get(key), dict) for key in (*REQUIRED_KEYS["cloze"],
                                            *REQUIRED_KEYS["qa"], "messages")):  # fmt: skip
        return []
    read_jsonl(path)  # says what is wrong with which line
    return [Row(row, source) for row, source in _json_lines(_decoded(path), path)]


def _read_dataset(name: str) -> tuple[Records, list[dict[str, str]]]:
    found = load_dataset(name, WHERE)
    parts = dict(found.items()) if hasattr(found, "items") else {"train": found}
    if len(parts) > 1:
        parts = {"train": parts["train"]} if "train" in parts else parts
    records = [
        (dict(row), f"{name}[{part}]:{number}") for part, rows in parts.items() for number, row in enumerate(rows)
    ]
    sources = [{"dataset": name, "split": part, "fingerprint": str(rows._fingerprint)} for part, rows in parts.items()]
    return records, sources


# ---- columns to rows ------------------------------------------------------------------------------------------------


def _rows(records: Records, columns: Columns, source: str) -> tuple[list[Row], list[str]]:
    heads = list(dict.fromkeys(name for record, _ in records for name in record if name))
    for flag, name in (("language", columns.language), ("text", columns.text), ("id", columns.identifier),
                       ("question", columns.question), ("answer", columns.answer)):  # fmt: skip
        if name is not None and name not in heads:
            raise ConfigError(
                f"{source}: there is no column {show_name(name)} (--{flag}_column){did_you_mean(name, heads)}; there "
                f"are {', '.join(map(show_name, heads))}"
            )
    named = next((head for head in heads if head.casefold() in NAMES_OF_LANGUAGE), None)
    if columns.language is None and named is not None:  # one that says so counts for more than a guess
        columns = replace(columns, language=named)
    words = {field: name for field, name in (("question", columns.question), ("answer", columns.answer)) if name}
    if len(words) == 1:
        raise ConfigError("--question_column and --answer_column go together; give both")
    if not words and (columns.text or columns.language):
        words = {"text": columns.text or _only_text_column(heads, columns, source)}
    if words:
        return _long(records, columns, words, source)
    codes = [head for head in heads if is_language(head)]
    if not codes:
        raise ConfigError(
            f"{source}: no column has the name of a language (there are {', '.join(map(show_name, heads))}); say with "
            "--text_column which holds the texts, and with --language_column which names their language, or with "
            "--languages which one it is"
        )
    wide = (({code: _text(record.get(code)) for code in codes}, where) for record, where in records)
    kept = (({code: text for code, text in row.items() if text}, where) for row, where in wide)
    return [Row(row, where) for row, where in kept if row], codes


def _long(records: Records, columns: Columns, words: Mapping[str, str], source: str) -> tuple[list[Row], list[str]]:
    if columns.language is None and columns.only is None:
        raise ConfigError(
            f"{source}: nothing says which language the texts are in; name the column with --language_column, or the "
            "one language with --languages"
        )
    items: dict[Any, dict[str, Any]] = {}
    places: dict[Any, str] = {}
    languages: dict[str, None] = {}
    for number, (record, where) in enumerate(records):
        code = _text(record.get(columns.language)) if columns.language else columns.only
        found = {field: _text(record.get(name)) for field, name in words.items()}
        if not any(found.values()):
            continue
        if not code or not is_language(code):
            raise ConfigError(
                f"{where}: {show_name(code or 'nothing')} in the column {columns.language} is no language; correct "
                "it, or choose another --language_column"
            )
        if not all(found.values()):
            raise ConfigError(f"{where}: language {code}: a question and its answer go together; one of them is empty")
        key = record.get(columns.identifier) if columns.identifier else number
        item = items.setdefault(key, {} if "text" in words else {field: {} for field in words})
        places.setdefault(key, where)
        languages[code] = None
        for field, text in found.items():
            part = item if field == "text" else item[field]
            if code in part:
                raise ConfigError(
                    f"{where}: {columns.identifier} {show_name(str(key))} already has a {field} in {code}"
                )
            part[code] = text
    return [Row(item, places[key]) for key, item in items.items()], list(languages)


def _only_text_column(heads: Sequence[str], columns: Columns, source: str) -> str:
    rest = [head for head in heads if head not in (columns.language, columns.identifier)]
    named = [head for head in rest if head.casefold() in ("text", "sentence", "content")]
    if len(named or rest) != 1:
        raise ConfigError(f"{source}: which column holds the texts? Give --text_column, one of {', '.join(rest)}")
    return (named or rest)[0]


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is not itself
