"""Errors a user can mend. Each message names the file, line, language or flag, and the remedy."""

import difflib
import signal
import unicodedata
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: `; did you mean <the nearest choice>?`, or nothing where none is near."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def show_name(name: object, limit: int = 40) -> str:
    """A name from outside (a language, key, file or token) as messages and pages may show it.

    Control characters and those that reorder or hide what follows (bidirectional marks and overrides, zero-width
    characters) are written as ``\\u202e``; what is longer than ``limit`` characters is cut.
    """
    text = str(name)
    shown = "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in (text if len(text) <= limit else text[: limit - 3] + "...")
    )
    return shown


class UnlearnError(ValueError):
    """Base of every error caused by the caller's input; the command line ends with exit code 2 on it."""


class DataError(UnlearnError):
    """A row, file or split that cannot be used; the message starts with ``file:line``."""


class ConfigError(UnlearnError):
    """A flag, a JSON key or a combination of them that cannot be used."""


class TrainingDiverged(RuntimeError):
    """The loss or the weights became NaN or infinite; names the optimizer step and the languages it came from."""


class Terminated(RuntimeError):
    """The run was told to stop, by SIGTERM or Ctrl-C, and ended after the step at hand.

    Args:
        signal_number: which of the two.
        doing: what was cut short, and how to go on.
    """

    def __init__(self, signal_number: int, doing: str):
        self.signal_number = signal.Signals(signal_number)
        name = "Ctrl-C" if self.signal_number == signal.SIGINT else self.signal_number.name
        super().__init__(f"{name} {doing}")
