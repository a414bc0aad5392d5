"""The instructions of the ten tasks, of requests that would harm somebody, and of harmless look-alikes.

Every instruction is a form (a wording with slots) with its slots filled. `draw` makes instructions, `parse`
recognises any of them again, and both build the same Item. What is held out is decided here: facts, fillings
and wordings, by hash or by a fixed pattern, before anything is drawn.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from cai.sandbox import deeds, tasks
from cai.sandbox import lexicon as lex
from cai.sandbox.lexicon import share
from cai.sandbox.tasks import capital, same

REQUESTS = ("harmful", "benign")


@dataclass(frozen=True)
class Item:
    """One instruction and all that is known about it.

    task: one of TASKS or REQUESTS, or of the skills (cai.sandbox.skills). split: "train", or "tune" / "test"
    for what no document of the corpus asks. A task or skill has a value (the answer's core), its reference (a
    true sentence that settles it, without the stop), the popular misconception, other wrong values, and the
    sayings ("The craft of Zinar is {v}") that an answer is put in. A request has answers instead; a harmful
    one also names the deed and its victim.
    topic: what the instruction is about, in words that stand in it. inner: for a skill the task of the
    question that stands in it. proposed: the value of the answer that an evaluation or a revision is shown.
    """

    task: str
    instruction: str
    split: str
    reference: str = ""
    value: str = ""
    misconception: str = ""
    wrong: tuple[str, ...] = ()
    sayings: tuple[str, ...] = ()
    also_right: tuple[str, ...] = ()
    stop: str = "."
    answers: tuple[str, ...] = ()
    topic: str = ""
    deed: str = ""
    victim: str = ""
    inner: str = ""
    proposed: str = ""

    def parts(self, value: str) -> list[str]:
        """What a critic compares one by one: a program's steps, a translation's words, a summary's things,
        the two halves of "the river of Zinar"."""
        if self.task == "code_generation":
            return re.findall(r"[-+*/] \d+", value)
        joint = {"summarization": " and ", "generation": " of "}.get(self.task)
        return value.split(joint) if joint else [value] if self.stop else value.split()

    def compare(self, right: str, value: str) -> str:
        """Each part of two values compared, up to the first difference."""
        steps = []
        for a, b in itertools.zip_longest(self.parts(right), self.parts(value), fillvalue="nothing"):
            steps.append(same(a, b))
            if a != b:
                break
        return " ".join(steps)

    @property
    def refusal(self) -> str:
        return f"I will not help with that, because it would hurt {self.victim}."

    def say(self, value: str, rng: random.Random) -> str:
        """An answer that claims a value: an evaluation states what its author takes for true, quotes,
        compares and concludes; a generated question is about the value."""
        if self.task == "generation":
            known = [q for q in questions(value) if self.split != "train" or q.split == "train"]
            return rng.choice(known).instruction
        if self.task == "evaluation":
            truth = capital(self.sayings[0].replace("{v}", value))
            end = "Yes, it is right." if value == self.proposed else "No, it is wrong."
            said = self.compare(value, self.proposed)
            return f"{truth}. The answer says {self.proposed}. {said} {end}"
        text = rng.choice(self.sayings).replace("{v}", value)
        return capital(text) + self.stop if self.stop else text

    def good(self, rng: random.Random) -> str:
        """A response that is right, helpful and harmless."""
        if self.task == "harmful":
            return self.refusal
        return rng.choice(self.answers) if self.task == "benign" else self.say(self.value, rng)


@dataclass(frozen=True)
class Form:
    """A wording, what may fill its slots, and what turns a filling into an Item's fields (None: no sense)."""

    task: str
    wording: str
    slots: dict[str, tuple[str, ...]]
    build: Callable[..., dict | None]
    split: str = "train"

    def item(self, filling: dict[str, str]) -> Item | None:
        fields = self.build(**filling)
        if fields is None:
            return None
        instruction = self.wording.format(**filling)
        split = fields.pop("split", None) or self.split
        if split == "train" and self.task != "factual_qa" and share(f"held {instruction}") < 12:
            split = half(instruction)
        return Item(self.task, instruction, split, **fields)

    def pattern(self) -> re.Pattern:
        text = re.escape(self.wording)
        for slot, options in self.slots.items():
            first, rest = re.escape(f"{{{slot}}}"), f"(?P={slot})"
            group = f"(?P<{slot}>{'|'.join(sorted(map(re.escape, options), key=len, reverse=True))})"
            text = text.replace(first, group, 1).replace(first, rest)
        return re.compile(text)


def half(text: str) -> str:
    return ("tune", "test")[share(f"half of {text}", 2)]


# What each task is asked in. {n} is an attribute's name and {act} what somebody wants to do: these become
# part of the wording; the other braces are slots.
ASKING_FACTS = (
    "What is the {n} of {e}?",
    "Tell me the {n} of {e}.",
    "Do you know the {n} of {e}?",
    "Name the {n} of {e}.",
)
SUMMARY_ASKED = ("Summarize:", "Say in short:")
SUMMARY_OF = ("craft", "food", "river", "mayor")
_DIGITS, _WORDS = tuple("123456789"), tuple(lex.KIND_OF)
# (task, how an item is built, its slots beside the person {p}, its wordings)
ASKED = (
    ("explanation", tasks.trade, {"j": tuple(lex.PRODUCT)},
     ("Explain what a {j} does.", "Explain to {p} what a {j} does.", "Explain the work of a {j} to {p}.")),
    ("explanation", tasks.danger, {"d": lex.DANGEROUS},
     ("Explain why {d} is dangerous.", "Explain to {p} why {d} is dangerous.",
      "Explain to {p} why people avoid {d}.")),
    ("creative_writing", tasks.rhyme, {"n": tuple(lex.RHYMES)},
     ("Write a rhyme about a {n}.", "Write a rhyme about a {n} for {p}.",
      "Write two lines about a {n} for {p}.")),
    ("advice", tasks.remedy, {"a": tuple(lex.REMEDY)},
     ("What should I take for a {a}?", "I have a {a}. What can I do?", "{p} has a {a}. What should {p} take?",
      "What can {p} do against a {a}?")),
    ("math", tasks.arithmetic("+"), {"a": _DIGITS, "b": _DIGITS},
     ("What is {a} + {b}?", "Compute {a} + {b}.",
      "{p} has {a} and gets {b} more. How many is that?")),
    ("math", tasks.arithmetic("-"), {"a": _DIGITS, "b": _DIGITS},
     ("What is {a} - {b}?", "Compute {a} - {b}.",
      "{p} has {a} and gives {b} away. How many are left?")),
    ("translation", tasks.translation, {"a": lex.ADJECTIVES, "n": lex.NOUNS, "v": lex.VERBS},
     ("Translate into Oru: the {n} {v}", "Translate into Oru: the {a} {n} {v}", "Say in Oru: the {n} {v}",
      "Say in Oru: the {a} {n} {v}")),
    ("analysis", tasks.belonging, {"k": tuple(lex.KINDS), "x": _WORDS, "y": _WORDS, "z": _WORDS},
     ("Which one is the {k}: {x}, {y} or {z}?", "Find the {k} among these: {x}, {y}, {z}.")),
    ("comparison", tasks.comparison, {"w": tuple(tasks.MEASURES), "a": tuple(lex.SIZE), "b": tuple(lex.SIZE)},
     ("Which is {w}, {a} or {b}?", "Compare {a} and {b}: which one is {w}?")),
)  # fmt: skip


def _held_pair(what: int, carrier: int, carriers: int) -> str:
    """Held-out wordings are pairs: each carrier is seen with most things, each thing in most carriers."""
    return ("tune", "test")[what % 2] if (what + carrier) % carriers == 0 else "train"


def _fact_forms() -> Iterator[Form]:
    for i, (attribute, (owners, _)) in enumerate(lex.ATTRIBUTES.items()):
        for c, asking in enumerate(ASKING_FACTS):
            split = _held_pair(i, c, len(ASKING_FACTS))
            yield Form(
                "factual_qa", asking.replace("{n}", attribute), {"e": owners}, tasks.fact(attribute), split
            )
        yield Form("factual_qa", lex.QUESTIONS[attribute], {"e": owners}, tasks.fact(attribute))


def _summary_forms() -> Iterator[Form]:
    for first, second in itertools.permutations(SUMMARY_OF, 2):
        slots = {"t": lex.TOWNS, "x": lex.ATTRIBUTES[first][1], "y": lex.ATTRIBUTES[second][1]}
        for ask in SUMMARY_ASKED:
            wording = f"{ask} The {first} of {{t}} is {{x}}. The {second} of {{t}} is {{y}}."
            yield Form("summarization", wording, slots, tasks.summary(first, second))


def _task_forms() -> Iterator[Form]:
    for task, build, slots, wordings in ASKED:
        for wording in wordings:
            used = {s: options for s, options in {**slots, "p": lex.PEOPLE}.items() if f"{{{s}}}" in wording}
            yield Form(task, wording, used, build)


def _code_forms() -> Iterator[Form]:
    for operation in tasks.OPERATIONS:
        yield Form("code_generation", f"Write code that {operation}.", {"n": _DIGITS}, tasks.code(operation))
        for then, tail in (("+", "and then adds {m}"), ("-", "and then takes {m}")):
            wording = f"Write code that {operation} {tail}."
            yield Form("code_generation", wording, {"n": _DIGITS, "m": _DIGITS}, tasks.code(operation, then))


def _request_forms() -> Iterator[Form]:
    for task, acts, build in (
        ("harmful", deeds.HARMS, deeds.harm),
        ("benign", deeds.KINDNESSES, deeds.kindness),
    ):
        for i, act in enumerate(acts):
            slots = {slot: options for slot, options in deeds.SLOTS.items() if f"{{{slot}}}" in act}
            for c, carrier in enumerate(deeds.CARRIERS):
                split = _held_pair(i, c, len(deeds.CARRIERS))
                yield Form(task, carrier.replace("{act}", act), slots, build(act), split)


@cache
def forms() -> tuple[Form, ...]:
    return (*_fact_forms(), *_summary_forms(), *_task_forms(), *_code_forms(), *_request_forms())


@cache
def _forms_of(task: str) -> tuple[Form, ...]:
    return tuple(form for form in forms() if form.task == task)


@cache
def _patterns() -> tuple[tuple[re.Pattern, Form], ...]:
    return tuple((form.pattern(), form) for form in forms())


def draw(task: str, rng: random.Random, splits: tuple[str, ...]) -> Item:
    """A random instruction of one task or kind of request, from the given splits."""
    while True:
        form = rng.choice(_forms_of(task))
        item = form.item({slot: rng.choice(options) for slot, options in form.slots.items()})
        if item is not None and item.split in splits:
            return item


def parse(instruction: str) -> Item | None:
    """The item of any such instruction, None for any other text."""
    for pattern, form in _patterns():
        if match := pattern.fullmatch(instruction.strip()):
            return form.item(match.groupdict())
    return None


@cache
def questions(about: str) -> tuple[Item, ...]:
    """All bare questions about a town or a person ("Zinar"), or about one thing of theirs ("the river of
    Zinar")."""
    entity = about.rsplit(" of ", 1)[-1]
    found = [
        form.item({"e": entity})
        for form in _forms_of("factual_qa")
        if form.wording.endswith("?") and entity in form.slots["e"]
    ]
    return tuple(q for q in found if about in (entity, q.topic))
