"""Texts to keep, and texts that the model cannot know, drawn from elsewhere for forget rows that stand alone."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.items import read_jsonl
from ..errors import ConfigError
from .collection import FIELDS, Collection, Row, file_source
from .flores import read_flores
from .languages import choose_languages
from .near_duplicates import ForgetIndex, folded
from .table import Columns, read_table


def draw_rows(
    flag: str,
    source: str,
    columns: Columns,
    forget: Sequence[Row],
    taken: Sequence[Row],
    chosen: Mapping[str, str],
    size: int,
    seed: int,
) -> tuple[list[Row], dict[str, Any]]:
    """``size`` rows a language of a source, none of them nearly a forget row, nor a row of another split.

    Args:
        flag: ``--retain_from`` or ``--valid_from``, for messages.
        source: a JSONL, CSV, TSV or Parquet file, a FLORES-200 folder, a prepared folder, or a dataset.
        columns: of a table.
        forget: rows that are to be forgotten, by the keys of ``chosen``.
        taken: rows of other splits, none of which is drawn again.
        chosen: the languages that are written; the source may lack some of them.
        size: rows wanted in each language; there may be fewer.
        seed: of the draw.

    Returns:
        The rows, and what prepare.json says of them.

    Raises:
        ConfigError: the source cannot be read, has none of the languages, or no row is left.
    """
    collection = _read(source, columns)
    keys: dict[str, str] = {}
    lacking: list[str] = []
    for key in chosen:
        try:
            keys |= choose_languages(collection.languages, [key])
        except ConfigError:
            lacking.append(key)
    if not keys:
        raise ConfigError(f"{flag} {source} has none of the languages {', '.join(chosen)}; it has "
                          f"{', '.join(collection.languages)}")  # fmt: skip
    rows = [row for part in (collection.pool, *collection.splits.values()) for row in part]
    random.Random(f"{seed} {flag}").shuffle(rows)
    indices = {key: ForgetIndex([text for row in forget for text in texts_of(row, key)]) for key in keys}
    drawn: list[Row] = []
    near: list[dict[str, Any]] = []
    counts = dict.fromkeys(keys, 0)
    known = {folded(text) for row in taken for key in keys for text in texts_of(row, key)}
    for row in rows:
        open_keys = {key: code for key, code in keys.items() if counts[key] < size}
        kept = row.in_languages(open_keys)
        if kept is None:
            if not open_keys:
                break
            continue
        if any(folded(text) in known for key in kept.languages for text in texts_of(kept, key)):
            continue
        found = _nearest(kept, indices)
        if found is None:
            drawn.append(kept)
            for key in kept.languages:
                counts[key] += 1
        else:
            near.append({"source": row.source, "language": found[0], "similarity": round(found[1], 3)})
    if not drawn:
        raise ConfigError(f"{flag} {source}: no row is left that is not nearly a forget row; choose another source")
    about = {
        "sources": list(collection.sources),
        "wanted": size,
        "rows": counts,
        "near_duplicates_left_out": near,
        "languages_lacking": lacking,
    }
    return drawn, about


def texts_of(row: Row, key: str) -> list[str]:
    """What a row says in one language, as whole texts."""
    content = row.content
    if not any(isinstance(content.get(name), dict) for name in FIELDS):
        return [content[key]] if key in content else []
    if "prompt" in content:
        return [content["prompt"][key].replace("<mask>", answer) for answer in content["answers"].get(key, ())]
    if "question" in content:
        return [f"{content['question'][key]} {content['answer'][key]}"] if key in content["question"] else []
    return [" ".join(turn["content"] for turn in content["messages"].get(key, ()))]


def _nearest(row: Row, indices: Mapping[str, ForgetIndex]) -> tuple[str, float] | None:
    for key, index in indices.items():
        for text in texts_of(row, key):
            found = index.nearest(text)
            if found is not None:
                return key, found[1]
    return None


def _read(source: str, columns: Columns) -> Collection:
    path = Path(source)
    if (path / "dev").is_dir() and not (path / "dataset_dict.json").exists():
        return read_flores(source)
    if path.is_dir() and list(path.glob("*.jsonl")):
        files = sorted(file for file in path.glob("*.jsonl") if not file.name.startswith("forget"))
        parts = [read_table(str(file), columns, lenient=True) for file in files]
        languages = list(dict.fromkeys(code for part in parts for code in part.languages))
        return Collection(
            languages, [row for part in parts for row in part.pool], sources=[file_source(f) for f in files]
        )
    if path.suffix == ".jsonl" and path.is_file():
        items = read_jsonl(path)
        if items and items[0].kind == "text":
            languages = list(dict.fromkeys(code for item in items for code in item.content))
            rows = [Row({code: text.text for code, text in item.content.items()}, item.source) for item in items]  # type: ignore[union-attr]
            return Collection(languages, rows, sources=[file_source(path)])
    return read_table(source, columns, lenient=True)
