"""What a resumed run must have in common with the run that wrote the checkpoint."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from transformers import TrainerState, get_scheduler
from transformers.utils import logging

from ..config.unlearn_config import UnlearnConfig
from ..data.collator import rows_digest
from ..engine.fingerprint import fingerprint
from ..errors import ConfigError
from ..objectives import Objective
from ..teacher.teachers import ResidentTeacher
from ..weights.policy import WeightPolicy
from ..weights.state import check_saved
from .checkpoints import LAST_WRITTEN, check_written_by

# What decides the numbers of a training, field by field of `TrainingArguments`. Those that are not here decide what is
# logged, saved or shown, or how the work is spread over devices and passes, which moves the last digits alone. The
# number of steps is not among them, as a training may be prolonged, but see `check_length`.
OPTIMIZER = (
    *("learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
)
# These stand in no checkpoint of earlier versions.
COMPUTATION = (
    *("optim_target_modules", "bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "neftune_noise_alpha"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config"),
    *("full_determinism", "load_best_model_at_end"),
)
OF_DEEPSPEED = ("optimizer", "scheduler", "gradient_clipping", "bf16", "fp16", "data_types")

# What differs, where its value tells a person nothing.
MADE_WITH = {
    "forget rows": "other forget rows (--data_dir, --forget_file, --max_seq_length, --max_train_samples)",
    "retain rows": "other retain rows (--data_dir, --retain_file, --max_seq_length, --max_train_samples)",
    "teacher": "another teacher, which is the start model (--model_name_or_path, --use_peft)",
    "width of a batch": "rows padded to another length (--max_seq_length)",
    "trained weights": "other weights trained (--trainable_layers, --use_peft and its --lora flags)",
    "start weights": "another start model, which is also the teacher (--model_name_or_path, --revision)",
    "model settings": "another configuration of the model (config.json, --attn_implementation)",
    "teacher weights": "another teacher (the argument teacher of UnlearnTrainer)",
}
MEASURED = "measured {} rows"

logger = logging.get_logger(__name__)


def identity_of(trainer, start: dict[str, str], teacher_signature: list[float] | None) -> dict:
    """``UnlearnTrainer.identity()``, as a checkpoint gives it back.

    Args:
        start: the fingerprint of the model before the first step.
    """
    objectives = [objective for objective in trainer.objectives.values() if objective]
    teacher = trainer.teacher
    found = {
        "languages": trainer.languages,
        "heldout_languages": trainer.heldout_languages,
        **measured_rows({**(trainer.eval_dataset or {}), **trainer.predict_dataset}),
        **settings_of(trainer.args, WeightPolicy, objectives, bool(trainer.eval_dataset)),
        **engine_settings(trainer.accelerator),
        **{f"{side} rows": digest for side, digest in trainer.train_dataset.digests().items()},
        "trained weights": trained_names(trainer.model),
        "teacher": teacher_signature,
        **start,
    }
    if isinstance(teacher, ResidentTeacher) and not teacher.is_copy:
        found["teacher weights"] = fingerprint(teacher.model)["start weights"]
    if trainer.data_collator.width:
        found["width of a batch"] = trainer.data_collator.width
    return json.loads(json.dumps(found))


def settings_of(args: UnlearnConfig, policy: type, objectives: Sequence[Objective], measures: bool) -> dict:
    """The settings that decide what a training computes.

    Args:
        policy: a dataclass of language weights, whose fields are flags.
        objectives: those in use.
        measures: whether there are splits for evaluations.
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
    names += [*OPTIMIZER, *COMPUTATION]
    if args.load_best_model_at_end or args.save_strategy == "best":
        names += ["metric_for_best_model", "greater_is_better"]
    if measures:  # evaluations move weights and may end the training
        names += ["eval_strategy", "eval_delay", "eval_on_start"]
        names += ["eval_steps"] if args.eval_strategy == "steps" else []
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


def engine_settings(accelerator: Accelerator) -> dict:
    """The precision that the engine computes in, and what a DeepSpeed file says of it and of the optimizer."""
    found = {"mixed precision": str(accelerator.mixed_precision)}
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        written = accelerator.state.deepspeed_plugin.deepspeed_config
        found |= {f"DeepSpeed {name}": written[name] for name in OF_DEEPSPEED if name in written}
    return found


def measured_rows(splits: Mapping[str, Dataset]) -> dict[str, str]:
    """A digest of the rows of each split that is measured."""
    return {MEASURED.format(split): rows_digest(rows, sorted(rows.column_names)) for split, rows in splits.items()}


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says of the run that wrote it.

    Args:
        identity: ``UnlearnTrainer.identity()`` of that run, or ``None`` where it says nothing.
        measured: splits whose figures at the start are known.
        steps_done, steps: optimizer steps done, and how many the training was planned for.
    """

    identity: dict | None
    measured: list[str]
    steps_done: int
    steps: int


def saved_run(checkpoint: str | os.PathLike) -> SavedRun:
    """The run that wrote a checkpoint.

    Raises:
        ConfigError: its state cannot be read.
    """
    file = Path(checkpoint) / LAST_WRITTEN
    try:
        state = TrainerState.load_from_json(str(file))
        weights = state.stateful_callbacks.get("LanguageWeightCallback")
        if weights is not None:
            check_saved(weights)
        kept = weights["attributes"] if weights is not None else {}
        if not 0 <= state.global_step <= state.max_steps:
            raise ValueError(f"step {state.global_step} of {state.max_steps}")
        measured = sorted(kept.get("figures_at_start") or {})
        return SavedRun(kept.get("identity"), measured, state.global_step, state.max_steps)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {file.name} is damaged ({error}); name another, or delete the "
            "folder to go on from the checkpoint before"
        ) from error


def check_resumable(
    checkpoint: Path, accelerator: Accelerator, args: UnlearnConfig, identity: dict, steps: int
) -> None:
    """Refuse a checkpoint from which this run would not become what the run that wrote it would have become.

    Args:
        identity: ``UnlearnTrainer.identity()`` of this run.
        steps: how many optimizer steps it has in all.

    Raises:
        ConfigError: names what is damaged or differs, and the remedy.
    """
    check_written_by(checkpoint, accelerator)
    saved = saved_run(checkpoint)
    check_identity(saved, identity)
    check_length(saved, args, steps)


def check_identity(saved: SavedRun, now: dict) -> None:
    """Refuse to go on with another run's checkpoint.

    Args:
        saved: the run that wrote it.
        now: ``UnlearnTrainer.identity()`` of this one.

    Raises:
        ConfigError: names what differs; the teacher's signature may differ by the rounding of another engine.
    """
    earlier = dict(saved.identity or {})
    if earlier and "start weights" not in earlier:
        now = {name: value for name, value in now.items() if name in earlier or name.startswith("measured")}
        earlier |= {name: now.get(name, "") for name in (MEASURED.format(split) for split in saved.measured)}
        logger.warning(
            "the checkpoint is of an earlier version, which did not note start weights, precision and measured rows: "
            "whether they are the same cannot be checked"
        )
    for name in [*now, *(name for name in earlier if name not in now)]:
        before, value = earlier.get(name), now.get(name)
        if name == "teacher" and _nearly_equal(before, value):
            continue
        if before != value:
            raise ConfigError(
                f"the checkpoint was made with {_difference(name, before, value)}: give the same to resume it, or "
                "choose another --output_dir"
            )


def _nearly_equal(before: Sequence[float] | None, value: Sequence[float] | None) -> bool:
    """Whether two signatures are one but for the rounding of another engine."""
    return before is not None and value is not None and math.dist(before, value) <= 0.05 * math.hypot(*value)


def _difference(name: str, before: object, value: object) -> str:
    if name in MADE_WITH:
        return MADE_WITH[name]
    if name.startswith("measured"):
        split = name.split()[1]
        if before is None:
            return f"no figures of the {split} rows at its start (--do_eval, --do_predict)"
        if value is None:
            return f"figures of {split} rows at its start, which are not measured now (--do_eval, --do_predict)"
        return (
            f"other {split} rows measured at its start (--data_dir, --{split}_file, --max_eval_samples, "
            "--max_predict_samples, --max_seq_length)"
        )
    if name == "types of the weights":
        return f"weights in {before}, not {value} (--dtype)"
    shown = [" ".join(map(str, v)) if isinstance(v, list) else v for v in (before, value)]
    return f"{name if ' ' in name else f'--{name}'} {shown[0]}, not {shown[1]}"


def check_length(saved: SavedRun, args: UnlearnConfig, steps: int) -> None:
    """Say where a training of another length would have had another learning rate from its start.

    Args:
        steps: how many optimizer steps this training has in all.

    Raises:
        ConfigError: ``ignore_data_skip``, with which rows would be shown twice.
    """
    if args.ignore_data_skip:
        raise ConfigError(
            "--ignore_data_skip would show rows again that the checkpoint's run has seen this epoch; leave it out"
        )
    kind = f"--lr_scheduler_type {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}"
    if getattr(args.deepspeed_plugin, "deepspeed_config", {}).get("scheduler"):
        kind = "the scheduler of the DeepSpeed file"
    elif _rates(args, saved.steps, saved.steps_done) == _rates(args, steps, saved.steps_done):
        return
    if saved.steps != steps:
        logger.warning(
            f"the checkpoint's training was planned for {saved.steps} steps and this one has {steps}, but {kind} "
            "spreads the learning rate over them: what comes out is not what one training of that length gives. One "
            "that may be prolonged takes --lr_scheduler_type constant from its start"
        )


def _rates(args: UnlearnConfig, total: int, done: int) -> list[float]:
    """Factors of the learning rate at the first ``done`` steps of ``total``; none where no such plan is made."""
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup = args.get_warmup_steps(total)
    schedule = get_scheduler(args.lr_scheduler_type, unused, warmup, total, args.scheduler_settings)
    return [factor(step) for factor in getattr(schedule, "lr_lambdas", ()) for step in range(done + 1)]
