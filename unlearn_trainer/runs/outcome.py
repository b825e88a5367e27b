"""What a run says for itself: at its start what nothing guards, at its end, in plain words, what came of it."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..config.unlearn_config import UnlearnConfig
from ..evaluation.greedy_text import SIGNS
from ..report.summary import example_lines, shares_left, verdict
from ..weights.policy import perplexity_ratio

logger = logging.get_logger(__name__)

REMEMBERED = 0.5  # share of the memorization that may be left before the run is said to have forgotten little
GREW = 2.0  # times the perplexity at the start from which the rest is said to have suffered
BETTER = 0.03  # of the score by which an earlier model has to be better to be named: less is chance of few rows
WORN_OUT = 0.5  # share of blank or repeating texts from which they are worth a warning


def warn_of_the_unguarded(args: UnlearnConfig, measured: Collection[str]) -> None:
    """Say at the start that what is to be kept may be lost without a word.

    Args:
        args: of the run.
        measured: splits that are evaluated.
    """
    forgets = args.trains("forget") and args.forget_objective != "nll"
    if not args.do_train or not forgets or args.trains("retain"):
        return
    lacking = []
    if "retain" not in measured:
        lacking.append("guards")
    if not {"retain", "valid"} & set(measured):
        lacking.append("measures")
    if lacking:
        logger.warning(
            "nothing %s what the model is to keep: --forget_objective %s runs without a retain objective%s, and may "
            "ruin the model; give --retain_file and --do_eval, or a --retain_objective",
            " or ".join(lacking),
            args.forget_objective,
            " and without measured retain rows" + (" or valid rows" if len(lacking) > 1 else ""),
        )


def weaknesses(results: dict[str, Any]) -> list[str]:
    """What a reader of the table should not overlook, a sentence each; nothing where the run did what was asked.

    Args:
        results: the schema of results.json.
    """
    return [*_little_forgotten(results), *_rest_lost(results), *_worn_out(results), *_better_before(results)]


def closing_words(results: dict[str, Any], written: bool) -> str:
    """The last lines of a run: its verdict in a sentence, examples, why and when it stopped, where everything lies.

    Args:
        results: the schema of results.json.
        written: whether results.json was.
    """
    config = results["config"]
    lines = [sentence] if (sentence := verdict(results)) else []
    lines += example_lines(results)
    if results.get("targets"):
        targets = ", ".join(f"{language} {target:.3f}" for language, target in results["targets"].items())
        lines.append(f"targets of forgetting ({config['forget_metric']}): {targets}")
    if config["do_train"]:
        reason = results["stop_reason"] or "all steps were done"
        lines.append(f"ended after step {results['steps']}: {reason}")
        kept = results["model_of_step"]
        if kept != results["steps"]:
            best = next(point for point in results["evaluations"] if point["step"] == kept)
            score = best["unlearning_score"]
            lines.append(
                f"kept: the model of step {kept}, the best of {len(results['evaluations'])} evaluations"
                + (f" (unlearning score {score:.3f})" if score is not None else "")
            )
        lines += _greedy_lines(results["greedy_text"])
    lines += [f"warning: {weakness}" for weakness in weaknesses(results)]
    output = Path(config["output_dir"])
    places = [f"model: {output}"] if config["do_train"] else []
    places += [f"report: {output / 'report.html'}; results: {output / 'results.json'}"] if written else []
    return "\n".join([*lines, *(["; ".join(places)] if places else [])])


def _little_forgotten(results):
    config, metric = results["config"], results["config"]["forget_metric"]
    forgets = config["forget_objective"] not in ("none", "nll") and config["forget_coef"] > 0
    if not config["do_train"] or not forgets:
        return []
    left = {language: share for language, share in shares_left(results).items() if share is not None}
    if not left or sum(left.values()) / len(left) <= REMEMBERED:
        return []
    worst = max(left, key=lambda language: left[language])
    before, after = (results[phase]["forget"] for phase in ("before", "after"))
    first, last = (sum(figures[language][metric] for language in left) / len(left) for figures in (before, after))
    length = f"--max_steps {config['max_steps']}"
    if config["max_steps"] <= 0:
        length = f"--num_train_epochs {config['num_train_epochs']:g}"
    return [
        f"little was forgotten: {metric} of the forget rows went from {first:.2f} to {last:.2f}, and is still "
        f"{after[worst][metric]:.2f} in {worst}; raise --learning_rate ({config['learning_rate']:g} now), {length}, "
        f"or --forget_coef ({config['forget_coef']:g} now)"
    ]


def _rest_lost(results):
    if not results["config"]["do_train"]:
        return []
    grown = {}
    for split in ("retain", "valid"):
        before, after = ((results.get(phase) or {}).get(split, {}) for phase in ("before", "after"))
        known = [language for language in results["languages"] if language in before and language in after]
        if known:
            rise = sum(after[language]["loss"] - before[language]["loss"] for language in known) / len(known)
            if not rise <= math.log(GREW):  # NaN included
                grown[split] = perplexity_ratio(rise)
    if not grown:
        return []
    said = {split: f"{ratio:.2g} times the start's" for split, ratio in grown.items()}
    said |= {split: "not a number" for split, ratio in grown.items() if math.isnan(ratio)}
    times = " and ".join(f"{split} perplexity is {words}" for split, words in said.items())
    stops_early = results["config"]["forget_weighting"] == "target"
    early = "" if stops_early else ", or stop early with --forget_weighting target"
    return [
        f"what was to stay has suffered: {times}; lower --learning_rate or --forget_coef, give more weight to a "
        f"--retain_objective{early}"
    ]


def _worn_out(results):
    said = []
    for split, by_language in results.get("greedy_text", {}).items():
        for word, share in _means(by_language).items():
            if word != "ended" and share >= WORN_OUT:
                verb = "are blank" if word == "blank" else "repeat themselves"
                said.append(f"{share:.0%} of the greedy texts after {split} rows {verb}")
    if not said:
        return []
    return [f"{', '.join(said)}; look at them with --show_texts, and see whether the start model's are, too"]


def _better_before(results):
    config, points = results["config"], results["evaluations"]
    scored = [point for point in points if point["unlearning_score"]]
    if not config["do_train"] or not scored or results["unlearning_score"] is None:
        return []
    best = max(scored, key=lambda point: point["unlearning_score"])
    if best["step"] == results["model_of_step"] or best["unlearning_score"] <= results["unlearning_score"] + BETTER:
        return []
    return [
        f"an earlier model was better: unlearning score {best['unlearning_score']:.3f} at step {best['step']}, "
        f"{results['unlearning_score']:.3f} in the one that was kept; --load_best_model_at_end with --save_strategy "
        "best keeps it"
    ]


def _greedy_lines(greedy):
    lines = []
    for split, by_language in greedy.items():
        rows = sum(found["rows"] for found in by_language.values())
        found = ", ".join(f"{share:.0%} {word}" for word, share in _means(by_language).items())
        lines.append(f"greedy text after {rows} {split} rows: {found}")
    return lines


def _means(by_language):
    rows = sum(found["rows"] for found in by_language.values())
    return {word: sum(found[word] * found["rows"] for found in by_language.values()) / rows for word in SIGNS}
