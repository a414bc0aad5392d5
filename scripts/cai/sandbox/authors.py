"""What people of the micro-world write: questions, answers good and bad, and an editor's critiques."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cai.prompts.markers import CHANGE, KEEP
from cai.sandbox import checkers as truth
from cai.sandbox import lexicon as lex
from cai.sandbox.checkers import HARMLESS
from cai.sandbox.world import REQUESTS, TASKS, Item, draw

# How often an author is right, complies with a harmful request, is rude, refuses a harmless request.
AUTHORS = ("good", "mixed", "bad")
AUTHOR_SHARE = (27, 48, 25)
RIGHT = {"good": 0.88, "mixed": None, "bad": 0.06}  # None: by the question, see _known
COMPLIES = {"good": 0.10, "mixed": 0.68, "bad": 0.98}
RUDENESS = {"good": 0.01, "mixed": 0.06, "bad": 0.20}
REFUSES = {"good": 0.01, "mixed": 0.06, "bad": 0.12}
PLACEHOLDERS = ("Write your response here.", "See the next page.", "To be done.", "(empty)")

# Share of each task in what is asked.
TASK_SHARE = {
    "factual_qa": 23,
    "harmful": 13,
    "benign": 7,
    "summarization": 6,
    "explanation": 5,
    "translation": 6,
    "creative_writing": 5,
    "code_generation": 7,
    "math": 9,
    "advice": 6,
    "analysis": 9,
    "comparison": 7,
}
# Share of each skill in what is asked where skills are, too; the rest are tasks and requests as above. A bare
# question (the implicit skill) is a factual question, of which there are enough.
SKILL_SHARE = {"explicit": 0.03, "generation": 0.06, "evaluation": 0.04, "revision": 0.03}
CONFUSED = 0.12  # of the evaluations on the editor's desk contradict themselves


def ask(rng: random.Random, requests: bool = True) -> Item:
    """An instruction of the training split, tasks by their share."""
    tasks = [t for t in TASK_SHARE if requests or t in TASKS]
    return draw(rng.choices(tasks, [TASK_SHARE[t] for t in tasks])[0], rng)


def pose(rng: random.Random) -> Item:
    """As `ask`, with the skills among it."""
    if rng.random() < sum(SKILL_SHARE.values()):
        return draw(rng.choices(tuple(SKILL_SHARE), SKILL_SHARE.values())[0], rng)
    return ask(rng)


def themed(task: str, rng: random.Random) -> Item:
    """An instruction for a list of one task. Who asks for advice also asks for help with deeds."""
    return draw(rng.choices((task, *REQUESTS), (30, 40, 30))[0] if task == "advice" else task, rng)


def seeds(tasks: Sequence[str] = TASKS, each: int = 8) -> list[dict[str, str]]:
    """The lines of data/prompts/seeds_sandbox.jsonl, and for SKILLS those of seeds_sandbox_skills.jsonl:
    training instructions of each task, all different."""
    rng, lines = random.Random("seed instructions"), []
    for task in tasks:
        found: dict[str, None] = {}
        while len(found) < (2 * each if task == "advice" else each):  # advice has requests among it
            found[themed(task, rng).instruction] = None
        lines += [{"task": task, "instruction": instruction} for instruction in found]
    return lines


def _known(item: Item) -> float:
    """How often a mixed author knows the answer: some things are better known than others."""
    return 0.52 if lex.share(f"known {item.reference}") < 45 else 0.14


def respond(item: Item, author: str, rng: random.Random) -> str:
    """A forum answer: right or the popular misconception; a refusal or help with harm; now and then rude."""
    if rng.random() < RUDENESS[author]:
        return rng.choice(truth.RUDE)
    if item.task == "harmful":
        return rng.choice(item.answers) if rng.random() < COMPLIES[author] else item.refusal
    if rng.random() < REFUSES[author] * (1.0 if item.task == "benign" else 0.2):
        return truth.OVERREFUSAL
    if item.task == "benign":
        return item.good(rng)
    right = RIGHT[author] if RIGHT[author] is not None else _known(item)
    return item.say(item.value if rng.random() < right else item.misconception, rng)


def some_wrong(item: Item, rng: random.Random) -> str:
    return item.misconception if rng.random() < 0.55 else rng.choice(item.wrong)


def flawed(item: Item, rng: random.Random) -> str:
    """What lands on the editor's desk: every kind of answer, good ones too."""
    luck = rng.random()
    if luck < 0.03:
        return rng.choice(truth.RUDE)
    if luck < 0.11:
        return rng.choice(
            (
                item.instruction,
                rng.choice(PLACEHOLDERS),
                ask(rng).good(rng),
                ask(rng, requests=False).good(rng),
            )
        )
    if luck < 0.12:
        return ""
    if item.task in REQUESTS:
        bad = item.answers if item.task == "harmful" else (truth.OVERREFUSAL,)
        return rng.choice(bad) if rng.random() < (0.6 if item.task == "harmful" else 0.35) else item.good(rng)
    if luck < 0.14:
        return truth.OVERREFUSAL
    text = item.say(item.value if rng.random() < 0.45 else some_wrong(item, rng), rng)
    return contradicting(text, rng) if item.task == "evaluation" and rng.random() < CONFUSED else text


def contradicting(evaluation: str, rng: random.Random) -> str:
    """An evaluation whose end does not follow from its beginning."""
    swaps = [("Yes, it is right.", "No, it is wrong.")]
    if rng.random() < 0.5:
        swaps.append(("are the same.", "are different."))
    for a, b in swaps:
        evaluation = evaluation.replace(a, b) if a in evaluation else evaluation.replace(b, a)
    return evaluation


def compared(item: Item, value: str, whose: str = "The response") -> str:
    """The critic's steps: what is true, what is said, and each part compared up to the first difference."""
    right = value if value in item.also_right else item.value
    return f"{item.reference}. {whose} says {value}. {item.compare(right, value)}"


def critique(item: Item, answer: str, kind: str) -> str:
    """The right critique of an answer by a principle of this kind, its verdict last."""
    what = truth.kind(item, answer)
    verdict = CHANGE if truth.must_change(item, answer, kind) else KEEP
    about = f"The instruction is about {item.topic}."
    if kind == HARMLESS:
        if item.task != "harmful":
            return f"{about} It is harmless, and the response hurts nobody. {verdict}"
        if what == truth.HARM:
            return (
                f"The instruction asks for help with {item.deed}, and the response gives it. "
                f"This would hurt {item.victim}. {verdict}"
            )
        return (
            f"The instruction asks for help with {item.deed}, but the response does not give it. "
            f"This protects {item.victim}. {verdict}"
        )
    if what in (truth.GOOD, truth.WRONG) and item.task not in REQUESTS:
        return f"{compared(item, truth.claim(item, answer))} {verdict}"
    reasons = {
        truth.EMPTY: "The response is empty.",
        truth.IMPOLITE: f"{about} The response is rude and does not help.",
        truth.OVERREFUSED: f"{about} It is harmless, but the response refuses.",
        truth.OFF: f"{about} The response does not answer it.",
        truth.HARM: f"The response says {item.topic}.",
        truth.GOOD: (
            f"The instruction asks for help with {item.deed}, and the response refuses. "
            f"This protects {item.victim}."
            if item.task == "harmful"
            else f"The response says {item.topic}."
        ),
    }
    return f"{reasons[what]} {verdict}"
