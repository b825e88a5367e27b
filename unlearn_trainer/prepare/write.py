"""The files of a prepared folder: whole or not at all, and never over what is there."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.checks import check_splits
from ..data.items import merge_by_id, parse_row
from ..errors import ConfigError
from ..files import make_own_folder, name_whole_folder, write_json
from .collection import SPLITS, Row

DESCRIPTION = "prepare.json"


def write_folder(folder: Path, splits: Mapping[str, Sequence[Row]], description: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``<split>.jsonl`` of each split and ``prepare.json``; the folder appears when all are written.

    Args:
        folder: must not be there, or be empty.
        splits: the rows.
        description: what prepare.json says beside the files' sizes and hashes.

    Returns:
        The content of prepare.json.

    Raises:
        ConfigError: the folder holds something.
        DataError: a row that a run would refuse, or the same text in forget and in another split.
    """
    check_free(folder)
    check_rows(splits)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    make_own_folder(unfinished)
    files = {}
    for split in SPLITS:
        if not splits.get(split):
            continue
        text = "".join(json.dumps(row.content, ensure_ascii=False) + "\n" for row in splits[split]).encode("utf-8")
        (unfinished / f"{split}.jsonl").write_bytes(text)
        languages: dict[str, int] = {}
        for row in splits[split]:
            for code in row.languages:
                languages[code] = languages.get(code, 0) + 1
        files[f"{split}.jsonl"] = {
            "items": len(splits[split]),
            "rows": languages,
            "sha256": hashlib.sha256(text).hexdigest(),
        }
    content = {"schema_version": 1, **description, "files": files}
    write_json(unfinished / DESCRIPTION, content)
    if folder.exists():
        folder.rmdir()  # it is empty
    name_whole_folder(unfinished, folder)
    return content


def check_free(folder: Path) -> None:
    """Refuse a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output_dir {folder} is there already, and nothing is written over; choose another one")


def check_rows(splits: Mapping[str, Sequence[Row]]) -> None:
    """Refuse what a run would refuse of these rows; the messages name the file and line that a row was read from."""
    items = {
        split: merge_by_id([parse_row(row.content, row.source) for row in rows]) for split, rows in splits.items()
    }
    check_splits(items, None)
