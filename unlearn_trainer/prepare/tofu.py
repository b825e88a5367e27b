"""TOFU (Maini et al., 2024), English and in other languages: questions on authors that do not exist."""

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .collection import Collection, Row, check_parallel, file_source, load_dataset
from .languages import is_language

FORGET_SPLITS = ("forget01", "forget05", "forget10")
FIELDS = ("question", "answer", "paraphrased_answer", "perturbed_answer", "paraphrased_question")
WHERE = (
    "give a folder with forget10_perturbed.json, retain_perturbed.json and so on (or with a folder of these a "
    "language), or the name of a dataset with these configurations, such as locuslab/TOFU"
)


def read_tofu(source: str, forget_split: str) -> Collection:
    """Splits as the collection has them.

    What is to be forgotten is all of ``forget_split``; to be kept, what it has left of the same authors' book. Its
    real authors and world facts are no texts that the model never saw, yet the nearest to it that the collection has:
    valid is its holdout where there is one, else its real authors; test its world facts.

    Args:
        source: a folder, or a dataset.
        forget_split: ``forget01``, ``forget05`` or ``forget10``.

    Raises:
        ConfigError: there is no such split, or nothing to read.
    """
    share = int(forget_split.removeprefix("forget"))
    names = {
        "forget": (f"{forget_split}_perturbed", forget_split),
        "retain": (f"retain{100 - share}", "retain_perturbed", f"retain{100 - share}_perturbed", "retain"),
        "valid": (f"holdout{share:02}_perturbed", f"holdout{share:02}", "real_authors_perturbed", "real_authors"),
        "test": ("world_facts_perturbed", "world_facts"),
    }
    folder = Path(source)
    if not folder.is_dir() or (folder / "dataset_dict.json").exists():
        return _from_dataset(source, names)
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_language(path.name))
    folders = {code: folder / code for code in inside} or {"en": folder}
    splits: dict[str, list[Row]] = {}
    sources = []
    for split, candidates in names.items():
        files = {code: path for code, place in folders.items() if (path := _first_file(place, candidates))}
        if not files:
            continue
        tables = {code: _read(path) for code, path in files.items()}
        count = check_parallel(tables, files)
        splits[split] = [
            _row({code: tables[code][number] for code in files}, f"{next(iter(files.values()))}:{number + 1}")
            for number in range(count)
        ]
        sources += [file_source(path) for path in files.values()]
    return _collection(list(folders), splits, sources, source, names)


def _from_dataset(name: str, names: dict[str, tuple[str, ...]]) -> Collection:
    import datasets

    splits, sources = {}, []
    if Path(name).is_dir():
        found = load_dataset(name, WHERE)
        configurations = list(found)
    else:
        found = None
        try:
            configurations = datasets.get_dataset_config_names(name)
        except Exception as error:  # of many kinds
            raise ConfigError(
                f"--source {name} is no folder here and could not be loaded from the Hugging Face Hub "
                f"({type(error).__name__}: {error}); {WHERE}"
            ) from error
    for split, candidates in names.items():
        chosen = next((each for each in candidates if each in configurations), None)
        if chosen is None:
            continue
        rows = found[chosen] if found is not None else load_dataset(name, WHERE, name=chosen, split="train")
        splits[split] = [_row({"en": dict(row)}, f"{name}[{chosen}]:{number}") for number, row in enumerate(rows)]
        sources.append({"dataset": name, "configuration": chosen})
    return _collection(["en"], splits, sources, name, names)


def _collection(languages, splits, sources, source, names) -> Collection:
    for split in ("forget", "retain"):
        if split not in splits:
            raise ConfigError(f"--source {source} has none of {', '.join(names[split])}; {WHERE}")
    notes = [f"there is no {split} split: {source} has none of {', '.join(names[split])}"
             for split in ("valid", "test") if split not in splits]  # fmt: skip
    return Collection(languages, (), splits, sources=sources, notes=notes)


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next(
        (path for name in names for end in (".json", ".jsonl") if (path := folder / f"{name}{end}").is_file()), None
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """JSON lines, or one JSON array."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {WHERE}") from error


def _row(by_language: dict[str, dict[str, Any]], source: str) -> Row:
    content: dict[str, Any] = {}
    for name in FIELDS:
        values = {code: row[name] for code, row in by_language.items() if row.get(name)}
        if len(values) == len(by_language):
            content[name] = values
    if not {"question", "answer"} <= set(content):
        raise ConfigError(f"{source}: a row needs a question and an answer; {WHERE}")
    return Row(content, source)
