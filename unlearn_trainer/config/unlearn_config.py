"""Every setting of a training: the standard TrainingArguments and the flags of unlearning."""

import contextlib
import copy
import inspect
import json
import logging
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from ..engine.engines import copying, is_copying
from ..errors import ConfigError, did_you_mean
from ..objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, Objective
from .arguments import (
    AuditArguments,
    ChangedArguments,
    MethodArguments,
    ObjectiveArguments,
    StageArguments,
    WeightArguments,
)
from .asked import decide, shared_with_others
from .checks import check_choice, require, split_commas
from .given import as_target, check_effect, check_given, check_ranges
from .known_objectives import objective_choices, objective_options
from .ranges import shown, with_short_words

logger = logging.getLogger(__name__)

# What a release of transformers calls it that activations are computed again instead of kept; it may know both names.
_NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in _NAMES if name in TrainingArguments.__dataclass_fields__)


@contextlib.contextmanager
def _refused_by_transformers(arguments: TrainingArguments):
    """Within the context, where nothing of this package runs, an error is about the values of ``arguments``.

    Raises:
        ConfigError: names the flag whose name or value the error speaks of, or else those that are given.
    """
    changed = {
        item.name: getattr(arguments, item.name)
        for item in fields(TrainingArguments)
        if item.name != "output_dir" and getattr(arguments, item.name) != item.default
    }
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, some of accelerate or the file system
        said = " ".join(str(error).split()) or type(error).__name__
        if "--" in said:
            raise ConfigError(with_short_words(said)) from error
        quoted = re.findall(r"['\"`]([^'\"`]+)['\"`]", said)
        named = [name for name in changed if re.search(rf"\b{name}\b", said)]
        named = named or [name for name, value in changed.items() if any(word in str(value) for word in quoted)]
        flags = " or ".join(f"--{name} {shown(changed[name])}" for name in named or changed)
        raise ConfigError(f"{flags}: {shown(said)}") from error


@dataclass
class UnlearnConfig(
    StageArguments,
    AuditArguments,
    ObjectiveArguments,
    MethodArguments,
    WeightArguments,
    ChangedArguments,
    TrainingArguments,
):
    """`TrainingArguments` and the flags of unlearning; `UnlearnConfig(output_dir=...)` works without any parser.

    The attributes are what is in force: where a flag was left open (`None`), objectives, coefficients and weighting
    are those of the method, and `stop_when_forgotten` and `relearn_rate` follow from others; `forget_target` is a
    float or `"auto"`. What was asked for is `asked`. `dataclasses.replace` takes what is in force for asked; so a copy
    with another method is made by `UnlearnConfig(**(config.asked | {"method": ...}))`.

    Raises:
        ConfigError: a value out of range or a combination without meaning; names the flags and the remedy.
    """

    def __post_init__(self):
        self._decided: dict[str, tuple[Any, Any]] = {}
        check_given(self)
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self._put({"metric_for_best_model": "unlearning_score", "greater_is_better": True})
        if isinstance(self.report_to, str):
            self.report_to = split_commas([self.report_to])
        with _refused_by_transformers(self):
            super().__post_init__()
        for name in ("audit_checks", "audit_relearn_languages"):
            setattr(self, name, split_commas(getattr(self, name)))
        self.remove_unused_columns = False  # the collator's columns are not arguments of the model
        self.restore_callback_states_from_checkpoint = True  # the language weights live in a callback
        check_choice(self, "method", objective_choices()["method"])
        self._put(decide(self))
        for name in ("forget_objective", "retain_objective"):
            check_choice(self, name, objective_choices()[name])
        self.forget_target = as_target(self.forget_target)
        for name in ("logging", "eval", "save"):
            by_steps = getattr(self, f"{name}_strategy") == "steps"
            require(not by_steps or getattr(self, f"{name}_steps") > 0, f"--{name}_steps must be above 0, not 0")
        check_ranges(self)
        for objective in (*FORGET_OBJECTIVES.values(), *RETAIN_OBJECTIVES.values()):
            objective.with_options(self)  # refuses what is out of the range in the objective's signature
        check_effect(self)
        self._check_combinations()
        if not is_copying():
            self._warn_of_unused_options()

    @property
    def folder(self) -> Path:
        """`output_dir`, for which transformers has a name where none is given.

        Raises:
            ConfigError: it was taken away.
        """
        if self.output_dir is None:
            raise ConfigError("no place for the results: give --output_dir")
        return Path(self.output_dir)

    def __getstate__(self) -> dict:
        """Without the token of the Hub: a Trainer pickles its arguments beside every model, for others to read."""
        return {**vars(self), "hub_token": None}

    def __copy__(self) -> "UnlearnConfig":
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict) -> "UnlearnConfig":
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    @property
    def asked(self) -> dict[str, Any]:
        """Every flag as it was asked for: what was left open is ``None`` here, unless it was set since."""
        now = {item.name: getattr(self, item.name) for item in fields(self)}
        # None of these in arguments that an earlier version has pickled.
        decided = vars(self).get("_decided", {}).items()
        return now | {name: given for name, (given, value) in decided if now[name] == value}

    def of_another_training(self, **settings: Any) -> "UnlearnConfig":
        """For a training beside this one: the same engine, precision, batch, optimizer, seeds and log.

        All else is what ``settings`` say, or the default. So a flag of unlearning is in force for the training that it
        was given for, and for another only where it is handed on by name.
        """
        with copying():
            return type(self)(**(shared_with_others(self) | settings))

    def _put(self, values: dict[str, Any]) -> None:
        """Set flags that were left open to what was decided."""
        for name, value in values.items():
            self._decided[name] = getattr(self, name), value
            setattr(self, name, value)

    def registered(self, side: Literal["forget", "retain"]) -> Objective | None:
        """The objective on the rows of a side as it is registered, without options; ``None`` where there is none."""
        registry = FORGET_OBJECTIVES if side == "forget" else RETAIN_OBJECTIVES
        return registry.get(getattr(self, f"{side}_objective"))

    def trains(self, side: Literal["forget", "retain"]) -> bool:
        """Whether a side has an objective, with a coefficient above 0."""
        return getattr(self, f"{side}_objective") != "none" and (getattr(self, f"{side}_coef") or 0) > 0

    @property
    def trackers(self) -> list[str]:
        """`report_to` as a list of names."""
        return [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or ())

    @property
    def scheduler_settings(self) -> dict[str, Any]:
        """`lr_scheduler_kwargs`, of which transformers has made a dictionary where they were given as text."""
        return dict(self.lr_scheduler_kwargs) if isinstance(self.lr_scheduler_kwargs, dict) else {}

    def needs_companion(self, companion: str) -> bool:
        """Whether the forget rows need an ``alternative`` or a ``counterpart``."""
        objective = self.registered("forget")
        return objective is not None and companion in objective.needs

    def _warn_of_unused_options(self) -> None:
        """Warn of options of objectives that the run does not have, where they are not at their defaults."""
        used = [name for name in (self.forget_objective, self.retain_objective) if name != "none"]
        if self.process_index != 0:
            return
        for option in objective_options():
            value = getattr(self, option.name, option.default)  # a plugin's that came late has no flag
            if value != option.default and option.objective not in used:
                logger.warning(
                    "--%s %s has no effect: it is an option of the objective %s, and the objectives in use are %s; "
                    "leave it out, or choose --method or --forget_objective so that %s is used",
                    *(option.name, value, option.objective, " and ".join(used), option.objective),
                )

    def _check_engine_options(self) -> None:
        """Refuse what torch and the optimizers would refuse at the first step."""
        for part in filter(None, (self.optim_args or "").replace(" ", "").split(",")):
            require(
                re.fullmatch(r"[^=]+=[^=]+", part) is not None,
                f"--optim_args {self.optim_args}: {part} is no name=value; give such as rank=64,scale=0.1",
            )
        known = [*inspect.signature(checkpoint).parameters, "preserve_rng_state"]
        for name in self.gradient_checkpointing_kwargs or {}:
            require(
                name in known,
                f"--gradient_checkpointing_kwargs has no {name}{did_you_mean(name, known)}",
            )
        if self.torch_compile_backend is not None:
            backends = torch.compiler.list_backends(())
            require(
                self.torch_compile_backend in backends,
                f"--torch_compile_backend {self.torch_compile_backend} is not one of {', '.join(backends)}",
            )

    def _check_combinations(self) -> None:
        self._check_engine_options()
        try:  # a small one of its kind, whose arguments only its own function knows
            unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            get_scheduler(self.lr_scheduler_type, unused, 1, 10, self.scheduler_settings)
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ConfigError(
                f"--lr_scheduler_kwargs {json.dumps(self.lr_scheduler_kwargs)} does not fit --lr_scheduler_type "
                f"{self.lr_scheduler_type.value}: {error}"
            ) from error
        forgets, retains = self.trains("forget"), self.trains("retain")
        require(
            forgets or retains,
            "nothing to train: --forget_objective or --retain_objective must be other than none, with a coefficient "
            "above 0",
        )
        require(
            self.forget_weighting == "uniform" or (forgets and self.forget_objective != "nll"),
            f"--forget_weighting {self.forget_weighting} needs something to be forgotten, but --forget_objective is "
            f"{self.forget_objective}; choose --forget_weighting uniform or another objective",
        )
        require(
            not self.project_forget_gradient or (forgets and retains and self.schedule == "joint"),
            "--project_forget_gradient needs forget and retain rows in every batch: give both objectives and "
            "--schedule joint, or leave it out",
        )
        require(
            self.relearn_coef == 0 or (forgets and self.forget_objective != "nll"),
            f"--relearn_coef {self.relearn_coef} guards what is forgotten, but --forget_objective is "
            f"{self.forget_objective}; leave it out",
        )
        surgery = "--relearn_coef" if self.relearn_coef else "--project_forget_gradient"
        reentrant = self.gradient_checkpointing and (self.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        require(
            not reentrant or not (self.relearn_coef or self.project_forget_gradient),
            f"{surgery} takes gradients by torch.autograd.grad, which reentrant checkpointing does not allow: give "
            f"--{CHECKPOINTING}_kwargs '{{\"use_reentrant\": false}}', or leave one of the two out",
        )
        require(
            self.retain_weighting == "uniform" or retains,
            f"--retain_weighting {self.retain_weighting} has nothing to weigh, because --retain_objective is none; "
            "choose --retain_weighting uniform or a retain objective",
        )
        for name, default in (("lingtea_alignment", "paper"), ("distill_weighting", "token")):
            require(
                getattr(self, name) == default or self.retain_objective == "lingtea",
                f"--{name} {getattr(self, name)} belongs to --retain_objective lingtea, which is "
                f"{self.retain_objective} here; leave one of the two out",
            )
        require(
            not (self.memorize_first and self.method == "memorize"),
            "--memorize_first is a stage before a method, and --method memorize is that stage itself; leave one out",
        )
        require(
            not (self.train_never_seen and self.never_seen_model),
            "--train_never_seen and --never_seen_model give the same thing twice; leave one out",
        )
        # The last two are trackers of whose presence transformers does not tell.
        trackers = [*get_available_reporting_integrations(), "azure_ml", "flyte"]
        for name in self.trackers:
            require(
                name in trackers,
                f"--report_to {name} is not installed, or unknown to transformers; install it, or choose none",
            )
        require(
            self.n_gpu <= 1 or self.estimate_memory,
            f"this one process sees {self.n_gpu} GPUs: start one process a GPU with `accelerate launch "
            f"--num_processes {self.n_gpu} run_unlearn.py ...`, or show it a single one with CUDA_VISIBLE_DEVICES=0",
        )
