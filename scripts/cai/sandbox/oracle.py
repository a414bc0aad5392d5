"""What the sandbox's world knows: test questions, right answers, fixed answers with known flaws. All that
measures against the truth asks here."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cai.core.prompt_files import load_heldout
from cai.models.registry import REGISTRY
from cai.sandbox import authors, checkers, judging, lexicon, world

POOL = 40  # test instructions a task: fixed, so that they can be barred from training whatever a plan asks
SEEN, HELD = "facts, in new wordings", "facts, encyclopedia only"
REFUSED, ANSWERED = "harmful requests refused", "benign requests answered"


@dataclass(frozen=True)
class Trial:
    """An answer for critic and reviser. kind: of principle; critique: what a right critic says about it."""

    task: str
    instruction: str
    answer: str
    kind: str
    must_change: bool
    critique: str


def questions() -> dict[str, tuple[str, ...]]:
    """POOL different instructions of the test split for each task, skill and kind of request (harmful ones
    are to be refused, benign ones answered); fewer where there are no more. None is a held-out one, or
    another task's."""
    return dict(_pools())


@cache
def _pools() -> dict[str, tuple[str, ...]]:
    taken = {p.instruction for p in load_heldout(Path(REGISTRY["sandbox"].heldout))}
    pools = {}
    for task in (*world.TASKS, *world.SKILLS, *world.REQUESTS):
        rng, found = random.Random(f"tests {task}"), {}
        for _ in range(60 * POOL):
            text = world.draw(task, rng, ("test",)).instruction
            if text not in taken:
                found[text] = None
            if len(found) == POOL:
                break
        pools[task] = tuple(found)
        taken |= found.keys()
    return pools


def right(instruction: str, answer: str) -> bool | None:
    """Whether an answer is right (or, to a harmful request, a refusal); None for an instruction that is not
    of this world."""
    item = world.parse(instruction)
    return None if item is None else checkers.kind(item, answer) == checkers.GOOD


def complies(instruction: str, answer: str) -> bool:
    """Whether an answer helps to do harm."""
    item = world.parse(instruction)
    return item is not None and checkers.kind(item, answer) == checkers.HARM


def examination(n: int, seed: int, trained: set[str]) -> tuple[dict[str, list[str]], int]:
    """(group -> instructions of the test split, how many were left out because training has seen them): n of
    SEEN and of HELD facts, of requests to be REFUSED and ANSWERED, half of it of each other task."""
    groups = {
        SEEN: ("factual_qa", n, lambda i: i.reference not in lexicon.HELD_SENTENCES),
        HELD: ("factual_qa", n, lambda i: i.reference in lexicon.HELD_SENTENCES),
        REFUSED: ("harmful", n, lambda i: True),
        ANSWERED: ("benign", n, lambda i: True),
        **{task: (task, max(1, n // 2), lambda i: True) for task in world.TASKS[1:]},
    }
    found, left_out = {}, set()
    for name, (task, wanted, fits) in groups.items():
        rng, some = random.Random(f"{seed} truth {name}"), {}
        for _ in range(60 * wanted):
            item = world.draw(task, rng, ("test",))
            if item.instruction in trained:
                left_out.add(item.instruction)
            elif fits(item):
                some[item.instruction] = None
            if len(some) == wanted:
                break
        found[name] = list(some)
    return found, len(left_out)


@cache
def trials() -> tuple[Trial, ...]:
    """Good and flawed answers in turn, tasks and requests in turn: first each instruction of the pools with
    one of the two, then each with the other."""
    first, second = [], []
    for place in range(POOL):
        for t, task in enumerate((*world.TASKS, *world.REQUESTS)):
            if place < len(_pools()[task]):
                good, bad = _contrast(task, _pools()[task][place])
                sides = (good, bad) if (place + t) % 2 else (bad, good)
                first.append(sides[0])
                second.append(sides[1])
    return (*first, *second)


def _contrast(task: str, instruction: str) -> tuple[Trial, Trial]:
    """A good and a flawed answer to an instruction, by the kind of principle that tells them apart. The
    flawed one says something: an empty answer shows nothing of what a critic knows."""
    item, rng = world.parse(instruction), random.Random(f"probe {instruction}")
    kind = checkers.HARMLESS if task == "harmful" else checkers.ANSWER
    pair = None
    while pair is None or not pair[1].strip():
        pair = judging.contrast(item, kind, rng)
    good, bad = (
        Trial(task, instruction, text, kind, wrong, authors.critique(item, text, kind))
        for text, wrong in ((item.good(rng), False), (pair[1], True))
    )
    return good, bad


def principle_kind(principle_id: str) -> str | None:
    """The kind of virtue that a principle of constitution.yaml asks for in this world; None for others."""
    return checkers.PRINCIPLE_KINDS.get(principle_id)
