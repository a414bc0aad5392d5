"""How many examples a run makes: a number of them, or as many as it takes until there are enough pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.core.schema import HELD_OUT, is_held_out
from cai.generation.filters import kept_ids

HELD_OUT_PAIRS = 20  # revision pairs that a gate needs, to say how often the trained model prefers them
EXAMPLES_A_PAIR = 20  # at most so many for each pair that is wanted: a model that yields fewer is not ready
FIRST = 2  # examples for each wanted pair to begin with, until the yield is known
LEAST_ROUND = 8  # examples

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Side:
    """Examples of one side of a run, to train on or held out. pairs: until there are so many revision pairs;
    None: no number of them is wanted. most: examples; exactly as many where pairs is None."""

    pairs: int | None
    most: int

    @classmethod
    def of(cls, pairs: int | None, limit: int | None) -> Side:
        """By the flags --pairs and --limit, of which at least one is given."""
        return cls(pairs, pairs * EXAMPLES_A_PAIR if limit is None else limit)

    def wanted(self, made: int, kept: int) -> int:
        """Examples that there should be, when so many are made and so many of them are pairs."""
        if self.pairs is None:
            return self.most
        if kept >= self.pairs:
            return made
        if not made:
            return min(self.most, FIRST * self.pairs)
        each = (kept + 1) / (made + 2)  # the yield so far; none yet is not a yield of nothing
        lack = min(made, math.ceil((self.pairs - kept) / each))  # a yield of few examples says little
        return min(self.most, made + max(LEAST_ROUND, lack))

    def expected(self, pairs_an_example: float) -> int:
        return self.most if self.pairs is None else min(self.most, math.ceil(self.pairs / pairs_an_example))


@dataclass(frozen=True)
class Target:
    """train: the examples to train on. held_out: those to measure with; None: as many as fall among the
    others. share: of all instructions that are held out, by their hash."""

    train: Side
    held_out: Side | None = None
    share: float = HELD_OUT

    def expected(self, pairs_an_example: float) -> int:
        """Examples that it will take. For a forecast."""
        return sum(side.expected(pairs_an_example) for side in (self.train, self.held_out) if side)

    def instructions(self, rows: Rows, records: Rows) -> int:
        """How many there should be in all: at least as many as there are."""
        wanted = len(rows)
        for side, share, mine in self._sides(rows):
            lack = self._examples(side, mine, records) - len(mine)
            wanted = max(wanted, len(rows) + math.ceil(lack / share))
        return wanted

    def choose(self, rows: Rows, records: Rows) -> list[Mapping[str, Any]]:
        """The rows that are to be examples, in their order: the first ones of each side."""
        chosen: set[str] = set()
        for side, _, mine in self._sides(rows):
            chosen.update(mine[: self._examples(side, mine, records)])
        return [row for row in rows if row["id"] in chosen]

    def _sides(self, rows: Rows) -> list[tuple[Side, float, list[str]]]:
        """(side, its share of all instructions, the ids of its rows)"""
        if self.held_out is None:
            return [(self.train, 1.0, [row["id"] for row in rows])]
        sides: dict[bool, list[str]] = {False: [], True: []}
        for row in rows:
            sides[is_held_out(row["id"], self.share)].append(row["id"])
        return [(self.train, 1 - self.share, sides[False]), (self.held_out, self.share, sides[True])]

    def _examples(self, side: Side, mine: Sequence[str], records: Rows) -> int:
        if side.pairs is None:
            return side.most
        made = {r["id"] for r in records}.intersection(mine)
        kept = kept_ids(records).intersection(made)
        if side is self.train:  # a pair that happens to be held out is none to train on
            kept = {id for id in kept if not is_held_out(id, self.share)}
        return side.wanted(len(made), len(kept))


def until_enough(
    target: Target, instructions: Callable[[int], Rows], align: Callable[[Rows], Rows]
) -> tuple[Rows, Rows]:
    """(all instructions, the records of those that were made to examples), in rounds: each takes as many as
    the yield so far makes likely to be enough.

    instructions: n -> the first n of the run, or fewer if there are no more. align: rows -> their records, or
    those of a shard of them.
    What a round takes follows from the rows and records before it, so a run that was killed goes through the
    same rounds again, and ends alike."""
    rows, chosen, records, short = instructions(target.instructions([], [])), [], [], False
    while len(more := target.choose(rows, records)) > len(chosen):
        chosen, records = more, align(more)
        want = target.instructions(rows, records)
        if want > len(rows) and not short:
            rows = instructions(want)
            short = len(rows) < want
    return rows, records
