import io
import sys

import pytest
from cai.core.run import Run
from cai.core.text import format_bytes, format_duration, format_table, is_broken, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\n\ttwo  naïve 日本語 👩‍🚀 \\x1b", "one\n\ttwo  naïve 日本語 👩‍🚀 \\x1b"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m red \x7f\x00", "\\x9b31m red \\x7f\\x00"),
        ("GO\rNO-GO\x08\x0b\x0c", "GO\\rNO-GO\\x08\\x0b\\x0c"),
        ("\u202eOG\u202c \u2066x\u2069", "\\u202eOG\\u202c \\u2066x\\u2069"),
        ("a\u200bb\u200e\u200f\u2060\ufeff", "a\\u200bb\\u200e\\u200f\\u2060\\ufeff"),
        ("x\U000e0041\U000e007f\ufe0f", "x\\U000e0041\\U000e007f\\ufe0f"),
        ("pa\u200dss\u200cword \xad\u2028", "pa\\u200dss\\u200cword \\xad\\u2028"),
        (
            "🏴\U000e0061\U000e0062\U000e007f 😀\ufe0f\ufe0f",
            "🏴\\U000e0061\\U000e0062\\U000e007f 😀\ufe0f\\ufe0f",
        ),
        ("half of a pair \ud83d", "half of a pair \\ud83d"),
    ],
)
def test_what_commands_a_terminal_is_shown_and_the_rest_stays(text, shown):
    assert printable(text) == shown == printable(shown)


@pytest.mark.parametrize(
    "text",
    [
        "👩‍🚀 👩🏽‍🚀 ❤️ ❤️‍🔥 🏳️‍🌈 👨‍👩‍👧‍👦 1️⃣ ☎︎ © 🇫🇷",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "שלום עולם, مرحبا بالعالم",
        "می\u200cخواهم کتاب\u200cها PDF\u200cها",
        "क्\u200dष क्\u200cष ശ്രീ ന്\u200d ",
        "葛\U000e0100城",
    ],
)
def test_what_a_script_or_an_emoji_needs_stays(text):
    assert printable(text) == text


def test_a_text_in_a_row_does_not_break_it():
    assert one_line("a\nb\tc\r\x1b") == "a\\nb\\tc\\r\\x1b"
    assert format_table([("a\nb", "1", "c\u202e")]) == "  a\\nb  1  c\\u202e"


def test_every_character_can_be_printed():
    every = "".join(map(chr, range(0x3000))) + "\ud800\udfff\U0001f680"
    printed = printable(every)
    assert printed.encode() and not {c for c in printed if c < " " or "\x7f" <= c <= "\x9f"} - {"\n", "\t"}
    assert printable("naïve 日", "ascii") == "na\\xefve \\u65e5"


def test_a_log_holds_no_commands_and_no_text_stops_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with Run.open("a", {}) as run:
        run.log("\x1b[2J naïve \ud83d")
    assert out.buffer.getvalue() == b"\\x1b[2J na\\xefve \\ud83d\n"
    assert (tmp_path / "logs" / "a.log").read_text(encoding="utf-8") == "\\x1b[2J naïve \\ud83d\n"


def test_half_of_a_surrogate_pair_is_no_text():
    assert is_broken("a\ud83d") and is_broken("\udcff") and not is_broken("a 😀 é\u2028\x00")


def test_durations():
    assert [format_duration(s) for s in (0, 48, 99.4, 100)] == ["0 s", "48 s", "99 s", "2 min"]
    assert [format_duration(s) for s in (3599, 6000, 11100)] == ["60 min", "1 h 40 min", "3 h 05 min"]


def test_bytes():
    assert [format_bytes(n) for n in (12, 1200, 1.1e9)] == ["12 bytes", "1.2 kB", "1.1 GB"]


def test_a_table_has_its_first_and_last_column_to_the_left():
    rows = [("step", "seconds", "source"), ("answer", "7", "measured here")]
    assert format_table(rows) == "  step    seconds  source\n  answer        7  measured here"
