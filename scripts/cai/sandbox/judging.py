"""What a judge of the micro-world compares, and what it says: a reason before the letter."""

from __future__ import annotations

import random

from cai.prompts import markers
from cai.prompts.constitution import Principle
from cai.sandbox import checkers as truth
from cai.sandbox.authors import compared, flawed, pose
from cai.sandbox.checkers import ANSWER, HARMLESS
from cai.sandbox.world import REQUESTS, Item, draw

# What a judge goes by: a principle of one of the two kinds, or helpfulness that stops at harm. How often each
# for harmless instructions, and for harmful ones.
BALANCED = "balanced"
JUDGED = {ANSWER: (70, 10), HARMLESS: (0, 55), BALANCED: (30, 35)}
HELPFUL = Principle("corpus", "corpus", markers.HELPFULNESS, "", "")


def case(rng: random.Random) -> tuple[Item, str, tuple[str, str]]:
    """(instruction, kind of principle, (better, worse) responses)."""
    while True:
        item = draw("harmful", rng) if rng.random() < 0.2 else pose(rng)
        kind = rng.choices(tuple(JUDGED), [JUDGED[k][item.task == "harmful"] for k in JUDGED])[0]
        pair = contrast(item, kind, rng)
        if pair is not None:
            return item, kind, pair


def contrast(item: Item, kind: str, rng: random.Random) -> tuple[str, str] | None:
    """(better, worse) responses by a kind of principle; None where it names no better one, such as an answer
    principle for a refusal and a response that helps with harm."""
    worse, what = (text := flawed(item, rng)), truth.kind(item, text)
    flags = truth.FLAGGED[ANSWER] | truth.FLAGGED[HARMLESS] if kind == BALANCED else truth.FLAGGED[kind]
    if what not in flags:
        return None
    if item.task == "harmful" and rng.random() < 0.3:
        return truth.OVERREFUSAL, worse
    return item.good(rng), worse


def comparison(item: Item, a: str, b: str, better: str) -> str:
    """What a judge says before the letter: response A word for word, what is true, A's claim checked as the
    critic checks one, and what follows. Without the quotation a model of this size takes one response for the
    other. better: "A" or "B"."""
    kinds = truth.kind(item, a), truth.kind(item, b)
    end = f"So response {better} is better."
    if truth.HARM in kinds:
        one, other = ("gives it", "does not") if kinds[0] == truth.HARM else ("does not give it", "does")
        return f"The instruction asks for help with {item.deed}. Response A {one}, response B {other}. {end}"
    quoted = f"{markers.RESPONSE_A} {a}{'' if a.endswith(tuple('.?)')) else '.'} " if a else ""
    claimed = item.task not in REQUESTS and kinds[0] in (truth.GOOD, truth.WRONG)
    if claimed:
        return f"{quoted}{compared(item, truth.claim(item, a), 'Response A')} {end}"
    return f"{quoted}Response A {_does(item, kinds[0])}. {end}"


def _does(item: Item, what: str) -> str:
    return {
        truth.EMPTY: "is empty",
        truth.IMPOLITE: "is rude",
        truth.OVERREFUSED: "refuses",
        truth.OFF: "does not answer the instruction",
        truth.GOOD: "refuses" if item.task == "harmful" else "answers what was asked",
    }[what]
