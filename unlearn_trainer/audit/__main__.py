"""python -m unlearn_trainer.audit: see --help, and docs/audit.md."""

if __name__ == "__main__":  # the libraries take seconds to load, in which Ctrl-C would be a traceback of theirs
    from ..early_stop import end_on_ctrl_c

    end_on_ctrl_c()

    from ..config.early import answer_early
    from .arguments import look

    answer_early(read=look)

from collections.abc import Sequence

from ..config.parser import parse_arguments
from ..console import run_command
from .arguments import arguments_of_run, expanded
from .run import audit

__all__ = ["arguments_of_run", "run"]


def run(argv: Sequence[str] | None = None) -> dict:
    """The whole audit; returns what is written to audit.json."""
    words, before = expanded(argv)
    arguments = parse_arguments(words)
    return audit(*arguments, before=before if arguments[2].model_before is None else None)


def main() -> None:
    """Console entry; see :func:`unlearn_trainer.console.run_command` for the exit codes."""
    run_command(run)


if __name__ == "__main__":
    main()
