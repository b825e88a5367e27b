"""What was asked for, and what was decided: flags that were left open, and flags that belong to one training alone."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from ..objectives import METHODS

if TYPE_CHECKING:
    from .unlearn_config import UnlearnConfig

# What a training is for, how long it takes, when it is measured and what it leaves. All else in `TrainingArguments` is
# engine, precision, batch, optimizer, seeds and log. The flags of unlearning are not among those, and need no list.
OF_ONE_TRAINING = (
    *("output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "ignore_data_skip"),
    *("num_train_epochs", "max_steps", "learning_rate"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "enable_jit_checkpoint"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    "hub_revision",
)


def decide(config: "UnlearnConfig") -> dict[str, Any]:
    """Values of the flags that were left open: those published with the method, and those that follow from others.

    Args:
        config: its ``method`` is one of `METHODS`; a flag is open where it is ``None``.
    """
    method = METHODS[config.method]
    values = {
        "forget_objective": method.forget_objective,
        "retain_objective": method.retain_objective,
        "forget_coef": 1.0,
        "retain_coef": 1.0,
        "retain_weighting": "uniform",
        "relearn_coef": 0.0,
        "relearn_rate": 7 * config.learning_rate,  # as measured on the quickstart; see docs/methods.md
        "stop_when_forgotten": config.forget_weighting == "target",
    }
    return {name: value for name, value in (values | method.settings).items() if getattr(config, name) is None}


def shared_with_others(config: "UnlearnConfig") -> dict[str, Any]:
    """What another training in the same run takes over: engine, precision, batch, optimizer, seeds and log."""
    names = [item.name for item in fields(TrainingArguments) if item.name not in OF_ONE_TRAINING]
    return {name: getattr(config, name) for name in names}
