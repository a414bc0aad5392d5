"""Whether an answer has what a test wants of it, as far as a program can tell: see test_sets.Test."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from cai.evaluation import code_execution

NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?|(?<=[a-z=])\d+(?:\.\d+)?", re.IGNORECASE)
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()


def plain(text: str) -> str:
    """Case-folded, with straight quotes and single spaces."""
    text = unicodedata.normalize("NFC", text).casefold()
    for signs, straight in (("’‘", "'"), ("“”„«»", '"')):
        text = re.sub(f"[{signs}]", straight, text)
    return " ".join(text.split())


def holds(text: str, answer: str) -> bool:
    """Whether a text stands in an answer as whole words."""
    return re.search(rf"(?<!\w){re.escape(plain(text))}(?!\w)", plain(answer)) is not None


def numbers(text: str) -> list[float]:
    found = [float(m[0].replace(",", "")) for m in NUMBER.finditer(text.replace("−", "-"))]
    if found:
        return found
    words = re.findall(r"[a-z]+", text.lower())
    return [float(NUMBER_WORDS.index(word)) for word in words if word in NUMBER_WORDS]


def _number(wanted: float, answer: str, instruction: str) -> bool:
    found, given = numbers(answer), numbers(instruction)
    own = [x for x in found if x not in given] or found
    return bool(own) and abs(own[-1] - wanted) <= 1e-6 * max(1.0, abs(wanted))


def _begins(wanted: str | list[str], answer: str) -> bool:
    options = [wanted] if isinstance(wanted, str) else wanted
    text = plain(answer).lstrip("\"'*_([-# ")
    return any(re.match(rf"{re.escape(plain(option))}(?!\w)", text) for option in options)


def _translation(accepted: list[str], answer: str, instruction: str) -> bool:
    def bare(text: str) -> str:
        return " ".join(re.findall(r"[\w']+", plain(text)))

    first = answer.strip().splitlines()[0]
    candidates = [first, first.rsplit(":", 1)[-1], *re.findall(r'"([^"]+)"', plain(first))]
    return bool({bare(c) for c in candidates} & {bare(a) for a in accepted})


def _json(wanted: bool, answer: str, instruction: str) -> bool:
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", answer, re.DOTALL)
    try:
        return isinstance(json.loads(fenced[1] if fenced else answer), (dict, list)) is wanted
    except (ValueError, RecursionError):
        return not wanted


def _lines(answer: str) -> list[str]:
    return [line for line in answer.splitlines() if line.strip()]


# What a test may want: (what is wanted, answer, instruction) -> whether the answer has it.
CHECKS: dict[str, Callable[[Any, str, str], bool]] = {
    "number": _number,
    "any": lambda options, answer, _: any(holds(o, answer) for o in options),
    "all": lambda groups, answer, _: all(any(holds(o, answer) for o in group) for group in groups),
    "none": lambda barred, answer, _: not any(holds(o, answer) for o in barred),
    "has": lambda options, answer, _: any(o in plain(answer) for o in options),
    "starts": lambda wanted, answer, _: _begins(wanted, answer),
    "ends": lambda wanted, answer, _: answer.rstrip().rstrip("\"'”’").endswith(wanted),
    "lines": lambda wanted, answer, _: len(_lines(answer)) == wanted,
    "words": lambda span, answer, _: span[0] <= len(answer.split()) <= span[1],
    "each_starts": lambda wanted, answer, _: all(_begins(wanted, line) for line in _lines(answer)),
    "json": _json,
    "translation": _translation,
    "code": lambda wanted, answer, _: code_execution.passes(answer, **wanted),
}
