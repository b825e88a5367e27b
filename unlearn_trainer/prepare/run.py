"""From a collection to a folder that a run reads: read, choose languages, cut, complete, check, write, tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .bmlama import read_bmlama
from .collection import Collection, Row
from .cut import cut_splits
from .drawn import draw_rows, texts_of
from .flores import read_flores
from .languages import choose_languages
from .near_duplicates import ALIKE, near_duplicates
from .table import Columns, read_table
from .tofu import read_tofu
from .write import check_free, write_folder

WHAT_IS_MISSING = {
    "retain": "no retain split: nothing says what is to be kept; --retain_from draws one from another source",
    "valid": "no valid split: nothing shows what text looks like that the model never saw, so that targets, the "
    "calibrated method and most verdicts have nothing to go by; --valid_from draws one from another source",
    "test": "no test split: final figures on text that no step has touched are left out",
}


@dataclass(frozen=True)
class Request:
    """What is to be prepared; see ``unlearn-trainer prepare --help``."""

    kind: str
    source: str
    output_dir: Path
    languages: Sequence[str] | None = None
    forget_size: int | str | None = None
    retain_factor: float = 3.0
    seed: int = 42
    forget_split: str = "forget10"
    columns: Columns = Columns()
    retain_from: str | None = None
    valid_from: str | None = None
    translate_to: Sequence[str] = ()
    translator: str | None = None


def prepare_data(request: Request, command: str = "") -> dict[str, Any]:
    """Write the folder; returns the content of its prepare.json, with ``notes`` for people.

    Raises:
        ConfigError: a source, language, column or size that does not fit; a folder that is not empty.
        DataError: rows that a run would refuse.
    """
    check_free(request.output_dir)
    if bool(request.translate_to) != bool(request.translator):
        raise ConfigError("--translate_to and --translator go together; give both")
    collection = _read(request)
    chosen = choose_languages(collection.languages, request.languages)
    splits = cut_splits(collection, chosen, request.forget_size, request.retain_factor, request.seed)
    about: dict[str, Any] = {}
    drawn_notes: list[str] = []
    for split, source, size in (
        ("retain", request.retain_from, round(len(splits["forget"]) * request.retain_factor)),
        ("valid", request.valid_from, max(100, len(splits["forget"]))),
    ):
        if source is not None:
            flag = f"--{split}_from"
            taken = [row for name, members in splits.items() if name not in ("forget", split) for row in members]
            keys = {**chosen, **{key: key for key in request.translate_to}}
            rows, found = draw_rows(flag, source, request.columns, splits["forget"], taken, keys, size, request.seed)
            about[flag.removeprefix("--")], splits[split] = found, rows
            short = {key: count for key, count in found["rows"].items() if count < size}
            if short or found["languages_lacking"]:
                there = [f"{key} {count}" for key, count in short.items()]
                there += [f"{key} 0" for key in found["languages_lacking"]]
                drawn_notes.append(f"{flag} has fewer than {size} rows in some languages: {', '.join(there)}")
    if request.translate_to and request.translator:
        from .translation import translate_splits  # with the libraries that a translator needs

        # What was drawn has its own texts in a language; only where the source has none are there translations.
        drawn = {flag.removesuffix("_from"): found["languages_lacking"] for flag, found in about.items()}
        into = {
            split: [key for key in request.translate_to if key in drawn.get(split, request.translate_to)]
            for split in splits
        }
        about["translation"] = translate_splits(splits, into, request.translator, request.output_dir)
    missing = [said for split, said in WHAT_IS_MISSING.items() if not splits.get(split)]
    notes = [*collection.notes, *drawn_notes, *missing]
    content = write_folder(
        request.output_dir,
        splits,
        {
            "kind": request.kind,
            "command": command,
            "seed": request.seed,
            "sources": list(collection.sources),
            "languages": chosen,
            "sizes": {split: len(rows) for split, rows in splits.items()},
            "near_duplicates": _near_duplicates(splits, [*chosen, *request.translate_to]),
            **about,
            "notes": notes,
        },
    )
    return content


def describe(content: dict[str, Any], folder: Path) -> str:
    """What was written, for the terminal."""
    files = [f"{name} ({about['items']} items)" for name, about in content["files"].items()]
    lines = [f"{folder}: {', '.join(files)}"]
    languages = content["files"]["forget.jsonl"]["rows"]
    lines.append(f"languages: {' '.join(languages)}")
    if near := content["near_duplicates"]:
        first = near[0]
        lines.append(
            f"{len(near)} rows of other splits are nearly a row to be forgotten, such as {first['other']} and "
            f"{first['forget']} ({first['language']}, {first['similarity']:.2f} alike); all are in prepare.json"
        )
    lines += [f"note: {note}" for note in content["notes"]]
    lines.append(
        f"next: unlearn-trainer --data_dir {folder} --model_name_or_path MODEL --output_dir OUT --do_train --do_eval"
    )
    return "\n".join(lines)


def _read(request: Request) -> Collection:
    if request.kind == "flores":
        return read_flores(request.source)
    if request.kind == "bmlama":
        return read_bmlama(request.source, request.seed)
    if request.kind == "tofu":
        return read_tofu(request.source, request.forget_split)
    if request.kind in ("table", "dataset"):
        return read_table(request.source, request.columns)
    raise ConfigError(f"prepare {request.kind}: there is no such collection")


def _near_duplicates(splits: dict[str, list[Row]], languages: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of other splits that are nearly a forget row, by file and line of what was read."""
    found = []
    for key in languages:
        forget = [(text, row) for row in splits["forget"] for text in texts_of(row, key)]
        for split in ("retain", "valid", "test"):
            others = [(text, row) for row in splits.get(split, ()) for text in texts_of(row, key)]
            if not forget or not others:
                continue
            # Facts of one template are alike; only those that differ in next to nothing are worth a word.
            alike = 0.95 if "prompt" in forget[0][1].content else ALIKE
            for pair in near_duplicates([text for text, _ in forget], [text for text, _ in others], alike):
                found.append(
                    {
                        "forget": forget[pair.forget][1].source,
                        "other": others[pair.other][1].source,
                        "split": split,
                        "language": key,
                        "similarity": round(pair.similarity, 3),
                    }
                )
    return found
