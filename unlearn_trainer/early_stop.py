"""Ctrl-C while a command's libraries are still being loaded; imports nothing that takes time."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


def end_on_ctrl_c() -> None:
    """Until :func:`raise_on_ctrl_c`, Ctrl-C ends the process with one line and exit code 130."""
    signal.signal(signal.SIGINT, _end)


def raise_on_ctrl_c() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again, where :func:`end_on_ctrl_c` has changed it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ToldToEnd(KeyboardInterrupt):
    """SIGTERM where nothing waits for it; no library takes it for an error."""


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Within the context SIGTERM is a :class:`ToldToEnd`, in a process of its own.

    As one of many it ends at once, as it always does: it may be waiting for a process that is gone.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number, frame):
    raise ToldToEnd


def _end(number, frame):
    # Libraries catch an exception at will, and a module that was half imported when it came may crash at the exit.
    os.write(2, b"stopped: Ctrl-C while the libraries were loaded; nothing was begun\n")
    os._exit(128 + number)
