"""A run, from its checked flags to results.json: load, prepare, train, save, measure, write, tell."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, set_seed

from ..config.arguments import DataArguments, ModelArguments
from ..config.finished import RESULTS
from ..config.unlearn_config import UnlearnConfig
from ..console import say
from ..data import TokenizedData
from ..engine.engines import check_processes, engine_of_its_own, start_deepspeed_on_cpu
from ..errors import ConfigError
from ..files import held_folder
from ..model.layers import restrict_training
from ..model.loading import apply_peft, load_model, save_trained
from ..report.model_card import write_card
from ..report.run_report import write_run_report
from ..report.table import comparison_table
from ..teacher.teachers import is_loaded_apart
from ..trainer import UnlearnTrainer
from ..training.checkpoints import checkpoint_to_resume, finishing
from ..training.integrations import check_integrations, push_folder
from .examples import greedy_texts
from .loading import load_data
from .outcome import closing_words, warn_of_the_unguarded, weaknesses
from .results import gather_results, write_results
from .stages import measured_splits, prepare_stages
from .start_checks import try_the_end


@dataclass(frozen=True)
class FinishedRun:
    """What a run leaves to whoever goes on from it."""

    results: dict[str, Any]  # the schema of results.json
    start: ModelArguments  # the model that was unlearned
    reference: ModelArguments | None  # the one that never saw the forget rows
    tokenizer: PreTrainedTokenizerBase

    def push(self, args: UnlearnConfig) -> None:
        """Upload the result as it lies in the output folder; call it on every process.

        Raises:
            ConfigError: it cannot be uploaded; names the folder.
        """
        push_folder(args, self.tokenizer)


@contextlib.contextmanager
def begun(model_args: ModelArguments, args: UnlearnConfig) -> Iterator[str | None]:
    """Within the context the process is ready and the output folder is this run's alone; yields what to resume from.

    Raises:
        ConfigError: processes that do not know of each other, a folder that another run writes to, or one that holds
            what this run would write over.
    """
    check_processes(args.world_size)
    if args.deepspeed_plugin is not None:
        start_deepspeed_on_cpu()
    with held_folder(args.folder):
        yield checkpoint_to_resume(args, model_args)


def carry_out(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnlearnConfig,
    checkpoint: str | None,
    warnings: list[str],
    words: Sequence[str],
) -> FinishedRun:
    """The run in its output folder, which no other run writes to meanwhile.

    Args:
        model_args, data_args, args: the flags.
        checkpoint: where the training goes on from.
        warnings: those of the run; they grow while it goes on.
        words: the command line, for the report.

    Raises:
        ConfigError: flags that do not fit the data or the model, or a place that cannot be written to.
    """
    check_integrations(
        args,
        merged=model_args.merge_adapter or not model_args.use_peft,
        own_start=args.memorize_first,
        show_texts=data_args.show_texts,
    )
    tokenizer, data = load_data(model_args, data_args, args)
    if args.do_predict and "test" not in data.datasets:
        raise ConfigError("--do_predict measures a test split: give --test_file, or leave --do_predict out")
    say(f"languages: {' '.join(data.languages)}; held out: {' '.join(data.heldout_languages) or 'none'}")

    warn_of_the_unguarded(args, measured_splits(args, data))
    try_the_end(model_args, data_args, args)
    start, reference = prepare_stages(model_args, args, data, tokenizer)
    trainer = make_trainer(start, args, data, tokenizer)
    timing = {"train_seconds": _train(trainer, start, checkpoint) if args.do_train else 0.0}
    started = time.time()
    after = trainer.measure(description="after") if args.do_eval or args.do_predict else {}
    never_seen = trainer.measure(load_model(reference, tokenizer), "never seen") if reference and after else None
    timing["eval_seconds"] = time.time() - started
    quoted = args.do_train and data_args.show_texts
    said_before = greedy_texts(trainer, data, load_model(start, tokenizer)) if quoted else None

    given = model_args, data_args, args
    results = gather_results(trainer, given, data, after, never_seen, timing, words, said_before)
    results["warnings"] = [*warnings, *weaknesses(results)]
    written = args.do_train or bool(after)
    if trainer.is_world_process_zero() and written:
        write_results(args.folder / RESULTS, results)
    tell_people(args, results)
    say(comparison_table(results))
    say(closing_words(results, written))
    if args.audit:
        trainer.accelerator.free_memory()  # relearning needs the room
    return FinishedRun(results, start, reference, tokenizer)


def tell_people(args: UnlearnConfig, results: dict[str, Any]) -> None:
    """Write the report and the card of the trained model, where there are results; only the first process does."""
    if PartialState().is_main_process and (args.folder / RESULTS).exists():
        write_run_report(args.folder, results)
        if args.do_train:
            write_card(args.folder)


def make_trainer(
    start: ModelArguments, args: UnlearnConfig, data: TokenizedData, tokenizer: PreTrainedTokenizerBase
) -> UnlearnTrainer:
    """The trainer of the method, with the splits that are measured: forget, retain, valid, and test for predict."""
    rows, args = data.datasets, engine_of_its_own(args)
    set_seed(args.seed)  # an adapter starts from random weights
    return UnlearnTrainer(
        apply_peft(restrict_training(load_model(start, tokenizer), start.trainable_layers), start),
        args,
        forget_dataset=rows.get("forget"),
        retain_dataset=rows.get("retain"),
        eval_dataset={split: rows[split] for split in measured_splits(args, data)},
        predict_dataset={"test": rows["test"]} if args.do_predict and "test" in rows else None,
        languages=data.languages,
        heldout_languages=data.heldout_languages,
        teacher=load_model(start, tokenizer) if is_loaded_apart(args, start) else None,
        processing_class=tokenizer,
        max_seq_length=data.max_seq_length,
    )


def _train(trainer: UnlearnTrainer, start: ModelArguments, checkpoint: str | None) -> float:
    """Train and save; returns the seconds that the training took."""
    started = time.time()
    trainer.train_to_the_end("at step {step}; go on with --resume_from_checkpoint true", checkpoint)
    seconds = time.time() - started
    folder = trainer.args.output_dir
    with finishing(f"after the training; the model in {folder} is complete, and was not measured"):
        save_trained(trainer, start)
    return seconds
