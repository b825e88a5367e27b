"""Pictures of an audit as SVG: a heat map of a matrix, and a strip of figures between two references.

Pure functions of their arguments. Lines and text take the colour of the text around them, so that a picture inside a
page follows it into dark mode; cells are a translucent tint for the same reason. Nothing refers to an id, which keeps
any number of pictures valid in one page.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Vermillion of Okabe and Ito (2008): told apart from grey and from blue with every kind of colour vision.
TINT = "#d55e00"
# Cells with a number in them; more columns than this leave no room for one.
MOST_NUMBERED = 16
# Places on a strip that have a name, and those at its left and right edge.
ENDS = {0: "never seen", 1: "before"}
SPAN = (-0.3, 1.3)
_FONT = 11
# Control characters and lone surrogates; and marks that turn the direction of all text behind them.
_NOT_IN_MARKUP = re.compile(
    "[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def representable(text: str) -> str:
    """The text with U+FFFD for what markup and UTF-8 cannot hold, and what would reorder the text around it."""
    return _NOT_IN_MARKUP.sub("\ufffd", text)


def escape(text: str) -> str:
    """Any text as it may stand in HTML, SVG and their attributes."""
    return html.escape(representable(text))


def finite(value: float | None) -> float | None:
    """The value, or None for what is no number."""
    return value if value is not None and math.isfinite(value) else None


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
    A cell without a value is hatched. Where a row and a column have the same name their cell is outlined.

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
    cell, tall = (27, 23) if numbered else (17, 17)
    row_width = _width(rows)
    upright = _width(columns) > cell - 4
    left, top = 24 + row_width, 24 + (_width(columns) + 4 if upright else 16)
    right, bottom = left + cell * len(columns), top + tall * len(rows)
    hatched = False
    drawn = [
        _text(left, 14, column_title, weight=600),
        _text(14, top, row_title, "end", weight=600, turn=-90),
    ]
    for number, name in enumerate(columns):
        x = left + cell * (number + 0.5)
        drawn.append(_text(x + 4, top - 5, name, turn=-90) if upright else _text(x, top - 6, name, "middle"))
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + tall * number
        drawn.append(_text(left - 6, y + tall / 2 + 4, name, "end"))
        for place, (column, value) in enumerate(zip(columns, line, strict=True)):
            x, value = left + cell * place, finite(value)
            hatched |= value is None
            said = "no figure" if value is None else f"{value:.3f}"
            edge = ' stroke="currentColor" stroke-width="1.5"' if name == column else ""
            drawn.append(
                f"<g><title>{escape(f'{row_title} {name}, {column_title} {column}: {said}')}</title>"
                + _cell(x, y, cell, tall, value, low, high, edge)
                + (
                    _text(x + cell / 2, y + tall / 2 + 4, _short(value), "middle", size=10)
                    if numbered and said[0] != "n"
                    else ""
                )
                + "</g>"
            )
    width = max(right + 4, left + 190, left + _width([column_title]))
    drawn.append(_legend(left, bottom + 12, low, high, hatched))
    return _svg(width, bottom + 32, title, drawn)


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

    drawn = []
    for place, name in ENDS.items():
        x = across(place)
        drawn.append(_line(x, top, x, bottom, 'stroke-opacity=".55"'))
        if labelled:
            drawn.append(_text(x, 13, name, "middle"))
    drawn.append(_line(across(0.5), top, across(0.5), bottom, 'stroke-opacity=".3" stroke-dasharray="1 3"'))
    y = top
    previous = None
    for mark, height in zip(marks, heights, strict=True):
        middle = y + (11 if labelled else height / 2)
        if previous and mark.hollow != previous.hollow:
            drawn.append(_line(0, y, width, y, 'stroke-opacity=".3"'))
        previous = mark
        if labelled:
            drawn.append(_text(0, middle + 4, mark.label))
            if mark.detail:
                drawn.append(_text(0, middle + 17, mark.detail, size=10, faint=True))
        drawn.append(_mark(mark, middle, across))
        value = finite(mark.value)
        if labelled:
            drawn.append(_text(width, middle + 4, "–" if value is None else _short(value), "end"))
        y += height
    return _svg(width, bottom + 2, title, drawn, shrinks=True)


def _mark(mark: Mark, y: float, across) -> str:
    places = [place for place in mark.others if finite(place) is not None]
    drawn = [_line(across(place), y - 4, across(place), y + 4, 'stroke-opacity=".4"') for place in places]
    value, low, high = finite(mark.value), finite(mark.low), finite(mark.high)
    said = "no figure" if value is None else f"{value:.2f}"
    if value is not None:
        x = across(value)
        if low is not None and high is not None:
            said += f", 95 % interval {low:.2f} to {high:.2f}"
            # Beside the dot only, so that a hollow one stays so.
            for end, beside in ((across(low), min(x - 4, across(high))), (across(high), max(x + 4, across(low)))):
                if (end - x) * (end - beside) > 0:
                    drawn.append(_line(end, y, beside, y, 'stroke-width="2" stroke-opacity=".6"'))
                    drawn.append(_line(end, y - 3, end, y + 3, 'stroke-opacity=".6"'))
        colour = f'fill="{"none" if mark.hollow else TINT}" stroke="{TINT}" stroke-width="1.5"'
        if SPAN[0] <= value <= SPAN[1]:
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {colour}/>')
        else:
            tip = 7 if value > SPAN[1] else -7
            drawn.append(f'<path d="M{x - tip:.1f} {y - 5:.1f}L{x:.1f} {y:.1f}L{x - tip:.1f} {y + 5:.1f}Z" {colour}/>')
    about = " ".join(filter(None, (mark.label, mark.detail)))
    return f"<g><title>{escape(f'{about}: {said}')}</title>{''.join(drawn)}</g>"


def _cell(
    x: float, y: float, width: float, height: float, value: float | None, low: float, high: float, edge=""
) -> str:
    box = f'x="{x + 1:g}" y="{y + 1:g}" width="{width - 2:g}" height="{height - 2:g}" rx="2"'
    if value is None:
        paths = "".join(
            f"M{x + 2 + step:g} {y + height - 2:g}l{height - 4:g} {4 - height:g}" for step in _hatch(width, height)
        )
        return (
            f'<rect {box} fill="none" stroke="currentColor" stroke-opacity=".35"/>'
            f'<path d="{paths}" stroke="currentColor" stroke-opacity=".35" fill="none"/>'
        )
    share = min(max((value - low) / (high - low), 0), 1) if high > low else 0
    # Not to full opacity: the number on it stays readable in the colour of the text, light or dark.
    return f'<rect {box} fill="{TINT}" fill-opacity="{0.05 + 0.75 * share:.3f}"{edge}/>'


def _hatch(width: float, height: float) -> range:
    return range(0, max(int(width - height) + 1, 1), 6)


def _legend(x: float, y: float, low: float, high: float, hatched: bool) -> str:
    steps = [low + (high - low) * step / 4 for step in range(5)]
    start = x + len(_short(low)) * 6 + 6
    drawn = [_text(x, y + 10, _short(low), size=10, faint=True)]
    drawn += [_cell(start + 14 * number, y, 14, 14, value, low, high) for number, value in enumerate(steps)]
    drawn.append(_text(start + 76, y + 10, _short(high), size=10, faint=True))
    if hatched:
        end = start + 88 + len(_short(high)) * 6
        drawn += [_cell(end, y, 14, 14, None, low, high), _text(end + 20, y + 10, "no figure", size=10, faint=True)]
    return "".join(drawn)


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 10 else f"{value:.3g}"


def _width(names: Sequence[str]) -> float:
    """Pixels that the longest name takes; capitals are wider than this, most names of languages narrower."""
    return math.ceil(max((len(name) for name in names), default=0) * _FONT * 0.6)


def _text(x: float, y: float, text: str, anchor="start", weight=None, turn=None, size=_FONT, faint=False) -> str:
    style = f' font-weight="{weight}"' if weight else ""
    style += f' transform="rotate({turn} {x:g} {y:g})"' if turn else ""
    style += f' font-size="{size}"' if size != _FONT else ""
    style += ' fill-opacity=".7"' if faint else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="currentColor"{style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="currentColor" {style}/>'


def _svg(width: float, height: float, title: str, drawn: Sequence[str], shrinks: bool = False) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    style = ' style="max-width:100%;height:auto"' if shrinks else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}"{style}'
        f' direction="ltr" font-family="system-ui, sans-serif" font-size="{_FONT}">'
        f"<title>{escape(title)}</title>{''.join(drawn)}</svg>"
    )
