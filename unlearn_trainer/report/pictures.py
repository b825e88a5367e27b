"""Pictures as SVG by matplotlib: a heat map of a matrix, and a strip of figures between two references.

Pure functions of their arguments. Lines and text take the colour of the text around them, so that a picture inside a
page follows it into dark mode; cells are a translucent tint for the same reason. Text stays text, and nothing has an
id, which keeps any number of pictures valid in one page. matplotlib is imported when the first picture is drawn.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

# Vermillion of Okabe and Ito (2008): told apart from grey and from blue with every kind of colour vision.
TINT = "#d55e00"
# Stands for the colour of the text around the picture, which matplotlib has no name for.
INK = "#010203"
# Cells with a number in them; more columns than this leave no room for one.
MOST_NUMBERED = 16
# Places on a strip that have a name, and those at its left and right edge.
ENDS = {0: "never seen", 1: "before"}
SPAN = (-0.3, 1.3)
_FONT = 11
_SVG = "http://www.w3.org/2000/svg"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unlearn_trainer",
    "font.family": "DejaVu Sans",
    "font.size": _FONT,
    "text.parse_math": False,
    "text.color": INK,
    "path.simplify": False,
}
# Control characters and lone surrogates; and marks that turn the direction of all text behind them.
_NOT_IN_MARKUP = re.compile(
    "[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def representable(text: str) -> str:
    """The text with U+FFFD for what markup and UTF-8 cannot hold, and what would reorder the text around it."""
    return _NOT_IN_MARKUP.sub("\ufffd", text)


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
    drawing = _Drawing(max(right + 4, left + 190, left + _width([column_title])), bottom + 32)
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

    drawing = _Drawing(width, bottom + 2)
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


def _add_mark(drawing: "_Drawing", mark: Mark, y: float, across) -> None:
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


def _add_scale(drawing: "_Drawing", x: float, y: float, low: float, high: float, missing: bool) -> None:
    start = x + len(_short(low)) * 6 + 6
    drawing.text(x, y + 10, _short(low), size=10, alpha=0.7)
    for step in range(5):
        drawing.cell(start + 14 * step, y, 14, 14, step / 4 if high > low else 0)
    drawing.text(start + 76, y + 10, _short(high), size=10, alpha=0.7)
    if missing:
        end = start + 88 + len(_short(high)) * 6
        drawing.cell(end, y, 14, 14, None)
        drawing.text(end + 20, y + 10, "no figure", size=10, alpha=0.7)


class _Drawing:
    """A matplotlib figure whose data coordinates are pixels from its upper left corner."""

    def __init__(self, width: float, height: float):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._settings = lambda: rc_context(_SETTINGS)
        self._size = (width, height)
        self._tooltips: dict[str, str] = {}
        self._group: str | None = None
        with self._settings():
            self._figure = Figure((width / 72, height / 72))
            self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()

    def tooltip(self, text: str) -> "_Drawing":
        """What is drawn within the context has this tooltip."""
        self._group = f"group-{len(self._tooltips)}"
        self._tooltips[self._group] = text
        return self

    def __enter__(self) -> "_Drawing":
        return self

    def __exit__(self, *_) -> None:
        self._group = None

    def text(self, x, y, text, align="left", weight=400, turn=0, size=_FONT, alpha=None) -> None:
        turned = {"rotation": turn, "rotation_mode": "anchor"} if turn else {}
        with self._settings():
            self._axes.text(
                x, y, representable(text).replace("\n", " "), ha=align, va="baseline", weight=weight, size=size,
                alpha=alpha, gid=self._group, **turned,
            )  # fmt: skip

    def line(self, x, y, alpha, width=1.0, style="solid") -> None:
        self._axes.plot(
            x, y, color=INK, alpha=alpha, lw=width, ls=style, clip_on=False, gid=self._group,
            solid_capstyle="butt", scalex=False, scaley=False,
        )  # fmt: skip

    def dot(self, x, y, radius, hollow) -> None:
        from matplotlib.patches import Circle

        self._add(Circle((x, y), radius, fc="none" if hollow else TINT, ec=TINT, lw=1.5, zorder=2.5))

    def polygon(self, x, y, hollow) -> None:
        from matplotlib.patches import Polygon

        self._add(Polygon([*zip(x, y, strict=True)], fc="none" if hollow else TINT, ec=TINT, lw=1.5, zorder=2.5))

    def cell(self, x, y, width, height, share, outlined=False) -> None:
        """``share`` of the full tint; None for a cell without a value."""
        from matplotlib.patches import Rectangle

        box = (x + 1, y + 1), width - 2, height - 2
        if share is None:
            self._add(Rectangle(*box, fc="none", ec=(INK, 0.35), lw=1))
            self.line([x + 2, x + width - 2], [y + height - 2, y + 2], 0.35)
        else:
            # Not to full opacity: the number on it stays readable in the colour of the text, light or dark.
            edge = {"ec": INK, "lw": 1.5} if outlined else {"lw": 0}
            self._add(Rectangle(*box, fc=(TINT, 0.05 + 0.75 * share), **edge))

    def _add(self, patch) -> None:
        patch.set(clip_on=False, gid=self._group)
        self._axes.add_artist(patch)
        patch.set_clip_path(None)

    def svg(self, title: str, shrinks: bool = False) -> str:
        written = io.BytesIO()
        with self._settings(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # it measures by a font of its own, the reader has more
            self._figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        root = ElementTree.fromstring(written.getvalue())
        _strip_names(root, self._tooltips)
        width, height = self._size
        root.attrib = {
            "viewBox": f"0 0 {width:g} {height:g}",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "role": "img",
            "aria-label": representable(title),
            "direction": "ltr",
        } | ({"style": "max-width:100%;height:auto"} if shrinks else {})
        root.insert(0, _title(title))
        ElementTree.register_namespace("", _SVG)
        text = ElementTree.tostring(root, encoding="unicode")
        return re.sub(r">\s+<", "><", text)


def _strip_names(root: ElementTree.Element, tooltips: Mapping[str, str]) -> None:
    """Takes out ids, fonts and what is for other programs, and puts in tooltips and the colour of the text around."""
    groups = {name: ElementTree.Element(f"{{{_SVG}}}g") for name in tooltips}
    for name, group in groups.items():
        group.append(_title(tooltips[name]))
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib draws patches, lines and texts one kind after the other: what has one tooltip comes together.
            name = child.attrib.pop("id", "")
            if name in groups:
                groups[name].extend(child)
            if name in groups or child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}defs"):
                parent.remove(child)
    root.extend(groups.values())  # those without anything to see are still read aloud
    for element in root.iter():
        style = element.get("style", "").replace(INK, "currentColor")
        if style:
            element.set("style", re.sub(r"'DejaVu Sans'(, sans-serif)?", "system-ui, sans-serif", style))


def _title(text: str) -> ElementTree.Element:
    element = ElementTree.Element(f"{{{_SVG}}}title")
    element.text = representable(text)
    return element


def _share(value: float | None, low: float, high: float) -> float | None:
    """How full the tint of a value is, from 0 to 1."""
    if value is None:
        return None
    return min(max((value - low) / (high - low), 0), 1) if high > low else 0


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 10 else f"{value:.3g}"


def _width(names: Sequence[str]) -> float:
    """Pixels that the longest name takes; capitals are wider than this, most names of languages narrower."""
    return math.ceil(max((len(name) for name in names), default=0) * _FONT * 0.6)
