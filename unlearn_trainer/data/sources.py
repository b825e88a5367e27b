"""Where rows come from: JSONL files, a folder with one file a split, or a dataset on the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import ConfigError, DataError
from ..files import check_data_dir, find_file, jsonl_names
from .formats import foreign_format
from .items import Item, merge_by_id, parse_row, read_jsonl

# Names of files (glob patterns, in a folder) and of splits (on the Hub).
FILE_PATTERNS = {
    "forget": ("forget.jsonl", "forget-*.jsonl"),
    "retain": ("retain.jsonl", "retain-*.jsonl"),
    "valid": ("valid.jsonl",),
    "test": ("test.jsonl",),
}
HUB_SPLITS = {"forget": ("forget",), "retain": ("retain",), "valid": ("valid", "validation"), "test": ("test",)}


def load_splits(
    data_dir: str | None = None,
    forget_file: str | None = None,
    retain_file: str | None = None,
    valid_file: str | None = None,
    test_file: str | None = None,
) -> dict[str, list[Item]]:
    """Items of each split.

    Args:
        data_dir: a folder with ``forget.jsonl`` or ``forget-*.jsonl`` and optionally ``retain.jsonl`` or
            ``retain-*.jsonl``, ``valid.jsonl`` and ``test.jsonl``; or, where no such folder exists, the name
            ``owner/name`` of a Hub dataset with splits ``forget``, ``retain``, ``valid`` (``validation``), ``test``.
        forget_file, retain_file, valid_file, test_file: a JSONL file that takes the place of that split; a bare file
            name is looked for in ``data_dir`` first.

    Returns:
        ``forget`` and those of ``retain``, ``valid`` and ``test`` that exist; what may be missing is up to the caller.

    Raises:
        ConfigError: there is nothing to load a forget split from.
        DataError: a path that is no file, a file without rows, several files for one split, a Hub dataset that cannot
            be loaded, or a row that :func:`~unlearn_trainer.data.items.parse_row` refuses.
    """
    files = split_files(data_dir, forget_file, retain_file, valid_file, test_file)
    folder = Path(data_dir) if data_dir and Path(data_dir).is_dir() else None
    loaded = _from_hub(data_dir, skip=files) if data_dir and not folder else {}
    for name, file in files.items():
        loaded[name] = read_jsonl(file)
        if not loaded[name]:
            raise DataError(f"{file}: the {name} split is empty; write rows to the file, or choose --{name}_file")
    if "forget" not in loaded:
        raise DataError(
            f"{data_dir} has no forget.jsonl or forget-*.jsonl, only: {jsonl_names(folder)}; pick one with "
            f"--forget_file{_foreign(folder)}"
        )
    return {name: loaded[name] for name in FILE_PATTERNS if name in loaded}


def split_files(
    data_dir: str | None = None,
    forget_file: str | None = None,
    retain_file: str | None = None,
    valid_file: str | None = None,
    test_file: str | None = None,
) -> dict[str, Path]:
    """The files that :func:`load_splits` reads, by split; none for a split that comes from the Hub.

    Raises:
        ConfigError: there is nothing to load a forget split from.
        DataError: a path that is no file, or several files for one split.
    """
    if not data_dir and not forget_file:
        raise ConfigError("there is no forget set; give --data_dir or --forget_file")
    given = {"forget": forget_file, "retain": retain_file, "valid": valid_file, "test": test_file}
    folder = Path(data_dir) if data_dir and Path(data_dir).is_dir() else None
    files = {name: find_file(file, folder, f"--{name}_file") for name, file in given.items() if file}
    if folder:
        found = {name: files.get(name) or _in_folder(folder, name) for name in FILE_PATTERNS}
        files |= {name: file for name, file in found.items() if file}
    return files


def _foreign(folder: Path) -> str:
    """What is said of a forget split in another format."""
    for path in sorted(folder.glob("forget*")) if folder else ():
        if path.is_file() and path.suffix != ".jsonl":
            return f" ({path.name} is {foreign_format(path, path.read_bytes()) or 'not called .jsonl'})"
    return ""


def _in_folder(folder: Path, name: str) -> Path | None:
    found = sorted({path for pattern in FILE_PATTERNS[name] for path in folder.glob(pattern)})
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} has several files for the {name} split: {names}; pick one with --{name}_file")
    return found[0] if found else None


def _from_hub(name: str, skip: Mapping[str, Any]) -> dict[str, list[Item]]:
    check_data_dir(name)
    try:
        hub = datasets.load_dataset(name)
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise errors of their own
        raise DataError(
            f"--data_dir {name} is not an existing folder and could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); check the spelling, the network and, if private, your login"
        ) from error
    splits = {}
    for split, names in HUB_SPLITS.items():
        match = next((each for each in names if each in hub), None)
        if match and split not in skip:
            rows = (parse_row(_without_nulls(row), f"{name}[{match}]:{i}") for i, row in enumerate(hub[match]))
            splits[split] = merge_by_id(rows)
    if "forget" not in splits and "forget" not in skip:
        raise DataError(f"--data_dir {name}: the dataset has the splits {', '.join(hub)}, but no split 'forget'")
    return splits


def _without_nulls(value: Any) -> Any:
    """Drop the nulls by which Arrow fills up the keys that a row lacks, and objects that held nothing else."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return {key: each for key, each in kept.items() if each != {}}
