"""What a run found out, as results.json holds it: figures, the curve of evaluations, and what became of the text."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..config.arguments import DataArguments, ModelArguments
from ..config.unlearn_config import UnlearnConfig
from ..data import TokenizedData
from ..evaluation.greedy_text import GreedyText, shares
from ..files import write_json
from ..report.table import PHASES
from ..trainer import UnlearnTrainer
from .environment import command_line, configuration, data_hashes, environment, peak_memory
from .examples import choose_examples, greedy_texts

# Of every split and language at every evaluation.
CURVE = ("memorization_accuracy", "extraction_strength", "loss", "perplexity")


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Within the context every warning of this package is shown, and added to the list that is yielded, once."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message in messages:
                return
            messages.append(message)
            # Python shows a warning that no handler takes, and this one would be such a handler.
            last = logging.lastResort
            if last is not None and not logging.root.handlers and PartialState().is_main_process:
                last.handle(record)

    logger, collector = logging.getLogger(__name__.partition(".")[0]), Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)


def gather_results(
    trainer: UnlearnTrainer,
    given: tuple[ModelArguments, DataArguments, UnlearnConfig],
    data: TokenizedData,
    after: dict,
    never_seen: dict | None,
    timing: dict[str, float],
    words: Sequence[str],
    said_before: list[GreedyText] | None = None,
) -> dict[str, Any]:
    """All that results.json holds but the warnings; call it on every process.

    Args:
        trainer: of the run, after its training.
        given: the run's arguments.
        data: the tokenized rows.
        after: figures of the model as it is now; none where nothing is measured.
        never_seen: figures of the model that never saw the forget set, if there is one.
        timing: seconds of the parts.
        words: the command line.
        said_before: what the start model says; texts are in the results only where it is given.
    """
    args, weights = given[-1], trainer.language_weights
    before = weights.figures_at_start if args.do_train else None
    results = {
        "schema_version": SCHEMA_VERSION,
        "config": configuration(*given),
        "environment": environment(args.device, args.world_size) | {"command": command_line(words)},
        "data": data_hashes(given[1]),
        "languages": data.languages,
        "heldout_languages": data.heldout_languages,
        "dropped_rows": data.dropped_rows,
        "truncated_rows": data.truncated_rows,
        "before": before,
        "after": after,
        "language_weights": weights.reported_history(),
        "evaluations": curve(trainer),
        "losses": losses(trainer),
        "targets": dict(zip(weights.languages, weights.target, strict=True)) if "forget" in (before or {}) else {},
        "unlearning_score": weights.score(after) if before and "forget" in after else None,
        "stop_reason": weights.stop_reason,
        "steps": trainer.state.global_step,
        "model_of_step": model_of_step(trainer),
        "greedy_text": {},
        "timing": timing | {"peak_memory_bytes": peak_memory()},
    }
    if before is None:
        missing = "not measured at the start: --do_eval was not given" if args.do_train else "nothing was trained"
        results["before_missing"] = missing
    if never_seen is not None:
        results["never_seen"] = never_seen
    if args.do_train:
        texts = greedy_texts(trainer, data)
        results["greedy_text"] = shares(texts)
        if said_before is not None:
            results["examples"] = choose_examples(said_before, texts)
    return results


def curve(trainer: UnlearnTrainer) -> list[dict[str, Any]]:
    """The evaluations during the training, ``[{"step", "epoch", "unlearning_score", split: {language: figures}}]``."""
    points = []
    for entry in trainer.state.log_history:
        if "eval_runtime" not in entry:
            continue
        point: dict[str, Any] = {"step": entry["step"], "epoch": entry.get("epoch")}
        point["unlearning_score"] = entry.get("eval_unlearning_score")
        for split in trainer.eval_dataset or {}:
            figures = {
                language: {name: entry[key] for name in CURVE if (key := f"eval_{split}_{language}_{name}") in entry}
                for language in trainer.languages
            }
            point[split] = {language: found for language, found in figures.items() if found}
        points.append(point)
    return points


def losses(trainer: UnlearnTrainer) -> list[dict[str, Any]]:
    """The losses that were logged during the training, ``[{"step", "loss", "forget_loss", "retain_loss"}]``."""
    names = ("step", "loss", "forget_loss", "retain_loss")
    return [
        {name: entry[name] for name in names if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def model_of_step(trainer: UnlearnTrainer) -> int:
    """The optimizer step after which the model was as it is now: the last, or that of the best checkpoint."""
    best = trainer.state.best_model_checkpoint
    if best is None or not trainer.ended_with_best:
        return trainer.state.global_step
    return int(Path(best).name.rpartition("-")[2])


SCHEMA_VERSION = 1


REQUIRED_KEYS = (
    "schema_version",
    "config",
    "environment",
    "languages",
    "heldout_languages",
    "dropped_rows",
    "language_weights",
    "unlearning_score",
    "timing",
)


def write_results(path: str | os.PathLike, results: dict[str, Any]) -> None:
    """Writes ``results`` (the schema of results.json) as :func:`write_json` does.

    Raises ValueError for a missing key, another schema version, results with neither `before` nor `after`, or figures
    of a language that is not listed, and TypeError for a value that JSON cannot hold.
    """
    _check_schema(results)
    write_json(path, results)


def _check_schema(results: dict[str, Any]) -> None:
    missing = [key for key in REQUIRED_KEYS if key not in results]
    if missing:
        raise ValueError(f"results lack {', '.join(missing)}")
    if results["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"results have schema_version {results['schema_version']!r}, not {SCHEMA_VERSION}")
    if "before" not in results and "after" not in results:
        raise ValueError("results have neither `before` nor `after`")
    listed = {*results["languages"], *results["heldout_languages"]}
    for phase in PHASES:
        for split, figures in (results.get(phase) or {}).items():
            if unlisted := sorted(set(figures) - listed):
                raise ValueError(f"results: {phase}/{split} has figures of unlisted languages: {', '.join(unlisted)}")
