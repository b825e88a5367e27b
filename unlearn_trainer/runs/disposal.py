"""Where the texts of a run remain when it is over, and their removal with a record of it."""

import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.finished import MEMORIZED, NEVER_SEEN, OF_STAGE, read_configuration, where_it_lies
from ..errors import StorageError
from ..files import MARK, write_json

RECORD = "deletion.json"
# Folders of an output folder that may hold texts, or a model that knows them: by name, what they are, and a file in
# them by which one tells that a run has made them. What lacks it is a person's own, and stays.
IN_OUTPUT_FOLDER = (
    (MEMORIZED, "the model that knows the texts by heart", OF_STAGE),
    (NEVER_SEEN, "the model that was trained on the rows to keep", OF_STAGE),
    ("checkpoint-*", "a state from before the end, which may know the texts", "trainer_state.json"),
    ("teacher", "what the start model says on the rows", "*-*.json"),
    ("*.unfinished", "a part of a run that was cut short", MARK),
    ("synthetic", "the texts of the built-in corpus, and its start model", "data/forget.jsonl"),
    ("runs", "a tracker's figures", "**/events.out.tfevents.*"),
)
# Trackers that write into the folder that a run is started in.
OF_TRACKERS = ("wandb", "mlruns", "trackio")


@dataclass(frozen=True)
class Place:
    """One place where texts remain.

    Args:
        path: a file or a folder.
        what: what it holds, in words.
        size: bytes of all files in it.
        files: how many there are.
    """

    path: Path
    what: str
    size: int
    files: int


@dataclass(frozen=True)
class Places:
    """Places that belong to the run alone and can be made anew, and others that a person has to look after."""

    removable: list[Place] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)


def places_of_texts(folder: Path, with_cache: bool = True) -> Places:
    """Every place where the texts of a finished run remain.

    Args:
        folder: its output folder, also one that was moved since.
        with_cache: whether the cache of tokenized rows, which all runs of this user share, counts as removable.

    Raises:
        ConfigError: it holds no results.json of a run.
    """
    config = where_it_lies(read_configuration(folder), folder)
    found = Places()
    # An adapter that was not merged works on the model that the run has made for it.
    needed = MEMORIZED if config.get("use_peft") and not config.get("merge_adapter") else None
    for pattern, what, sign in IN_OUTPUT_FOLDER:
        for path in sorted(folder.glob(pattern)):
            if path.is_symlink() or not path.is_dir() or not any(path.glob(sign)):
                continue  # what a person has put or linked there is theirs
            if path.name == needed:
                found.others.append((str(path), f"{what}; the adapter in {folder} does not work without it"))
            else:
                found.removable.append(_measured(path, what))
    cache = _token_cache()
    if with_cache and cache.is_dir():
        found.removable.append(_measured(cache, "token ids of the rows of all runs, which are made anew when needed"))
    if config.get("show_texts"):
        found.others.append((str(folder), "report, results and log quote texts, because --show_texts was given"))
    for flag in ("forget_file", "retain_file", "valid_file", "test_file", "data_dir", "alternative_answers"):
        if config.get(flag) and not _is_inside(config[flag], folder):
            found.others.append((str(config[flag]), f"the data that was given (--{flag})"))
    if not config.get("memorize_first") and not _is_inside(config["model_name_or_path"], folder):
        found.others.append((str(config["model_name_or_path"]), "the start model, which knows the texts"))
    for name in OF_TRACKERS:
        if Path(name).is_dir():
            found.others.append((name, "a tracker's folder, where runs are started; it holds figures of all runs"))
    return found


def describe(places: Places) -> str:
    """The places as lines of text."""
    lines = ["Texts of this run, or what was made of them, remain in:"]
    lines += [
        f"  {place.path}: {place.what} ({place.files} files, {place.size / 1e6:.1f} MB)" for place in places.removable
    ]
    if not places.removable:
        lines.append("  no place that this command could remove")
    if places.others:
        lines += ["and in places that stay, for you to look after:"]
        lines += [f"  {path}: {what}" for path, what in places.others]
    return "\n".join(lines)


def dispose(folder: Path, places: Places) -> dict[str, Any]:
    """Remove what is removable, and write the record ``deletion.json`` into the folder of the run.

    Args:
        folder: of the run.
        places: of :func:`places_of_texts`.

    Returns:
        The record: ``{"removed": [{"path", "what", "files", "bytes", "sha256"}], "failed", "remaining", "times"}``;
        ``sha256`` is of the names, sizes and contents of all files, in the order of their names.

    Raises:
        StorageError: something could not be removed; the record says what was.
    """
    record: dict[str, Any] = {"schema_version": 1, "run": str(folder.resolve()), "removed": [], "failed": []}
    record["remaining"] = [{"path": path, "what": what} for path, what in places.others]
    started = _now()
    for place in places.removable:
        try:
            about = {"path": str(place.path), "what": place.what, "files": place.files, "bytes": place.size}
            about["sha256"] = _digest(place.path)
            shutil.rmtree(place.path) if place.path.is_dir() else place.path.unlink()
        except OSError as error:
            record["failed"].append({"path": str(place.path), "why": error.strerror or str(error)})
        else:
            record["removed"].append(about | {"removed_at": _now()})
    record["times"] = {"started": started, "ended": _now()}
    file = folder / RECORD
    if file.exists():  # an earlier record stays a part of this one
        record["earlier"] = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, record)
    if record["failed"]:
        said = "; ".join(f"{failure['path']} ({failure['why']})" for failure in record["failed"])
        raise StorageError(f"could not be removed: {said}; see {file}, mend it, and give the command again")
    return record


def _token_cache() -> Path:
    import datasets  # only to ask where its cache lies

    return Path(datasets.config.HF_DATASETS_CACHE) / "unlearn_trainer"


def _files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    return sorted(Path(root) / name for root, _, names in os.walk(path) for name in names)


def _measured(path: Path, what: str) -> Place:
    files = _files(path)
    return Place(path, what, sum(file.lstat().st_size for file in files), len(files))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path.parent)}\0{file.lstat().st_size}\0".encode("utf-8", "surrogateescape"))
        if not file.is_symlink():
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _is_inside(name: str, folder: Path) -> bool:
    return Path(name).resolve().is_relative_to(folder.resolve())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
