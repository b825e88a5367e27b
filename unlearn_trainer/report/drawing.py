"""A drawing that becomes an SVG element: by matplotlib, in pixels, with tooltips and the colours of its surroundings.

Lines and text take the colour of the text around them, so that a picture inside a page follows it into dark mode. Text
stays text, and nothing has an id, which keeps any number of pictures valid in one page. matplotlib is imported when
the first picture is drawn.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

# Vermillion of Okabe and Ito (2008): told apart from grey and from blue with every kind of colour vision.
TINT = "#d55e00"
# Stands for the colour of the text around the picture, which matplotlib has no name for.
INK = "#010203"
FONT = 11
_SVG = "http://www.w3.org/2000/svg"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unlearn_trainer",
    "font.family": "DejaVu Sans",
    "font.size": FONT,
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


class Drawing:
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

    def tooltip(self, text: str) -> "Drawing":
        """What is drawn within the context has this tooltip."""
        self._group = f"group-{len(self._tooltips)}"
        self._tooltips[self._group] = text
        return self

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, *_) -> None:
        self._group = None

    def text(self, x, y, text, align="left", weight=400, turn=0, size=FONT, alpha=None) -> None:
        turned = {"rotation": turn, "rotation_mode": "anchor"} if turn else {}
        with self._settings():
            self._axes.text(
                x, y, representable(text).replace("\n", " "), ha=align, va="baseline", weight=weight, size=size,
                alpha=alpha, gid=self._group, **turned,
            )  # fmt: skip

    def line(self, x, y, alpha, width=1.0, style="solid", color=None) -> None:
        self._axes.plot(
            x, y, color=color or INK, alpha=alpha, lw=width, ls=style, clip_on=False, gid=self._group,
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
