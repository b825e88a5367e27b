"""Every flag of a run, with its default and the combinations that are refused."""

from dataclasses import dataclass, fields, make_dataclass
from typing import Literal

from ..errors import ConfigError
from .checks import check_literals, flag, require, split_commas
from .known_objectives import objective_options
from .layer_spec import parse_layers
from .ranges import check_values

_NO_MODEL = "no model: give --model_name_or_path, a folder or a Hub name"


@dataclass
class ModelArguments:
    """Which model is unlearned, and how it is loaded."""

    model_name_or_path: str | None = flag(None, "Folder or Hub name of a causal language model, or `synthetic`.")
    gguf_file: str | None = flag(None, "File name of a GGUF checkpoint inside the model's folder or repository.")
    tokenizer_name: str | None = flag(None, "Folder or Hub name of the tokenizer; by default the model's own.")
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] = flag(
        "float32", "Type the weights are held in; `auto` takes the checkpoint's. `--bf16` computes in bfloat16 anyhow."
    )
    attn_implementation: str | None = flag(None, "Attention kernel, such as `sdpa`, `eager` or `flash_attention_2`.")
    revision: str | None = flag(None, "Branch, tag or commit of the model on the Hub.")
    use_peft: bool = flag(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = flag(16, "Rank of the adapter.")
    lora_alpha: int = flag(32, "The adapter's output is scaled by lora_alpha / lora_r.")
    lora_target_modules: list[str] | None = flag(
        None, "Modules that get an adapter; by default all linear layers that can take one."
    )
    merge_adapter: bool = flag(False, "Save the model with its adapter merged in, and the adapter beside it.")
    trainable_layers: str | None = flag(
        None,
        "Layers to train, such as 0,3,8-14, all else being frozen; or a regular expression over parameters' names.",
    )

    def __post_init__(self):
        check_values(self)
        check_literals(self)
        self.lora_target_modules = split_commas(self.lora_target_modules)
        require(bool(self.model_name_or_path), _NO_MODEL)
        for item in fields(self):
            require(
                self.use_peft or not item.name.startswith("lora_") or getattr(self, item.name) == item.default,
                f"--{item.name} is of an adapter, and all weights are trained without one; add --use_peft",
            )
        if self.lora_target_modules == ["all-linear"]:
            self.lora_target_modules = None
        require(self.lora_r >= 1, f"--lora_r must be at least 1, not {self.lora_r}")
        require(self.lora_alpha >= 1, f"--lora_alpha must be at least 1, not {self.lora_alpha}")
        require(self.use_peft or not self.merge_adapter, "--merge_adapter has no adapter to merge; add --use_peft")
        if self.trainable_layers is not None:
            parse_layers(self.trainable_layers)
            require(
                not self.use_peft,
                f"--trainable_layers {self.trainable_layers}: with --use_peft the model's own weights are frozen; "
                "leave one of the two out, or name the adapter's modules with --lora_target_modules",
            )

    @property
    def name(self) -> str:
        """`model_name_or_path`, which no run is without.

        Raises:
            ConfigError: it was taken away.
        """
        if not self.model_name_or_path:
            raise ConfigError(_NO_MODEL)
        return self.model_name_or_path


@dataclass
class DataArguments:
    """Which texts are forgotten, kept and measured."""

    data_dir: str | None = flag(None, "Folder or Hub name with splits forget, retain, valid, test; or `synthetic`.")
    forget_file: str | None = flag(None, "JSONL file of the texts or facts to forget.")
    retain_file: str | None = flag(None, "JSONL file of the texts or facts to keep.")
    valid_file: str | None = flag(None, "JSONL file of never-seen rows; gives the targets of forgetting.")
    test_file: str | None = flag(None, "JSONL file of rows for the final figures only.")
    alternative_answers: str | None = flag(
        None,
        "JSON file {language: [texts]} of what shall be said instead (dpo, jensun); has `I do not know` built in.",
    )
    languages: list[str] | None = flag(None, "Languages to train on, with spaces or commas; by default all.")
    heldout_languages: list[str] | None = flag(None, "Languages that are evaluated and never trained on.")
    max_seq_length: int = flag(256, "Longer rows are cut to this number of tokens.")
    chat_template: str = flag("auto", "Template of questions and messages: `auto` (the tokenizer's), `none`, a file.")
    system_prompt: str | None = flag(None, "What the system says before every question, where there is a template.")
    max_train_samples: int | None = flag(None, "Use only this number of items of the forget and the retain split.")
    max_eval_samples: int | None = flag(None, "Use only this number of items of the valid split.")
    max_predict_samples: int | None = flag(None, "Use only this number of items of the test split.")
    show_texts: bool = flag(False, "Let messages and reports show texts of the splits.")

    def __post_init__(self):
        check_values(self)
        check_literals(self)
        self.languages = split_commas(self.languages)
        self.heldout_languages = split_commas(self.heldout_languages) or []
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name} must be at least 1, not {value}")
        require(self.max_seq_length >= 2, f"--max_seq_length must be at least 2, not {self.max_seq_length}")
        named = [*(self.languages or []), *self.heldout_languages]
        twice = sorted({language for language in named if named.count(language) > 1})
        require(not twice, f"--languages and --heldout_languages name {', '.join(twice)} more than once")

    def check_named(self) -> None:
        """Refuse arguments that name no data; an estimate of the memory needs none."""
        require(
            bool(self.data_dir or self.forget_file or self.retain_file),
            "no data: give --data_dir, a folder or a Hub name, or --forget_file and --retain_file",
        )


@dataclass
class StageArguments:
    """What a run does before and after the method."""

    memorize_first: bool = flag(False, "First train on forget and retain, so that there is something to forget.")
    memorize_epochs: float = flag(10.0, "Epochs of that training, and of the never-seen model's.")
    memorize_learning_rate: float = flag(5e-5, "Learning rate of that training, and of the never-seen model's.")
    train_never_seen: bool = flag(False, "Also train a model on retain alone, to compare with.")
    never_seen_model: str | None = flag(None, "A finished model that never saw the forget set, to compare with.")
    audit: bool = flag(False, "After training, attack the model to find out whether the knowledge is gone.")
    estimate_memory: bool = flag(
        False, "Print what a step needs on a GPU under each engine, and end; reads only the model's configuration."
    )


@dataclass
class AuditArguments:
    """What an audit does; `--audit`, or `python -m unlearn_trainer.audit`."""

    model_before: str | None = flag(
        None, "The model before unlearning; with `--audit` it is the one that the run started from."
    )
    forgotten_files: list[str] | None = flag(
        None, "JSONL files of earlier requests, forgotten before and audited along."
    )
    audit_checks: list[str] | None = flag(None, "Checks of the audit; by default all that the data allow.")
    audit_relearn_languages: list[str] | None = flag(
        None, "Languages that are relearned, one at a time; by default all trained ones."
    )
    audit_relearn_steps: int = flag(30, "Steps of the relearning.")
    audit_relearn_batch_size: int = flag(16, "Rows of each of them, over all processes.")
    audit_relearn_learning_rate: float = flag(5e-5, "Learning rate of the relearning.")


@dataclass
class ObjectiveArguments:
    """What is minimised."""

    method: str = flag("lingtea", "A named pair of objectives.")
    forget_objective: str | None = flag(None, "Replaces the method's objective on forget rows.")
    retain_objective: str | None = flag(None, "Replaces the method's objective on retain rows.")
    forget_coef: float | None = flag(None, "Factor of the forget objective; by default as published, mostly 1.")
    retain_coef: float | None = flag(None, "Factor of the retain objective; by default as published, mostly 1.")
    counterpart_coef: float = flag(1.0, "Factor of KL to the teacher on never-seen rows, with calibrated.")
    project_forget_gradient: bool = flag(
        False, "Take out of the forget gradient what would raise the retain loss (GRU); doubles the cost of a step."
    )
    relearn_coef: float | None = flag(
        None,
        "Factor of the forget loss at weights that relearned half of the languages; by default 0, but for calibrated.",
    )
    relearn_steps: int = flag(2, "Steps of that relearning.")
    relearn_rate: float | None = flag(None, "Size of each of them, for every weight; by default 7 x learning_rate.")
    rmu_layer: int | None = flag(
        None, "Layer whose output rmu looks at, from 1; by default 8 of 32, as published, and in proportion."
    )
    schedule: Literal["joint", "alternate"] = flag(
        "joint", "`joint`: forget and retain rows in every batch; `alternate`: a pass over one, then over the other."
    )
    language_sampling: Literal["balanced", "random", "all"] = flag(
        "balanced",
        "Language of an item: `balanced` shows each once in as many epochs as there are, `random` draws one an epoch, "
        "`all` shows every one every epoch.",
    )
    distill_temperature: float = flag(1.0, "Temperature of the distillation from the teacher.")
    distill_weighting: Literal["token", "language", "constant"] = flag(
        "token", "LingTea's weight of the teacher: its probability of the token, that averaged per language, or fixed."
    )
    distill_constant: float = flag(0.5, "The weight with `--distill_weighting constant`, 0 to 1.")
    lingtea_alignment: Literal["paper", "released"] = flag(
        "paper", "`released` repeats the step of the code released with the paper, which differs from its formula."
    )
    teacher: Literal["auto", "resident", "adapter", "cached"] = flag(
        "auto", "Where the frozen original model lives; `auto` is the cheapest way that is exact."
    )


# One flag for each option of an objective, with the default that stands in the objective's own signature.
MethodArguments = make_dataclass(
    "MethodArguments",
    [(option.name, type(option.default), flag(option.default, option.help)) for option in objective_options()],
)


@dataclass
class WeightArguments:
    """How much each language counts, and when the training ends."""

    forget_weighting: Literal["uniform", "target"] = flag(
        "uniform", "`target` weighs languages by how far each still is from its target, and rests those that arrived."
    )
    retain_weighting: Literal["uniform", "primal_dual"] | None = flag(
        None,
        "`primal_dual` raises the weight of a language whose retain perplexity grows; else `uniform`, but for pdu.",
    )
    forget_metric: Literal["memorization_accuracy", "extraction_strength"] = flag(
        "memorization_accuracy", "What the target of forgetting is measured in."
    )
    forget_target: str = flag("auto", "Target for all languages, 0 to 1; `auto` measures it on never-seen rows.")
    weight_update_steps: int = flag(10, "Optimizer steps between updates of the language weights.")
    retain_eta: float = flag(1.0, "Step size of `primal_dual`.")
    retain_epsilon: float = flag(0.0, "Rise of the log perplexity that `primal_dual` lets pass.")
    retain_weight_min: float = flag(0.1, "Lower bound of a retain weight.")
    retain_weight_max: float = flag(10.0, "Upper bound of a retain weight.")
    stop_when_forgotten: bool | None = flag(
        None, "Stop once all languages are at their targets and the score rises no more; by default with `target`."
    )
    patience: int = flag(3, "Evaluations without a better score before `stop_when_forgotten` ends the training.")
    max_retain_perplexity_ratio: float | None = flag(
        10.0, "Stop when the retain perplexity (geometric mean of the languages) is this many times that of the start."
    )


@dataclass
class ChangedArguments:
    """Flags of `TrainingArguments` with another default or meaning here."""

    logging_nan_inf_filter: bool = flag(False, "Hide NaN and infinite losses from the logs.")
    load_best_model_at_end: bool | None = flag(
        None,
        "Save the best model of the evaluations and end with it; with `target` by default, if it saves.",
    )
