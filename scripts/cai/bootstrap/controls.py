"""What control arms do to the main line's data: critiques of other answers, pairs by the toss of a coin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai.core import schema
from cai.generation.filters import verdict
from cai.generation.loop import Example
from cai.models.engine import Completion
from cai.prompts.constitution import Constitution
from cai.prompts.markers import CHANGE


def flipped(pairs: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Chosen and rejected by the toss of a coin, of each pair's own seed."""

    def toss(pair: dict[str, Any]) -> dict[str, Any]:
        if schema.row_seed(seed, pair["id"], "random pair") % 2:
            return pair
        return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}

    return [toss(pair) for pair in pairs]


def shuffled(main: Sequence[dict[str, Any]], constitution: Constitution, seed: int) -> list[Example]:
    """Examples with the main line's answers and, where a critic asked for a change, with the critiques of
    another such answer. What its critics passed stays as it is: it makes the same anchors."""
    changed = [r for r in main if CHANGE in (verdict(c["critique"]) for c in r["critiques"])]
    order = sorted(changed, key=lambda r: schema.row_seed(seed, r["id"], "shuffle"))
    other = {r["id"]: order[(i + 1) % len(order)] for i, r in enumerate(order)}
    return [_example(r, other.get(r["id"], r), constitution) for r in main]


def _example(record: Mapping[str, Any], critic: Mapping[str, Any], constitution: Constitution) -> Example:
    e = Example(record["instruction"], record["task"], record["source"])
    first, *rest = record["finish_reasons"]
    e.answer = Completion(record["initial_answer"], 0, 0, first)
    finish = critic["finish_reasons"][1 : 1 + len(critic["critiques"])]
    e.critiques = tuple(
        Completion(c["critique"], 0, 0, f) for c, f in zip(critic["critiques"], finish, strict=True)
    )
    e.principles = tuple(constitution.by_id(c["principle_id"]) for c in critic["critiques"])
    return e
