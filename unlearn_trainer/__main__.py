"""``python -m unlearn_trainer`` is the command ``unlearn-trainer``: a run, or what comes before and after it."""

import importlib
import sys

from .early_stop import end_on_ctrl_c

# Modules whose ``main`` takes the words behind the command's name, and loads nothing before these are right.
COMMANDS = {
    "card": "commands.card",
    "dispose": "commands.dispose",
    "prepare": "commands.prepare",
}


def main() -> None:
    """Answer at once what needs no library, and run what does; ``run`` may be left out."""
    end_on_ctrl_c()
    words = sys.argv[1:]
    if words[:1] == ["audit"]:
        sys.argv[1:] = words[1:]
        _audit()
    elif words and words[0] in COMMANDS:
        _run_small(COMMANDS[words[0]], words[1:])
    else:
        if words[:1] == ["run"]:
            sys.argv[1:] = words[1:]
        _run()


def _run() -> None:
    from .config.early import answer_early  # both here, because they take their time

    answer_early()

    from .cli import main as run

    run()


def _audit() -> None:
    from .audit.arguments import look
    from .config.early import answer_early

    answer_early(read=look)

    from .audit.__main__ import main as audit

    audit()


def _run_small(module: str, words: list[str]) -> None:
    """A command that needs no model: its mistakes become one line, as those of a run do."""
    from .config.early import end_in_one_line

    with end_in_one_line():
        importlib.import_module(f"{__package__}.{module}").main(words)


if __name__ == "__main__":
    main()
