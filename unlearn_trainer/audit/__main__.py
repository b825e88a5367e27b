"""python -m unlearn_trainer.audit: see --help, and docs/audit.md."""

if __name__ == "__main__":  # the libraries take seconds to load, in which Ctrl-C would be a traceback of theirs
    from ..early_stop import end_on_ctrl_c

    end_on_ctrl_c()

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config.arguments import DataArguments, ModelArguments
from ..config.finished import read_configuration, where_it_lies
from ..config.parser import free_words, parse_arguments
from ..console import run_command
from ..runs.stages import MEMORIZED, NEVER_SEEN
from .run import FOLDER, KEPT, OF_MODEL, PLACE, audit


def arguments_of_run(folder: Path) -> tuple[list[str], ModelArguments | None]:
    """The command line that audits a finished run, and the model which that run started from.

    Files that the run made are taken from ``folder``, wherever it was when they were made.

    Args:
        folder: an output folder of run_unlearn.py, or a copy of one.

    Raises:
        ConfigError: it holds no results.json that can be read.
    """
    config = where_it_lies(read_configuration(folder), folder)
    start = {name: config[name] for name in (*OF_MODEL, *PLACE) if name in config}
    if config["memorize_first"]:
        start |= {"model_name_or_path": str(folder / MEMORIZED), "gguf_file": None, "revision": None}
    is_trained = config.get("do_train", True)
    names = [*OF_MODEL, *(item.name for item in dataclasses.fields(DataArguments))]
    names += [item for item in config if item.startswith("audit_") or item in KEPT]
    chosen = {name: config.get(name) for name in names} | {"output_dir": folder / FOLDER}
    chosen |= (
        {"model_name_or_path": folder} if is_trained else {name: config.get(name) for name in (*PLACE, "model_before")}
    )
    if config["train_never_seen"]:
        chosen["never_seen_model"] = folder / NEVER_SEEN
    words = []
    for name, value in chosen.items():
        if value not in (None, []):
            words += [f"--{name}", *(str(each) for each in (value if isinstance(value, list) else [value]))]
    return words, ModelArguments(**start) if is_trained else None


def run(argv: Sequence[str] | None = None) -> dict:
    """The whole audit; returns what is written to audit.json."""
    argv = list(sys.argv[1:] if argv is None else argv)
    before = None
    folder = next((word for word in free_words(argv) if Path(word).is_dir()), None)
    if folder is not None:
        argv.remove(folder)
        words, before = arguments_of_run(Path(folder))
        argv = [*words, *argv]
    arguments = parse_arguments(argv)
    return audit(*arguments, before=before if arguments[2].model_before is None else None)


def main() -> None:
    """Console entry; see :func:`unlearn_trainer.console.run_command` for the exit codes."""
    run_command(run)


if __name__ == "__main__":
    main()
