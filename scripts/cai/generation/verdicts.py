"""What a critique's verdict is: whether the response must be changed, or may stay.

The exemplars end each critique in one of two sentences. What a large model writes instead is read here by its
wording; what no wording tells is decided by log-probability (generation/loop.py), and the record says which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cai.prompts.markers import CHANGE, KEEP

TAIL = 200  # characters in which one of the two sentences itself, without the other, is the verdict

_RESPONSE = r"(?:(?:the|this|that|your) (?:\w+ )?|^)(?:response|answer|reply)"
_SUBJECT = (  # with its space; it may be missing: "Needs to be changed."
    rf"(?:(?:{_RESPONSE}|^(?:(?:so|therefore|hence|thus),? )?(?:it|this|that)) |^(?:verdict )?)"
)
_MUST = r"(?:must|should|needs? to|has to|have to|ought to)"
_SURELY = r"(?:(?:therefore|thus|definitely|clearly|certainly|really|still|also|then|hence) )?"
_CHANGED = r"(?:changed|revised|corrected|rewritten|amended|modified|replaced|fixed)"
_CHANGING = r"(?:changing|revising|correcting|rewriting)"
_CHANGE = r"(?:change|revise|correct|rewrite)"
_CHANGES = r"(?:changes?|revisions?|corrections?|edits?|modifications?)"
_NEEDED = r"(?:needed|necessary|required|called for)"
_NEEDS = r"(?:needs?|requires?|calls? for)"

_KEPT = re.compile(
    rf"\bno (?:\w+ ){{0,2}}{_CHANGES} (?:(?:is|are|was|were|seems?) (?:\w+ )?)?{_NEEDED}\b|^no {_CHANGES}$"
    rf"|\bno (?:need|reason) (?:to {_CHANGE}|(?:for|of) (?:a |any )?{_CHANGES})\b"
    rf"|\bdo not see (?:any|a) (?:need|reason) (?:to {_CHANGE}|for (?:a |any )?{_CHANGES})\b"
    rf"|{_SUBJECT}(?:must|should|need) not be {_CHANGED}\b"
    rf"|{_SUBJECT}(?:does|do|would) not (?:need|have|require) (?:to be {_CHANGED}|(?:a |any )?{_CHANGES})\b"
    rf"|{_SUBJECT}{_NEEDS} no (?:\w+ )?{_CHANGES}\b"
    rf"|\bnothing (?:\w+ )?(?:{_MUST} (?:be {_CHANGED}|change)|to {_CHANGE})\b"
    rf"|{_SUBJECT}(?:is|can|may|should|could|might) (?:\w+ )?(?:(?:stay|remain|stand|be left|be kept) )?"
    r"(?:just |exactly )?(?:as it is|as is|unchanged)\b"
    rf"|^(?:keep|leave) (?:{_RESPONSE}|it|this) (?:as it is|as is|unchanged)\b"
    rf"|^i would (?:not {_CHANGE}|leave|keep) (?:{_RESPONSE}|it|this)\b"
)
_TO_CHANGE = re.compile(
    rf"{_SUBJECT}{_SURELY}{_MUST} {_SURELY}(?:be {_SURELY}{_CHANGED}|change)\b"
    rf"|{_SUBJECT}(?:is|was) (?:\w+ ){{1,4}}and {_MUST} be {_CHANGED}\b"
    rf"|{_SUBJECT}{_SURELY}{_NEEDS} (?:(?:a|some|several) )?(?:\w+ )?(?:{_CHANGES}|{_CHANGING})\b"
    rf"|{_SUBJECT}(?:cannot|must not|should not) (?:stay|remain|stand|be left)\b"
    rf"|\b{_CHANGES} (?:is|are) {_SURELY}{_NEEDED}\b|^(?:an? )?{_CHANGES} {_NEEDED}\b"
    rf"|\b(?:recommend|suggest|propose|advise)(?: that)? {_RESPONSE} be {_CHANGED}\b"
    rf"|^i (?:would )?(?:{_CHANGE}|(?:recommend|suggest) {_CHANGING}) {_RESPONSE}\b"
)
# What is weighed, reported or denied is no verdict; after "although" and the like, up to the next comma.
_NOT_MEANT = re.compile(
    r"\b(?:whether|either|if|unless|at first|the question|perhaps|nothing in|"
    r"some (?:would|might|may|could)|(?:one|you|someone) (?:could|might|may)|no reason|"
    r"(?:cannot|can not|could not|would not) (?:say|claim|agree)|not (?:hold|true|the case) that|"
    r"not (?:think|believe|see))\b|^(?:or|nor)\b"
    r"|\b(?:although|though|while)\b[^,]*$"
)
_NOT_MEANT_AFTER = re.compile(r"^\W*(?:would be|is) (?:wrong|too|not|false)\b")
_ASKED = re.compile(r"\b(?:end with|one of (?:the |these )?two (?:sentences|verdicts))\b")  # our own words
_SPELLED = {
    "’": "'",
    "doesn't": "does not",
    "don't": "do not",
    "needn't": "need not",
    "mustn't": "must not",
    "shouldn't": "should not",
    "wouldn't": "would not",
    "can't": "cannot",
    "i'd": "i would",
    "it's": "it is",
}


@dataclass(frozen=True)
class Verdict:
    """says: KEEP, CHANGE or None. scores: where it was decided by them, the log-probabilities of the two
    sentences after the critique."""

    says: str | None
    scores: Mapping[str, float] | None = None

    def as_entry(self) -> dict[str, Any]:
        """What a record says of it, beside the critique."""
        if self.scores is None:
            return {"verdict": self.says, "verdict_by": "read" if self.says else None}
        return {"verdict": self.says, "verdict_by": "log-probability", "verdict_scores": dict(self.scores)}


def verdict_of(entry: Mapping[str, Any]) -> str | None:
    """The verdict of a record's critique: the recorded one; of records that have none, what its text says."""
    return entry["verdict"] if "verdict" in entry else read_verdict(entry["critique"])


def read_verdict(critique: str) -> str | None:
    """KEEP or CHANGE, as a critique's words have it; None if it says neither, or both."""
    tail = critique[-TAIL:]
    keep, change = KEEP in tail, CHANGE in tail
    if keep != change:
        return KEEP if keep else CHANGE
    if _ASKED.search(_plain(critique)):
        return None
    said = {verdict for verdict, _, _ in _said(critique)}
    return said.pop() if len(said) == 1 else None


def without_verdict(critique: str) -> str:
    """The reasons of a critique: its text without the words of its verdict."""
    plain = _plain(critique)
    for _, start, end in reversed(_said(critique)):
        plain = f"{plain[:start]} {plain[end:]}"
    return plain


def _plain(text: str) -> str:
    """In lower case, without markup, its contractions spelled out."""
    text = re.sub(r"[*_`\"“”]|(?<!\w)'|'(?!\w)", "", text.lower().replace("’", "'"))
    for short, spelled in _SPELLED.items():
        text = text.replace(short, spelled)
    return text


def _said(critique: str) -> list[tuple[str, int, int]]:
    """The verdicts that a critique gives, with their places in its plain text."""
    plain, found = _plain(critique), []
    for clause in re.finditer(r"[^\s.!?;:。！？][^.!?;:\n。！？]*", plain):
        text, taken = clause[0].rstrip(), 0
        if plain[clause.end() : clause.end() + 1] in ("?", "？"):
            continue
        kept = [(KEEP, match) for match in _KEPT.finditer(text)]
        to_change = [(CHANGE, match) for match in _TO_CHANGE.finditer(text)]
        for verdict, match in sorted(kept + to_change, key=lambda said: said[1].start()):
            if match.start() < taken:
                continue  # "no further changes are needed" holds "changes are needed"
            taken = match.end()
            weighed = _NOT_MEANT.search(text[: match.start()]) or _NOT_MEANT_AFTER.search(text[taken:])
            if not weighed:
                found.append((verdict, clause.start() + match.start(), clause.start() + taken))
    return found
