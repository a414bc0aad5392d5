"""Numbers as a person says them, and texts that are safe on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters but newline and tab (ESC and the one-character CSI begin a terminal's commands), and the
# marks that turn the direction of what follows.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def is_broken(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, as "\\ud83d" in JSON: it has no UTF-8 and no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def printable(text: str, encoding: str | None = None) -> str:
    """A model's or a file's text for a terminal or a log. What would command a terminal, and what the
    encoding (None: UTF-8) lacks, such as a lone surrogate, is shown as \\x1b, \\r, \\u202e or \\ud800."""
    encoding = encoding or "utf-8"
    shown = UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: 48 s, 12 min, 3 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def format_bytes(n: float) -> str:
    """Bytes as a person says them, in powers of ten."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= one:
            return f"{n / one:.1f} {unit}"
    return f"{n:.0f} bytes"


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """A table: the first and the last to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    cell = lambda i, text: text if i == last else text.rjust(widths[i]) if i else text.ljust(widths[i])  # noqa: E731
    return "\n".join("  " + "  ".join(cell(i, t) for i, t in enumerate(row)) for row in rows)


def kind(value: object) -> str:
    """What a value of a YAML file is, in words."""
    if value is None:
        return "empty"
    names = {
        bool: "a yes/no value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), f"a {type(value).__name__}")
