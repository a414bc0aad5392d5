"""Numbers as a person says them, and texts that are safe on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

# ---- what a reader cannot see ----

# Control characters but newline and tab (ESC and the one-character CSI begin a terminal's commands), and what
# shows nothing by itself or reorders what follows: direction marks, zero-width characters, fillers, variation
# selectors, tags, separators of lines, halves of surrogate pairs.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Where these belong to a script or to an emoji they stay. Letters that join: Arabic to Myanmar, Khmer to
# Mongolian, extensions of theirs.
_JOIN = (
    "\u0600-\u061b\u061d-\u109f\u1780-\u17b3\u17b6-\u180a\u1810-\u18af\u1cd0-\u1cff"
    "\ua8e0-\ua8ff\ufb50-\ufdff\ufe70-\ufefc"
)
_VIRAMA = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca"
_HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_EMOJI = (
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d"
    "\u3297\u3299\U0001f000-\U0001faff][\ufe0e\ufe0f]?"
)
_TAGGED = ("".join(chr(0xE0000 + ord(c)) for c in region) for region in ("gbeng", "gbsct", "gbwls"))
_MEANT = (
    f"(?<=[{_JOIN}])[\u200c\u200d](?=[0-9A-Za-z{_JOIN}])|(?<=[0-9A-Za-z])\u200c(?=[{_JOIN}])",
    f"(?<=[{_VIRAMA}])[\u200c\u200d]",
    "(?<=[\u1820-\u18aa])[\u180b-\u180e]",  # Mongolian variants
    f"(?<=[{_HAN}])[\U000e0100-\U000e01ef]",  # and those of Han
    f"\U0001f3f4(?:{'|'.join(_TAGGED)})\U000e007f",  # the flags of England, Scotland and Wales
    f"{_EMOJI}(?:\u200d{_EMOJI})*",
    "[0-9#*]\ufe0f\u20e3",  # a key
)
# As Python and JavaScript read it, for the review page has it too: only what it captures is hidden.
HIDDEN = f"{'|'.join(_MEANT)}|([{_HIDDEN}])"
_HIDDEN_RE = re.compile(HIDDEN)


def is_broken(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, as "\\ud83d" in JSON: it has no UTF-8 and no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def printable(text: str, encoding: str | None = None) -> str:
    """A model's or a file's text for a terminal or a log. What a reader cannot see or what would command a
    terminal, and what the encoding (None: UTF-8) lacks, is shown as \\x1b, \\r, \\u202e or \\ud800."""
    encoding = encoding or "utf-8"
    shown = _HIDDEN_RE.sub(lambda found: ascii(found[1])[1:-1] if found[1] else found[0], text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def one_line(text: object) -> str:
    """A name or a text inside a sentence or a row of a table, which it does not break."""
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


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


def format_table(rows: Sequence[tuple[str, ...]], numbers: Sequence[int] | None = None) -> str:
    """A table, numbers to the right. numbers: the columns that hold them; all but the first and the last."""
    rows = [tuple(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = range(1, len(widths) - 1) if numbers is None else numbers

    def line(row: tuple[str, ...]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  " + "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in cells).rstrip()

    return "\n".join(map(line, rows))


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
