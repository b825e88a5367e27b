#!/usr/bin/env python
"""Unlearn texts or facts from a multilingual language model: parse, load data, load model, train, evaluate, report.

python run_unlearn.py quickstart
accelerate launch run_unlearn.py my_run.json --learning_rate 1e-4
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from unlearn_trainer import teacher
from unlearn_trainer.arguments import ModelArguments, UnlearnConfig
from unlearn_trainer.checkpoints import RESULTS, checkpoint_to_resume
from unlearn_trainer.companions import add_companions
from unlearn_trainer.data import TokenizedData, load_splits, synthetic, tokenize_splits
from unlearn_trainer.engines import engine_of_its_own, leave_process_group, start_deepspeed_on_cpu
from unlearn_trainer.errors import ConfigError, Terminated, TrainingDiverged, UnlearnError
from unlearn_trainer.evaluation.report import comparison_table, environment, peak_memory, write_results
from unlearn_trainer.layers import restrict_training
from unlearn_trainer.memory import memory_table
from unlearn_trainer.models import apply_peft, load_model, load_tokenizer, save_trained
from unlearn_trainer.parser import parse_arguments
from unlearn_trainer.stages import measured_splits, prepare_stages
from unlearn_trainer.trainer import UnlearnTrainer

EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_TERMINATED = 2, 3, 143
SPLITS = ("forget", "retain", "valid", "test")


def say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)


def built(folder: Path, build: Callable[[Path, int], None], seed: int) -> str:
    """The folder, built on first use; it appears under its name only when it is whole."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        build(unfinished, seed)
        os.replace(unfinished, folder)
    return str(folder)


def load_data(model_args: ModelArguments, data_args, args: UnlearnConfig):
    """Tokenizer and tokenized rows; the built-in corpus and model are written on first use."""
    with PartialState().main_process_first():
        if data_args.data_dir == "synthetic":
            data_args.data_dir = built(Path(args.output_dir) / "synthetic" / "data", synthetic.write_corpus, args.seed)
        if model_args.model_name_or_path == "synthetic":
            folder = Path(args.output_dir) / "synthetic" / "model"
            model_args.model_name_or_path = built(folder, synthetic.build_model, args.seed)
        tokenizer = load_tokenizer(model_args)
        splits = load_splits(
            data_args.data_dir,
            **{f"{split}_file": getattr(data_args, f"{split}_file") for split in SPLITS},
        )
        train, valid, test = data_args.max_train_samples, data_args.max_eval_samples, data_args.max_predict_samples
        limits = dict(zip(SPLITS, (train, train, valid, test), strict=True))
        data = tokenize_splits(
            splits,
            tokenizer,
            data_args.languages,
            data_args.heldout_languages or (),
            data_args.max_seq_length,
            {split: limit for split, limit in limits.items() if limit is not None},
        )
        data = add_companions(data, splits["forget"], tokenizer, data_args, args)
    return tokenizer, data


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
    )


def run(argv: list[str] | None = None) -> dict:
    """The whole run; returns what is written to results.json."""
    model_args, data_args, args = parse_arguments(argv)
    if args.estimate_memory:
        say(memory_table(model_args, data_args, args))
        return {}
    if not (args.do_train or args.do_eval or args.do_predict or args.memorize_first or args.train_never_seen):
        raise ConfigError("nothing to do: give --do_train, --do_eval or --do_predict")
    if args.deepspeed_plugin is not None:
        start_deepspeed_on_cpu()
    checkpoint = checkpoint_to_resume(args)
    tokenizer, data = load_data(model_args, data_args, args)
    say(f"languages: {' '.join(data.languages)}; held out: {' '.join(data.heldout_languages) or 'none'}")

    start, reference = prepare_stages(model_args, args, data, tokenizer)
    trainer = make_trainer(start, args, data, tokenizer)
    timing = {"train_seconds": 0.0}
    if args.do_train:
        started = time.time()
        trainer.train(resume_from_checkpoint=checkpoint)
        timing["train_seconds"] = time.time() - started
        if trainer.terminated:
            raise Terminated(f"SIGTERM at step {trainer.state.global_step}; go on with --resume_from_checkpoint true")
        save_trained(trainer, start)
    started = time.time()
    after = trainer.measure(description="after") if args.do_eval or args.do_predict else {}
    never_seen = trainer.measure(load_model(reference, tokenizer), "never seen") if reference and after else None
    timing["eval_seconds"] = time.time() - started

    weights = trainer.language_weights
    before = weights.figures_at_start or {}
    results = {
        "schema_version": 1,
        "config": {**vars(model_args), **vars(data_args), **args.to_sanitized_dict()},
        "environment": environment(args.device, args.world_size),
        "languages": data.languages,
        "heldout_languages": data.heldout_languages,
        "dropped_rows": data.dropped_rows,
        "before": before or after,
        "after": after,
        "language_weights": weights.history,
        "unlearning_score": weights.score(after) if before and "forget" in after else None,
        "stop_reason": weights.stop_reason,
        "timing": timing | {"peak_memory_bytes": peak_memory()},
    }
    if never_seen is not None:
        results["never_seen"] = never_seen
    if trainer.is_world_process_zero():
        write_results(Path(args.output_dir) / RESULTS, results)
    say(comparison_table(results))
    return results


def main(argv: list[str] | None = None) -> None:
    """Console entry. Exit code 2: bad input; 3: training diverged; 143: stopped by SIGTERM, with a checkpoint."""
    code = 1
    try:
        run(argv)
        code = 0
    except UnlearnError as error:
        code = fail(f"error: {error}", EXIT_BAD_INPUT)
    except TrainingDiverged as error:
        code = fail(f"stopped: {error}", EXIT_DIVERGED)
    except Terminated as error:
        code = fail(f"stopped: {error}", EXIT_TERMINATED)
    finally:
        leave_process_group(code)
    if code:
        sys.exit(code)


def fail(message: str, code: int) -> int:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # where the first process fails too, it says so, and the launcher ends this one meanwhile
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
