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
from ..parser import parse_arguments
from ..stages import MEMORIZED, NEVER_SEEN
from .run import audit

# Flags of a finished run that its audit has as well; the rest is about training.
KEPT = ("seed", "per_device_eval_batch_size", "bf16", "deepspeed", "disable_tqdm")


def arguments_of_run(folder: Path) -> list[str]:
    """The command line that audits a finished run: its model and data, and the models that it was compared with.

    Args:
        folder: an output folder of run_unlearn.py.

    Raises:
        ConfigError: it holds no results.json that can be read.
    """
    try:
        config = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: no finished run, as its {RESULTS} cannot be read ({error})") from error
    names = [item.name for dtype in (ModelArguments, DataArguments) for item in dataclasses.fields(dtype)]
    training = ("use_peft", "merge_adapter", "trainable_layers", "gguf_file", "revision", "model_name_or_path")
    names = [name for name in names if name not in training and not name.startswith("lora")]
    names += [item for item in config if item.startswith("audit_") or item in KEPT]
    before = folder / MEMORIZED if config["memorize_first"] else config["model_name_or_path"]
    never_seen = folder / NEVER_SEEN if config["train_never_seen"] else config["never_seen_model"]
    chosen = {name: config.get(name) for name in names} | {
        "model_name_or_path": folder,
        "model_before": before,
        "never_seen_model": never_seen,
        "output_dir": folder / "audit",
    }
    words = []
    for name, value in chosen.items():
        if value not in (None, []):
            words += [f"--{name}", *(str(each) for each in (value if isinstance(value, list) else [value]))]
    return words


def run(argv: Sequence[str] | None = None) -> dict:
    """The whole audit; returns what is written to audit.json."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and Path(argv[0]).is_dir():
        argv = [*arguments_of_run(Path(argv[0])), *argv[1:]]
    return audit(*parse_arguments(argv))


if __name__ == "__main__":
    run_command(run)
