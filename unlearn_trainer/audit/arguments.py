"""The command line of an audit, as it can be read before any library is loaded."""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from ..config.arguments import DataArguments, ModelArguments
from ..config.checks import split_commas
from ..config.early import check_there, given_classes
from ..config.finished import MEMORIZED, NEVER_SEEN, read_configuration, where_it_lies
from ..config.parser import CommandLine, free_words
from ..errors import ConfigError, did_you_mean

FOLDER = "audit"  # of a run's output folder
# What `--audit_checks` may name, in the order they are run.
CHECK_NAMES = (
    *("memorization", "probing", "truth_ratio", "generation", "utility", "prompts", "quantization", "logit_lens"),
    *("steering", "relearning"),
)
# Flags of a run that its audit has as well, relearning like that run; the rest is about the method.
KEPT = (
    *("seed", "per_device_eval_batch_size", "bf16", "fp16", "tf32", "deepspeed", "disable_tqdm", "never_seen_model"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"),
    "forgotten_files",
)
# Of the model's flags those that hold for any state of it, and those that say where one lies.
OF_MODEL = ("tokenizer_name", "dtype", "attn_implementation")
PLACE = ("model_name_or_path", "gguf_file", "revision")


def look(argv: Sequence[str] | None = None) -> None:
    """Read a command line of an audit without importing the libraries.

    Raises:
        UnlearnError: as the audit itself would, for what can be told so early.
    """
    words, _ = expanded(argv, given_classes())
    _, data, config = CommandLine(words, given_classes()).checked()
    check_names(split_commas(config.audit_checks), CHECK_NAMES)
    check_there(data)


def expanded(
    argv: Sequence[str] | None, classes: tuple[type, type, type] | None = None
) -> tuple[list[str], ModelArguments | None]:
    """The command line with the flags of the finished run that it names, and the model which that run started from.

    Args:
        argv: words after the program's name, by default those of this process.
        classes: as for :func:`.parser.free_words`.

    Raises:
        ConfigError: the folder that it names holds no finished run.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    folder = next((word for word in free_words(words, classes) if Path(word).is_dir()), None)
    if folder is None:
        return words, None
    words.remove(folder)
    of_run, before = arguments_of_run(Path(folder))
    return [*of_run, *words], before


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


def check_names(names: Sequence[str] | None, known: Collection[str]) -> None:
    """Refuse a word of ``--audit_checks`` that names no check."""
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--audit_checks {name} is not one of {', '.join(known)}{did_you_mean(name, known)}")
