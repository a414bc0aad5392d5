"""Numbers and values as a person says them."""

from __future__ import annotations

from collections.abc import Sequence


def span(seconds: float) -> str:
    """Seconds as a person says them: 48 s, 12 min, 3 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def size(n: float) -> str:
    """Bytes as a person says them, in powers of ten."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= one:
            return f"{n / one:.1f} {unit}"
    return f"{n:.0f} bytes"


def columns(rows: Sequence[tuple[str, ...]]) -> str:
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
