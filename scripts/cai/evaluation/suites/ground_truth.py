"""Ground truth, on the sandbox only: what share of answers is right, by the micro-world's own checkers.

On instructions of the test split, which no document of the corpus asks. Tests (cai.tasks) and probes
(cai.probes) get from here what the world knows. It measures; nothing that makes pairs reads it
(tests/test_tasks.py holds that).
"""

from __future__ import annotations

import random
from typing import Any

from cai.core.errors import UserError
from cai.core.stats import Metric, average_of_groups, paired_difference, share
from cai.evaluation.model_pair import BARE, PROMPTED, Subject
from cai.evaluation.result_store import BASE, TRAINED, Rows
from cai.models.registry import REGISTRY
from cai.prompts.training_format import instruction_of
from cai.sandbox import checkers, lexicon, world

GROUP = 100  # instructions a group; half of it for each of the nine tasks beside facts
SEEN, HELD = "facts, in new wordings", "facts, encyclopedia only"
WHO, FORMS = (BASE, TRAINED), (BARE, PROMPTED)


def truth(subject: Subject, rows: Rows) -> tuple[dict[str, Metric], dict[str, Any]]:
    """(metrics by name, notes). Raises UserError for a model of the real world."""
    if subject.spec.heldout != REGISTRY["sandbox"].heldout:
        raise UserError(
            "--suite truth measures the sandbox's invented world, and this run's model is "
            f"{subject.spec.name}: leave that suite out"
        )

    trained = {instruction_of(p) for p in subject.pairs if not p["held_out"]}
    groups, left_out = items(subject.limit or GROUP, subject.seed, trained)
    every = {i.instruction: i for some in groups.values() for i in some}
    right, complied = {}, {}
    for form in FORMS:
        for who in WHO:
            for a in subject.answers(rows, list(every), who, form):
                kind = checkers.kind(every[a["instruction"]], a["answer"])
                right[form, who, a["instruction"]] = kind == checkers.GOOD
                complied[form, who, a["instruction"]] = kind == checkers.HARM
    metrics = {}
    for form in FORMS:
        label = "bare format" if form == BARE else "own prompt"
        hits = {who: {g: [right[form, who, i.instruction] for i in groups[g]] for g in groups} for who in WHO}
        for name in (SEEN, HELD, "harmful requests refused", "benign requests answered"):
            metrics |= both(f"{label}: {name}", *(hits[who][name] for who in WHO))
        name = "harmful requests complied with"
        asked = [i.instruction for i in groups["harmful requests refused"]]
        metrics |= both(f"{label}: {name}", *([complied[form, who, i] for i in asked] for who in WHO))
        facts = {who: hits[who][SEEN] + hits[who][HELD] for who in WHO}
        tasks = [g for g in groups if g not in (SEEN, HELD) and "requests" not in g]
        ten = {who: [facts[who], *(hits[who][t] for t in tasks)] for who in WHO}
        metrics |= both(f"{label}: facts", facts[BASE], facts[TRAINED])
        for who in WHO:
            metrics[f"{label}: ten-task average, {who}"] = average_of_groups(ten[who])
        metrics[f"{label}: ten-task average, change"] = average_of_groups(
            [[int(n) - int(o) for o, n in zip(*two, strict=True)] for two in zip(*ten.values(), strict=True)],
            (-1.0, 1.0),
        )
        for task in tasks:
            metrics |= both(f"{label}: {task}", hits[BASE][task], hits[TRAINED][task])
    return metrics, {"instructions": len(every), "left out, trained on": left_out}


def both(name: str, base: list[bool], trained: list[bool]) -> dict[str, Metric]:
    return {
        f"{name}, {BASE}": share(base),
        f"{name}, {TRAINED}": share(trained),
        f"{name}, change": paired_difference(base, trained),
    }


def items(n: int, seed: int, trained: set[str]) -> tuple[dict[str, list], int]:
    """(group -> different test-split items, how many were left out because training has seen them)."""

    held = {lexicon.SAYINGS[a][0].format(e=e, v=lexicon.FACTS[e, a]) for e, a in lexicon.HELD_FACTS}
    groups = {
        SEEN: ("factual_qa", n, lambda i: i.reference not in held),
        HELD: ("factual_qa", n, lambda i: i.reference in held),
        "harmful requests refused": ("harmful", n, lambda i: True),
        "benign requests answered": ("benign", n, lambda i: True),
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
                some[item.instruction] = item
            if len(some) == wanted:
                break
        found[name] = list(some.values())
    return found, len(left_out)
