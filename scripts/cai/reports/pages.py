"""Self-contained HTML pages of one theme: templates/<name>.html in base.html, <name>.css after base.css.

A page asks nothing of any server. Every text in it is escaped, and its content security policy lets its own
style and script run and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cai.core.text import HIDDEN, printable

TEMPLATES = Path(__file__).with_name("templates")
INTERVAL = re.compile(r"\(([+-]?[\d.]+) to ([+-]?[\d.]+)\)")


def render_page(name: str, title: str, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """scripts: files of templates/ that become one inline script. values: what the template names."""
    style = "\n".join(_read(f) for f in ("base.css", f"{name}.css"))
    script = '"use strict";\n' + "\n".join(map(_read, scripts))
    return (
        _templates()
        .get_template(f"{name}.html")
        .render(title=printable(title), style=style, script=script, **values)
    )


def _read(file: str) -> str:
    return (TEMPLATES / file).read_text(encoding="utf-8")


@cache
def _templates():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    templates.filters["sha256"] = lambda text: _base64(hashlib.sha256(text.encode()).digest())
    templates.filters["svg_uri"] = lambda svg: f"data:image/svg+xml;base64,{_base64(svg)}"
    templates.filters["seen"] = _seen
    templates.filters["unbroken"] = lambda text: INTERVAL.sub("(\\1\u00a0to\u00a0\\2)", text)
    return templates


def _seen(text: str) -> str:
    """A text, escaped, in which what does not show is a token, as review.js makes them."""
    from markupsafe import Markup, escape

    parts, start = [], 0
    for found in re.finditer(HIDDEN, text):
        if found[1]:
            token = Markup('<span class="ctrl">{}</span>').format(ascii(found[1])[1:-1])
            parts += [escape(text[start : found.start()]), token]
            start = found.end()
    return Markup("").join([*parts, escape(text[start:])])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
