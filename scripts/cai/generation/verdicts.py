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
_PART = (  # what a response is made of
    r"(?:the|this|that|its) (?:\w+ )?(?:claim|statement|sentence|line|advice|figure|number|date|name|tone|"
    r"part|passage|paragraph|wording|error|mistake|refusal|summary|poem|story|text|list|code|translation|"
    r"e-?mail)"
    r"(?: \w+){0,4}"
)
_SUBJECT = (  # with its space; it may be missing: "Needs to be changed."
    rf"(?:(?:{_RESPONSE}|(?:^|, )(?:(?:so|and|therefore|hence|thus),? )?(?:it|this|that)|{_PART}) |"
    rf"^(?:verdict )?)"
)
_MUST = r"(?:must|should|(?:would )?needs? to|has to|(?:would )?have to|ought to)"
_SURELY = r"(?:(?:therefore|thus|definitely|clearly|certainly|really|still|also|then|hence) )?"
_CHANGED = (
    r"(?:changed|revised|corrected|rewritten|reworded|rephrased|reworked|redone|amended|edited|modified|"
    r"improved|replaced|fixed|put right|removed|taken out|withdrawn)"
)
_CHANGING = r"(?:changing|revising|correcting|rewriting|fixing|amending|editing|replacing)"
_CHANGE = r"(?:change|revise|correct|rewrite|reword|rephrase|rework|amend|edit|modify|replace|fix|redo)"
_CHANGES = r"(?:changes?|revisions?|corrections?|edits?|modifications?)"
_NEEDED = r"(?:needed|necessary|required|called for)"
_NEEDS = r"(?:needs?|requires?|calls? for)"

_AS_IT_IS = r"(?:as it (?:is|stands)|as is|as written|the way it is|unchanged)"

_KEPT = re.compile(
    rf"\bno (?:\w+ ){{0,2}}{_CHANGES} (?:(?:is|are|was|were|seems?) (?:\w+ )?)?{_NEEDED}\b|^no {_CHANGES}$"
    rf"|\bno (?:need|reason) (?:to {_CHANGE}|(?:for|of) (?:a |any )?{_CHANGES})\b"
    rf"|\bdo not see (?:any|a) (?:need|reason) (?:to {_CHANGE}|for (?:a |any )?{_CHANGES})\b"
    rf"|{_SUBJECT}(?:must|should|need) not be {_CHANGED}\b"
    rf"|{_SUBJECT}(?:does|do|would) not (?:need|have|require) (?:to be {_CHANGED}|(?:a |any )?{_CHANGES})\b"
    rf"|{_SUBJECT}{_NEEDS} no (?:\w+ )?{_CHANGES}\b"
    rf"|\bnothing (?:\w+ )?(?:{_MUST} (?:be {_CHANGED}|change)|to {_CHANGE})\b"
    rf"|\bnothing (?:\w+ )?{_NEEDS} {_CHANGING}\b"
    rf"|{_SUBJECT}(?:is|can|may|should|could|might) (?:\w+ )?(?:(?:stay|remain|stand|be left|be kept) )?"
    rf"(?:just |exactly )?{_AS_IT_IS}\b"
    rf"|{_SUBJECT}(?:can|may|should) (?:\w+ )?(?:stay|stand|remain|be left alone|be kept|be accepted)\b"
    rf"|^(?:\w+ )?(?:acceptable|good|fine|okay|ok|right|correct|sound|perfect|adequate) {_AS_IT_IS}\b"
    rf"|^(?:keep|leave) (?:(?:{_RESPONSE}|it|this) )?(?:{_AS_IT_IS}|alone)\b|^(?:keep|keep it|leave it)$"
    rf"|\bi would (?:not {_CHANGE}|leave|keep) (?:{_RESPONSE}|it|this)\b"
    # German, French, Spanish, Chinese
    r"|\b(?:keine|ohne) (?:\w+ )?(?:änderung|korrektur|überarbeitung)(?:en)?\b"
    r"|\b(?:nichts|nicht) (?:\w+ )?(?:zu (?:ändern|korrigieren)|(?:geändert|korrigiert|"
    r"überarbeitet) werden)\b"
    r"|\b(?:kann|darf|sollte) (?:\w+ )?(?:so|unverändert) (?:stehen ?)?(?:bleiben|gelassen)\b"
    r"|\b(?:aucune?|pas de|pas besoin de) (?:\w+ )?(?:modifications?|corrections?|changements?|(?:modifi|"
    r"corrig)er)\b"
    r"|\brien à (?:changer|corriger|modifier|revoir)\b|\bpeut rester (?:telle|tel|ainsi|comme)\b"
    r"|\bno (?:hace falta|es necesario|necesita|hay que|requiere|precisa) (?:\w+ )?(?:cambi|correc|"
    r"corre[gj]i|modific|revis)\w*"
    r"|\b(?:ning[uú]n|sin) (?:cambios?|necesidad de cambi\w+)\b|\b(?:puede|debe) quedar(?:se)? (?:como|así|"
    r"igual)\b"
    r"|(?:不需要|无需|无须|不必|不用|没有必要)(?:作|做|进行|任何)*(?:修改|更改|改动|修正|改)"
)
_TO_CHANGE = re.compile(
    rf"{_SUBJECT}{_SURELY}{_MUST} {_SURELY}(?:be {_SURELY}{_CHANGED}|change)\b"
    rf"|{_SUBJECT}(?:is|was) (?:\w+ ){{1,4}}and {_MUST} be {_CHANGED}\b"
    rf"|{_SUBJECT}{_SURELY}{_NEEDS} (?:(?:a|some|several) )?(?:\w+ )?(?:{_CHANGES}|{_CHANGING})\b"
    rf"|{_SUBJECT}(?:cannot|can not|must not|should not|may not) {_SURELY}(?:stay|remain|stand|"
    r"be (?:left|kept|accepted))\b"
    rf"|{_SUBJECT}(?:is|was) (?:not (?:acceptable|good enough|adequate|fit to \w+)|unacceptable|inadequate)\b"
    rf"|(?:{_RESPONSE}|^(?:instead )?it) {_SURELY}{_MUST} {_SURELY}(?:have (?!been)\w+|say|state|name|"
    r"mention|warn|explain|include|recommend|add|point|offer|acknowledge|avoid|give|tell|admit|"
    r"be (?:more|less))\b(?!.*\b(?:and|as) it (?:does|did|is)\b)"
    rf"|^(?:please )?{_CHANGE} (?:{_RESPONSE}|{_PART}|it|this|that)\b|^(?:revise|rewrite|change it)$"
    rf"|\b{_CHANGES} (?:is|are) {_SURELY}{_NEEDED}\b|^(?:an? )?{_CHANGES} {_NEEDED}\b"
    rf"|\b(?:recommend|suggest|propose|advise)(?: that)? {_RESPONSE} be {_CHANGED}\b"
    rf"|\bi (?:would )?(?:{_CHANGE}|(?:recommend|suggest) {_CHANGING}) (?:{_RESPONSE}|it|this)\b"
    # German, French, Spanish, Chinese
    r"|\b(?:muss|müsste|sollte) (?:(?!nichts?\b|keine)\w+ ){0,3}(?:geändert|korrigiert|überarbeitet|"
    r"berichtigt|ersetzt|angepasst|verbessert) werden\b"
    r"|\b(?:doit|devrait|il faut|il faudrait) (?:\w+ )?(?:(?:être )?(?:modifié|corrigé|révisé|changé|réécrit|"
    r"remplacé)e?|(?:modifier|corriger|réviser|changer|réécrire|revoir|remplacer))\b"
    r"|\b(?:debe|debería|tiene que|hay que|necesita) (?:ser )?(?:cambi|correg|corrig|modific|revis|"
    r"reescri)\w*"
    r"|(?:需要|应该?|应当|必须|得)(?:作|做|进行|被|予以|加以)*(?:修改|更改|改正|更正|修正|改写|重写)"
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
    """The reasons of a critique: its text without the words of its verdict, up to what part of the response
    they name."""
    plain = _plain(critique)
    for _, start, end in reversed(_said(critique)):
        named = " ".join(re.findall(_PART, plain[start:end]))
        plain = f"{plain[:start]} {named} {plain[end:]}"
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
