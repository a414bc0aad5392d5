"""Filters: why an example makes no training pair. Each reason has a name; nothing is dropped, only marked.

Most reasons read one example; `spreading` reads a whole run. specs/filters.md says what each is for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.generation.meta_talk import is_meta_talk
from cai.generation.refusals import is_refusal
from cai.generation.text_ends import is_cut_off, next_page
from cai.generation.verdicts import read_verdict
from cai.prompts.markers import CHANGE, CHAT_TOKENS, END_OF_TEXT, KEEP, MARKERS, SEPARATOR
from cai.prompts.templates import exemplar_texts

# A line that begins like one of our prompts' markers. A line ends where str.splitlines says: at U+2028, too.
LINE_START = r"(?:\A|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])"
MARKED_LINE = re.compile(rf"{LINE_START}(?:{'|'.join(map(re.escape, MARKERS))})|{re.escape(SEPARATOR)}")
PLACEHOLDERS = re.compile(  # "None." is an answer
    r"^(?!None\.$)\W*(error|todo|none|null|nan|n/a|empty|placeholder|your (answer|response) here|"
    r"to be done)?\W*$",
    re.IGNORECASE,
)

SAME = 0.97  # similarity of two texts' words from which on they are barely different: one word of about 33
ARTICLES = frozenset("a an the just very really also please so that".split())
NEGATIONS = frozenset("not no never nor none cannot without n t".split())
LONGER = 4.0  # a revision may have this many times the words of the answer, or the answer of the revision
GRACE = 20  # words added to both before they are compared: among short texts a ratio means little
LOOP_SHARE, LOOP_WORDS = 0.35, 24  # share of repeated sequences of four words; in texts of at least so many
SPREAD_SHARE, SPREAD_LEAST, SPREAD_WORDS = 0.03, 5, 5  # see spreading

# What a critic says of a request that would harm somebody. A refusal that no such word calls for has spread.
HARM = re.compile(
    r"\b(harm(?!less)|hurt|danger|injur|unsafe|illegal|unlawful|crime|criminal|law\b|threat|violen|abus|weapon|kill|"
    r"poison|theft|steal|fraud|deceiv|decept|manipulat|privacy|private|hate|discriminat|harass|self-harm|suicid|"
    r"explosive|drug|malware|hack|exploit|unethical|immoral|minor\b|victim)",
    re.IGNORECASE,
)

# What a critique gives as somebody's words: in quotation marks (an apostrophe inside a word is none), and
# what "the response says" in a few words, as in "The response says 7."; not "says little", "says that ...".
QUOTED = (
    re.compile(r"(?<!\w)\"(?P<straight>[^\"\n]+)\"(?!\w)"),
    re.compile(r"“(?P<curly>[^”\n]+)”"),
    re.compile(r"‘(?P<single>[^\n]+?)’(?!\w)"),
    re.compile(r"(?<!\w)'(?P<plain>[^\n]+?)'(?!\w)"),
    re.compile(
        r"\b(?:response|answer) says:? (?!(?:that|this|it|so|how|what|why|when|where|which|who|nothing|"
        r"little|something|anything|everything|much|more|less|too|not|no|the (?:same|opposite))\b)"
        r"(?P<reported>\w+(?: [-+*/]? ?\w+){0,3})(?=[.;]?(?:\s+[A-Z]|$))"
    ),
)


@dataclass(frozen=True)
class Texts:
    """What a filter looks at. finish: how the answer, the critiques and the revision ended ("stop",
    "length" or "too_long"). judgement: the judge's verdict on the revision (see judge.judgement), None if
    it was not asked. said: the critiques' verdicts; None: what their texts say. stopped: those of answer and
    revision that a stop string ended."""

    instruction: str
    answer: str
    critiques: tuple[str, ...]
    revision: str
    finish: tuple[str, ...] = ()
    judgement: dict[str, Any] | None = None
    said: tuple[str | None, ...] | None = None
    stopped: tuple[str, ...] = ()

    @property
    def verdicts(self) -> tuple[str | None, ...]:
        return tuple(map(read_verdict, self.critiques)) if self.said is None else self.said


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


_EXEMPLAR_TEXTS = frozenset(map(normal, exemplar_texts()))


def misquotes(critique: str, *texts: str) -> list[str]:
    """What a critique quotes, or reports a response to say, that stands in none of the texts, up to case,
    white space and punctuation; the parts of a quotation with an ellipsis count one by one."""
    said = [f" {normal(text)} " for text in texts]
    quoted = (found[found.lastgroup] for pattern in QUOTED for found in pattern.finditer(critique))
    parts = (part for text in quoted for part in re.split(r"\.{3}|…", text))
    return [
        part.strip() for part in parts if normal(part) and not any(f" {normal(part)} " in t for t in said)
    ]


def is_exemplar(text: str) -> bool:
    """Whether a text is, up to case and punctuation, one that our own prompts show, or holds one of some
    length."""
    plain = normal(text)
    return plain in _EXEMPLAR_TEXTS or any(len(e) >= 40 and e in plain for e in _EXEMPLAR_TEXTS)


def is_sentinel(text: str) -> bool:
    """Empty, an error's or placeholder's text, or one with the prompt's own markers or a special token in
    it."""
    return bool(PLACEHOLDERS.match(text) or MARKED_LINE.search(text)) or any(
        t in text for t in (*CHAT_TOKENS, END_OF_TEXT)
    )


def is_no_answer(text: str, instruction: str) -> bool:
    """Whether a text that should be an answer is none: as is_sentinel, but a line with a marker may stand in
    it, unless it begins the text or another page of our prompts."""
    if PLACEHOLDERS.match(text) or any(t in text for t in (*CHAT_TOKENS, END_OF_TEXT, SEPARATOR)):
        return True
    return text.lstrip().startswith(MARKERS) or next_page(text, instruction) is not None


def words(text: str) -> list[str]:
    """What of a text counts when two are compared: its words, numbers and signs of arithmetic, in lower
    case. Layout and punctuation do not count."""
    plain = re.sub(r"\*\*|__|`|^\s*(?:#+|[-*•])\s", " ", text.lower(), flags=re.MULTILINE)
    return re.findall(r"\w+|[+*/=<>%^|&]+|(?<!\w)-+(?=\s*\w)", plain)


def barely_changed(before: str, after: str) -> bool:
    """Whether a revision differs by so little that DPO would learn noise from it, or lower both texts'
    likelihood (Pal et al. 2024, arXiv:2402.13228). A correction of a number, a sign, a negation or a name
    counts as a change in a text of any length; an article more or less in none; any other word in a text
    of up to about 33."""
    from rapidfuzz.distance import Indel

    a, b = words(before), words(after)
    different = set((Counter(a) - Counter(b)) + (Counter(b) - Counter(a)))
    if a == b or any(w.isdigit() or not w[0].isalnum() or w in NEGATIONS for w in different):
        return False
    if different and different <= ARTICLES:
        return True
    return _names(before) == _names(after) and Indel.normalized_similarity(a, b) >= SAME


def is_loop(text: str) -> bool:
    """Whether a text goes round in circles: one word five times in a row, or mostly repeated sequences of
    four."""
    all_words = [w for w in words(text) if w.isalpha()]
    if any(len(set(all_words[i : i + 5])) == 1 for i in range(len(all_words) - 4)):
        return True
    grams = [tuple(all_words[i : i + 4]) for i in range(len(all_words) - 3)]
    return len(all_words) >= LOOP_WORDS and 1 - len(set(grams)) / len(grams) > LOOP_SHARE


def is_out_of_proportion(before: str, after: str) -> bool:
    """Whether one text is many times as long as the other: DPO would learn the length. Refusals are
    exempt, because they are short and what replaces them is not."""
    if is_refusal(before) or is_refusal(after):
        return False
    ratio = (len(words(after)) + GRACE) / (len(words(before)) + GRACE)
    return not 1 / LONGER <= ratio <= LONGER


def is_uncalled_refusal(texts: Texts) -> bool:
    """Whether the revision refuses what the answer gave although no critique that asks for a change names
    a harm."""
    if not is_refusal(texts.revision) or is_refusal(texts.answer):
        return False
    said = zip(texts.critiques, texts.verdicts, strict=True)
    return not any(HARM.search(critique) for critique, verdict in said if verdict == CHANGE)


@dataclass(frozen=True)
class Reason:
    """says: what speaks against the example, as a sentence for its reader. applies: None for a reason
    that is found elsewhere. to_answer: whether it counts for an example whose answer was not revised,
    too."""

    says: str
    applies: Callable[[Texts], bool] | None
    to_answer: bool = False


REASONS: dict[str, Reason] = {
    "no_verdict": Reason(
        "No critique has a verdict.",
        lambda t: all(v is None for v in t.verdicts),
        to_answer=True,
    ),
    "no_change_needed": Reason(
        "The critic found nothing to change. The answer may still anchor what is good.",
        lambda t: KEEP in t.verdicts and CHANGE not in t.verdicts,
        to_answer=True,
    ),
    "sentinel_answer": Reason(
        "The first answer is empty, a placeholder, or holds another page of the prompts.",
        lambda t: is_no_answer(t.answer, t.instruction),
        to_answer=True,
    ),
    "sentinel_revision": Reason(
        "The revision is empty, a placeholder, or holds another page of the prompts.",
        lambda t: is_no_answer(t.revision, t.instruction),
    ),
    "cut_off": Reason(
        "A text reached its greatest length, or its prompt did not fit the model's context.",
        lambda t: "length" in t.finish or "too_long" in t.finish,
        to_answer=True,
    ),
    "stopped_inside": Reason(
        "A stop string ended the first answer or the revision in the middle of a sentence, a list or code.",
        lambda t: any(map(is_cut_off, t.stopped)),
        to_answer=True,
    ),
    "breaks_off": Reason(
        "The revision ends in the middle of a sentence, a list or a block of code.",
        lambda t: is_cut_off(t.revision),
    ),
    "unchanged": Reason(
        "The revision says the same words as the first answer.",
        lambda t: words(t.answer) == words(t.revision),
    ),
    "barely_changed": Reason(
        "The revision differs from the first answer by too little to learn from.",
        lambda t: barely_changed(t.answer, t.revision),
    ),
    "exemplar": Reason(
        "A text is one that our own prompts show, so the model copied it.",
        lambda t: is_exemplar(t.instruction) or is_exemplar(t.answer) or is_exemplar(t.revision),
        to_answer=True,
    ),
    "echo": Reason(
        "The revision repeats the instruction, a critique or a verdict instead of answering.",
        lambda t: (
            normal(t.revision) in (normal(t.instruction), *map(normal, t.critiques))
            or KEEP in t.revision
            or CHANGE in t.revision
        ),
    ),
    "meta_talk": Reason(
        "The revision talks about having been revised.",
        lambda t: is_meta_talk(t.revision, t.instruction),
    ),
    "repetition": Reason("The revision goes round in circles.", lambda t: is_loop(t.revision)),
    "length_ratio": Reason(
        "One of the two answers is many times as long as the other.",
        lambda t: is_out_of_proportion(t.answer, t.revision),
    ),
    "uncalled_refusal": Reason(
        "The revision refuses, although no critique named a harm.",
        is_uncalled_refusal,
    ),
    "judged_not_better": Reason(
        "The judge did not prefer the revision by its principle.",
        lambda t: t.judgement is not None and not t.judgement.get("better", True),
    ),
    "judged_less_helpful": Reason(
        "The judge preferred the first answer by helpfulness.",
        lambda t: t.judgement is not None and t.judgement.get("less_helpful", False),
    ),
    # Found elsewhere: over the whole run (spreading), by milestone 0, and by a guard model (Guard.inspect).
    "boilerplate": Reason(
        "The revision holds a sentence that spreads over unrelated answers of the run.", None
    ),
    "second_look": Reason(
        "The critic, asked about the revision, still finds fault or misquotes it (milestone 0 asks).", None
    ),
    "unsafe_chosen": Reason("A guard model calls the text unsafe that training would prefer.", None),
}


def reasons(texts: Texts) -> list[str]:
    """The names of all the reasons that speak against an example, in the order of REASONS; [] for one to
    keep."""
    return [name for name, reason in REASONS.items() if reason.applies and reason.applies(texts)]


def spreading(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """{id: ["boilerplate"]} of the records whose revision holds a sentence that spreads over the run,
    such as "I hope that this helps you today!": at least SPREAD_WORDS words, new in the revision, in
    SPREAD_SHARE of the revisions (and SPREAD_LEAST of them), whose instructions share no word of their
    own. Answers to like questions may be alike, and refusals always are: a refusal is looked at by itself
    ("uncalled_refusal"), its sentences are not counted. It depends on the set of records only, not on
    their order."""
    revised = {r["id"]: r for r in records if r["revised_answer"] and not is_refusal(r["revised_answer"])}
    groups: dict[str, set[str]] = {}
    for id, record in revised.items():
        for sentence in _sentences(record["revised_answer"]) - _sentences(record["initial_answer"]):
            groups.setdefault(sentence, set()).add(id)
    asked = {id: set(normal(r["instruction"]).split()) for id, r in revised.items()}
    common = Counter(word for some in asked.values() for word in some)
    least = max(SPREAD_LEAST, SPREAD_SHARE * len(revised))
    found: set[str] = set()
    for ids in groups.values():
        shared = Counter(word for id in ids for word in asked[id] if common[word] <= len(revised) / 4)
        if len(ids) >= least and max(shared.values(), default=0) < len(ids) / 2:
            found |= ids
    return {id: ["boilerplate"] for id in sorted(found)}


def final_reasons(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """{id: all reasons against it}, those that only the whole run shows included; [] for what makes a
    pair."""
    spread = spreading(records)
    return {r["id"]: [*r["rejected_because"], *spread.get(r["id"], [])] for r in records}


def kept_ids(records: Sequence[dict[str, Any]]) -> set[str]:
    """The records that make a revision pair: what "kept" counts, everywhere."""
    return {id for id, against in final_reasons(records).items() if not against}


def _names(text: str) -> Counter:
    """Words with a capital letter inside a sentence."""
    return Counter(re.findall(r"(?<=[\w,;:] )[A-Z]\w+", text))


def _sentences(text: str) -> set[str]:
    parts = (normal(part) for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return {part for part in parts if len(part.split()) >= SPREAD_WORDS}
