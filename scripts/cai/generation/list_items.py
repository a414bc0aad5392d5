"""The items of a list that a model continued. An item may run over several lines: the code, passage, points
or table that it speaks of stand below it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from cai.models.engine import Completion
from cai.prompts.markers import MARKERS

ITEM = re.compile(r"\s*(\d+)[.)]\s+(\S.*)")
# Leads to what stands below: "... the passage below.", not "... the following words: lamp, river."
_LEADS_TO_MORE = re.compile(r":\s*$|^[^:]*\b(?:below|following)\b[^:]*$", re.IGNORECASE)
_MATERIAL = re.compile(
    r"\s+\S|```|~~~|[-*•+>|\"“«]|\(?[a-z][.)]\s|\d"
)  # what stands below an item, by its look
_BARE_NUMBER = re.compile(r"\s*\d+[.)]\s*")
_ITS_ANSWER = re.compile(r"\s*(?:answer|response|solution|output|a):(?:\s|$)", re.IGNORECASE)


def items(completion: Completion) -> list[tuple[str, bool]]:
    """The items of a continued list, and whether each is whole: the last one of a text that was cut off is
    not, nor one that ends inside a block of code. The list is over at a line that belongs to no item: what
    follows is another document."""
    lines = completion.text.strip().splitlines()
    numbers = _numbers(lines)
    starts = [0, *(at for at in numbers if at)] if lines else []
    found: list[tuple[str, bool]] = []
    for start, after in zip_longest(starts, starts[1:]):
        before = numbers.get(start)
        goes_on = after is not None and (before is None or numbers[after] in (before, before + 1))
        own, over = _own(lines[start:after], goes_on)
        head = ITEM.fullmatch(own[0]) if start else None
        text = "\n".join([head[2] if head else own[0], *own[1:]]).strip()
        cut = completion.finish_reason != "stop" and after is None and start + len(own) == len(lines)
        if text:
            found.append((text, not cut and text.count("```") % 2 == 0))
        if over:
            break
    return found


def _numbers(lines: Sequence[str]) -> dict[int, int]:
    """{line: its number} of the lines that begin an item: not those inside of code, nor the points 1, 2, 3 of
    an item."""
    found, fenced = {}, False
    for at, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif at and not fenced and (match := ITEM.fullmatch(line)):
            found[at] = int(match[1])
    places = list(found)
    for first, at in enumerate(places):
        if found.get(at) != 1:
            continue
        run = [at]
        for place in places[first + 1 :]:
            if found[place] != len(run) + 1:
                break
            run.append(place)
        rest = places[first + len(run) :]
        if not rest:
            continue
        before = found.get(places[first - 1]) if first else None
        after = found[rest[0]]
        if after > len(run) + 1 and before in (None, after - 1):
            for place in run:
                del found[place]
    return found


def _own(lines: Sequence[str], goes_on: bool) -> tuple[list[str], bool]:
    """(the lines from an item to the next that belong to it, whether the list is over below them). goes_on:
    whether an item with the next number follows."""
    own, fenced, blank = [lines[0]], False, False
    more = bool(_LEADS_TO_MORE.search(lines[0]))
    for line in lines[1:]:
        if not line.strip() and not fenced:
            blank = True
            continue
        fence = line.lstrip().startswith(("```", "~~~"))
        if not fenced:
            if _ITS_ANSWER.match(line):
                return own, not goes_on
            if line.startswith(MARKERS) or _BARE_NUMBER.fullmatch(line):
                return own, True
            belongs = goes_on or (more if blank else more or _MATERIAL.match(line))
            if not belongs:
                return own, True
            if blank and not goes_on:
                more = False  # one passage below the last item, not the document after it
        own += [""] * blank + [line]
        blank, fenced = False, fenced != fence
    return own, False
