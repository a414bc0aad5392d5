"""What generated instructions must pass: fit for a text-only model, new, and no evaluation
prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cai.generation.dedup import REASON, Deduper, EvaluationPrompts
from cai.generation.filters import is_exemplar, is_sentinel, normal

MIN_WORDS, MAX_WORDS = 3, 100


class InstructionFilter:
    """What is kept so far, and why an item may not join it."""

    def __init__(self, seeds: Iterable[str], near: float, barred: Iterable[str] = ()):
        self._seeds = dict.fromkeys(seeds)
        self._deduper = Deduper(near, self._seeds)
        self._barred = EvaluationPrompts(barred)

    def keep(self, text: str) -> None:
        self._deduper.keep(text)

    def take(
        self, text: str, whole: bool, full: Callable[[str], str | None] = lambda text: None
    ) -> tuple[str | None, str | None]:
        """Keeps an item: (None, None); or says why not, and what it is near to, where that is why. full: a
        last reason, asked before the search for near duplicates."""
        reason = "cut_off" if not whole else unfit(text)
        if reason is None and self._barred.near(text) is not None:
            reason = REASON
        reason = reason or full(text)
        if reason:
            return reason, None
        other = self._deduper.add(text)
        if other is None:
            return None, None
        if other in self._seeds:
            return "seed_echo", other
        return "duplicate" if normal(other) == normal(text) else "near_duplicate", other


def unfit(text: str) -> str | None:
    """Why a text, seen for itself, is no instruction to work with; None if it is one."""
    words = text.split()
    if len(words) < MIN_WORDS:
        return "too_short"
    if len(words) > MAX_WORDS:
        return "too_long"
    if is_sentinel(text):
        return "sentinel"
    if is_exemplar(text):
        return "exemplar"
    return "not_text" if needs_more_than_text(text) else None


# Things that a text-only model cannot see, hear or make.
_MEDIA = (
    r"(?:images?|pictures?|photos?|photographs?|videos?|clips?|audio|recordings?|podcasts?|screenshots?|"
    r"diagrams?|charts?|graphs?|figures?|maps?|drawings?|paintings?|sketch(?:es)?|cartoons?|logos?|posters?|"
    r"infographics?|animations?|slides?|slideshows?|presentations?|spreadsheets?|attachments?|files?|links?|"
    r"urls?|websites?|web ?pages?)"
)

# What could stand in the text, and is missing if nothing follows.
_TEXTS = (
    r"(?:text|passage|paragraph|article|document|email|letter|story|poem|essay|sentences?|excerpt|dialogue|"
    r"conversation|table|list|data|dataset|code|function|program|snippet|words?|numbers?|equation|review|"
    r"speech)"
)

_HERE = r"(?:attached|following|given|provided|uploaded|linked|accompanying|above|below)"
_NOT_TEXT = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"https?://|\bwww\.",
        rf"\b(?:this|these|{_HERE})\s+(?:\w+\s+)?{_MEDIA}\b",
        rf"\b{_MEDIA}\s+(?:(?:shown|that is|which is|you see)\s+)?{_HERE}\b",
        r"^\W*(?:please\s+)?(?:draw|sketch|paint|photograph|film|upload|download|click)\b"
        r"(?! (?:a |the |some |your )?(?:conclusions?|comparisons?|distinctions?|parallels?|attention)\b)",
        r"\b(?:create|make|design|generate|produce|edit|crop|draw|insert|find|send|show)\s+(?:me\s+)?"
        rf"(?:an?|the|some|this)?\s*(?:\w+\s+){{0,2}}{_MEDIA}\b",
        rf"\b(?:listen to|watch|look at|open|click on)\s+(?:this|these|the\s+{_HERE})\b",
    )
)

_MISSING = re.compile(
    rf"\b(?:(?:this|these|the\s+{_HERE}|{_HERE})\s+(?:\w+\s+)?{_TEXTS}|{_TEXTS}\s+(?:\w+\s+)?{_HERE})\b(.*)",
    re.IGNORECASE | re.DOTALL,
)

_FOLLOWS = re.compile(r"[:\"\u201c\u00ab\u2018'(\[{\n`].*\w|[.?!]\s+(?:\S+\s+){7}\S", re.DOTALL)


def needs_more_than_text(text: str) -> bool:
    """Whether an instruction asks for images, sound or links, or speaks of a text that is not there ("the
    table below"). It reads wordings: an odd one may pass."""
    if any(pattern.search(text) for pattern in _NOT_TEXT):
        return True
    missing = _MISSING.search(text)
    if missing is None:
        return False
    return not any(_FOLLOWS.search(part) for part in (missing[1], text[: missing.start()]))
