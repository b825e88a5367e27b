#!/usr/bin/env python
"""Forget by task arithmetic (Ilharco et al. 2023): learn the forget rows further, then go the other way.

    python scripts/task_vector.py my_run.json --scales 0.2 0.5 1 --max_perplexity_ratio 1.1

It takes the flags and files of run_unlearn.py. The start model is trained on the forget rows alone, for the length and
at the learning rate of the flags; the step that its weights made is subtracted from the start, times the largest of
--scales at which the perplexity of the valid rows (else of the retain rows; geometric mean over the languages) is at
most --max_perplexity_ratio times that of the start. The output folder holds what run_unlearn.py writes.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from accelerate import PartialState

from run_unlearn import make_trainer
from unlearn_trainer.config.arguments import (
    DataArguments,
    MethodArguments,
    ModelArguments,
    ObjectiveArguments,
    WeightArguments,
)
from unlearn_trainer.config.finished import RESULTS
from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.console import run_command, say
from unlearn_trainer.engine.engines import is_sharded
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.files import held_folder
from unlearn_trainer.model.loading import load_model
from unlearn_trainer.report.table import comparison_table
from unlearn_trainer.runs.environment import configuration, environment, peak_memory
from unlearn_trainer.runs.loading import load_rows
from unlearn_trainer.runs.results import write_results
from unlearn_trainer.runs.stages import plain, prepare_stages
from unlearn_trainer.training.checkpoints import checkpoint_to_resume
from unlearn_trainer.weights.policy import perplexity_ratio

SCALES = [round(0.1 * step, 1) for step in range(1, 21)]
# What it has in common with the run: its length, and what the scale is chosen by.
AS_GIVEN = ("num_train_epochs", "max_steps", "learning_rate", "do_predict", "forget_metric", "forget_target")


@torch.no_grad()
def subtract(model: torch.nn.Module, start: dict, step: dict, scale: float) -> None:
    """Set the named weights to ``start - scale * step``."""
    for name, parameter in model.named_parameters():
        if name in step:
            parameter.copy_(start[name] - scale * step[name])


def try_scales(trainer, start: dict, step: dict, scales: Sequence[float]) -> list[dict[str, float]]:
    """The figures of each scale, also printed as a table."""
    weights, rows, kept = trainer.language_weights, [], trainer.language_weights.kept_split
    say(f"scale | worst forget MA | {kept} perplexity ratio | unlearning score")
    for scale in sorted(scales):
        subtract(trainer.model, start, step, scale)
        splits = {split: trainer.eval_dataset[split] for split in ("forget", kept)}
        with trainer.accelerator.autocast():
            figures = trainer.evaluator(
                trainer.model, splits, trainer.args.device, heldout=False, probing=False, description=f"scale {scale}"
            )
        before = weights.figures_at_start[kept]
        grown = [found["loss"] - before[language]["loss"] for language, found in figures[kept].items()]
        row = {
            "scale": scale,
            "worst_memorization_accuracy": max(each["memorization_accuracy"] for each in figures["forget"].values()),
            "perplexity_ratio": perplexity_ratio(sum(grown) / len(grown)),
            "unlearning_score": weights.score(figures),
        }
        score = "none" if row["unlearning_score"] is None else f"{row['unlearning_score']:.3f}"
        worst, ratio = row["worst_memorization_accuracy"], row["perplexity_ratio"]
        say(f"{scale:5.2f} | {worst:15.3f} | {ratio:22.3f} | {score}")
        rows.append(row)
    return rows


def run(argv: Sequence[str] | None = None) -> dict:
    """The whole run; returns what is written to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[-1], allow_abbrev=False)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="default: 0.1 0.2 ... 2.0")
    parser.add_argument("--max_perplexity_ratio", type=float, default=1.1, help="default: %(default)s")
    flags, rest = parser.parse_known_args(argv)
    if min(flags.scales) <= 0:
        raise ConfigError(f"--scales must be above 0, not {min(flags.scales)}")
    model_args, data_args, args = parse_arguments(rest)
    if model_args.use_peft:
        raise ConfigError("a task vector is the step of the model's own weights; leave out --use_peft")
    args = replace(args, do_train=True)
    with held_folder(args.folder):
        return subtract_memory(model_args, data_args, args, flags)


def subtract_memory(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig, flags) -> dict:
    """The run in its output folder; returns what is written to results.json."""
    checkpoint_to_resume(args, model_args)  # refuses a folder that holds something
    with PartialState().main_process_first():
        tokenizer, _, data = load_rows(model_args, data_args, args)  # the method's own rows have no part in this
    if "forget" not in data.datasets or not {"valid", "retain"} & data.datasets.keys():
        raise ConfigError("the scale is chosen by forget and valid rows; give --forget_file and --valid_file")
    started = time.time()
    origin, reference = prepare_stages(model_args, args, data, tokenizer)
    settings = {name: getattr(args, name) for name in AS_GIVEN} | {"retain_objective": "none", "do_eval": True}
    trainer = make_trainer(origin, plain(args, "memorize", args.folder, **settings), data, tokenizer)
    if is_sharded(trainer.accelerator):
        raise ConfigError("a task vector needs whole weights on each process: start without ZeRO-3 and FSDP")
    trained = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}
    start = {name: each.detach().to(args.device, copy=True) for name, each in trained.items()}
    trainer.train_to_the_end("while the task vector was trained; nothing was written")
    step = {name: each.detach() - start[name] for name, each in trained.items()}
    timing = {"train_seconds": time.time() - started}

    started = time.time()
    table = try_scales(trainer, start, step, flags.scales)
    fitting = [row["scale"] for row in table if row["perplexity_ratio"] <= flags.max_perplexity_ratio]
    if not fitting:
        raise ConfigError(
            f"no scale keeps the perplexity within --max_perplexity_ratio {flags.max_perplexity_ratio}; give smaller "
            "--scales, fewer epochs or a lower --learning_rate"
        )
    scale = max(fitting)
    say(f"chosen: {scale}")
    subtract(trainer.model, start, step, scale)
    trainer.save_model(str(args.folder))
    weights, after = trainer.language_weights, trainer.measure(description="after")
    # What it was trained by is not what was asked for.
    parts = [item.name for part in (ObjectiveArguments, MethodArguments, WeightArguments) for item in fields(part)]
    trained_by = {name: getattr(trainer.args, name) for name in parts}
    config = configuration(model_args, data_args, args) | trained_by | vars(flags)
    results = {
        "schema_version": 1,
        "config": config | {"method": "task_vector"},
        "environment": environment(args.device, args.world_size),
        "languages": data.languages,
        "heldout_languages": data.heldout_languages,
        "dropped_rows": data.dropped_rows,
        "truncated_rows": data.truncated_rows,
        "before": weights.figures_at_start,
        "after": after,
        "language_weights": [],
        "unlearning_score": weights.score(after),
        "task_vector": {"scale": scale, "scales": table},
        "timing": timing,
    }
    if reference:
        results["never_seen"] = trainer.measure(load_model(reference, tokenizer), "never seen")
    timing |= {"eval_seconds": time.time() - started, "peak_memory_bytes": peak_memory()}
    if trainer.is_world_process_zero():
        write_results(args.folder / RESULTS, results)
    say(comparison_table(results))
    return results


if __name__ == "__main__":
    run_command(run)
