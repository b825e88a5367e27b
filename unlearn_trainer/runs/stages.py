"""The stages before the method: a model that knows the forget set by heart, and one that never saw it.

Without them nothing can be shown: a text the model does not know cannot be forgotten, and without a model that never
saw it nobody can say what "forgotten" looks like.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config.arguments import ModelArguments
from ..config.finished import MEMORIZED, NEVER_SEEN, OF_STAGE
from ..config.unlearn_config import UnlearnConfig
from ..console import say
from ..data import TokenizedData
from ..data.collator import TrainingRows, with_companions
from ..data.row_checks import check_rows, learned_positions
from ..errors import ConfigError, Terminated, TrainingDiverged, UnlearnError
from ..files import make_own_folder, name_whole_folder, read_own_json, remove_own_folder
from ..memory.estimate import optimizer_name
from ..model.loading import load_config, load_model
from ..trainer import UnlearnTrainer
from ..training.checkpoints import finishing
from ..weights.policy import WeightPolicy

# All rows in every epoch, and nothing that might end it early.
PLAIN = {"language_sampling": "all", "max_retain_perplexity_ratio": None}


def prepare_stages(
    model_args: ModelArguments, args: UnlearnConfig, data: TokenizedData, tokenizer: PreTrainedTokenizerBase
) -> tuple[ModelArguments, ModelArguments | None]:
    """The model to unlearn and the never-seen reference (or ``None``), trained first where the flags ask for it."""
    start = model_args
    reference: str | None = args.never_seen_model
    if reference:  # a mistake must not come to light after the training only
        compared = load_model(_local(model_args, reference), tokenizer, "--never_seen_model")
        sizes = [config.get_text_config().vocab_size for config in (load_config(model_args), compared.config)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"--never_seen_model {reference} has a vocabulary of {sizes[1]} tokens, and --model_name_or_path one "
                f"of {sizes[0]}; their figures cannot be compared: name a model of the same kind"
            )
    if args.do_train or args.memorize_first or args.train_never_seen:
        _check_optimizer(args)
    if args.do_train:
        WeightPolicy.from_config(args).check_measured(measured_splits(args, data))
    if args.memorize_first:
        start = _local(model_args, stage_folder(MEMORIZED, "memorize", model_args, args, data, tokenizer))
    if args.train_never_seen:
        reference = str(stage_folder(NEVER_SEEN, "retain_only", model_args, args, data, tokenizer))
    return start, _local(model_args, reference) if reference else None


def _check_optimizer(args: UnlearnConfig) -> None:
    """Refuse what training needs and this machine lacks, before a model is loaded."""
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError("--use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    try:
        UnlearnTrainer.get_optimizer_cls_and_kwargs(args)
    except Exception as error:  # of many kinds; some optimizers also ask for the model, which comes later
        if "install" in str(error):
            raise ConfigError(f"--optim {optimizer_name(args)} cannot be used here: {error}") from error


def _local(model_args: ModelArguments, folder: Path | str) -> ModelArguments:
    return dataclasses.replace(model_args, model_name_or_path=str(folder), gguf_file=None, revision=None)


def measured_splits(args: UnlearnConfig, data: TokenizedData) -> list[str]:
    """The splits measured before, during and after the training."""
    wanted = ("forget", "retain", "valid") if args.do_eval or args.do_predict else ()
    return [split for split in wanted if split in data.datasets]


def stage_folder(
    name: str,
    method: str,
    model_args: ModelArguments,
    args: UnlearnConfig,
    data: TokenizedData,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """Train ``<output_dir>/<name>`` by ``method`` from the start model, or reuse it when it is complete.

    The folder appears under its name only when everything in it is written.

    Raises:
        ConfigError: the folder was made with other settings.
    """
    folder = args.folder / name
    settings = {
        "method": method,
        "model": model_args.model_name_or_path,
        "gguf_file": model_args.gguf_file,
        "epochs": args.memorize_epochs,
        "learning_rate": args.memorize_learning_rate,
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "seed": args.seed,
        "languages": data.languages,
        "rows": TrainingRows(with_companions(data.datasets["forget"], ()), data.datasets.get("retain")).digests(),
    }
    if folder.exists():
        remedy = f"delete {folder}, which is then made anew, or choose another --output_dir"
        described = read_own_json(folder / OF_STAGE, (), remedy) if (folder / OF_STAGE).exists() else {}
        changed = [key for key, value in settings.items() if described.get(key) != value]
        if changed:
            raise ConfigError(
                f"{folder} was made with other settings ({', '.join(changed)} differ); "
                "delete the folder or choose another --output_dir"
            )
        return folder
    unfinished = folder.with_name(f"{name}.unfinished")
    config = plain(
        args, method, unfinished, num_train_epochs=args.memorize_epochs, learning_rate=args.memorize_learning_rate
    )
    say(f"stage {name}: --method {method} for {args.memorize_epochs:g} epochs, into {folder}")
    model = load_model(model_args, tokenizer)
    # Also of the splits that the run measures only when the stage is over.
    check_rows(data.datasets, [*data.languages, *data.heldout_languages], learned_positions(model))
    if args.process_index == 0:
        make_own_folder(unfinished)
    try:
        trainer = UnlearnTrainer(
            model,
            config,
            forget_dataset=data.datasets["forget"],
            retain_dataset=data.datasets.get("retain"),
            languages=data.languages,
            heldout_languages=data.heldout_languages,
            processing_class=tokenizer,
        )
        trainer.train_to_the_end(f"in the stage {name}, which begins anew when the same command is given again")
    except (UnlearnError, TrainingDiverged, Terminated):
        if args.process_index == 0:  # nothing goes on from what is in it
            remove_own_folder(unfinished)
        raise
    with finishing(f"after the stage {name}, which is complete; the same command goes on from there"):
        trainer.save_model(str(unfinished))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            (unfinished / OF_STAGE).write_text(json.dumps(settings, indent=1))
            name_whole_folder(unfinished, folder)
        trainer.accelerator.wait_for_everyone()
    return folder


def plain(args: UnlearnConfig, method: str, folder: Path | str, **settings: Any) -> UnlearnConfig:
    """Plain training by ``method`` with the run's engine, precision, batch and optimizer, and nothing else of the run.

    Args:
        args: of any run.
        folder: where it writes its model.
        settings: flags, such as ``num_train_epochs`` and ``learning_rate``; those that are not given have defaults.
    """
    # It leaves its model only: what it makes knows the forget rows, or is only compared with.
    leaves = {"output_dir": str(folder), "save_strategy": "no", "report_to": "none"}
    return args.of_another_training(**(PLAIN | leaves | {"method": method} | settings))


def plain_training(args: UnlearnConfig, folder: str, **changes: Any) -> UnlearnConfig:
    """:func:`plain` fine-tuning on given rows, in steps of one batch at a constant learning rate.

    Args:
        args: of any run.
        folder: a place for what a trainer must write somewhere.
        changes: further settings, such as ``max_steps`` and ``learning_rate``.
    """
    steps = {"lr_scheduler_type": "constant", "gradient_accumulation_steps": 1, "data_seed": None}
    return plain(
        args, "memorize", folder, **({"retain_objective": "none", "logging_strategy": "no"} | steps | changes)
    )
