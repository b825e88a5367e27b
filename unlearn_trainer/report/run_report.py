"""The report of a run: report.html and report.md, from the content of results.json alone.

It is written for somebody who decides and reads no papers: the verdict in a sentence, what to do next, then what it
rests on, language by language.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole
from .curves import Points, curves
from .document import (
    Bullets,
    Cell,
    Figure,
    Folded,
    Group,
    Heading,
    Paragraph,
    Table,
    Verdict,
    drawn,
    html_of,
    markdown_of,
)
from .drawing import finite
from .languages import called
from .pictures import Mark, strip
from .summary import FORGOTTEN, LOST, names, perplexity_growth, shares_left, verdict

REPORT_HTML, REPORT_MD = "report.html", "report.md"
UNMEASURED = "–"
COUNTS = ("rows", "tokens")
METRICS = {
    "memorization_accuracy": "memorization accuracy: the share of a row's tokens that the model predicts from the "
    "true ones before",
    "extraction_strength": "extraction strength: the share of a row that follows, all right, from the shortest "
    "sufficient beginning",
    "loss": "loss: mean negative log-likelihood of a token, in nats",
    "probing_accuracy": "probing accuracy: the share of rows whose right candidate is the most likely one",
    "rouge_l": "ROUGE-L: the share of the true answer's words that the generated one has in the same order",
}
SPLITS = {
    "forget": "to be forgotten",
    "retain": "to be kept, trained on",
    "valid": "other text",
    "test": "other text, for the final figures only",
}
Blocks = Iterator[Any]


def write_run_report(folder: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Write report.html and report.md into ``folder``: each whole, or not at all.

    They hold a text of the splits only where ``results`` has examples, which it has with ``--show_texts``.

    Args:
        folder: the output folder of the run.
        results: the schema of results.json.
    """
    blocks = list(report_blocks(results, audited=(Path(folder) / "audit" / "audit.html").exists()))
    title = f"Unlearning: {_headline(results)}"
    for name, text in ((REPORT_HTML, html_of(blocks, title)), (REPORT_MD, markdown_of(blocks))):
        write_whole(Path(folder) / name, text)


def report_blocks(results: Mapping[str, Any], audited: bool = False) -> Blocks:
    """What the report says, block by block.

    Args:
        results: the schema of results.json.
        audited: whether an audit lies beside the report.
    """
    yield Heading(1, _headline(results))
    config = results["config"]
    yield Paragraph(
        "A language model was made to forget certain texts or facts in every language, and to keep everything else. "
        f"Model: {config['model_name_or_path']}; method: {config['method']}.",
        "lead",
    )
    for warning in results.get("warnings") or []:
        yield Paragraph(f"{warning[0].upper()}{warning[1:]}.", "alert")
    yield from _next_steps(results, audited)
    yield from by_language(results)
    yield from _examples(results)
    yield from _over_the_steps(results)
    yield from _all_figures(results)
    yield from _how_it_was_made(results)


def _headline(results: Mapping[str, Any]) -> str:
    return verdict(results) or "Nothing was unlearned in this run; its figures are those of the model as it is."


def _next_steps(results: Mapping[str, Any], audited: bool) -> Blocks:
    config = results["config"]
    said = []
    if not audited:
        said.append(
            f"Figures like these cannot prove that nothing is left. An audit attacks the model language by language: "
            f"python -m unlearn_trainer.audit {config['output_dir']}"
        )
    if not results.get("never_seen"):
        said.append(
            "No model that never saw the texts was measured, so that nobody can say what its figures would be: "
            "--train_never_seen trains one, --never_seen_model names one."
        )
    kept = [language for language, share in shares_left(results).items() if share is not None and share > FORGOTTEN]
    if kept:
        said.append(
            f"Still remembered in {names(kept)}: train longer (--max_steps, --num_train_epochs), or let each "
            "language have the weight it needs (--forget_weighting target)."
        )
    if any(
        not ratio <= limit for split, limit in LOST.items() for ratio in perplexity_growth(results, split).values()
    ):
        said.append(
            "Something else was lost: a lower --learning_rate, a higher --retain_coef or more retain rows keep more."
        )
    if said:
        yield Heading(2, "What to do next")
        yield Bullets(said)
    if audited:
        yield Paragraph("An audit of this model lies in the folder audit: audit/audit.html.")


def by_language(results: Mapping[str, Any]) -> Blocks:
    """What became of each language: a table, and a picture of what is left."""
    phases = {phase: results.get(phase) or {} for phase in ("before", "after", "never_seen")}
    if not phases["after"]:
        return
    metric = results["config"]["forget_metric"]
    shares = shares_left(results)
    everywhere = [*results["languages"], *results["heldout_languages"]]
    growth = {split: perplexity_growth(results, split, everywhere) for split in LOST}
    growth = {split: ratios for split, ratios in growth.items() if ratios}
    known = {phase: figures.get("forget", {}) for phase, figures in phases.items()}
    shown = [phase for phase in known if known[phase]]
    yield Heading(2, "Language by language")
    yield Paragraph(
        f"A language counts as forgotten when at most {FORGOTTEN:.0%} of what was memorized is left, between text "
        "that the model never saw and the model before. Text counts as lost when its perplexity grew to more than "
        f"{LOST['retain']:g} times (text to keep) or {LOST['valid']:g} times (other text) what it was."
    )
    rows: list[list[Cell]] = []
    for language in results["languages"]:
        row: list[Cell] = [called(language), _outcome(shares.get(language))]
        row += [_number(known[phase].get(language, {}).get(metric)) for phase in shown]
        row += [_times(ratios.get(language), LOST[split]) for split, ratios in growth.items()]
        rows.append(row)
    for language in results["heldout_languages"]:
        row = [f"{called(language)}, held out", UNMEASURED]
        row += [_number(known[phase].get(language, {}).get(metric)) for phase in shown]
        row += [_times(ratios.get(language), LOST[split]) for split, ratios in growth.items()]
        rows.append(row)
    titles = {"before": "before", "after": "now", "never_seen": "never seen"}
    head = ["language", "outcome", *(f"remembered {titles[phase]}" for phase in shown)]
    head += [f"{split} perplexity ×" for split in growth]
    yield Table(head, rows, range(2, len(head)), "outcomes")
    yield Paragraph(f"Remembered is {METRICS.get(metric, metric)}.")
    marks = [Mark(called(language), share) for language, share in shares.items() if share is not None]
    if marks:
        picture = strip(marks, "What is left of the memorization, by language", 460)
        lines = [(mark.label, _number(mark.value)) for mark in marks]
        caption = "What is left: 0 is text that the model never saw, 1 is the model before"
        yield Figure(caption, drawn(picture).svg, Table(("language", "left"), lines, (1,), "short"))


def _examples(results: Mapping[str, Any]) -> Blocks:
    found = [example for example in results.get("examples") or [] if example["language"] in results["languages"]]
    if not found:
        return
    yield Heading(2, "What the model says")
    yield Paragraph("How it goes on after the beginning of a row, word by word as is most likely, before and now.")
    head = ("language", "beginning", "the row goes on", "before", "now")
    for split in dict.fromkeys(example["split"] for example in found):
        rows = [
            (called(example["language"]), *(example[key] for key in ("prompt", "reference", "before", "after")))
            for example in found
            if example["split"] == split
        ]
        yield Folded(f"Rows {SPLITS.get(split, split)}", [Table(head, rows, kind="cards")], opened=split == "forget")


def _over_the_steps(results: Mapping[str, Any]) -> Blocks:
    pictures = [*_evaluation_curves(results), *_loss_curves(results), *_weight_curves(results)]
    if pictures:
        yield Heading(2, "Over the steps")
        yield Group(pictures, "pictures")


def _evaluation_curves(results: Mapping[str, Any]) -> Iterator[Figure]:
    points = results.get("evaluations") or []
    metric = results["config"]["forget_metric"]
    before = results.get("before") or {}
    for split, name, caption in (
        ("forget", metric, "Remembered of the rows to be forgotten"),
        ("retain", "perplexity", "Perplexity of the text to keep"),
    ):
        start = [{"step": 0, split: before[split]}] if split in before else []
        series = {
            called(language): [
                (point["step"], point.get(split, {}).get(language, {}).get(name)) for point in [*start, *points]
            ]
            for language in results["languages"]
        }
        if points:
            yield from _figure(series, caption, name.replace("_", " "))


def _loss_curves(results: Mapping[str, Any]) -> Iterator[Figure]:
    points = results.get("losses") or []
    series = {
        side: [(point["step"], point.get(f"{side}_loss")) for point in points if f"{side}_loss" in point]
        for side in ("forget", "retain")
    }
    yield from _figure({side: line for side, line in series.items() if line}, "Losses", "loss", from_zero=False)


def _weight_curves(results: Mapping[str, Any]) -> Iterator[Figure]:
    history = results.get("language_weights") or []
    for kind in ("forget", "retain", "distill"):
        series = {
            called(language): [(point["step"], (point.get(kind) or {}).get(language)) for point in history]
            for language in results["languages"]
        }
        values = {value for line in series.values() for _, value in line if value is not None}
        if len(values) > 1:  # weights that never moved say nothing
            yield from _figure(series, f"Language weights: {kind}", "weight")


def _figure(series: Mapping[str, Points], caption: str, y: str, from_zero: bool = True) -> Iterator[Figure]:
    known = {name: line for name, line in series.items() if any(finite(value) is not None for _, value in line)}
    if not known:
        return
    first_to_last = []
    for name, line in known.items():
        values = [value for _, value in line if finite(value) is not None]
        first_to_last.append((name, _number(values[0]), _number(values[-1])))
    table = Table(("", "first", "last"), first_to_last, (1, 2), "short")
    yield Figure(caption, drawn(curves(known, caption, y, from_zero=from_zero)).svg, table)


def _all_figures(results: Mapping[str, Any]) -> Blocks:
    phases = {phase: results.get(phase) or {} for phase in ("before", "after", "never_seen")}
    splits = [split for split in SPLITS if any(split in figures for figures in phases.values())]
    if not splits:
        return
    yield Heading(2, "All figures")
    yield Bullets(list(METRICS.values()))
    for split in splits:
        rows = []
        for language in [*results["languages"], *results["heldout_languages"]]:
            found = {phase: figures.get(split, {}).get(language) or {} for phase, figures in phases.items()}
            metrics = dict.fromkeys(name for figures in found.values() for name in figures if name not in COUNTS)
            counts = next((figures for figures in found.values() if figures), {})
            for name in metrics:
                values = [_number(found[phase].get(name)) for phase in phases]
                rows.append((called(language), name.replace("_", " "), *values, str(counts.get("rows", UNMEASURED))))
        head = ("language", "figure", "before", "now", "never seen", "rows")
        yield Folded(f"{split}: text {SPLITS[split]}", [Table(head, rows, range(2, len(head)), "short")])


def _how_it_was_made(results: Mapping[str, Any]) -> Blocks:
    yield Heading(2, "How it was made")
    config, made = results["config"], dict(results.get("environment") or {})
    versions = made.pop("versions", None) or {}
    rows = [("command", made.pop("command"))] if made.get("command") else []
    rows += [(key.replace("_", " "), str(value)) for key, value in made.items() if value is not None]
    rows.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items() if value)))
    rows.append(("steps", f"{results['steps']}: {results.get('stop_reason') or 'all steps were done'}"))
    for split, about in (results.get("data") or {}).items():
        rows.append(
            (f"data, {split}", ", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
        )
    rows += [(key.replace("_", " "), f"{value:.6g}") for key, value in (results.get("timing") or {}).items()]
    yield Table(("", ""), rows, kind="facts")
    flags = [(name, str(value)) for name, value in config.items() if value not in (None, "", [], {}, False)]
    yield Folded("Settings", [Table(("flag", "value"), flags)])


def _outcome(share: float | None) -> Verdict:
    if share is None:
        return Verdict("– nothing to forget", "undecided")
    return Verdict("✓ forgotten", "forgotten") if share <= FORGOTTEN else Verdict(f"✗ {share:.0%} left", "leaks")


def _times(ratio: float | None, limit: float) -> Cell:
    if ratio is None:
        return UNMEASURED
    if finite(ratio) is None:
        return Verdict("✗ not a number", "leaks")
    said = f"{ratio:.2f}" if ratio < 100 else f"{ratio:.2g}"
    return said if ratio <= limit else Verdict(f"✗ {said}", "leaks")


def _number(value: float | None) -> str:
    if value is None:
        return UNMEASURED
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
