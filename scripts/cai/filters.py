"""Filters: why an example makes no training pair. Each reason has a name; nothing is dropped, only marked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cai.prompts import CHANGE, CHAT_TOKENS, END_OF_TEXT, KEEP, exemplar_texts

MARKERS = re.compile(
    r"^(Instruction|Response|Principle|Critique|Critique request|Revision|Revision request):", re.MULTILINE
)
PLACEHOLDERS = re.compile(
    r"^\W*(error|todo|none|null|nan|n/a|empty|placeholder|your (answer|response) here|to be done)?\W*$", re.I
)


@dataclass(frozen=True)
class Texts:
    """What a filter looks at. finish: how the answer, the critiques and the revision ended ("stop" or
    "length")."""

    instruction: str
    answer: str
    critiques: tuple[str, ...]
    revision: str
    finish: tuple[str, ...] = ()


def verdict(critique: str) -> str | None:
    """KEEP or CHANGE: the verdict that a critique ends with; None if it has none, or both."""
    tail = critique[-200:]
    keep, change = KEEP in tail, CHANGE in tail
    return None if keep == change else KEEP if keep else CHANGE


def normal(text: str) -> str:
    """Words and numbers alone: to recognise a text that stands inside another."""
    return re.sub(r"\W+", " ", text).strip().lower()


def folded(text: str) -> str:
    """A text up to case, white space and its last stop. Signs inside count: x - 9 is not x + 9."""
    return " ".join(text.lower().split()).rstrip(" .!?")


_EXEMPLAR_TEXTS = frozenset(map(normal, exemplar_texts()))


def is_exemplar(text: str) -> bool:
    """Whether a text is, up to case and punctuation, one that our own prompts show, or holds one of some
    length."""
    plain = normal(text)
    return plain in _EXEMPLAR_TEXTS or any(len(e) >= 40 and e in plain for e in _EXEMPLAR_TEXTS)


def is_sentinel(text: str) -> bool:
    """Empty, an error's or placeholder's text, or one with the prompt's own markers or a special token in
    it."""
    return bool(PLACEHOLDERS.match(text) or MARKERS.search(text)) or any(
        t in text for t in (*CHAT_TOKENS, END_OF_TEXT)
    )


REASONS: dict[str, Callable[[Texts], bool]] = {
    "no_verdict": lambda t: all(verdict(c) is None for c in t.critiques),
    "no_change_needed": lambda t: (
        CHANGE not in map(verdict, t.critiques) and KEEP in map(verdict, t.critiques)
    ),
    "sentinel_answer": lambda t: is_sentinel(t.answer),
    "sentinel_revision": lambda t: is_sentinel(t.revision),
    "cut_off": lambda t: any(how in ("length", "too_long") for how in t.finish),
    "unchanged": lambda t: folded(t.answer) == folded(t.revision),
    "exemplar": lambda t: is_exemplar(t.instruction) or is_exemplar(t.answer) or is_exemplar(t.revision),
    "echo": lambda t: folded(t.revision) in (folded(t.instruction), *map(folded, t.critiques)),
}


def reasons(texts: Texts) -> list[str]:
    """The names of all the reasons that speak against an example, in the order of REASONS; [] for one to
    keep."""
    return [name for name, speaks_against in REASONS.items() if speaks_against(texts)]
