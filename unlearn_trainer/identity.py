"""What a resumed run must have in common with the run that wrote the checkpoint."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .arguments import UnlearnConfig
from .checkpoints import LAST_WRITTEN
from .errors import ConfigError
from .objectives import Objective

# Of these a checkpoint restores the earlier values, whatever the flags say now, or the two would mix. The number of
# steps is not among them: a training may be prolonged.
OPTIMIZER = (
    *("learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
)

# What differs, where its value tells a person nothing.
MADE_WITH = {
    "forget rows": "other forget rows (--data_dir, --forget_file, --max_seq_length, --max_train_samples)",
    "retain rows": "other retain rows (--data_dir, --retain_file, --max_seq_length, --max_train_samples)",
    "teacher": "another teacher, which is the start model (--model_name_or_path, --use_peft)",
    "trained weights": "other weights trained (--trainable_layers, --use_peft and its --lora flags)",
}


def settings_of(args: UnlearnConfig, policy: type, objectives: Sequence[Objective]) -> dict:
    """The settings that decide what a training computes.

    Args:
        policy: a dataclass of language weights, whose fields are flags.
        objectives: those in use.
    """
    names = [field.name for field in dataclasses.fields(policy)]
    names += ["forget_objective", "retain_objective", "forget_coef", "retain_coef", "counterpart_coef"]
    names += ["project_forget_gradient"]
    names += ["relearn_coef", *(("relearn_steps", "relearn_rate") if args.relearn_coef else ())]
    names += ["schedule", "language_sampling", "seed", "data_seed", "lingtea_alignment"]
    if any(objective.needs & {"kl", "counterpart"} for objective in objectives):
        names.append("distill_temperature")
    if any("hidden" in objective.needs for objective in objectives):
        names.append("rmu_layer")
    names += OPTIMIZER
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    found = {name: getattr(args, name) for name in names if hasattr(args, name)}
    found = {name: getattr(value, "value", value) for name, value in found.items()}  # enumerations as they are written
    # Those of the objective as it is used: it may have none of the flags.
    options = {f"{each.name}_{option}": value for each in objectives for option, value in each.options.items()}
    return {**found, **options, "rows of an optimizer step": rows_per_step}


def trained_names(model: nn.Module) -> str:
    """A digest of the names of the weights that are trained, and of how an adapter is scaled and put on."""
    names = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    adapters = getattr(model, "peft_config", {})
    names += [repr(sorted(_plain(adapter.to_dict()).items())) for _, adapter in sorted(adapters.items())]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _plain(described: dict) -> dict:
    """An adapter's settings without what tells nothing of the weights, in an order of their own."""
    left_out = ("inference_mode", "base_model_name_or_path", "revision", "peft_version")
    kept = {name: value for name, value in described.items() if name not in left_out}
    return {name: sorted(value) if isinstance(value, (set, frozenset)) else value for name, value in kept.items()}


def saved_identity(checkpoint: str | os.PathLike) -> dict | None:
    """``UnlearnTrainer.identity()`` of the run that wrote a checkpoint, or ``None`` where there is none in it.

    Raises:
        ConfigError: its state cannot be read.
    """
    file = Path(checkpoint) / LAST_WRITTEN
    try:
        callbacks = json.loads(file.read_text(encoding="utf-8"))["stateful_callbacks"]
        return callbacks.get("LanguageWeightCallback", {}).get("attributes", {}).get("identity")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {file.name} cannot be read ({error}); name another checkpoint"
        ) from error


def check_identity(saved: dict | None, now: dict) -> None:
    """Refuse to go on with another run's checkpoint.

    Args:
        saved, now: ``UnlearnTrainer.identity()`` of the run that wrote it and of this one.

    Raises:
        ConfigError: names what differs; the teacher's signature may differ by the rounding of another engine.
    """
    saved = saved or {}
    for name in [*now, *(name for name in saved if name not in now)]:
        before, value = saved.get(name), now.get(name)
        if name == "teacher" and None not in (before, value) and math.dist(before, value) <= 0.05 * math.hypot(*value):
            continue
        if before != value:
            shown = [" ".join(map(str, v)) if isinstance(v, list) else v for v in (before, value)]
            made = MADE_WITH.get(name) or f"{name if ' ' in name else f'--{name}'} {shown[0]}, not {shown[1]}"
            raise ConfigError(
                f"the checkpoint was made with {made}: give the same to resume it, or choose another --output_dir"
            )
