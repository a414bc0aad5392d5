"""Where a text ends: whether it is whole, and where a base model went on with another page of its prompt.

A base model that is shown exemplars should write the separator at its text's end. One that begins the next
page instead is cut there, by the form of our pages. A line with a marker alone is not that form: a review may
have one with "Critique", and an answer may show what a prompt looks like.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

from cai.models.engine import Completion
from cai.models.registry import ModelSpec
from cai.prompts.markers import (
    BETTER,
    CHANGE,
    CRITIQUE,
    CRITIQUE_REQUEST,
    INSTRUCTION,
    KEEP,
    MARKERS,
    PRINCIPLE,
    REASON,
    RESPONSE,
    RESPONSE_A,
    RESPONSE_B,
    REVISION,
    REVISION_REQUEST,
)

NEXT_PAGE = "next page"  # what ended a text that was cut where another page began

# What comes after a marker on our pages.
_THEN = {
    INSTRUCTION: (RESPONSE, RESPONSE_A),
    RESPONSE: (PRINCIPLE, INSTRUCTION),
    RESPONSE_A: (RESPONSE_B,),
    RESPONSE_B: (PRINCIPLE,),
    PRINCIPLE: (CRITIQUE, CRITIQUE_REQUEST, REASON),
    CRITIQUE_REQUEST: (CRITIQUE,),
    CRITIQUE: (REVISION_REQUEST,),
    REVISION_REQUEST: (REVISION,),
    REASON: (BETTER,),
}
_ANY = "|".join(map(re.escape, MARKERS))
_DRESSED = r"(?:#{1,6} |\*\*)?"  # as a heading or in bold
_MARKED = re.compile(rf"^{_DRESSED}({_ANY})", re.MULTILINE)
_OWN_WORDS = re.compile(rf"\n\n(?!\s*{_DRESSED}(?:{_ANY}))")  # before a paragraph that begins with no marker
_OTHER_LINE_ENDS = re.compile(r"[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_FENCED = re.compile(r"^ *(```+|~~~+).*?(?:^ *\1|\Z)", re.MULTILINE | re.DOTALL)

# Pages of other forms that a base model knows, at the end of a text: a question and its answer.
_QUESTION = re.compile(r"(?<=\n\n)(?:Q|Question|Human|User|Prompt|Task|Problem|Exercise)(?: \d+)?: ")
_ANSWER = re.compile(r"^(?:A|Answer|Assistant|Response|Output|Solution)(?: \d+)?:", re.MULTILINE)

# Instructions whose answer may well show a page of that form.
_SHOWS_PAGES = re.compile(
    r"\b(instruction|prompt|template|alpaca|shot|fine-?tun|data ?set|example|survey|questionnaire|form\b|"
    r"format|log\b|layout|quiz|e-?mail)",
    re.IGNORECASE,
)

_SHOWS_DIALOGUE = re.compile(
    rf"{_SHOWS_PAGES.pattern}|\b(dialogue|conversation|interview|faq|question|q ?(?:&|and) ?a|chat|"
    r"transcript|script|scene|riddle|exam|test|flash ?card)",
    re.IGNORECASE,
)

_LEADS_ON = re.compile(
    r"(?:[,;(\[{–-]|\b(?:the|an?|and|or|but|of|to|with|in|for|that|which|because|is|are|was|until|then|into|"
    r"from|by|as|if|than|when|while|your|his|its|their|und|oder|der|das|eine|einen|nicht|et|les|des|une|el|"
    r"los|las|con|para|on|about|between|because|where|who|whose|such as|für|mit|auf|von|weil|dass|que|dans|"
    r"sur|pour|avec|por|sobre))\s*$",
    re.IGNORECASE,
)
_BARE_ITEM = re.compile(r"(?:^|\n)[ \t]*(?:\d+[.)]|[-*•+])[ \t]*$")
_JOINS = re.compile(r"\b(?:and|or|but|the|an|und|oder)\s*$", re.IGNORECASE)
WORDS, FEW = 15, 5  # a text of fewer words may end in any of the first kind, of the second


def next_page(text: str, instruction: str) -> int | None:
    """Where in an answer another page of our own form begins; None where none does.

    A page that the answer shows because it was asked for is none: the instruction is about such things, and
    the text leads up to it with a colon or goes on below it."""
    text = _OTHER_LINE_ENDS.sub("\n", text)
    fences = [match.span() for match in _FENCED.finditer(text)]
    marks = [m for m in _MARKED.finditer(text) if not any(a <= m.start() < b for a, b in fences)]
    shown = 0  # how far a page reaches that the answer shows
    for mark, then in zip_longest(marks, marks[1:]):
        if mark.start() < shown:
            continue
        before, rest = text[: mark.start()].rstrip(), text[mark.start() :].strip()
        goes_on = then and then[1] in _THEN.get(mark[1], ())
        last = "\n" not in rest and (mark[1] in (INSTRUCTION, PRINCIPLE) or rest == mark[1])
        if not (goes_on or last or KEEP in rest or CHANGE in rest):
            continue
        led_up_to = before.endswith(":") or not _MARKED.search(text.rsplit("\n\n", 1)[-1])
        if not (before and led_up_to and _SHOWS_PAGES.search(instruction)):
            return mark.start()
        own_words = _OWN_WORDS.search(text, mark.start())
        shown = own_words.start() if own_words else len(text)
    return _other_page(text, instruction)


def _other_page(text: str, instruction: str) -> int | None:
    """Where a question and its answer begin that nobody asked for; None where the text opens in that form."""
    found = _QUESTION.search(text)
    if not found or _SHOWS_DIALOGUE.search(instruction) or re.match(r"\W*[A-Z]\w*(?: \d+)?\W*: ", text):
        return None
    return found.start() if _ANSWER.search(text, found.end()) else None


def own_text(completion: Completion, spec: ModelSpec, instruction: str) -> Completion:
    """A base model's answer or revision without the page that it began after it, where it was shown pages."""
    if spec.kind != "base" or not spec.shots:
        return completion
    at = next_page(completion.text, instruction)
    if at is None:
        return completion
    return replace(completion, text=completion.text[:at].strip(), finish_reason="stop", ended_by=NEXT_PAGE)


def is_cut_off(text: str) -> bool:
    """Whether a text breaks off: inside a block of code, a table or brackets, at a bare item of a list, at a
    colon, or, if it is of some length, at a comma or a word that leads on. A full stop may be missing."""
    return any(_open_ends(text.rstrip()))


def _open_ends(text: str) -> Iterator[bool]:
    yield text.count("```") % 2 == 1
    yield bool(_BARE_ITEM.search(text)) and len(text.split()) > 1
    yield text.endswith((":", "："))
    words = len(re.findall(r"\w+", text))
    yield words >= WORDS and bool(_LEADS_ON.search(text)) or words >= FEW and bool(_JOINS.search(text))
    brackets = Counter(c for c in text if c in "{}[]")
    yield text.startswith(("{", "[")) and brackets["{"] + brackets["["] > brackets["}"] + brackets["]"]
    *above, last = text.split("\n")
    columns = [line.strip().count("|") for line in above if line.strip().startswith("|")]
    yield last.strip().startswith("|") and bool(columns) and last.count("|") < columns[0]
