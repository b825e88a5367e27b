"""Every flag of a run, with its default and the combinations that are refused."""

import contextlib
import copy
import importlib.util
import inspect
import json
import os
import re
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch.utils.checkpoint import checkpoint
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames, trainer_log_levels

from ..errors import ConfigError, did_you_mean
from ..model.layers import parse_layers
from ..objectives import FORGET_OBJECTIVES, METHODS, RETAIN_OBJECTIVES, objective_options
from .ranges import check_values, shown, with_short_words

CHOICES = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
    "log_level": trainer_log_levels,
    "log_level_replica": trainer_log_levels,
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
}
# What a release of transformers calls it that activations are computed again instead of kept; it may know both names.
_NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in _NAMES if name in TrainingArguments.__dataclass_fields__)
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


def objective_choices() -> dict[str, list[str]]:
    """What may follow `--method`, `--forget_objective` and `--retain_objective`, all that is registered by now."""
    return {
        "method": list(METHODS),
        "forget_objective": ["none", *FORGET_OBJECTIVES],
        "retain_objective": ["none", *RETAIN_OBJECTIVES],
    }


def _flag(default, help: str):
    return field(default=default, metadata={"help": help})


def _split_commas(values: list[str] | None) -> list[str] | None:
    """`["en,fr", "sw"]` -> `["en", "fr", "sw"]`."""
    return values and [part.strip() for value in values for part in value.split(",") if part.strip()]


def _check(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ConfigError(with_short_words(message))


def _check_choice(arguments: object, name: str, choices: list) -> None:
    value = getattr(arguments, name)
    _check(
        value in choices,
        f"--{name} {value} is not one of {', '.join(map(str, choices))}{did_you_mean(str(value), map(str, choices))}",
    )


def _check_literals(arguments: object) -> None:
    """Refuse a misspelled value of any field whose type lists its values; Python checks none of them."""
    hints = get_type_hints(type(arguments))
    for item in fields(arguments):
        hint = hints[item.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if all(part is type(None) or get_origin(part) is Literal for part in parts):
            listed = [value for part in parts for value in (get_args(part) or (None,))]
            _check_choice(arguments, item.name, listed)


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
class ModelArguments:
    """Which model is unlearned, and how it is loaded."""

    model_name_or_path: str | None = _flag(None, "Folder or Hub name of a causal language model, or `synthetic`.")
    gguf_file: str | None = _flag(None, "File name of a GGUF checkpoint inside the model's folder or repository.")
    tokenizer_name: str | None = _flag(None, "Folder or Hub name of the tokenizer; by default the model's own.")
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] = _flag(
        "float32", "Type the weights are held in; `auto` takes the checkpoint's. `--bf16` computes in bfloat16 anyhow."
    )
    attn_implementation: str | None = _flag(None, "Attention kernel, such as `sdpa`, `eager` or `flash_attention_2`.")
    revision: str | None = _flag(None, "Branch, tag or commit of the model on the Hub.")
    use_peft: bool = _flag(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = _flag(16, "Rank of the adapter.")
    lora_alpha: int = _flag(32, "The adapter's output is scaled by lora_alpha / lora_r.")
    lora_target_modules: list[str] | None = _flag(
        None, "Modules that get an adapter; by default all linear layers that can take one."
    )
    merge_adapter: bool = _flag(False, "Save the model with its adapter merged in, and the adapter beside it.")
    trainable_layers: str | None = _flag(
        None,
        "Layers to train, such as 0,3,8-14, all else being frozen; or a regular expression over parameters' names.",
    )

    def __post_init__(self):
        check_values(self)
        _check_literals(self)
        self.lora_target_modules = _split_commas(self.lora_target_modules)
        _check(bool(self.model_name_or_path), "no model: give --model_name_or_path, a folder or a Hub name")
        for item in fields(self):
            _check(
                self.use_peft or not item.name.startswith("lora_") or getattr(self, item.name) == item.default,
                f"--{item.name} is of an adapter, and all weights are trained without one; add --use_peft",
            )
        if self.lora_target_modules == ["all-linear"]:
            self.lora_target_modules = None
        _check(self.lora_r >= 1, f"--lora_r must be at least 1, not {self.lora_r}")
        _check(self.lora_alpha >= 1, f"--lora_alpha must be at least 1, not {self.lora_alpha}")
        _check(self.use_peft or not self.merge_adapter, "--merge_adapter has no adapter to merge; add --use_peft")
        if self.trainable_layers is not None:
            parse_layers(self.trainable_layers)
            _check(
                not self.use_peft,
                f"--trainable_layers {self.trainable_layers}: with --use_peft the model's own weights are frozen; "
                "leave one of the two out, or name the adapter's modules with --lora_target_modules",
            )


@dataclass
class DataArguments:
    """Which texts are forgotten, kept and measured."""

    data_dir: str | None = _flag(None, "Folder or Hub name with splits forget, retain, valid, test; or `synthetic`.")
    forget_file: str | None = _flag(None, "JSONL file of the texts or facts to forget.")
    retain_file: str | None = _flag(None, "JSONL file of the texts or facts to keep.")
    valid_file: str | None = _flag(None, "JSONL file of never-seen rows; gives the targets of forgetting.")
    test_file: str | None = _flag(None, "JSONL file of rows for the final figures only.")
    alternative_answers: str | None = _flag(
        None,
        "JSON file {language: [texts]} of what shall be said instead (dpo, jensun); has `I do not know` built in.",
    )
    languages: list[str] | None = _flag(None, "Languages to train on, with spaces or commas; by default all.")
    heldout_languages: list[str] | None = _flag(None, "Languages that are evaluated and never trained on.")
    max_seq_length: int = _flag(256, "Longer rows are cut to this number of tokens.")
    max_train_samples: int | None = _flag(None, "Use only this number of items of the forget and the retain split.")
    max_eval_samples: int | None = _flag(None, "Use only this number of items of the valid split.")
    max_predict_samples: int | None = _flag(None, "Use only this number of items of the test split.")
    show_texts: bool = _flag(False, "Let messages and reports show texts of the splits.")

    def __post_init__(self):
        check_values(self)
        _check_literals(self)
        self.languages = _split_commas(self.languages)
        self.heldout_languages = _split_commas(self.heldout_languages) or []
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"--{name} must be at least 1, not {value}")
        _check(self.max_seq_length >= 2, f"--max_seq_length must be at least 2, not {self.max_seq_length}")
        named = [*(self.languages or []), *self.heldout_languages]
        twice = sorted({language for language in named if named.count(language) > 1})
        _check(not twice, f"--languages and --heldout_languages name {', '.join(twice)} more than once")

    def check_named(self) -> None:
        """Refuse arguments that name no data; an estimate of the memory needs none."""
        _check(
            bool(self.data_dir or self.forget_file or self.retain_file),
            "no data: give --data_dir, a folder or a Hub name, or --forget_file and --retain_file",
        )


@dataclass
class StageArguments:
    """What a run does before and after the method."""

    memorize_first: bool = _flag(False, "First train on forget and retain, so that there is something to forget.")
    memorize_epochs: float = _flag(10.0, "Epochs of that training, and of the never-seen model's.")
    memorize_learning_rate: float = _flag(5e-5, "Learning rate of that training, and of the never-seen model's.")
    train_never_seen: bool = _flag(False, "Also train a model on retain alone, to compare with.")
    never_seen_model: str | None = _flag(None, "A finished model that never saw the forget set, to compare with.")
    audit: bool = _flag(False, "After training, attack the model to find out whether the knowledge is gone.")
    estimate_memory: bool = _flag(
        False, "Print what a step needs on a GPU under each engine, and end; reads only the model's configuration."
    )


@dataclass
class AuditArguments:
    """What an audit does; `--audit`, or `python -m unlearn_trainer.audit`."""

    model_before: str | None = _flag(
        None, "The model before unlearning; with `--audit` it is the one that the run started from."
    )
    forgotten_files: list[str] | None = _flag(
        None, "JSONL files of earlier requests, forgotten before and audited along."
    )
    audit_checks: list[str] | None = _flag(None, "Checks of the audit; by default all that the data allow.")
    audit_relearn_languages: list[str] | None = _flag(
        None, "Languages that are relearned, one at a time; by default all trained ones."
    )
    audit_relearn_steps: int = _flag(30, "Steps of the relearning.")
    audit_relearn_batch_size: int = _flag(16, "Rows of each of them, over all processes.")
    audit_relearn_learning_rate: float = _flag(5e-5, "Learning rate of the relearning.")


@dataclass
class ObjectiveArguments:
    """What is minimised."""

    method: str = _flag("lingtea", "A named pair of objectives.")
    forget_objective: str | None = _flag(None, "Replaces the method's objective on forget rows.")
    retain_objective: str | None = _flag(None, "Replaces the method's objective on retain rows.")
    forget_coef: float | None = _flag(None, "Factor of the forget objective; by default as published, mostly 1.")
    retain_coef: float | None = _flag(None, "Factor of the retain objective; by default as published, mostly 1.")
    counterpart_coef: float = _flag(1.0, "Factor of KL to the teacher on never-seen rows, with calibrated.")
    project_forget_gradient: bool = _flag(
        False, "Take out of the forget gradient what would raise the retain loss (GRU); doubles the cost of a step."
    )
    relearn_coef: float | None = _flag(
        None,
        "Factor of the forget loss at weights that relearned half of the languages; by default 0, but for calibrated.",
    )
    relearn_steps: int = _flag(2, "Steps of that relearning.")
    relearn_rate: float | None = _flag(None, "Size of each of them, for every weight; by default 7 x learning_rate.")
    rmu_layer: int | None = _flag(
        None, "Layer whose output rmu looks at, from 1; by default 8 of 32, as published, and in proportion."
    )
    schedule: Literal["joint", "alternate"] = _flag(
        "joint", "`joint`: forget and retain rows in every batch; `alternate`: a pass over one, then over the other."
    )
    language_sampling: Literal["balanced", "random", "all"] = _flag(
        "balanced",
        "Language of an item: `balanced` shows each once in as many epochs as there are, `random` draws one an epoch, "
        "`all` shows every one every epoch.",
    )
    distill_temperature: float = _flag(1.0, "Temperature of the distillation from the teacher.")
    distill_weighting: Literal["token", "language", "constant"] = _flag(
        "token", "LingTea's weight of the teacher: its probability of the token, that averaged per language, or fixed."
    )
    distill_constant: float = _flag(0.5, "The weight with `--distill_weighting constant`, 0 to 1.")
    lingtea_alignment: Literal["paper", "released"] = _flag(
        "paper", "`released` repeats the step of the code released with the paper, which differs from its formula."
    )
    teacher: Literal["auto", "resident", "adapter", "cached"] = _flag(
        "auto", "Where the frozen original model lives; `auto` is the cheapest way that is exact."
    )


# One flag for each option of an objective, with the default that stands in the objective's own signature.
MethodArguments = make_dataclass(
    "MethodArguments",
    [
        (name, type(default), _flag(default, f"Of the objective {name.rpartition('_')[0]}; see docs/methods.md."))
        for name, default in objective_options().items()
    ],
)


@dataclass
class WeightArguments:
    """How much each language counts, and when the training ends."""

    forget_weighting: Literal["uniform", "target"] = _flag(
        "uniform", "`target` weighs languages by how far each still is from its target, and rests those that arrived."
    )
    retain_weighting: Literal["uniform", "primal_dual"] | None = _flag(
        None,
        "`primal_dual` raises the weight of a language whose retain perplexity grows; else `uniform`, but for pdu.",
    )
    forget_metric: Literal["memorization_accuracy", "extraction_strength"] = _flag(
        "memorization_accuracy", "What the target of forgetting is measured in."
    )
    forget_target: str = _flag("auto", "Target for all languages, 0 to 1; `auto` measures it on never-seen rows.")
    weight_update_steps: int = _flag(10, "Optimizer steps between updates of the language weights.")
    retain_eta: float = _flag(1.0, "Step size of `primal_dual`.")
    retain_epsilon: float = _flag(0.0, "Rise of the log perplexity that `primal_dual` lets pass.")
    retain_weight_min: float = _flag(0.1, "Lower bound of a retain weight.")
    retain_weight_max: float = _flag(10.0, "Upper bound of a retain weight.")
    stop_when_forgotten: bool | None = _flag(
        None, "Stop once all languages are at their targets and the score rises no more; by default with `target`."
    )
    patience: int = _flag(3, "Evaluations without a better score before `stop_when_forgotten` ends the training.")
    max_retain_perplexity_ratio: float | None = _flag(
        10.0, "Stop when the retain perplexity (geometric mean of the languages) is this many times that of the start."
    )


@dataclass
class UnlearnConfig(
    StageArguments, AuditArguments, ObjectiveArguments, MethodArguments, WeightArguments, TrainingArguments
):
    """`TrainingArguments` and the flags of unlearning; `UnlearnConfig(output_dir=...)` works without any parser.

    After construction objectives, coefficients and `retain_weighting` are those of the method where they were not
    given, `forget_target` is a float or `"auto"`, and `stop_when_forgotten` is a bool. `dataclasses.replace` keeps
    these resolved values: to change the method of an existing config set them to `None` as well.

    Raises:
        ConfigError: a value out of range or a combination without meaning; names the flags and the remedy.
    """

    logging_nan_inf_filter: bool = _flag(False, "Hide NaN and infinite losses from the logs.")
    load_best_model_at_end: bool | None = _flag(
        None,
        "Save the best model of the evaluations and end with it; with `target` by default, if it saves.",
    )

    def __post_init__(self):
        check_values(self)
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "unlearning_score", True
        if isinstance(self.deepspeed, str) and self.deepspeed.endswith(".json"):
            _check(Path(self.deepspeed).is_file(), f"--deepspeed {self.deepspeed}: there is no such file")
        self._check_launched()
        _check_literals(self)
        for name, choices in CHOICES.items():
            _check_choice(self, name, [getattr(choice, "value", choice) for choice in choices])
        if isinstance(self.report_to, str):
            self.report_to = _split_commas([self.report_to])
        with _refused_by_transformers(self):
            super().__post_init__()
        for name in ("audit_checks", "audit_relearn_languages"):
            setattr(self, name, _split_commas(getattr(self, name)))
        self.remove_unused_columns = False  # the collator's columns are not arguments of the model
        self.restore_callback_states_from_checkpoint = True  # the language weights live in a callback
        self._resolve_objectives()
        if self.relearn_rate is None:
            self.relearn_rate = 7 * self.learning_rate  # as measured on the quickstart; see docs/methods.md
        if self.stop_when_forgotten is None:
            self.stop_when_forgotten = self.forget_weighting == "target"
        if self.forget_target != "auto":
            try:
                self.forget_target = float(self.forget_target)
            except ValueError:
                raise ConfigError(
                    f"--forget_target must be a number or auto, not {shown(self.forget_target)}"
                ) from None
        self._check_ranges()
        self._check_combinations()

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

    def needs_companion(self, companion: str) -> bool:
        """Whether the forget rows need an ``alternative`` or a ``counterpart``."""
        objective = FORGET_OBJECTIVES.get(self.forget_objective)
        return objective is not None and companion in objective.needs

    def _check_launched(self) -> None:
        """Refuse an engine of several processes in one that no launcher started, which would look for MPI."""
        for name in ("deepspeed", "fsdp"):
            by_mpi = name == "deepspeed" and importlib.util.find_spec("mpi4py") is not None
            _check(
                not getattr(self, name) or self.estimate_memory or by_mpi or "RANK" in os.environ,
                f"--{name} is for processes that a launcher starts: run `accelerate launch run_unlearn.py ...`, "
                "`torchrun --nproc_per_node 1 run_unlearn.py ...` or, for --deepspeed, `deepspeed run_unlearn.py ...`",
            )

    def _resolve_objectives(self) -> None:
        _check_choice(self, "method", objective_choices()["method"])
        for name in ("forget_objective", "retain_objective"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(METHODS[self.method], name))
            _check_choice(self, name, objective_choices()[name])
        published = {"forget_coef": 1.0, "retain_coef": 1.0, "retain_weighting": "uniform", "relearn_coef": 0.0}
        for name, value in (published | METHODS[self.method].settings).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _check_ranges(self) -> None:
        for name in ("logging", "eval", "save"):
            by_steps = getattr(self, f"{name}_strategy") == IntervalStrategy.STEPS
            _check(not by_steps or getattr(self, f"{name}_steps") > 0, f"--{name}_steps must be above 0, not 0")
        for name in (
            "forget_coef",
            "retain_coef",
            "counterpart_coef",
            "retain_eta",
            "retain_epsilon",
            "retain_weight_min",
            "weight_decay",
            "relearn_coef",
            "relearn_rate",
        ):
            _check(getattr(self, name) >= 0, f"--{name} must not be negative, not {getattr(self, name)}")
        _check(self.rmu_layer is None or self.rmu_layer >= 1, f"--rmu_layer counts from 1, not {self.rmu_layer}")
        for objective in (*FORGET_OBJECTIVES.values(), *RETAIN_OBJECTIVES.values()):
            objective.with_options(self)  # refuses what is out of the range in the objective's signature
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < 2**32, f"--{name} must be 0 to {2**32 - 1}, not {value}")
        for name in ("distill_temperature", "num_train_epochs", "memorize_epochs", "memorize_learning_rate"):
            _check(getattr(self, name) > 0, f"--{name} must be above 0, not {getattr(self, name)}")
        _check(
            self.audit_relearn_learning_rate > 0,
            f"--audit_relearn_learning_rate must be above 0, not {self.audit_relearn_learning_rate}",
        )
        audited = ("audit_relearn_steps", "audit_relearn_batch_size")
        counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        for name in (*counts, *audited, "weight_update_steps", "patience", "relearn_steps"):
            _check(getattr(self, name) >= 1, f"--{name} must be at least 1, not {getattr(self, name)}")
        _check(0 <= self.distill_constant <= 1, f"--distill_constant must be 0 to 1, not {self.distill_constant}")
        _check(
            self.forget_target == "auto" or 0 <= self.forget_target <= 1,
            f"--forget_target must be 0 to 1, or auto, not {self.forget_target}",
        )
        _check(
            self.retain_weight_min <= 1 <= self.retain_weight_max,
            "--retain_weight_min and --retain_weight_max must enclose 1, the weight at the start, not "
            f"{self.retain_weight_min} and {self.retain_weight_max}",
        )
        _check(
            self.max_retain_perplexity_ratio is None or self.max_retain_perplexity_ratio > 1,
            f"--max_retain_perplexity_ratio must be above 1, not {self.max_retain_perplexity_ratio}",
        )

    def _check_engine_options(self) -> None:
        """Refuse what torch and the optimizers would refuse at the first step."""
        for part in filter(None, (self.optim_args or "").replace(" ", "").split(",")):
            _check(
                re.fullmatch(r"[^=]+=[^=]+", part) is not None,
                f"--optim_args {self.optim_args}: {part} is no name=value; give such as rank=64,scale=0.1",
            )
        known = [*inspect.signature(checkpoint).parameters, "preserve_rng_state"]
        for name in self.gradient_checkpointing_kwargs or {}:
            _check(
                name in known,
                f"--gradient_checkpointing_kwargs has no {name}{did_you_mean(name, known)}",
            )
        if self.torch_compile_backend is not None:
            backends = torch.compiler.list_backends(())
            _check(
                self.torch_compile_backend in backends,
                f"--torch_compile_backend {self.torch_compile_backend} is not one of {', '.join(backends)}",
            )

    def _check_combinations(self) -> None:
        for name, (default, reason) in WITHOUT_EFFECT.items():
            value = getattr(self, name, default)
            _check(value == default, f"--{name} {value} would have no effect, because {reason}; leave it out")
        self._check_engine_options()
        try:  # a small one of its kind, whose arguments only its own function knows
            unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            get_scheduler(self.lr_scheduler_type, unused, 1, 10, dict(self.lr_scheduler_kwargs or {}))
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ConfigError(
                f"--lr_scheduler_kwargs {json.dumps(self.lr_scheduler_kwargs)} does not fit --lr_scheduler_type "
                f"{self.lr_scheduler_type.value}: {error}"
            ) from error
        forgets = self.forget_objective != "none" and self.forget_coef > 0
        retains = self.retain_objective != "none" and self.retain_coef > 0
        _check(
            forgets or retains,
            "nothing to train: --forget_objective or --retain_objective must be other than none, with a coefficient "
            "above 0",
        )
        _check(
            self.forget_weighting == "uniform" or (forgets and self.forget_objective != "nll"),
            f"--forget_weighting {self.forget_weighting} needs something to be forgotten, but --forget_objective is "
            f"{self.forget_objective}; choose --forget_weighting uniform or another objective",
        )
        _check(
            not self.project_forget_gradient or (forgets and retains and self.schedule == "joint"),
            "--project_forget_gradient needs forget and retain rows in every batch: give both objectives and "
            "--schedule joint, or leave it out",
        )
        _check(
            self.relearn_coef == 0 or (forgets and self.forget_objective != "nll"),
            f"--relearn_coef {self.relearn_coef} guards what is forgotten, but --forget_objective is "
            f"{self.forget_objective}; leave it out",
        )
        surgery = "--relearn_coef" if self.relearn_coef else "--project_forget_gradient"
        reentrant = self.gradient_checkpointing and (self.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        _check(
            not reentrant or not (self.relearn_coef or self.project_forget_gradient),
            f"{surgery} takes gradients by torch.autograd.grad, which reentrant checkpointing does not allow: give "
            f"--{CHECKPOINTING}_kwargs '{{\"use_reentrant\": false}}', or leave one of the two out",
        )
        _check(
            self.retain_weighting == "uniform" or retains,
            f"--retain_weighting {self.retain_weighting} has nothing to weigh, because --retain_objective is none; "
            "choose --retain_weighting uniform or a retain objective",
        )
        for name, default in (("lingtea_alignment", "paper"), ("distill_weighting", "token")):
            _check(
                getattr(self, name) == default or self.retain_objective == "lingtea",
                f"--{name} {getattr(self, name)} belongs to --retain_objective lingtea, which is "
                f"{self.retain_objective} here; leave one of the two out",
            )
        _check(
            not (self.memorize_first and self.method == "memorize"),
            "--memorize_first is a stage before a method, and --method memorize is that stage itself; leave one out",
        )
        _check(
            not (self.train_never_seen and self.never_seen_model),
            "--train_never_seen and --never_seen_model give the same thing twice; leave one out",
        )
        # The last two are trackers of whose presence transformers does not tell.
        trackers = [*get_available_reporting_integrations(), "azure_ml", "flyte"]
        for name in self.report_to:
            _check(
                name in trackers,
                f"--report_to {name} is not installed, or unknown to transformers; install it, or choose none",
            )
        _check(
            self.n_gpu <= 1 or self.estimate_memory,
            f"this one process sees {self.n_gpu} GPUs: start one process a GPU with `accelerate launch "
            f"--num_processes {self.n_gpu} run_unlearn.py ...`, or show it a single one with CUDA_VISIBLE_DEVICES=0",
        )
