"""What a run came to, in words for a reader who knows no paper: a sentence, and what the model said and says now."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..weights.policy import perplexity_ratio, remembered
from .languages import called

# Share of the memorization above the target that may be left in a language that counts as forgotten.
FORGOTTEN = 0.1
# Times the perplexity at the start from which text counts as lost. What is to be kept was learned by heart; of text
# that the model does not know, the perplexity is high from the start and moves with everything.
LOST = {"retain": 1.05, "valid": 2.0, "test": 2.0}
KEPT_TEXT = {"retain": "text to keep", "valid": "other text", "test": "other text"}
EXAMPLES = 3
SAID = {"text": "reference", "before": "before", "now": "after"}


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence: in how many languages it is forgotten, what else was lost, and the score.

    Only trained languages count. A language counts as forgotten when at most a tenth of what was memorized above its
    target is left; text counts as lost in a language when its perplexity grew beyond ``LOST``.

    Args:
        results: the schema of results.json.

    Returns:
        An empty text for a run that trained nothing, or measured no forget rows.
    """
    shares = shares_left(results)
    if not shares:
        return ""
    left = {language: share for language, share in shares.items() if share is not None}
    if not left:
        return (
            "There was nothing to forget in any language: the start model knows the forget rows no better than others."
        )
    kept = [language for language, share in left.items() if not share <= FORGOTTEN]
    said = f"Forgotten in {len(left) - len(kept)} of {len(left)} languages"
    if kept:
        said += f" (not in {names(kept)})"
    if unknown := len(shares) - len(left):
        said += f", with nothing to forget in {unknown} more"
    score = results.get("unlearning_score")
    rated = f": score {score:.2f} of 1" if score is not None else ""
    return f"{said}, {_losses(results)}{rated}."


def shares_left(results: Mapping[str, Any]) -> dict[str, float | None]:
    """How much of each trained language's memorization is left, from 0 to 1; None where there was nothing to forget.

    Empty without figures of the forget split before and after a training.
    """
    metric = results["config"]["forget_metric"]
    before, after = ((results.get(phase) or {}).get("forget", {}) for phase in ("before", "after"))
    return {
        language: remembered(after[language][metric], before[language][metric], target)
        for language, target in (results.get("targets") or {}).items()
        if language in before and language in after
    }


def perplexity_growth(
    results: Mapping[str, Any], split: str, languages: Sequence[str] | None = None
) -> dict[str, float]:
    """How many times its start's the perplexity of a split is, by language (default: the trained); NaN included."""
    before, after = ((results.get(phase) or {}).get(split, {}) for phase in ("before", "after"))
    return {
        language: perplexity_ratio(after[language]["loss"] - before[language]["loss"])
        for language in (results["languages"] if languages is None else languages)
        if language in before and language in after
    }


def names(languages: Sequence[str]) -> str:
    """Languages by name, where they have one, joined by commas."""
    return ", ".join(map(called, languages))


def example_lines(results: Mapping[str, Any], count: int = EXAMPLES) -> list[str]:
    """What the model said after forget rows before, and says now, in ``count`` languages; none without examples."""
    trained = [example for example in results.get("examples") or [] if example["language"] in results["languages"]]
    forgotten = [example for example in trained if example["split"] == "forget"]
    if not forgotten:
        return []
    lines = ["How the model went on after the beginning of a forget row, and how it goes on now:"]
    for example in spread(forgotten, count):
        lines += [f"  {called(example['language'])}: {_one_line(example['prompt'], 160, end=True)} ..."]
        lines += [f"    {word:<6}  {_one_line(example[key], 100)}" for word, key in SAID.items()]
    return lines


def spread(examples: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """``count`` of the examples, from the first to the last in even steps: languages of many scripts, where sorted."""
    if len(examples) <= count:
        return list(examples)
    return [examples[round(place * (len(examples) - 1) / max(1, count - 1))] for place in range(count)]


def _losses(results: Mapping[str, Any]) -> str:
    """What else was lost, in words."""
    said: dict[str, str] = {}
    measured = False
    for split, limit in LOST.items():
        grown = perplexity_growth(results, split)
        measured |= bool(grown)
        lost = {language: ratio for language, ratio in grown.items() if not ratio <= limit}  # NaN counts as lost
        if not lost or KEPT_TEXT[split] in said:
            continue
        worst = max(lost, key=lambda language: math.inf if math.isnan(lost[language]) else lost[language])
        times = "not a number" if math.isnan(lost[worst]) else f"{lost[worst]:.3g} times the start's"
        said[KEPT_TEXT[split]] = (
            f"{KEPT_TEXT[split]} in {len(lost)} of {len(grown)} languages (perplexity in {names([worst])} is {times})"
        )
    if not measured:
        return "nothing else measured"
    return f"but lost: {' and '.join(said.values())}" if said else "nothing else lost"


def _one_line(text: str, length: int, end: bool = False) -> str:
    """``text`` on one line and cut to ``length``, at its beginning where its ``end`` counts."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    return f"...{line[-length:]}" if end else f"{line[:length]}..."
