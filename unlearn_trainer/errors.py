"""Errors a user can mend. Each message names the file, line, language or flag, and the remedy."""

import difflib
import math
import os
import signal
import sys
import time
import unicodedata
from collections.abc import Iterable

EXIT_BAD_INPUT, EXIT_DIVERGED = 2, 3


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: `; did you mean <the nearest choice>?`, or nothing where none is near."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def without_controls(text: str) -> str:
    """The text with control characters, lone surrogates and what reorders or hides text written as ``\\u202e``."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in kinds else c for c in text)


def show_name(name: object, limit: int = 40) -> str:
    """A name from outside (a language, key or token) as messages may show it: :func:`without_controls`, and cut."""
    text = str(name)
    return without_controls(text if len(text) <= limit else text[: limit - 3] + "...")


def quote_name(name: str) -> str:
    """A name in quotes; what is as long as a text, or has white space as one has, is only described."""
    is_text = len(name) > 40 or any(map(str.isspace, name.strip()))
    return f"a text of {len(name)} characters" if is_text else f"'{show_name(name)}'"


class UnlearnError(ValueError):
    """Base of every error caused by the caller's input; the command line ends with exit code 2 on it."""


class DataError(UnlearnError):
    """A row, file or split that cannot be used; the message starts with ``file:line``."""


class ConfigError(UnlearnError):
    """A flag, a JSON key or a combination of them that cannot be used."""


class StorageError(UnlearnError):
    """A disk that is full, or a place that cannot be written to, met while a run was under way."""


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


def check_bounds(flag: str, value: object, bounds: Iterable) -> None:
    """Refuse what is no finite number, or outside of one of the bounds that stand in an option's annotation.

    Raises:
        ConfigError: names the flag and the bound.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{flag} must be a finite number, not {value}")
    for bound in bounds:
        if not bound.allows(value):
            raise ConfigError(f"{flag} must be {bound}, not {value}")


def print_failure(message: str, code: int, of_all: bool = False) -> int:
    """Print the message and return the code; what befell all processes (``of_all``) the first one alone says."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # where the first process fails too, it says so, and the launcher ends this one meanwhile
        if of_all:
            return code
    print(without_controls(" ".join(message.split())), file=sys.stderr, flush=True)
    return code
