"""Files and folders that are whole or absent, a folder of one run alone, and digests that tell of later damage."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, StorageError, UnlearnError

# Says of a folder that this package made it and may delete it.
MARK = ".made-by-unlearn-trainer"
LOCK = ".lock"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; an earlier file stays until the new one is complete.

    The bytes of a file name that is not UTF-8 are written as ``\\udcff``, from which JSON reads the same name again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_file(path: Path) -> None:
    """Write ``<path>.seal``, which holds the finished file's size and digest; see :func:`find_damage`."""
    write_whole(_seal_of(path), json.dumps({"size": path.stat().st_size, "sha256": digest_file(path)}))


def find_damage(path: Path) -> str | None:
    """What is wrong with a file that :func:`seal_file` sealed, in words; None where it is as it was written.

    A file without a seal was not finished: its writer was killed.
    """
    try:
        sealed = json.loads(_seal_of(path).read_text(encoding="utf-8"))
        size, digest = sealed["size"], sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "it was not written to its end"
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"it has {actual} bytes instead of {size}"
        if digest_file(path) != digest:
            return "its bytes are not those that were written"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return None


def remove_sealed(path: Path) -> None:
    """Delete a file and its seal, where they exist."""
    for each in (_seal_of(path), path):
        each.unlink(missing_ok=True)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")


def make_own_folder(folder: Path) -> Path:
    """Make ``folder`` with a mark inside, empty; what an earlier run left there is deleted.

    Raises:
        ConfigError: there is a folder of that name which no run has made.
    """
    remove_own_folder(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def remove_own_folder(folder: Path) -> None:
    """Delete ``folder``, if it is there and has the mark.

    Raises:
        ConfigError: it has none.
    """
    if not folder.exists():
        return
    if not (folder / MARK).exists():
        raise ConfigError(
            f"{folder} is where unfinished work is kept, and no run has made it; move it away, or delete it if an "
            "earlier version left it"
        )
    shutil.rmtree(folder)


def name_whole_folder(unfinished: Path, folder: Path) -> None:
    """Give a folder of :func:`make_own_folder`, complete now, the name under which it is to stay."""
    os.replace(unfinished, folder)
    (folder / MARK).unlink(missing_ok=True)


def read_own_json(path: Path, keys: Iterable[str], remedy: str) -> dict:
    """The object in a JSON file that a run has written.

    Args:
        keys: that it must have.
        remedy: what to do about a damaged one.

    Raises:
        ConfigError: it cannot be read, is no JSON, or lacks a key; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in keys if key not in content] if isinstance(content, dict) else ["object"]
        problem = f"it has no {', '.join(missing)}" if missing else None
    except (OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
    if problem is not None:
        raise ConfigError(f"{path} is damaged ({problem}); {remedy}")
    return content


def storage_problem(error: BaseException, folder: Path | None = None) -> str | None:
    """What an error says about a disk or a place, in one line with the remedy; None where it is about something else.

    Args:
        error: of any library; safetensors, torch and datasets put what the system said into errors of their own.
        folder: that is named where the error names no path.
    """
    seen: set[int] = set()
    met: BaseException | None = error
    while met is not None and id(met) not in seen:
        seen.add(id(met))
        said = next((text for text in _OF_FULL_DISKS if text in str(met)), None)
        of_place = isinstance(met, OSError) and met.errno in _OF_PLACES and met.filename is not None
        if said is not None or of_place or (isinstance(met, OSError) and met.errno in _OF_DISKS):
            path = getattr(met, "filename", None) or folder or "a file"
            reason = getattr(met, "strerror", None) or _OF_FULL_DISKS.get(said or "") or " ".join(str(met).split())
            return (
                f"{os.fsdecode(path)} could not be written: {reason}. Make room or mend it there, or name another "
                "place. What was finished is kept: give the same command again, with --resume_from_checkpoint true "
                "where there are checkpoints"
            )
        met = met.__cause__ or met.__context__
    return None


# What the system says of a disk, whichever the path; and of a place, which is then named.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_OF_PLACES = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
)
# As libraries repeat it that are not written in Python, with our words for it.
_OF_FULL_DISKS = {
    "No space left on device": "no space is left on the device",
    "os error 28": "no space is left on the device",
    "Disk quota exceeded": "the disk quota is used up",
    "Read-only file system": "the file system is read-only",
    "inline_container.cc": "the device takes no more; it is full, or broken",
    "basic_ios::clear": "the device takes no more; it is full, or broken",
}


@contextlib.contextmanager
def held_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Within the context no other run can hold ``folder``; enter it on every process of this one.

    The first process holds a lock of the operating system, which ends with the process however it ends. (File systems
    over a network may not pass it on to other machines.)

    Raises:
        ConfigError: it cannot be made or written to; another run holds it: names its process, machine and start.
        StorageError: within the context a disk turned out to be full, or a place could not be written to.
    """
    from accelerate import PartialState  # here, because they take seconds, and are not needed to find a file
    from accelerate.utils import broadcast_object_list

    folder, handle, problem = Path(os.path.abspath(folder)), None, None  # wherever the process goes meanwhile
    if PartialState().is_main_process:
        problem = _problem_with(folder)
        if problem is None:
            try:
                handle, holder = _locked(folder / LOCK)
            except OSError as error:  # full, or a lock of another user
                problem, holder = f"cannot be written to ({error.strerror}); name a folder that can", None
            if holder is not None:
                problem = f"is in use by another run ({holder}); wait for its end, or choose another"
    (problem,) = broadcast_object_list([problem])  # all processes refuse together
    if problem is not None:
        raise ConfigError(f"--output_dir {folder} {problem}")
    try:
        yield
    except UnlearnError:
        raise
    except Exception as error:
        problem = storage_problem(error, folder)
        if problem is None:
            raise
        raise StorageError(problem) from error
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                handle.close()


def _problem_with(folder):
    """Why nothing can be written to ``folder``, which is made where it can be; None where all is well."""
    try:
        for place in (folder, *folder.parents):
            if place.is_file():
                return f"cannot be made: {place} is a file; name a folder"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        return f"cannot be made ({getattr(error, 'strerror', None) or error}); name a folder that can be written to"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written to; name a folder that can"
    return None


def _locked(path):
    """The open file that holds the lock, or None and who holds it."""
    while True:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the run ends
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            written = handle.read()
            handle.close()
            return None, _described(written)
        except OSError:  # a file system without locks
            return handle, None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
                break
        handle.close()  # its holder has deleted it meanwhile
    handle.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    json.dump({"process": os.getpid(), "machine": socket.gethostname(), "started": started}, handle)
    handle.flush()
    return handle, None


def _described(written):
    with contextlib.suppress(ValueError, KeyError, TypeError):
        holder = json.loads(written)
        return f"process {holder['process']} on {holder['machine']}, since {holder['started']}"
    return "just started"


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes ``content`` as strict JSON: whole, or not at all.

    NaN and infinity have no JSON form and become null; numpy and torch scalars become numbers. An earlier file at
    ``path`` stays until the new one is complete, also when this call fails. Missing folders are made.

    Raises TypeError for a value that JSON cannot hold.
    """
    write_whole(path, json_text(content) + "\n")


def json_text(content: Any) -> str:
    """What :func:`write_json` writes, for a list too."""
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)


def nan_for_null(figures: Any) -> Any:
    """Figures that :func:`write_json` wrote, as numbers throughout: what has no JSON form, and is null, is NaN."""
    if isinstance(figures, dict):
        return {key: nan_for_null(value) for key, value in figures.items()}
    if isinstance(figures, list):
        return [nan_for_null(value) for value in figures]
    return math.nan if figures is None else figures


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find_file(file: str, folder: Path | None, flag: str) -> Path:
    """The path of a file of rows; a bare name is looked for in ``folder`` first.

    Args:
        file: what the flag gave.
        folder: of all splits, where there is one.
        flag: for messages.

    Raises:
        DataError: there is none; says what is there instead.
    """
    if folder and Path(file).name == file and (folder / file).is_file():
        return folder / file
    if Path(file).is_file():
        return Path(file)
    for path in (folder / file if folder else Path(file), Path(file)):
        if path.is_dir():
            raise DataError(
                f"{flag}: {path} is a folder ({jsonl_names(path)}); name one file of it, or give --data_dir"
            )
    there = f"; {folder} has: {jsonl_names(folder)}" if folder else ""
    raise DataError(f"{flag}: there is no file {file}{there}; check the path")


def jsonl_names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "no .jsonl file"


def check_data_dir(name: str) -> None:
    """Refuse what is neither a folder nor looks like the name of a dataset on the Hub.

    Raises:
        DataError: names ``--data_dir``.
    """
    if not Path(name).is_dir() and (Path(name).exists() or not HUB_NAME.fullmatch(name)):
        problem = "is a file, not a folder; use --forget_file" if Path(name).exists() else "does not exist"
        raise DataError(f"--data_dir {name} {problem}; give a folder of JSONL files or a Hub name (owner/name)")
