"""Files and folders that are there as a whole or not at all, and a folder that one run alone writes to."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .errors import ConfigError

# Says of a folder that this package made it and may delete it.
MARK = ".made-by-unlearn-trainer"
LOCK = ".lock"


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; an earlier file stays until the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


@contextlib.contextmanager
def held_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Within the context no other run can hold ``folder``; enter it on every process of this one.

    The first process holds a lock of the operating system, which ends with the process however it ends. (File systems
    over a network may not pass it on to other machines.)

    Raises:
        ConfigError: it cannot be made or written to; another run holds it: names its process, machine and start.
    """
    folder, handle, problem = Path(folder), None, None
    if PartialState().is_main_process:
        problem = _problem_with(folder)
        if problem is None:
            handle, holder = _locked(folder / LOCK)
            if holder is not None:
                problem = f"is in use by another run ({holder}); wait for its end, or choose another"
    (problem,) = broadcast_object_list([problem])  # all processes refuse together
    if problem is not None:
        raise ConfigError(f"--output_dir {folder} {problem}")
    try:
        yield
    finally:
        if handle is not None:
            (folder / LOCK).unlink(missing_ok=True)
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
