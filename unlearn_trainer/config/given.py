"""What is refused of a training's flags as they were given, before any library is asked; takes none to import."""

import functools
import importlib.util
import os
import types
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from .checks import check_choice, check_literals, require
from .installed import LOG_LEVELS
from .ranges import check_values, shown

# Choices that no type of `TrainingArguments` tells.
CHOICES = {
    "log_level": LOG_LEVELS,
    "log_level_replica": LOG_LEVELS,
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
}

# Flags of TrainingArguments that would do nothing here, with their defaults and the reason.
WITHOUT_EFFECT = {
    "label_smoothing_factor": (0.0, "the objectives define the loss"),
    "train_sampling_strategy": ("random", "the order of the rows is that of --language_sampling and --schedule"),
    "auto_find_batch_size": (
        False,
        "the rows of each step are shared out before the first; where memory runs out, halve "
        "--per_device_train_batch_size and double --gradient_accumulation_steps, which gives the same step",
    ),
    "dataloader_drop_last": (False, "every step is full, whatever the number of rows"),
}


def check_given(arguments: Any) -> None:
    """Refuse values that no run can use, files that are missing, and words that are none of a flag's choices.

    Args:
        arguments: an `UnlearnConfig`, or what has the same flags.

    Raises:
        ConfigError: names the flag.
    """
    check_values(arguments)
    if isinstance(arguments.deepspeed, str) and arguments.deepspeed.endswith(".json"):
        require(Path(arguments.deepspeed).is_file(), f"--deepspeed {arguments.deepspeed}: there is no such file")
    _check_launched(arguments)
    check_literals(arguments)
    for name, choices in (_enumerations(type(arguments)) | CHOICES).items():
        check_choice(arguments, name, list(choices))


def as_target(value: float | str) -> float | str:
    """A value of `--forget_target`: a number, or `auto`."""
    if value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"--forget_target must be a number or auto, not {shown(value)}") from None


def check_ranges(arguments: Any) -> None:
    """Refuse numbers out of the range that their flag has; ``None``, where it is the default, is decided later.

    Args:
        arguments: an `UnlearnConfig`, or what has the same flags.

    Raises:
        ConfigError: names the flag and the range.
    """
    values = {item.name: getattr(arguments, item.name) for item in fields(arguments)}
    is_open = {item.name: item.default is None and values[item.name] is None for item in fields(arguments)}

    def each(names, allowed, words):
        for name in names:
            value = values[name]
            require(is_open[name] or (value is not None and allowed(value)), f"--{name} {words}, not {value}")

    coefficients = ("forget_coef", "retain_coef", "counterpart_coef", "retain_eta", "retain_epsilon")
    coefficients += ("retain_weight_min", "weight_decay", "relearn_coef", "relearn_rate")
    each(coefficients, lambda value: value >= 0, "must not be negative")
    each(("rmu_layer",), lambda value: value >= 1, "counts from 1")
    each(("seed", "data_seed"), lambda value: 0 <= value < 2**32, f"must be 0 to {2**32 - 1}")
    positive = ("distill_temperature", "num_train_epochs", "memorize_epochs", "memorize_learning_rate")
    each((*positive, "audit_relearn_learning_rate"), lambda value: value > 0, "must be above 0")
    counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    counts += ("audit_relearn_steps", "audit_relearn_batch_size", "weight_update_steps", "patience", "relearn_steps")
    each(counts, lambda value: value >= 1, "must be at least 1")
    each(("distill_constant",), lambda value: 0 <= value <= 1, "must be 0 to 1")
    target = as_target(values["forget_target"])
    require(target == "auto" or 0 <= target <= 1, f"--forget_target must be 0 to 1, or auto, not {target}")
    require(
        values["retain_weight_min"] <= 1 <= values["retain_weight_max"],
        "--retain_weight_min and --retain_weight_max must enclose 1, the weight at the start, not "
        f"{values['retain_weight_min']} and {values['retain_weight_max']}",
    )
    ratio = values["max_retain_perplexity_ratio"]
    require(ratio is None or ratio > 1, f"--max_retain_perplexity_ratio must be above 1, not {ratio}")


def check_effect(arguments: Any) -> None:
    """Refuse flags of `TrainingArguments` that would have no effect here, where they are not at their defaults."""
    for name, (default, reason) in WITHOUT_EFFECT.items():
        value = getattr(arguments, name, default)
        require(value == default, f"--{name} {value} would have no effect, because {reason}; leave it out")


@functools.cache
def _enumerations(arguments: type) -> dict[str, list]:
    """The choices of each flag whose type is an enumeration, or text."""
    found = {}
    for name, hint in get_type_hints(arguments).items():
        for part in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
            if isinstance(part, type) and issubclass(part, Enum):
                found[name] = [member.value for member in part]
    return found


def _check_launched(arguments: Any) -> None:
    """Refuse an engine of several processes in one that no launcher started, which would look for MPI."""
    for name in ("deepspeed", "fsdp"):
        by_mpi = name == "deepspeed" and importlib.util.find_spec("mpi4py") is not None
        require(
            not getattr(arguments, name) or arguments.estimate_memory or by_mpi or "RANK" in os.environ,
            f"--{name} is for processes that a launcher starts: run `accelerate launch run_unlearn.py ...`, "
            "`torchrun --nproc_per_node 1 run_unlearn.py ...` or, for --deepspeed, `deepspeed run_unlearn.py ...`",
        )
