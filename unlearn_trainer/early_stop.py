"""Ctrl-C while a command's libraries are still being loaded; imports nothing that takes time."""

import os
import signal


def end_on_ctrl_c() -> None:
    """Until :func:`raise_on_ctrl_c`, Ctrl-C ends the process with one line and exit code 130."""
    signal.signal(signal.SIGINT, _end)


def raise_on_ctrl_c() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again, where :func:`end_on_ctrl_c` has changed it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number, frame):
    # Libraries catch an exception at will, and a module that was half imported when it came may crash at the exit.
    os.write(2, b"stopped: Ctrl-C while the libraries were loaded; nothing was begun\n")
    os._exit(128 + number)
