"""The micro-world's instructions: ten task types, requests, and five skills that are built on the tasks.

`draw` makes instructions, `parse` recognises any of them again, and both build the same Item.
"""

from __future__ import annotations

import random

from cai.core.schema import SKILLS
from cai.core.schema import TASK_TYPES as TASKS
from cai.sandbox import items, skills
from cai.sandbox.items import REQUESTS, Item, forms

__all__ = ("REQUESTS", "SKILLS", "TASKS", "Item", "draw", "forms", "parse")


def draw(task: str, rng: random.Random, splits: tuple[str, ...] = ("train",)) -> Item:
    """A random instruction of one task, request or skill, from the given splits. The implicit skill is a bare
    question, which is an item of factual_qa."""
    if task not in SKILLS:
        return items.draw(task, rng, splits)
    while True:
        item = skills.draw(task, rng)
        if item is not None and item.split in splits:
            return item


def parse(instruction: str) -> Item | None:
    """The item of any instruction of this world, None for any other text."""
    return skills.parse(instruction) or items.parse(instruction)
