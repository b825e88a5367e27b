"""FLORES-200 from its official folder, and FLORES+ as a dataset."""

import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .collection import Collection, Row, check_parallel, file_source, load_dataset, read_lines

WHERE = (
    "give the official folder, with dev/eng_Latn.dev, devtest/eng_Latn.devtest and so on, or a folder that "
    "save_to_disk wrote of openlanguagedata/flores_plus"
)


def read_flores(source: str) -> Collection:
    """The sentences of dev as the pool, those of devtest as the test split.

    Args:
        source: the official folder, or a dataset with the columns of FLORES+.

    Raises:
        ConfigError: neither is there, or a file is not whole.
    """
    folder = Path(source)
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json"))
    if (folder / "dev").is_dir() and not saved:
        return _from_folder(folder)
    if folder.is_dir() and not saved:
        raise ConfigError(f"--source {source}: there is no folder dev in it; {WHERE}")
    return _from_dataset(source)


def _from_folder(folder: Path) -> Collection:
    rows, sources = {}, []
    languages: list[str] = []
    for split in ("dev", "devtest"):
        files = {path.stem: path for path in sorted((folder / split).glob(f"*.{split}")) if path.is_file()}
        if not files and split == "dev":
            raise ConfigError(f"{folder / split} holds no file such as eng_Latn.dev; {WHERE}")
        languages = languages or list(files)
        lines = {code: read_lines(path) for code, path in files.items()}
        count = check_parallel(lines, files)
        name = f"{folder / split}"
        rows[split] = [
            Row(
                {code: lines[code][number].strip() for code in files if lines[code][number].strip()},
                f"{name}:{number + 1}",
            )
            for number in range(count)
        ]
        sources += [file_source(path) for path in files.values()]
    notes = [] if rows["devtest"] else [f"{folder} has no folder devtest, so there is no test split"]
    splits = {"test": rows["devtest"]} if rows["devtest"] else {}
    return Collection(languages, rows["dev"], splits, sources=sources, notes=notes)


def _from_dataset(name: str) -> Collection:
    found = load_dataset(name, WHERE)
    columns = {split: rows.column_names for split, rows in found.items()} if hasattr(found, "items") else {}
    if not {"dev", "devtest"} & set(columns):
        raise ConfigError(f"--source {name}: a dataset with the splits dev and devtest is wanted; {WHERE}")
    rows: dict[str, list[Row]] = {}
    languages: dict[str, None] = {}
    for split in columns:
        if split not in ("dev", "devtest"):
            continue
        missing = {"id", "text"} - set(columns[split])
        if missing:
            raise ConfigError(f"--source {name}: {split} lacks the column {' and '.join(sorted(missing))}; {WHERE}")
        texts: dict[Any, dict[str, str]] = {}
        for row in found[split]:
            code = _code(row)
            languages[code] = None
            if row["text"] and row["text"].strip():
                texts.setdefault(row["id"], {})[code] = row["text"].strip()
        rows[split] = [Row(texts[key], f"{name}[{split}]:{key}") for key in sorted(texts)]
    sources = [{"dataset": name, "fingerprint": str(found[split]._fingerprint)} for split in rows]
    return Collection(list(languages), rows.get("dev", []), {"test": rows["devtest"]} if "devtest" in rows else {},
                      sources=sources)  # fmt: skip


def _code(row: dict[str, Any]) -> str:
    """The code of FLORES of a row of FLORES+, which has one column for the language and one for the script."""
    if row.get("iso_639_3") and row.get("iso_15924"):
        return f"{row['iso_639_3']}_{row['iso_15924']}"
    for name in ("language", "lang", "code"):
        if row.get(name):
            return re.sub(r"-", "_", str(row[name]))
    raise ConfigError("rows of FLORES+ have the columns iso_639_3 and iso_15924; these have none of them")
