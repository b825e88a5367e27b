"""What a resumed run must have in common with the run that wrote the checkpoint."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

from torch import nn

from .arguments import UnlearnConfig
from .errors import ConfigError
from .objectives import Objective


def settings_of(args: UnlearnConfig, policy: type, objectives: Sequence[Objective]) -> dict:
    """The settings that decide what a training computes.

    Args:
        policy: a dataclass of language weights, whose fields are flags.
        objectives: those in use.
    """
    names = [field.name for field in dataclasses.fields(policy)]
    names += ["forget_objective", "retain_objective", "forget_coef", "retain_coef", "counterpart_coef"]
    names += ["project_forget_gradient"]
    names += ["relearn_coef", "relearn_steps", "relearn_rate"] if args.relearn_coef else []
    names += ["schedule", "language_sampling", "seed", "data_seed", "lingtea_alignment"]
    if any("hidden" in objective.needs for objective in objectives):
        names.append("rmu_layer")
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    found = {name: getattr(args, name) for name in names if hasattr(args, name)}
    # Those of the objective as it is used: it may have none of the flags.
    options = {f"{each.name}_{option}": value for each in objectives for option, value in each.options.items()}
    return {**found, **options, "rows of an optimizer step": rows_per_step}


def trained_names(model: nn.Module) -> str:
    """A digest of the names of the weights that are trained."""
    names = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def check_identity(saved: dict | None, now: dict) -> None:
    """Refuse to go on with another run's checkpoint.

    Args:
        saved, now: ``UnlearnTrainer.identity()`` of the run that wrote it and of this one.

    Raises:
        ConfigError: names what differs; the teacher's signature may differ by the rounding of another engine.
    """
    for name, value in now.items():
        before = (saved or {}).get(name)
        if name == "teacher" and None not in (before, value) and math.dist(before, value) <= 0.05 * math.hypot(*value):
            continue
        if before != value:
            shown = [" ".join(map(str, v)) if isinstance(v, list) else v for v in (before, value)]
            flag = name if " " in name or name == "teacher" else f"--{name}"
            raise ConfigError(
                f"the checkpoint was made with {flag} {shown[0]}, not {shown[1]}: give the same to resume it, or "
                "choose another --output_dir"
            )
