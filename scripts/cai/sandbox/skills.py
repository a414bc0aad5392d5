"""The five skills beside the ten tasks, each made of the world's bare questions.

explicit: an instruction that says so ("Answer this: Who leads Zinar?"). implicit: the bare question, which is
an item of factual_qa as it stands. generation: writing a question about a thing. evaluation: is an answer
right? revision: the right answer in place of a wrong one. Explicit, evaluation and revision take from their
question what is true, what people often say instead, how it is said, and whether it is held out.

An evaluation gives its reason before its "Yes" or "No": a model of this size cannot compare in its head.
"""

from __future__ import annotations

import random
from dataclasses import replace

from cai.core.schema import TASK_TYPES
from cai.sandbox import items
from cai.sandbox import lexicon as lex
from cai.sandbox.items import Item, half, questions
from cai.sandbox.lexicon import share
from cai.sandbox.tasks import capital, pick

# How a skill is asked for: what stands before the question, the question and its answer, or the thing.
OPENINGS = {
    "explicit": ("Answer this: ", "Answer this question: ", "Please answer this: "),
    "generation": ("Write a question about ", "Ask a question about ", "Ask something about "),
    "evaluation": ("Is this right? ", "Is this true? ", "Is this answer right? "),
    "revision": ("Make this better: ", "Improve this answer: ", "Correct this: "),
}
# How often the answer that is shown claims what is true, the popular misconception, something else.
SHOWN = {"evaluation": (45, 35, 20), "revision": (0, 65, 35)}


def draw(skill: str, rng: random.Random) -> Item | None:
    """A random instruction of a skill, of any split; None for one that makes no sense."""
    entity = rng.choice(lex.TOWNS + lex.PEOPLE)
    question = rng.choice(questions(entity))
    if skill == "implicit":
        return question
    opening = rng.choice(OPENINGS[skill])
    if skill == "generation":
        return _generation(opening, rng.choice((entity, question.topic)))
    if skill == "explicit":
        return _about(skill, opening, question)
    values = (question.value, question.misconception, rng.choice(question.wrong))
    return _about(skill, opening, question, question.say(rng.choices(values, SHOWN[skill])[0], rng))


def parse(instruction: str) -> Item | None:
    """The item of an instruction of any skill but the implicit one; None for any other text."""
    text = instruction.strip()
    for skill, openings in OPENINGS.items():
        for opening in openings:
            if not text.startswith(opening):
                continue
            rest = text.removeprefix(opening)
            if skill == "generation":
                return _generation(opening, rest[:-1]) if rest.endswith(".") else None
            asked, mark, answer = rest.partition("?")
            question = items.parse(asked + mark)
            if question is None or question.task not in TASK_TYPES or bool(answer) == (skill == "explicit"):
                return None
            return _about(skill, opening, question, answer.removeprefix(" "))
    return None


def _about(skill: str, opening: str, question: Item, answer: str = "") -> Item | None:
    """What a question becomes in an instruction of a skill; answer: the one that is shown."""
    text = f"{opening}{question.instruction} {answer}".rstrip()
    item = replace(
        question,
        task=skill,
        instruction=text,
        split=_split(text, question.split),
        inner=question.task,
        proposed=_value(question, answer),
    )
    right = item.proposed in (item.value, *item.also_right)
    if skill == "explicit":
        return item
    return None if not item.proposed or (skill == "revision" and right) else item


def _value(question: Item, answer: str) -> str:
    """The value, of those that are known, that an answer to a question says; "" for none."""
    for saying in question.sayings:
        for value in (question.value, *question.wrong):
            if answer == capital(saying.replace("{v}", value)) + question.stop:
                return value
    return ""


def _generation(opening: str, about: str) -> Item | None:
    """Writing a question about a town or a person, or about one thing of theirs."""
    fitting = questions(about)
    if not fitting:
        return None
    entity = about.rsplit(" of ", 1)[-1]
    names = lex.TOWNS if entity in lex.TOWNS else lex.PEOPLE
    others = names if about == entity else tuple(about.replace(entity, name) for name in names)
    if about != entity:
        others += tuple(dict.fromkeys(q.topic for q in questions(entity)))
    wrong = tuple(x for x in others if x != about and _askable(x))
    text = f"{opening}{about}."
    return Item(
        "generation",
        text,
        _split(text, "train" if _askable(about) else fitting[0].split),
        reference=f"The question must be about {about}",
        value=about,
        misconception=pick(wrong, about, about),
        wrong=wrong,
        topic=about,
    )


def _askable(about: str) -> bool:
    """Whether the corpus may ask something about it."""
    return any(q.split == "train" for q in questions(about))


def _split(text: str, inner: str) -> str:
    """What holds a held-out question is held out; of the rest one in eight, as for the tasks."""
    return half(text) if inner == "train" and share(f"held {text}") < 12 else inner
