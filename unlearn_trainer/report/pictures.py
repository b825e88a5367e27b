"""Pictures as SVG elements: a heat map of a matrix, and a strip of figures between two references.

Pure functions of their arguments. Cells are a translucent tint, which is readable in light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .drawing import FONT, Drawing, finite

# Cells with a number in them; more columns than this leave no room for one.
MOST_NUMBERED = 16
# Places on a strip that have a name, and those at its left and right edge.
ENDS = {0: "never seen", 1: "before"}
SPAN = (-0.3, 1.3)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    row_title: str,
    column_title: str,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
) -> str:
    """A matrix as tinted cells, as an SVG element.

    Up to 16 columns the cells hold their numbers; beyond that, and for reading on a pointer, every cell has a tooltip.
    A cell without a value is struck through. Where a row and a column have the same name their cell is outlined.

    Args:
        rows, columns: names, from the top and from the left.
        values: one list a row; None and NaN where there is no figure.
        row_title, column_title: what rows and columns are.
        title: what a screen reader says, and the tooltip beside the cells.
        low, high: value of the faintest and of the fullest tint; what lies outside gets the tint of the nearer one.

    Raises:
        ValueError: ``values`` is not of the size of ``rows`` and ``columns``.
    """
    numbered = len(columns) <= MOST_NUMBERED
    wide, tall = (27, 23) if numbered else (17, 17)
    upright = _width(columns) > wide - 4
    left, top = 24 + _width(rows), 24 + (_width(columns) + 4 if upright else 16)
    right, bottom = left + wide * len(columns), top + tall * len(rows)
    drawing = Drawing(max(right + 4, left + 190, left + _width([column_title])), bottom + 32)
    drawing.text(left, 14, column_title, weight=700)
    drawing.text(14, top, row_title, "right", weight=700, turn=90)
    for number, name in enumerate(columns):
        x = left + wide * (number + 0.5)
        if upright:
            drawing.text(x + 4, top - 5, name, turn=90)
        else:
            drawing.text(x, top - 6, name, "center")
    missing = False
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + tall * i
        drawing.text(left - 6, y + tall / 2 + 4, name, "right")
        for j, (column, value) in enumerate(zip(columns, line, strict=True)):
            x, value = left + wide * j, finite(value)
            missing |= value is None
            said = "no figure" if value is None else f"{value:.3f}"
            with drawing.tooltip(f"{row_title} {name}, {column_title} {column}: {said}"):
                drawing.cell(x, y, wide, tall, _share(value, low, high), outlined=name == column)
                if numbered and value is not None:
                    drawing.text(x + wide / 2, y + tall / 2 + 4, _short(value), "center", size=10)
    _add_scale(drawing, left, bottom + 12, low, high, missing)
    return drawing.svg(title)


@dataclass(frozen=True)
class Mark:
    """One line of a strip.

    Args:
        label: what the figure is.
        value: its place; None where there is none.
        low, high: its interval, drawn as a whisker.
        detail: small print below the label.
        others: places of less important figures on the same line, drawn as faint ticks.
        hollow: sets a figure of another kind apart from the rest.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    detail: str = ""
    others: Sequence[float] = ()
    hollow: bool = False


def strip(
    marks: Sequence[Mark],
    title: str,
    width: int = 340,
    labelled: bool = True,
) -> str:
    """Dots with whiskers between a model that never saw something (0) and the one before (1), a line each, as SVG.

    What lies outside -0.3 to 1.3 stands at its edge as an arrow head; the number beside it is exact.

    Args:
        marks: from the top.
        title: what a screen reader says, and the tooltip beside the dots.
        width: in pixels.
        labelled: False leaves out labels, numbers and the names of the ends, for use in a table.
    """
    left, right = (136, width - 40) if labelled else (8, width - 8)
    heights = [(33 if mark.detail else 21) if labelled else 24 for mark in marks]
    top = 22 if labelled else 0
    bottom = top + sum(heights)

    def across(place: float) -> float:
        return left + (min(max(place, SPAN[0]), SPAN[1]) - SPAN[0]) / (SPAN[1] - SPAN[0]) * (right - left)

    drawing = Drawing(width, bottom + 2)
    for place, name in ENDS.items():
        drawing.line([across(place)] * 2, [top, bottom], 0.55)
        if labelled:
            drawing.text(across(place), 13, name, "center")
    drawing.line([across(0.5)] * 2, [top, bottom], 0.3, style=(0, (1, 3)))
    y = top
    previous = None
    for mark, height in zip(marks, heights, strict=True):
        middle = y + (11 if labelled else height / 2)
        if previous and mark.hollow != previous.hollow:
            drawing.line([0, width], [y, y], 0.3)
        previous = mark
        if labelled:
            drawing.text(0, middle + 4, mark.label)
            if mark.detail:
                drawing.text(0, middle + 17, mark.detail, size=10, alpha=0.7)
        _add_mark(drawing, mark, middle, across)
        value = finite(mark.value)
        if labelled:
            drawing.text(width, middle + 4, "–" if value is None else _short(value), "right")
        y += height
    return drawing.svg(title, shrinks=True)


def _add_mark(drawing: Drawing, mark: Mark, y: float, across) -> None:
    value, low, high = finite(mark.value), finite(mark.low), finite(mark.high)
    bounded = value is not None and low is not None and high is not None
    said = "no figure" if value is None else f"{value:.2f}"
    said += f", 95 % interval {low:.2f} to {high:.2f}" if bounded else ""
    with drawing.tooltip(f"{' '.join(filter(None, (mark.label, mark.detail)))}: {said}"):
        for place in mark.others:
            if finite(place) is not None:
                drawing.line([across(place)] * 2, [y - 4, y + 4], 0.4)
        if value is None:
            return
        x = across(value)
        if bounded:
            # Beside the dot only, so that a hollow one stays so.
            for end, beside in ((across(low), min(x - 4, across(high))), (across(high), max(x + 4, across(low)))):
                if (end - x) * (end - beside) > 0:
                    drawing.line([end, beside], [y, y], 0.6, 2)
                    drawing.line([end, end], [y - 3, y + 3], 0.6)
        if SPAN[0] <= value <= SPAN[1]:
            drawing.dot(x, y, 4, mark.hollow)
        else:
            tip = 7 if value > SPAN[1] else -7
            drawing.polygon([x - tip, x, x - tip], [y - 5, y, y + 5], mark.hollow)


def _add_scale(drawing: Drawing, x: float, y: float, low: float, high: float, missing: bool) -> None:
    start = x + len(_short(low)) * 6 + 6
    drawing.text(x, y + 10, _short(low), size=10, alpha=0.7)
    for step in range(5):
        drawing.cell(start + 14 * step, y, 14, 14, step / 4 if high > low else 0)
    drawing.text(start + 76, y + 10, _short(high), size=10, alpha=0.7)
    if missing:
        end = start + 88 + len(_short(high)) * 6
        drawing.cell(end, y, 14, 14, None)
        drawing.text(end + 20, y + 10, "no figure", size=10, alpha=0.7)


def _share(value: float | None, low: float, high: float) -> float | None:
    """How full the tint of a value is, from 0 to 1."""
    if value is None:
        return None
    return min(max((value - low) / (high - low), 0), 1) if high > low else 0


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 10 else f"{value:.3g}"


def _width(names: Sequence[str]) -> float:
    """Pixels that the longest name takes; capitals are wider than this, most names of languages narrower."""
    return math.ceil(max((len(name) for name in names), default=0) * FONT * 0.6)
