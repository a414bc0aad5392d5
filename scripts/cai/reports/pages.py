"""A document as blocks, and as a self-contained HTML page or as Markdown: both say the same.

Every text is escaped. The page runs no script and asks nothing of any server; its parts are page.html and
page.css beside this module, and pictures stand in it as SVG, one for a light and one for a dark screen.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = re.compile(r"\(([+-]?[\d.]+) to ([+-]?[\d.]+)\)")  # no line breaks inside one


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


@dataclass(frozen=True)
class Picture:
    """file: what Markdown links to. light, dark: SVG."""

    file: str
    caption: str
    light: bytes
    dark: bytes


Block = Text | Items | Table | Picture


def as_html(title: str, blocks: Sequence[Block]) -> str:
    style, template = (
        Path(__file__).with_name(name).read_text(encoding="utf-8").strip()
        for name in ("page.css", "page.html")
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'",
        "style": style,
        "body": "\n".join(map(_html, blocks)),
    }
    pieces = template.split("%%")  # text, name, text, name, ..., text: what is put in is not searched again
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Text):
        text, tag = html.escape(block.text), block.kind
        return (
            f"<{tag}>{text}</{tag}>" if tag in ("h1", "h2") else f'<p class="{tag} {block.tone}">{text}</p>'
        )
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Picture):
        light, dark = (
            f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for svg in (block.light, block.dark)
        )
        caption = html.escape(block.caption)
        return (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
        )
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in block.head)
    rows = "".join(f"<tr>{''.join(_cell(c, i) for i, c in enumerate(row))}</tr>" for row in block.rows)
    return (
        f'<div class="wide"><table><caption>{html.escape(block.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: str | Cell, column: int) -> str:
    text, tone = (cell.text, cell.tone) if isinstance(cell, Cell) else (cell, "")
    text = INTERVAL.sub("(\\1\u00a0to\u00a0\\2)", html.escape(text))
    return f'<td class="{tone}">{text}</td>' if column else f'<th scope="row">{text}</th>'


def as_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        text = plain(block.text)
        return {"h1": f"# {text}", "h2": f"## {text}", "lead": f"**{text}**"}.get(block.kind, text)
    if isinstance(block, Items):
        return "\n".join(f"- {plain(item)}" for item in block.items)
    if isinstance(block, Picture):
        return f"![{plain(block.caption)}]({block.file})"
    rows = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in block.rows]
    lines = ["| " + " | ".join(map(plain, line)) + " |" for line in (block.head, *rows)]
    lines.insert(1, "|" + " --- |" * len(block.head))
    return f"{plain(block.caption)}\n\n" + "\n".join(lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, and none of it markup."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))
