"""Blocks of a document that is written twice: as Markdown that reads well as plain text, and as one HTML page.

Texts are plain: the templates escape them, and replace what would reorder or break the text around it. The page needs
no script, no network and no other file. Its colours follow the reader's light or dark setting; what is wider than the
page scrolls in a box of its own; printed, everything folded is open.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .drawing import representable

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Verdict:
    """A cell with a verdict; ``kind`` is the class that colours it."""

    macro: ClassVar[str] = "verdict"
    text: str
    kind: str


@dataclass(frozen=True)
class Language:
    """A cell or a summary that names a language, with its verdict and what there is to add."""

    macro: ClassVar[str] = "language"
    code: str
    more: str = ""
    verdict: Verdict | None = None
    link: str = ""

    @property
    def text(self) -> str:
        return self.code + (f": {self.verdict.text}" if self.verdict else "") + self.more


@dataclass(frozen=True)
class Reasons:
    """A cell with sentences, of which Markdown has the shown ones alone: the figures of the others stand elsewhere."""

    macro: ClassVar[str] = "reasons"
    shown: Sequence[str]
    folded: Sequence[str] = ()

    @property
    def rest(self) -> str:
        return f"and {len(self.folded)} more"

    @property
    def text(self) -> str:
        return "; ".join([*self.shown, self.rest] if self.folded else self.shown)


@dataclass(frozen=True)
class Drawing:
    """A picture for HTML alone, of figures that stand elsewhere, too; ``text`` in its place in a Markdown table."""

    macro: ClassVar[str] = "drawing"
    svg: str
    text: str = ""
    in_markdown: ClassVar[bool] = False


def drawn(svg: str, text: str = "") -> Drawing:
    """A picture of ours, whose texts are escaped already."""
    from markupsafe import Markup

    return Drawing(Markup(svg), text)


Cell = str | Verdict | Language | Reasons | Drawing


@dataclass(frozen=True)
class Heading:
    macro: ClassVar[str] = "heading"
    level: int
    text: str

    @property
    def anchor(self) -> str:
        """The id of a heading of the second level."""
        return re.sub(r"[^a-z0-9]+", "-", self.text.lower()).strip("-")


@dataclass(frozen=True)
class Paragraph:
    macro: ClassVar[str] = "paragraph"
    text: str
    kind: str = ""
    in_markdown: bool = True


@dataclass(frozen=True)
class Bullets:
    macro: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """``numbers``: indices of columns that are set flush right. A kind "cards" becomes a stack on a narrow screen."""

    macro: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[int] = ()
    kind: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture that Markdown has no place for; there its numbers stand as a table, in HTML they are folded below."""

    macro: ClassVar[str] = "figure"
    caption: str
    svg: str
    table: Table


@dataclass(frozen=True)
class Folded:
    """Blocks that are opened by a click in HTML, and stand below a line of their own in Markdown."""

    macro: ClassVar[str] = "folded"
    summary: Cell
    blocks: Sequence
    opened: bool = False
    identity: str = ""


@dataclass(frozen=True)
class Group:
    """Blocks side by side: as many as there is room for. ``kind``: "pictures" or "grid"."""

    macro: ClassVar[str] = "group"
    blocks: Sequence
    kind: str
    in_markdown: bool = True


def markdown_of(blocks: Sequence) -> str:
    """The whole document as Markdown."""
    shown = [block for block in blocks if getattr(block, "in_markdown", True)]
    return _environment(_marked_down).get_template("page.md.jinja").render(blocks=shown)


def html_of(blocks: Sequence, title: str) -> str:
    """The whole document as an HTML page, with links to its parts before the first of them."""
    parts = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    template = _environment(representable).get_template("page.html.jinja")
    return template.render(blocks=blocks, parts=parts, title=title)


@functools.cache
def _environment(cleaned):
    """Templates in which every value that is no markup is passed through ``cleaned``, then escaped if still needed."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else cleaned(str(value)),
    )

    def table_lines(table: Table) -> Markup:
        return Markup(_lines(table))

    environment.filters |= {"text": _text, "table_lines": table_lines}
    environment.globals["newline"] = Markup("\n")
    return environment


def _lines(table: Table) -> str:
    """A table as Markdown whose columns stand below one another as plain text, too."""
    lines = [[_marked_down(_text(cell)) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(table.head))]
    rule = ["-" * (width - 1) + (":" if index in table.numbers else "-") for index, width in enumerate(widths)]
    aligned = [
        [
            text.rjust(width) if index in table.numbers else text.ljust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _marked_down(text: str) -> str:
    """Plain text as Markdown in one line, as markup: neither tags, links nor columns come out of it."""
    from markupsafe import Markup

    text = " ".join(representable(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(re.sub(r"[\\|`*]|\](?=[(\[:])", r"\\\g<0>", text))
