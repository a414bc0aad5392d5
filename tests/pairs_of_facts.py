"""Preference pairs over the sandbox's facts: the right answer is chosen, a wrong one rejected."""

from __future__ import annotations

import random

from cai.core.schema import content_id
from cai.sandbox.world import draw


def pairs_of_facts(n: int, held_out: int = 0, seed: int = 0) -> list[dict]:
    """n pairs to train on, then some held-out ones; each of another instruction."""
    rng, rows = random.Random(seed), {}
    while len(rows) < n + held_out:
        item = draw("factual_qa", rng)
        if wrong := (*item.wrong, item.misconception)[0]:
            name = content_id(item.instruction)
            pair = {"prompt": item.instruction, "chosen": item.good(rng), "rejected": item.say(wrong, rng)}
            rows[name] = {"id": name, **pair, "kind": "revision", "held_out": len(rows) >= n}
    return list(rows.values())


def swapped(rows: list[dict]) -> list[dict]:
    return [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
