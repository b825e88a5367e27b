"""What a run leaves behind for people and scripts: ``results.json`` and the table printed at its end."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .languages import language_name

PHASES = {"before": "before", "after": "after", "never_seen": "unseen"}


@dataclass(frozen=True)
class _Group:
    """One metric of one split: a column for each phase that has it."""

    title: str
    split: str
    metric: str
    phases: tuple[str, ...]
    decimals: int
    badness: Callable[[float | None, float], float | None]  # (before, last) -> greater is worse


def _remembered(before: float | None, last: float) -> float:
    return last


def _familiar(before: float | None, last: float) -> float:
    return -last


def _grown(before: float | None, last: float) -> float | None:
    # Perplexities of two languages are not comparable, only what became of them.
    return last / before if before else None


_GROUPS = (
    _Group("forget MA", "forget", "memorization_accuracy", tuple(PHASES), 3, _remembered),
    _Group("forget ES", "forget", "extraction_strength", tuple(PHASES), 3, _remembered),
    _Group("forget loss", "forget", "loss", tuple(PHASES), 2, _familiar),
    _Group("retain perplexity", "retain", "perplexity", ("before", "after"), 2, _grown),
    _Group("valid perplexity", "valid", "perplexity", ("before", "after"), 2, _grown),
    _Group("test perplexity", "test", "perplexity", ("before", "after"), 2, _grown),
)


def comparison_table(results: dict[str, Any], width: int | None = None) -> str:
    """``results`` (the schema of results.json) as a plain text table, a line per language and one for their mean.

    Held-out languages and their mean stand below a rule of their own. Columns without a figure are left out, a missing
    figure is "-"; where before and after are the same, they stand there once, as "now". The last phase's worst
    language of each block is marked, unless all are equal. ``width`` is the number of characters a line may have
    (default: the terminal's, or 120); what does not fit goes into a further table below, but one metric's columns stay
    together. Languages have their names beside their codes where that takes no further table. "nan" and "inf" are
    figures of a model that was destroyed.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    blocks = [block for block in (results["languages"], results["heldout_languages"]) if block]
    if results.get("before") and results["before"] == results.get("after"):  # nothing was trained
        results = {**results, "before": {}}
    groups = [group for group in (_render_group(group, results, blocks) for group in _GROUPS) if group]
    if not groups:
        return "no figures were measured"
    labels = [[*block, "mean"] for block in blocks]
    parts = _fit(groups, width - _widest(labels))
    named = [[f"{code} {language_name(code) or ''}".strip() for code in block] + ["mean"] for block in blocks]
    if len(with_names := _fit(groups, width - _widest(named))) == len(parts) and all(
        _widest(named) + sum(len(group[0]) + 3 for group in part) <= width for part in with_names
    ):
        labels, parts = named, with_names
    return "\n\n".join([*(_draw(labels, part) for part in parts), _legend(results, groups)])


def _widest(labels: list[list[str]]) -> int:
    return max(len(label) for label in ["language", *(label for block in labels for label in block)])


def _draw(labels: list[list[str]], groups: list[list[str]]) -> str:
    """The table of some groups as plain text."""
    from rich import box  # lazily: what a command refuses at its start needs no table
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII, show_edge=False, pad_edge=False)
    for lines in [["", "language"], *groups]:
        table.add_column(Text("\n".join(lines[:2])), no_wrap=True)
    rows = zip(*(lines[2:] for lines in groups), strict=True)
    for number, block in enumerate(labels):
        if number:
            table.add_section()
        for label, cells in zip(block, rows):  # noqa: B905 (the rows of the next block follow)
            table.add_row(*map(Text, (label, *cells)))
    console = Console(width=10_000, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False)
    with console.capture() as drawn:
        console.print(table)
    found = [line.rstrip() for line in drawn.get().rstrip().splitlines()]
    if len(labels) > 1:  # the rule below two lines of heads, the first rule and the first block
        heading, rule = "-- held out, never trained ", 3 + len(labels[0])
        found[rule] = (heading + found[rule][len(heading) :]).rstrip()
    return "\n".join(found)


def _fit(groups: list[list[str]], width: int) -> list[list[list[str]]]:
    """Packs groups, each a list of equally long lines, into tables of at most ``width``, at least one in each."""
    parts: list[list[list[str]]] = [[]]
    for group in groups:
        if parts[-1] and sum(len(lines[0]) + 3 for lines in [*parts[-1], group]) > width:
            parts.append([])
        parts[-1].append(group)
    return parts


def _render_group(group: _Group, results: dict[str, Any], blocks: list[list[str]]) -> list[str] | None:
    """Title, column heads and one line per language and mean, all equally long; None without any figure."""
    columns = {phase: [_column(group, results.get(phase) or {}, block) for block in blocks] for phase in group.phases}
    columns = {phase: column for phase, column in columns.items() if any(v is not None for b in column for v in b)}
    if not columns:
        return None
    judged = "after" if "after" in columns else next(iter(columns))
    rendered = []
    for phase, column in columns.items():
        title = "now" if phase == "after" and not results.get("before") else PHASES[phase]
        cells = [title + " " * (phase == judged)]
        for number, values in enumerate(column):
            before: list[float | None] = columns["before"][number] if "before" in columns else [None] * len(values)
            worst = _worst(group, before, values) if phase == judged else set()
            for index, value in enumerate([*values, _mean(values)]):
                mark = "*" if index in worst else " " * (phase == judged)
                cells.append(_number(value, group.decimals) + mark)
        cell_width = max(len(cell) for cell in cells)
        rendered.append([cell.rjust(cell_width) for cell in cells])
    lines = ["  ".join(cells) for cells in zip(*rendered, strict=True)]
    line_width = max(len(group.title), len(lines[0]))
    return [group.title.center(line_width), *(line.rjust(line_width) for line in lines)]


def _column(group: _Group, phase: dict[str, Any], languages: list[str]) -> list[float | None]:
    figures = phase.get(group.split, {})
    return [figures.get(language, {}).get(group.metric) for language in languages]


def _worst(group: _Group, before: list[float | None], values: list[float | None]) -> set[int]:
    known = {}
    for index, (first, last) in enumerate(zip(before, values, strict=True)):
        if last is not None and (badness := group.badness(first, last)) is not None:
            known[index] = badness
    if len(set(known.values())) < 2 or any(map(math.isnan, known.values())):
        return set()  # a NaN is neither better nor worse than another figure, and speaks for itself
    return {index for index, badness in known.items() if badness == max(known.values())}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, decimals: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if abs(value) < 10_000 or math.isinf(value) else f"{value:.1e}"


def _legend(results: dict[str, Any], groups: list[list[str]]) -> str:
    lines = []
    if any("*" in line for group in groups for line in group):
        lines.append("* worst language: forget best remembered, perplexity grown most")
    if results.get("never_seen"):
        lines.append("unseen: a model that never saw the forget set")
    score = results.get("unlearning_score")
    if score is not None:
        lines.append(f"unlearning score: {score:.3f} (0 worst, 1 best)")
    else:
        after = results.get("after", {})
        if results.get("language_weights") and "forget" in after and after.keys() & {"valid", "retain"}:
            lines.append("unlearning score: none, because there was nothing to forget in any language")
    return "\n".join(lines)
