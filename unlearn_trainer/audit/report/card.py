"""The report card of an audit: audit.md, audit.html and a table for the terminal, all from audit.json's content alone.

It is written for somebody who was not there: the outcome in a sentence, then what it rests on, then every figure.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import write_whole
from ...report.document import (
    Bullets,
    Cell,
    Drawing,
    Figure,
    Folded,
    Group,
    Heading,
    Language,
    Paragraph,
    Reasons,
    Table,
    Verdict,
    drawn,
    html_of,
    markdown_of,
)
from ...report.drawing import finite
from ...report.pictures import Mark, heat_map, strip
from ..results import Estimate
from .entries import MEANINGS, UNMEASURED, Entry, entries_of, interval, number, short, words, worst

# A sign and a word for each, so that none rests on its colour.
SIGNS = {"leaks": "✗", "over-unlearned": "↓", "undecided": "?", "forgotten": "✓"}
MODELS = {"after": "after (audited)", "before": "before", "never_seen": "never seen", "control": "control"}
NO_MODEL = {
    "before": "none given: no figure has a place between never seen and before",
    "never_seen": "none given, nor rows that no model saw",
}
DATA = ("data_dir", "forget_file", "retain_file", "valid_file", "test_file")
# Languages whose pictures stand open, the worst first; rows that a table may have and not be folded; reasons in sight.
OPEN_LANGUAGES, OPEN_ROWS, SHOWN_REASONS = 12, 8, 3
ENDS = "0 is a model that never saw the texts, 1 is the model before"

Blocks = Iterator[Any]
Entries = Mapping[str, Sequence[Entry]]


def write_report(folder: str | os.PathLike, audit: Mapping[str, Any]) -> None:
    """Writes audit.md and audit.html into ``folder``, from the content of audit.json: each whole, or not at all.

    Raises:
        KeyError: the content has no ``models`` or ``languages``, or a language has no ``verdict``.
    """
    blocks = list(_blocks(audit))
    written = {"audit.md": markdown_of(blocks), "audit.html": html_of(blocks, f"Unlearning audit: {headline(audit)}")}
    for name, text in written.items():
        write_whole(Path(folder) / name, text)


def headline(audit: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    verdicts = [about["verdict"] for about in audit["languages"].values()]
    if not verdicts:
        return "No language was audited."
    if len(verdicts) == 1:
        verb = "" if verdicts[0] == "leaks" else "is "
        return f"The one language audited, {next(iter(audit['languages']))}, {verb}{verdicts[0]}."
    parts = [f"{verdicts.count('forgotten')} of {len(verdicts)} languages forgotten"]
    for verdict in dict.fromkeys([*SIGNS, *verdicts]):
        count = verdicts.count(verdict)
        if count and verdict != "forgotten":
            parts.append(f"{count} {'leak' if verdict == 'leaks' and count > 1 else verdict}")
    first = audit.get("summary", {}).get("worst_language")
    return "; ".join([*parts, f"worst: {first}"] if first else parts) + "."


def summary_table(audit: Mapping[str, Any]) -> str:
    """The audit as plain text: a line per language in the audit's order, the worst first, and the outcome below.

    MA, ES and the AUC farthest from 0.5 are of the audited model as it is. The worst attack is the one that shows most
    knowledge of those that the verdict rests on: whose interval begins highest, by place between never seen (0) and
    before (1) where that is known.
    """
    head = ("language", "verdict", "MA", "ES", "AUC", "worst attack")
    rows = []
    for code, about in audit["languages"].items():
        entries = entries_of(audit, code)
        attack = worst(entry for entry in entries if entry.attack)
        plain = {entry.metric: entry.value for entry in entries if not entry.attack and not entry.variant}
        shares = [number(plain.get(metric)) for metric in ("memorization_accuracy", "extraction_strength")]
        # Towards 0 an AUC gives rows away as well as towards 1.
        areas = [value for name, value in plain.items() if "auc" in name.split("_") and value is not None]
        area = max(areas, key=lambda value: abs(value - 0.5), default=None)
        held_out = " *" if about.get("held_out") else ""
        rows.append((code + held_out, about["verdict"], *shares, number(area), str(attack or UNMEASURED)))
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if any(about.get("held_out") for about in audit["languages"].values()):
        text.append("* held out, never trained")
    return "\n".join([*text, headline(audit)])


def _blocks(audit: Mapping[str, Any]) -> Blocks:
    entries = {code: entries_of(audit, code) for code in audit["languages"]}
    yield Heading(1, headline(audit))
    yield Paragraph(
        "An empirical audit of what a model still has of the texts that it was to forget, language by language. It "
        "says what these attacks found, with these rows. Where they found nothing, others may find something.",
        "lead",
    )
    nothing = audit.get("summary", {}).get("nothing_to_forget")
    if nothing:
        yield Paragraph(
            f"Nothing to forget in {', '.join(nothing)}: the model before knew these texts no better than one that "
            "never saw them, so that the figures there say nothing about the unlearning.",
            "alert",
        )
    if not audit["models"].get("before"):
        yield Paragraph(
            "Whether the model ever knew these texts is not known: no model before was given, so that a language "
            "counts as forgotten where nothing was to forget, too.",
            "alert",
        )
    yield from _subject(audit, entries)
    yield from _verdicts(audit["languages"], entries)
    yield from _strips(audit["languages"], entries)
    yield from _matrices(audit.get("attacks", {}))
    yield from _all_figures(audit["languages"], entries)
    yield from _attacks(audit.get("attacks", {}), entries)
    yield Heading(2, "What was skipped")
    skipped = [f"{words(name)}: {why}" for name, why in (audit.get("skipped") or {}).items()]
    yield Bullets(skipped) if skipped else Paragraph("Nothing.")
    yield Heading(2, "The rule of the verdict")
    yield Paragraph(audit.get("rule") or UNMEASURED)
    yield from _making(audit)


def _subject(audit: Mapping[str, Any], entries: Entries) -> Blocks:
    yield Heading(2, "What was audited")
    models, settings, languages = audit["models"], audit.get("settings") or {}, audit["languages"]
    rows = [(MODELS[name], str(models.get(name) or NO_MODEL.get(name, UNMEASURED))) for name in [*MODELS][:3]]
    if unlearned := _unlearning(audit.get("config") or {}):
        rows.append(("unlearned by", unlearned))
    rows.append(("data", ", ".join(str(settings[key]) for key in DATA if settings.get(key)) or UNMEASURED))
    held_out = [code for code in languages if languages[code].get("held_out")]
    for title, codes in (("languages", [*languages]), ("of these held out, never trained", held_out)):
        if codes:
            rows.append((title, f"{len(codes)}: {', '.join(codes)}"))
    judged = (entry.figure.n for each in entries.values() for entry in each if entry.judged)
    counts = {n for n in judged if n is not None}
    spread = " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else UNMEASURED
    rows.append(("rows behind a judged figure (n)", spread))
    yield Table(("", ""), rows, kind="facts")


def _unlearning(config):
    """How the audited run was made, in short."""
    steps = config.get("max_steps") or 0
    length = {"steps": steps} if steps > 0 else {"epochs": config.get("num_train_epochs")}
    facts = {"method": config.get("method"), "learning rate": config.get("learning_rate"), **length}
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _verdicts(languages: Mapping[str, Any], entries: Entries) -> Blocks:
    yield Heading(2, "Verdicts")
    placed = any(entry.place is not None for each in entries.values() for entry in each)
    yield Paragraph("The worst language first. MA is memorization accuracy, ES extraction strength.")
    if placed:
        yield Paragraph(
            "The dot is the figure that shows most knowledge, the one whose 95 % interval begins highest; the faint "
            f"ticks are the others that the verdict rests on. {ENDS}.",
            in_markdown=False,
        )
    rows: list[list[Cell]] = []
    for index, (code, about) in enumerate(languages.items()):
        most = worst(entries[code])
        said = str(most or UNMEASURED)
        held_out = " (held out)" if about.get("held_out") else ""
        link = f"language-{index}" if placed else ""
        row: list[Cell] = [Language(code, held_out, link=link), _verdict(about["verdict"])]
        if placed:
            row.append(_dot(most, entries[code], f"{code}: {said}"))
        reasons = about.get("reasons") or [UNMEASURED]
        rows.append([*row, said, Reasons(reasons[:SHOWN_REASONS], reasons[SHOWN_REASONS:])])
    place = ["never seen (0) to before (1)"] if placed else []
    yield Table(["language", "verdict", *place, "most knowledge", "reasons"], rows, kind="cards")


def _dot(most: Entry | None, entries: Sequence[Entry], title: str) -> str | Drawing:
    if most is None or most.place is None:
        return UNMEASURED
    others = [entry.place for entry in entries if entry.judged and entry.place is not None]
    return drawn(strip([_mark(most, others=others)], title, 200, labelled=False), number(most.place))


def _strips(languages: Mapping[str, Any], entries: Entries) -> Blocks:
    yield Heading(2, "Where every figure stands")
    # A line is all variants of an attack by one metric, but those that the verdict does not rest on have their own.
    lines: dict[tuple[bool, str], dict[str, list[Entry]]] = {}
    for code, each in entries.items():
        for entry in each:
            # Perplexities differ by powers: their logarithm, the loss, can be seen on a line.
            if entry.place is not None and "perplexity" not in entry.metric:
                lines.setdefault((entry.judged, entry.line), {}).setdefault(code, []).append(entry)
    if not lines:
        yield Paragraph("Without a model before, and one that never saw the texts or such rows, nothing has a place.")
        return
    yield Paragraph(
        f"{ENDS}; whiskers are 95 % intervals. Full dots are figures that the verdict rests on, hollow ones are "
        "controls and others. An attack's line shows the variant whose interval begins highest, ticks are its others. "
        "An arrow head stands for a place beyond the edge.",
        in_markdown=False,
    )
    ordered = sorted(lines, key=lambda line: not line[0])
    cards, rows = [], []
    for index, (code, about) in enumerate(languages.items()):
        marks, places = [], []
        for judged, line in ordered:
            found = sorted(lines[judged, line].get(code, []), key=lambda entry: entry.height, reverse=True)
            several = len({entry.variant for each in lines[judged, line].values() for entry in each}) > 1
            places.append(number(found[0].place) if found else UNMEASURED)
            if found:
                detail = words(found[0].variant) if found[0].attack and (several or not judged) else ""
                marks.append(_mark(found[0], detail, [entry.place for entry in found[1:] if entry.place is not None]))
            else:
                marks.append(Mark(line, None, hollow=not judged))
        picture = strip(marks, f"{code}: every figure between never seen and before")
        opened = index < OPEN_LANGUAGES
        cards.append(Folded(_summary(code, about), [drawn(picture)], opened, f"language-{index}"))
        rows.append((code, *places))
    yield Group(cards, "grid", in_markdown=False)
    head = ("language", *(line if judged else f"{line} (not judged)" for judged, line in ordered))
    yield Folded(f"All places as numbers: {ENDS}", [Table(head, rows, range(1, len(head)), "short")])


def _matrices(attacks: Mapping[str, Any]) -> Blocks:
    matrices = {name: attack["matrix"] for name, attack in attacks.items() if attack.get("matrix")}
    if matrices:
        yield Heading(2, "Across languages and layers")
        yield Paragraph(
            "The fuller the colour, the greater the figure. An outline is where a language meets itself.",
            in_markdown=False,
        )
    for name, matrix in matrices.items():
        yield Heading(3, f"{words(name)}: {short(matrix['metric'])}")
        rows, columns = [str(row) for row in matrix["rows"]], [str(column) for column in matrix["columns"]]
        titles = matrix["row_title"], matrix["column_title"]
        found = (finite(value) for values in matrix["values"].values() for line in values for value in line)
        known = [value for value in found if value is not None]
        figures = []
        for model in sorted(matrix["values"], key=[*MODELS, *matrix["values"]].index):
            caption, values = MODELS.get(model, words(model)), matrix["values"][model]
            title = f"{words(name)}, {caption}: {short(matrix['metric'])} by {titles[0]} and {titles[1]}"
            picture = heat_map(rows, columns, values, *titles, title, min([0.0, *known]), max([1.0, *known]))
            lines = [(row, *map(number, line)) for row, line in zip(rows, values, strict=True)]
            table = Table((f"{titles[0]} / {titles[1]}", *columns), lines, range(1, len(columns) + 1), "short")
            figures.append(Figure(caption, drawn(picture).svg, table))
        yield Group(figures, "pictures")


def _all_figures(languages: Mapping[str, Any], entries: Entries) -> Blocks:
    yield Heading(2, "All figures")
    yield Paragraph(f"Values with 95 % intervals; n is the number of rows. Of the place, {ENDS}.")
    metrics = dict.fromkeys(entry.metric for each in entries.values() for entry in each)
    yield Bullets([f"{metric}: {MEANINGS[metric]}" for metric in metrics if metric in MEANINGS])
    head = ("attack", "variant or rows", "figure", "after", "n", "before", "never seen", "place")
    for code, each in entries.items():
        rows = [
            (
                words(entry.attack),
                words(entry.variant),
                entry.metric,
                *_cells(entry, _count(entry.figure)),
            )
            for entry in each
        ]
        summary = _summary(code, languages[code], f", {len(rows)} figures")
        yield Folded(summary, [Table(head, rows, range(3, len(head)), "short")])


def _attacks(attacks: Mapping[str, Any], entries: Entries) -> Blocks:
    said = {name: attack for name, attack in attacks.items() if attack.get("variants") or attack.get("notes")}
    if said:
        yield Heading(2, "Checks and attacks")
    for name, attack in said.items():
        yield Heading(3, words(name))
        if attack.get("notes"):
            yield Bullets(attack["notes"])
        rows = []
        for variant, metrics in (attack.get("variants") or {}).items():
            for metric in metrics:
                wanted = (name, variant, metric)
                found = {
                    code: entry
                    for code, each in entries.items()
                    for entry in each
                    if (entry.attack, entry.variant, entry.metric) == wanted
                }
                if found:
                    code = max(found, key=lambda code: found[code].height)
                    rows.append((words(variant), metric, str(len(found)), code, *_cells(found[code])))
        if rows:
            head = ("variant", "figure", "languages", "highest in", "after", "before", "never seen", "place")
            table = Table(head, rows, (2, 4, 5, 6, 7), "short")
            title = f"The language in which it stands highest, for each of {len(rows)} figures"
            yield table if len(rows) <= OPEN_ROWS else Folded(title, [table])


def _making(audit: Mapping[str, Any]) -> Blocks:
    yield Heading(2, "How it was made")
    made, timing = dict(audit.get("environment") or {}), audit.get("timing") or {}
    versions = made.pop("versions", None) or {}
    rows = [(words(key), str(value)) for key, value in made.items() if value is not None]
    rows.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items() if value) or UNMEASURED))
    rows.append(("seconds in all", f"{sum(timing.values()):.0f}"))
    yield Table(("", ""), rows, kind="facts")
    if timing:
        seconds = [(words(name), f"{value:.1f}") for name, value in timing.items()]
        yield Folded("Seconds by check", [Table(("check", "seconds"), seconds, (1,))])
    for title, key in (("Settings of the audit", "settings"), ("Configuration of the audited run", "config")):
        given = (audit.get(key) or {}).items()
        flags = [(name, str(value)) for name, value in given if value not in (None, "", [], {})]
        if flags:
            yield Folded(title, [Table(("flag", "value"), flags)])


def _cells(entry: Entry, *counts: str) -> tuple[str, ...]:
    figure = entry.figure
    return interval(figure), *counts, *map(interval, (figure.before, figure.never_seen, figure.position))


def _count(figure: Estimate) -> str:
    return "" if figure.n is None else str(figure.n)


def _mark(entry: Entry, detail: str = "", others: Sequence[float] = ()) -> Mark:
    position = entry.position
    return Mark(entry.line, entry.place, position.low, position.high, detail, others, hollow=not entry.judged)


def _verdict(verdict: str) -> Verdict:
    return Verdict(f"{SIGNS.get(verdict, '?')} {verdict}", verdict if verdict in SIGNS else "undecided")


def _summary(code: str, about: Mapping[str, Any], more: str = "") -> Language:
    held_out = ", held out" if about.get("held_out") else ""
    return Language(code, held_out + more, _verdict(about["verdict"]))
