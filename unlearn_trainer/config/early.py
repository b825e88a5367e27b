"""A first look at a command line, before any library is loaded: help and plain mistakes are answered at once.

What it lets pass is read again by :func:`.parser.parse_arguments`, with the real classes.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EXIT_BAD_INPUT, UnlearnError, check_bounds, print_failure
from ..files import check_data_dir, find_file
from .arguments import (
    AuditArguments,
    ChangedArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    ObjectiveArguments,
    StageArguments,
    WeightArguments,
)
from .checks import check_choice
from .given import check_effect, check_given, check_ranges
from .installed import training_flags
from .known_objectives import are_loaded, objective_choices, objective_options
from .parser import CommandLine


def answer_early(
    argv: Sequence[str] | None = None, read: Callable[[Sequence[str] | None], None] | None = None
) -> None:
    """End the process where the command line asks for help, or has a mistake that is certain without any library.

    The words and the exit code are those that the run itself would end with. Where the objectives are loaded already,
    by a plugin, there is nothing to gain, and nothing is done.

    Args:
        argv: as for :func:`.parser.parse_arguments`.
        read: reads it and raises what is wrong; by default :func:`look`.
    """
    if are_loaded():
        return
    try:
        (read or look)(argv)
    except UnlearnError as error:
        sys.exit(print_failure(f"error: {error}", EXIT_BAD_INPUT))
    except Exception:  # a release of transformers that is written in another way, or what only its own checks know
        return


@contextlib.contextmanager
def end_in_one_line() -> Iterator[None]:
    """Within the context a person's mistake ends the process with one line and exit code 2."""
    try:
        yield
    except UnlearnError as error:
        sys.exit(print_failure(f"error: {error}", EXIT_BAD_INPUT))


def look(argv: Sequence[str] | None = None) -> None:
    """Read a command line without importing the libraries.

    Raises:
        UnlearnError: what :func:`.parser.parse_arguments` would raise. What it would say of combinations, and what
            only the libraries know, is not looked at.
    """
    _, data, config = CommandLine(argv, given_classes()).checked()
    stages = (config.memorize_first, config.train_never_seen, config.audit)
    starts = config.do_train or config.do_eval or config.do_predict or any(stages)
    if starts and not config.estimate_memory:
        check_there(data)


def given_classes() -> tuple[type, type, type]:
    """The classes of all flags, which need no library; for :class:`.parser.CommandLine`."""
    return ModelArguments, DataArguments, _given_class()


def check_there(data: DataArguments) -> None:
    """Refuse files and a folder of rows that are not there."""
    if data.data_dir == "synthetic":
        return
    folder = Path(data.data_dir) if data.data_dir and Path(data.data_dir).is_dir() else None
    for split in ("forget", "retain", "valid", "test"):
        file = getattr(data, f"{split}_file")
        if file:
            find_file(file, folder, f"--{split}_file")
    if data.data_dir:
        check_data_dir(data.data_dir)


@functools.cache
def _given_class() -> type:
    """The flags of an `UnlearnConfig`, with the checks that need no library."""

    @dataclass
    class Given(
        StageArguments,
        AuditArguments,
        ObjectiveArguments,
        MethodArguments,
        WeightArguments,
        ChangedArguments,
        training_flags(),  # type: ignore[misc]
    ):
        def __post_init__(self):
            check_given(self)
            for name, choices in objective_choices().items():
                if getattr(self, name) is not None:
                    check_choice(self, name, choices)
            check_ranges(self)
            for option in objective_options():
                if isinstance(option.default, int | float) and not isinstance(option.default, bool):
                    check_bounds(f"--{option.name}", getattr(self, option.name), option.bounds)
            check_effect(self)

    return Given
