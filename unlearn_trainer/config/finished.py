"""What a finished run says of itself, also where its folder was copied or moved since."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# Flags that name files and folders.
PATHS = ("model_name_or_path", "tokenizer_name", "never_seen_model", "model_before", "forgotten_files", "data_dir")
PATHS += ("forget_file", "retain_file", "valid_file", "test_file", "alternative_answers", "deepspeed")

# Models that a run has trained itself, in its output folder.
MEMORIZED, NEVER_SEEN = "memorized", "never_seen"
# What a stage writes into its folder when it is complete.
OF_STAGE = "stage.json"

# Flags that every run has, and no other program's file of this name.
STAGES = ("memorize_first", "train_never_seen")


def read_configuration(folder: Path) -> dict[str, Any]:
    """Every flag of a finished run, as it was given.

    Args:
        folder: its output folder.

    Raises:
        ConfigError: it holds no results.json of a run.
    """
    try:
        config = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["config"]
        _ = [config[name] for name in STAGES]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{folder}: no finished run, as its {RESULTS} cannot be read ({error})") from error
    return config


def where_it_lies(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``config`` with the run's own files at their place in ``folder``; what lay outside its output folder stays.

    Args:
        config: of :func:`read_configuration`, or a part of it with ``output_dir``.
        folder: where the output folder is now.
    """
    written = config.get("output_dir")
    if not isinstance(written, str):
        return dict(config)
    moved = {name: _moved(config[name], written, folder) for name in PATHS if name in config}
    return config | moved | {"output_dir": str(folder)}


def base_of_adapter(name: str, folder: Path) -> str:
    """The model that the adapter in ``folder`` was put on: where its run has made it, it moves with the run.

    Args:
        name: as it is written beside the adapter.
    """
    try:
        return where_it_lies(read_configuration(folder) | {"model_name_or_path": name}, folder)["model_name_or_path"]
    except ConfigError:  # of no run, or of one that is not finished
        return name


def _moved(value, written, folder):
    if isinstance(value, list):
        return [_moved(each, written, folder) for each in value]
    if not isinstance(value, str):
        return value
    inside = os.path.relpath(os.path.abspath(value), os.path.abspath(written))
    if inside.split(os.sep)[0] == os.pardir:
        return value
    moved = folder / inside
    # What is neither here nor there is a name on the Hub that begins like the folder.
    return str(moved) if moved.exists() or os.path.exists(value) or os.path.isabs(value) else value


RESULTS = "results.json"
