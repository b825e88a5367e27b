"""What a run leaves behind for people and scripts: ``results.json`` and the table printed at its end."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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
    together. "nan" and "inf" are figures of a model that was destroyed.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    blocks = [block for block in (results["languages"], results["heldout_languages"]) if block]
    labels = [[*block, "mean"] for block in blocks]
    names = ["language", *(label for block in labels for label in block)]
    name_width = max(len(name) for name in names)
    if results.get("before") and results["before"] == results.get("after"):  # nothing was trained
        results = {**results, "before": {}}
    groups = [group for group in (_render_group(group, results, blocks) for group in _GROUPS) if group]
    if not groups:
        return "no figures were measured"

    tables = []
    for part in _fit(groups, width - name_width):
        lines = [" " * name_width + "".join(f" | {lines[0]}" for lines in part)]
        lines.append("language".ljust(name_width) + "".join(f" | {lines[1]}" for lines in part))
        index = 2
        for number, block in enumerate(labels):
            rule = "-" * name_width + "".join("-+-" + "-" * len(lines[0]) for lines in part)
            heading = "-- held out, never trained "
            lines.append(rule if number == 0 else heading + rule[len(heading) :])
            for label in block:
                lines.append(label.ljust(name_width) + "".join(f" | {lines[index]}" for lines in part))
                index += 1
        tables.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join([*tables, _legend(results, groups)])


def _fit(groups: list[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Packs groups, each a list of equally long lines, into tables of at most ``width``, at least one in each."""
    part: list[list[str]] = []
    for group in groups:
        if part and sum(len(lines[0]) + 3 for lines in [*part, group]) > width:
            yield part
            part = []
        part.append(group)
    yield part


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
            before = columns["before"][number] if "before" in columns else [None] * len(values)
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
