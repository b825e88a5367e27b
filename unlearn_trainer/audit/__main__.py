"""python -m unlearn_trainer.audit: see --help, and docs/audit.md."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..arguments import DataArguments, ModelArguments
from ..checkpoints import RESULTS
from ..console import run_command
from ..errors import ConfigError
from ..parser import free_words, parse_arguments
from ..stages import MEMORIZED, NEVER_SEEN
from .run import FOLDER, audit

# Flags of a finished run that its audit has as well, relearning like that run; the rest is about the method.
KEPT = ("seed", "per_device_eval_batch_size", "bf16", "fp16", "tf32", "deepspeed", "disable_tqdm", "never_seen_model")
KEPT += ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm")
KEPT += ("forgotten_files",)
# Of the model's flags those that hold for any state of it.
OF_MODEL = ("tokenizer_name", "dtype", "attn_implementation")


def arguments_of_run(folder: Path) -> tuple[list[str], ModelArguments]:
    """The command line that audits a finished run, and the model which that run started from.

    Args:
        folder: an output folder of run_unlearn.py.

    Raises:
        ConfigError: it holds no results.json that can be read.
    """
    try:
        config = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["config"]
        started = {"train_never_seen": config["train_never_seen"], "memorize_first": config["memorize_first"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{folder}: no finished run, as its {RESULTS} cannot be read ({error})") from error
    names = [*OF_MODEL, *(item.name for item in dataclasses.fields(DataArguments))]
    names += [item for item in config if item.startswith("audit_") or item in KEPT]
    chosen = {name: config.get(name) for name in names}
    chosen |= {"model_name_or_path": folder, "output_dir": folder / FOLDER}
    if started["train_never_seen"]:
        chosen["never_seen_model"] = folder / NEVER_SEEN
    words = []
    for name, value in chosen.items():
        if value not in (None, []):
            words += [f"--{name}", *(str(each) for each in (value if isinstance(value, list) else [value]))]
    start = {name: config.get(name) for name in (*OF_MODEL, "model_name_or_path", "gguf_file", "revision")}
    if started["memorize_first"]:
        start |= {"model_name_or_path": str(folder / MEMORIZED), "gguf_file": None, "revision": None}
    return words, ModelArguments(**start)


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


if __name__ == "__main__":
    run_command(run)
