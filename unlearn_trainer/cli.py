"""Unlearn texts or facts from a multilingual language model: parse, load data, load model, train, evaluate, report.

python run_unlearn.py quickstart
accelerate launch run_unlearn.py my_run.json --learning_rate 1e-4
"""

import time
from pathlib import Path

from accelerate.utils import release_memory
from transformers import set_seed

from .audit import audit_run, check_arguments
from .config.arguments import DataArguments, ModelArguments
from .config.finished import RESULTS
from .config.parser import parse_arguments
from .config.unlearn_config import UnlearnConfig
from .console import run_command, say, without_bars
from .data import TokenizedData
from .engine.engines import check_processes, engine_of_its_own, start_deepspeed_on_cpu
from .errors import ConfigError
from .files import held_folder
from .memory.estimate import memory_table
from .model.layers import restrict_training
from .model.loading import apply_peft, load_model, save_trained
from .report.table import comparison_table
from .runs.loading import load_data
from .runs.outcome import closing_words, warn_of_the_unguarded, weaknesses
from .runs.results import collected_warnings, gather_results, write_results
from .runs.stages import measured_splits, prepare_stages
from .runs.start_checks import try_the_end
from .teacher import teachers as teacher
from .trainer import UnlearnTrainer
from .training.checkpoints import checkpoint_to_resume, finishing
from .training.integrations import check_integrations


def make_trainer(start: ModelArguments, args: UnlearnConfig, data: TokenizedData, tokenizer) -> UnlearnTrainer:
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
        teacher=load_model(start, tokenizer) if teacher.is_loaded_apart(args, start) else None,
        processing_class=tokenizer,
        max_seq_length=data.max_seq_length,
    )


def run(argv: list[str] | None = None) -> dict:
    """The whole run; returns what is written to results.json."""
    with collected_warnings() as warnings:
        model_args, data_args, args = parse_arguments(argv)
        if args.disable_tqdm:
            without_bars()
        if args.estimate_memory:
            say(memory_table(model_args, data_args, args))
            return {}
        stages = args.memorize_first or args.train_never_seen
        if not (args.do_train or args.do_eval or args.do_predict or args.audit or stages):
            raise ConfigError("nothing to do: give --do_train, --do_eval, --do_predict or --audit")
        check_processes(args.world_size)
        if args.deepspeed_plugin is not None:
            start_deepspeed_on_cpu()
        with held_folder(args.output_dir):
            return carry_out(model_args, data_args, args, warnings)


def carry_out(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig, warnings: list[str]) -> dict:
    """The run in its output folder, which no other run writes to meanwhile; ``warnings`` grow while it goes on."""
    checkpoint = checkpoint_to_resume(args, model_args)
    if args.audit:
        check_arguments(model_args, data_args, args)
    check_integrations(args, merged=model_args.merge_adapter or not model_args.use_peft, own_start=args.memorize_first)
    tokenizer, data = load_data(model_args, data_args, args)
    if args.do_predict and "test" not in data.datasets:
        raise ConfigError("--do_predict measures a test split: give --test_file, or leave --do_predict out")
    say(f"languages: {' '.join(data.languages)}; held out: {' '.join(data.heldout_languages) or 'none'}")

    warn_of_the_unguarded(args, measured_splits(args, data))
    try_the_end(model_args, data_args, args)
    start, reference = prepare_stages(model_args, args, data, tokenizer)
    trainer = make_trainer(start, args, data, tokenizer)
    timing = {"train_seconds": 0.0}
    if args.do_train:
        started = time.time()
        trainer.train_to_the_end("at step {step}; go on with --resume_from_checkpoint true", checkpoint)
        timing["train_seconds"] = time.time() - started
        with finishing(f"after the training; the model in {args.output_dir} is complete, and was not measured"):
            save_trained(trainer, start)
    started = time.time()
    after = trainer.measure(description="after") if args.do_eval or args.do_predict else {}
    never_seen = trainer.measure(load_model(reference, tokenizer), "never seen") if reference and after else None
    timing["eval_seconds"] = time.time() - started

    results = gather_results(trainer, (model_args, data_args, args), data, after, never_seen, timing)
    results["warnings"] = [*warnings, *weaknesses(results)]
    written = args.do_train or bool(after)
    if trainer.is_world_process_zero() and written:
        write_results(Path(args.output_dir) / RESULTS, results)
    say(comparison_table(results))
    say(closing_words(results, written))
    failed = None
    if args.do_train and args.push_to_hub:
        try:
            trainer.push_result()
        except ConfigError as error:  # told at the end, because it costs nothing but the upload
            failed = error
    if args.audit:
        trainer.accelerator.free_memory()  # relearning needs the room
        del trainer
        release_memory()
        audit_run(start, reference, model_args, data_args, args)
    if failed is not None:
        raise failed
    return results


def main(argv: list[str] | None = None) -> None:
    """Console entry; see :func:`unlearn_trainer.console.run_command` for the exit codes."""
    run_command(run, argv)
