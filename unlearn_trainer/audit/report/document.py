"""Blocks of a document that is written twice: as Markdown that reads well as plain text, and as one HTML page.

Every block has ``markdown()`` and ``html()``; texts are plain and escaped here. The page needs no script, no network
and no other file. Its colours follow the reader's light or dark setting; what is wider than the page scrolls in a box
of its own; printed, everything folded is open.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .pictures import escape, representable

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #59626e; --line: #d5dae1; --box: #f5f7f9;
  --shade: #0004; --forgotten: #00664b; --leaks: #a83c00; --over: #8a3a70; --undecided: #59626e; --link: #0059a8; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --ink: #e4e7eb; --soft: #a0a9b5; --line: #363d47;
  --box: #1c2128; --shade: #fff2; --forgotten: #3fc79a; --leaks: #ff8f4d; --over: #e69bc8; --undecided: #a0a9b5;
  --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.6vw, 2rem); line-height: 1.2; margin: 0 0 .75rem; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.25rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .75rem 0; }
nav a { padding: .2rem 0; }
.lead { color: var(--soft); }
.alert { border-left: 4px solid var(--leaks); padding: .4rem .8rem; background: var(--box); }
.scroll { overflow-x: auto; max-width: 100%; margin: .5rem 0; overflow-wrap: normal;
  background: linear-gradient(90deg, var(--page) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
    linear-gradient(270deg, var(--page) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(90deg, var(--shade), transparent) 0 0 / .9rem 100% no-repeat scroll,
    linear-gradient(270deg, var(--shade), transparent) 100% 0 / .9rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line);
  unicode-bidi: isolate; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.short td { white-space: nowrap; }
.facts { overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); min-width: 7rem; }
.cards { width: 100%; }
.cards td { padding-top: .6rem; padding-bottom: .6rem; }
.cards svg { display: block; }
.cards summary { padding: 0; color: var(--soft); }
.cards .small { white-space: nowrap; }
.name { font-weight: 700; font-size: 1rem; }
.small { font-size: .8125rem; color: var(--soft); }
.verdict { white-space: nowrap; font-weight: 700; color: var(--undecided); }
.forgotten { color: var(--forgotten); }
.leaks { color: var(--leaks); }
.over-unlearned { color: var(--over); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .75rem;
  align-items: start; }
.grid > details { border: 1px solid var(--line); border-radius: 8px; padding: 0 .75rem; margin: 0; min-width: 0; }
.grid svg { display: block; margin: .25rem auto .75rem; }
figure { margin: .5rem 0; min-width: 0; max-width: 100%; }
figcaption { font-weight: 600; font-size: .9rem; }
details { margin: .25rem 0; }
summary { cursor: pointer; padding: .5rem 0; }
@media screen and (max-width: 40rem) {
  .cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards thead { display: none; }
  .cards tr { border-bottom: 1px solid var(--line); padding: .6rem 0; }
  .cards td { border: 0; padding: .1rem 0; overflow-wrap: anywhere; }
  .cards td:first-child, .cards td:nth-child(2) { display: inline-block; }
  .cards td:first-child { margin-right: .75rem; }
  .cards td[data-head]::before { content: attr(data-head); color: var(--soft); display: block; font-size: .75rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --box: #fff; --link: #000;
    --forgotten: #00664b; --leaks: #a83c00; --over: #8a3a70; --undecided: #444; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { padding: 0; font-size: 10pt; max-width: none; }
  nav, figure details { display: none; }
  table { font-size: 7.5pt; }
  th, td, .short td, .number { padding-right: .5rem; white-space: normal; }
  .scroll svg { max-width: 100%; height: auto; }
  tr, figure, .grid > details { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  .scroll { overflow: visible; background: none; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""


@dataclass(frozen=True)
class Cell:
    """A cell that is more than its text in HTML; ``html`` is markup and not escaped again."""

    text: str
    html: str


@dataclass(frozen=True)
class Heading:
    level: int
    text: str

    def markdown(self) -> str:
        return f"{'#' * self.level} {_marked_down(self.text)}"

    def html(self) -> str:
        place = f' id="{anchor(self.text)}"' if self.level == 2 else ""
        return f"<h{self.level}{place}>{escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: str = ""
    in_markdown: bool = True

    def markdown(self) -> str:
        return _marked_down(self.text) if self.in_markdown else ""

    def html(self) -> str:
        return f"<p{_kind(self.kind)}>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]

    def markdown(self) -> str:
        return "\n".join(f"- {_marked_down(item)}" for item in self.items)

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in self.items) + "</ul>"


@dataclass(frozen=True)
class Table:
    """``numbers``: indices of columns that are set flush right. A kind "cards" becomes a stack on a narrow screen."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: Sequence[int] = ()
    kind: str = ""

    def markdown(self) -> str:
        lines = [[_marked_down(cell.text if isinstance(cell, Cell) else cell) for cell in row] for row in self.rows]
        lines = [[_marked_down(name) for name in self.head], *lines]
        widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(self.head))]
        rule = ["-" * (width - 1) + (":" if index in self.numbers else "-") for index, width in enumerate(widths)]
        return "\n".join(f"| {' | '.join(self._aligned(line, widths))} |" for line in [lines[0], rule, *lines[1:]])

    def _aligned(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            text.rjust(width) if index in self.numbers else text.ljust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ]

    def html(self) -> str:
        kinds = [' class="number"' if index in self.numbers else "" for index in range(len(self.head))]
        heads = zip(kinds, self.head, strict=True)
        head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in heads)
        body = []
        for row in self.rows:
            cells = []
            for index, (kind, cell) in enumerate(zip(kinds, row, strict=True)):
                # Stacked, a cell after the first two lacks its column's head; it brings its own.
                name = f' data-head="{escape(self.head[index])}"' if self.kind == "cards" and index > 1 else ""
                cells.append(f"<td{kind}{name}>{cell.html if isinstance(cell, Cell) else escape(cell)}</td>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        head = "" if not any(self.head) else f"<thead><tr>{head}</tr></thead>"
        rows = "\n".join(body)
        # A box that scrolls has to be within reach of the keyboard.
        box = f'<div class="scroll" tabindex="0"><table{_kind(self.kind)}>'
        return f"{box}{head}<tbody>\n{rows}\n</tbody></table></div>"


@dataclass(frozen=True)
class Figure:
    """A picture that Markdown has no place for; there its numbers stand as a table, in HTML they are folded below."""

    caption: str
    svg: str
    table: Table

    def markdown(self) -> str:
        return f"{_marked_down(self.caption)}\n\n{self.table.markdown()}"

    def html(self) -> str:
        caption = f"<figcaption>{escape(self.caption)}</figcaption>"
        table = f"<details><summary>as numbers</summary>{self.table.html()}</details>"
        return f'<figure>{caption}<div class="scroll" tabindex="0">{self.svg}</div>{table}</figure>'


@dataclass(frozen=True)
class Folded:
    """Blocks that are opened by a click in HTML, and stand below a line of their own in Markdown."""

    summary: Cell
    blocks: Sequence
    opened: bool = False
    identity: str = ""

    def markdown(self) -> str:
        return "\n\n".join([f"**{_marked_down(self.summary.text)}**", *(block.markdown() for block in self.blocks)])

    def html(self) -> str:
        place = f' id="{self.identity}"' if self.identity else ""
        blocks = "".join(block.html() for block in self.blocks)
        opened = " open" if self.opened else ""
        return f"<details{place}{opened}><summary>{self.summary.html}</summary>{blocks}</details>"


@dataclass(frozen=True)
class Drawing:
    """A picture for HTML alone, of figures that stand elsewhere, too."""

    svg: str

    def markdown(self) -> str:
        return ""

    def html(self) -> str:
        return self.svg


@dataclass(frozen=True)
class Group:
    """Blocks side by side: as many as there is room for. ``kind``: "pictures" or "grid"."""

    blocks: Sequence
    kind: str
    in_markdown: bool = True

    def markdown(self) -> str:
        return "\n\n".join(block.markdown() for block in self.blocks) if self.in_markdown else ""

    def html(self) -> str:
        return f"<div{_kind(self.kind)}>{''.join(block.html() for block in self.blocks)}</div>"


def anchor(text: str) -> str:
    """The id of a heading of the second level."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def markdown_of(blocks: Sequence) -> str:
    """The whole document as Markdown."""
    return "\n\n".join(filter(None, (block.markdown() for block in blocks))) + "\n"


def html_of(blocks: Sequence, title: str) -> str:
    """The whole document as an HTML page, with links to its parts before the first of them."""
    parts = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{anchor(part.text)}">{escape(part.text)}</a>' for part in parts)
    body = [block.html() for block in blocks]
    body.insert(blocks.index(parts[0]), f'<nav aria-label="parts of this page">{links}</nav>')
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>'
    )
    page = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{page}\n</body>\n</html>\n'


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _marked_down(text: str) -> str:
    """Plain text as Markdown in one line: neither markup, links nor columns come out of it."""
    text = " ".join(representable(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\|`*]|\](?=[(\[:])", r"\\\g<0>", text)
