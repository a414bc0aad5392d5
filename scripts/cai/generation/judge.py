"""The judge: which of two responses is better by a principle, asked in both orders. Works on base models.

A small model that must say A or B at once answers by position: on the sandbox it was right in 58 % of 120.
So a reason is written first, and then the letter is read by its log-probability, which needs no obedience to
a format. What only one order says is the position's doing: a tie.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.core.schema import row_seed
from cai.models.engine import Completion, Engine, TooLong, sampling, together
from cai.prompts.constitution import Principle
from cai.prompts.markers import HELPFULNESS
from cai.prompts.templates import Prompter

REFUSAL = "I will not help with that."
HELPFUL = Principle(
    "judge_helpfulness",
    "Helpfulness without harm",
    HELPFULNESS,
    "Say how far each response helps, and whether it would help anybody to do harm.",
    "Make the response more helpful.",
)
A, B = " A", " B"  # the letters as the next word


@dataclass(frozen=True)
class Case:
    """Two responses to an instruction: is `second` better than `first` by the principle?"""

    id: str
    instruction: str
    first: str
    second: str
    principle: Principle


@dataclass(frozen=True)
class Judgement:
    """forward, backward: the probability that `second` is better, of the letters A and B alone, with `second`
    shown as B and as A; nan for an order that did not fit the model's context, which makes it a tie. reasons:
    what was written before the letters. tokens, prompt_tokens: generated and read, for the ledger."""

    forward: float
    backward: float
    principle_id: str = ""
    reasons: tuple[str, str] = ("", "")
    tokens: int = 0
    prompt_tokens: int = 0

    @property
    def second_wins(self) -> bool:
        return self.forward > 0.5 and self.backward > 0.5

    @property
    def first_wins(self) -> bool:
        return self.forward < 0.5 and self.backward < 0.5

    @property
    def tie(self) -> bool:
        return not self.second_wins and not self.first_wins

    @property
    def winner(self) -> str:
        return "second" if self.second_wins else "first" if self.first_wins else "tie"

    def as_dict(self) -> dict[str, Any]:
        """For a record: JSON knows no nan, so that an order without a result is null."""
        row = {**asdict(self), "reasons": list(self.reasons), "winner": self.winner}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


async def compare(
    engine: Engine, prompter: Prompter, case: Case, seed: int, adapter: str | None = None
) -> Judgement:
    """Seeds depend on the case's id, its principle and the order shown. adapter: the one that judges (None:
    the base)."""

    async def in_order(order: str, a: str, b: str) -> tuple[Completion, float]:
        """(reason, P(B) of {A, B} as the next word after it)"""
        prompt = prompter.judge(case.instruction, a, b, case.principle)
        own_seed = row_seed(seed, case.id, f"judge {case.principle.id} {order}")
        reason = await engine.complete(prompt, sampling(engine.spec, "judge"), own_seed, adapter)
        if reason.finish_reason == "too_long":
            return reason, math.nan
        page = prompter.better(prompt, " ".join(reason.text.split()))
        try:
            letters = await engine.choose(page, (A, B), adapter)
        except TooLong:
            return reason, math.nan
        return reason, 1 / (1 + math.exp(letters[A] - letters[B]))

    (ab, forward), (ba, backward) = await asyncio.gather(
        in_order("ab", case.first, case.second), in_order("ba", case.second, case.first)
    )
    return Judgement(
        forward,
        1 - backward,
        case.principle.id,
        (ab.text, ba.text),
        ab.tokens + ba.tokens,
        ab.prompt_tokens + ba.prompt_tokens,
    )


def compare_all(
    engine: Engine, prompter: Prompter, cases: Sequence[Case], seed: int, adapter: str | None = None
) -> list[Judgement]:
    """One judgement a case, in the cases' order."""
    return together(compare(engine, prompter, case, seed, adapter) for case in cases)


def judgement(by_principle: Sequence[Judgement], by_helpfulness: Judgement) -> dict[str, Any]:
    """The "judgement" of a record, whose first answer was `first` and whose revision was `second`. It
    passes if the revision wins in both orders by each principle and does not lose in both orders by
    helpfulness."""
    better = bool(by_principle) and all(j.second_wins for j in by_principle)
    return {
        "passed": better and not by_helpfulness.first_wins,
        "better": better,
        "less_helpful": by_helpfulness.first_wins,
        "principles": [j.as_dict() for j in by_principle],
        "helpfulness": by_helpfulness.as_dict(),
    }


def against_refusal(id: str, instruction: str, answer: str) -> Case:
    """Whether an answer that its critic passed may anchor helpfulness: a critic by one principle
    overlooks what another would have seen, such as help with harm. So it has to be better than a plain
    refusal by HELPFUL."""
    return Case(id, instruction, REFUSAL, answer, HELPFUL)


def anchor_judgement(found: Judgement) -> dict[str, Any]:
    """The "judgement" of a record whose answer was not revised: it passes if the answer beats the refusal."""
    return {"passed": found.second_wins, "against_refusal": found.as_dict()}
