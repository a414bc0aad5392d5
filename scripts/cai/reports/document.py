"""A document as blocks, and as a self-contained HTML page or as Markdown: both say the same.

Every text is escaped. Pictures stand in the page as SVG, one for a light and one for a dark screen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cai.core.text import printable
from cai.reports.pages import render_page


@dataclass(frozen=True)
class Text:
    """kind: "h1", "h2", "p", "quiet" (small) or "lead" (what matters most; with a tone as in Cell)."""

    kind: str
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Items:
    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """tone: "good", "bad" or "", a colour that says again what the text says."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]

    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """file: what Markdown links to. light, dark: SVG."""

    file: str
    caption: str
    light: bytes
    dark: bytes


Block = Text | Items | Table | Picture


def as_html(title: str, blocks: Sequence[Block]) -> str:
    return render_page("document", title, blocks=[(type(block).__name__, block) for block in blocks])


def as_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        text = _first(escape_markdown(block.text))
        return {"h1": f"# {text}", "h2": f"## {text}", "lead": f"**{text}**"}.get(block.kind, text)
    if isinstance(block, Items):
        return "\n".join(f"- {_first(escape_markdown(item))}" for item in block.items)
    if isinstance(block, Picture):
        return f"![{escape_markdown(block.caption)}]({block.file})"
    rows = [[cell.text for cell in row] for row in block.cells()]
    lines = ["| " + " | ".join(map(escape_markdown, line)) + " |" for line in (block.head, *rows)]
    lines.insert(1, "|" + " --- |" * len(block.head))
    return f"{escape_markdown(block.caption)}\n\n" + "\n".join(lines)


def _first(text: str) -> str:
    """What a block begins with: no list's number or dash, no rule."""
    return re.sub(r"^(\d*)([-+.)])(?=\s|$|--)", r"\1\\\2", text)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: on one line, and none of it markup."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", printable(" ".join(text.split())))
