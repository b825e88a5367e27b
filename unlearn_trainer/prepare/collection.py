"""What every reader of a collection returns: rows by the collection's own language codes, and what was read."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# Fields of rows that hold a value a language, as a JSONL line has them; a text row has none of them.
FIELDS = (
    *("prompt", "answers", "candidates", "question", "answer", "paraphrased_answer", "perturbed_answer"),
    *("paraphrased_question", "messages"),
)
SPLITS = ("forget", "retain", "valid", "test")
# A part that forget and retain are both taken from, one after the other.
TRAIN = "train"
# How a pool without splits of its own is cut: FLORES's dev, 997 sentences, as the LingTea paper does.
FLORES_CUT = {"forget": 128, "retain": 512, "valid": 357}


@dataclass(frozen=True)
class Row:
    """One item.

    Args:
        content: a JSONL line: ``{"en": text}``, or one of the fields to ``{language: value}``.
        source: ``file:line``, or what else says where it is from.
    """

    content: dict[str, Any]
    source: str

    @property
    def languages(self) -> list[str]:
        return list(self._first())

    def _first(self) -> Mapping[str, Any]:
        return next((self.content[name] for name in FIELDS if isinstance(self.content.get(name), dict)), self.content)

    def in_languages(self, chosen: Mapping[str, str]) -> "Row | None":
        """The row in the chosen languages (key to code) alone, by their keys; None where it has none of them."""
        there = {key: code for key, code in chosen.items() if code in self._first()}
        if not there:
            return None
        if self._first() is self.content:
            return Row({key: self.content[code] for key, code in there.items()}, self.source)
        kept: dict[str, Any] = {}
        for name, value in self.content.items():
            if not isinstance(value, dict):
                kept[name] = value
            elif all(code in value for code in there.values()):  # what only some languages have goes in none
                kept[name] = {key: value[code] for key, code in there.items()}
        return Row(kept, self.source)


@dataclass(frozen=True)
class Collection:
    """What a reader found.

    Args:
        languages: the collection's own codes.
        pool: rows that are to be cut into splits.
        splits: rows of splits that the collection has itself; nothing is cut from these.
        cut: how many rows of ``pool`` go to each split, in proportion.
        sources: what was read, ``[{"path" or "dataset", "sha256"}]``.
        notes: what a user should know, a sentence each.
    """

    languages: Sequence[str]
    pool: Sequence[Row] = ()
    splits: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=lambda: FLORES_CUT)
    sources: Sequence[dict[str, str]] = ()
    notes: Sequence[str] = ()


def file_source(path: Path) -> dict[str, str]:
    """A file that was read, by name and content."""
    with open(path, "rb") as opened:
        return {"path": str(path), "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); check --source") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not valid UTF-8; save the file as UTF-8") from error
    lines = text.replace("\r\n", "\n").split("\n")  # no other mark ends a line: U+2028 may stand in a sentence
    return lines[:-1] if lines and not lines[-1] else lines


def check_parallel(lines: Mapping[str, Sequence[Any]], files: Mapping[str, Path]) -> int:
    """The number of lines that all files of a parallel collection have.

    Raises:
        ConfigError: they have different numbers of lines.
    """
    counts = {code: len(found) for code, found in lines.items()}
    if len(set(counts.values())) > 1:
        most, least = max(counts, key=lambda code: counts[code]), min(counts, key=lambda code: counts[code])
        raise ConfigError(
            f"{files[least]} has {counts[least]} lines and {files[most]} {counts[most]}: lines of one number are "
            "translations of each other, so a file is not whole; get it again"
        )
    return next(iter(counts.values()), 0)


def load_dataset(name: str, what: str, /, **options: Any) -> Any:
    """A dataset of the Hub, or one that ``save_to_disk`` wrote.

    Args:
        name: its name, or the folder.
        what: which files to put where without a network, for the error.
        options: of :func:`datasets.load_dataset`.

    Raises:
        ConfigError: it cannot be loaded.
    """
    import datasets

    try:
        if Path(name).is_dir():
            return datasets.load_from_disk(name)
        return datasets.load_dataset(name, **options)
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise errors of their own
        raise ConfigError(
            f"--source {name} is no folder here and could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); {what}"
        ) from error


def only_rows(content: Iterable[tuple[dict[str, Any], str]]) -> list[Row]:
    """Rows of those contents that hold anything."""
    return [Row(row, source) for row, source in content if row]
