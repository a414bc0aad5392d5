"""The judge: which of two responses is better by a principle, asked in both orders. Works on base models.

A small model that must say A or B at once answers by position: on the sandbox it was right in 58 % of 120.
So a reason is written first, and then the letter is read by its log-probability, which needs no obedience to
a format. A leaning to one letter, which is the position's doing, is taken out by asking in both orders.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.core.schema import row_seed
from cai.models.engine import Completion, Engine, TooLong, sampling, together
from cai.models.registry import BOTH_ORDERS, LOG_ODDS
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
A, B = (
    " A",
    " B",
)  # the letters as the next word: a token each, in Qwen's vocabulary (362, 425) and the sandbox's
INDIFFERENT = 0.5  # nats of log-odds, on average of both orders, that make no winner (specs/LOG.md has why)


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
    what was written before the letters. tokens, prompt_tokens: generated and read, for the ledger. rule: of
    models.registry.JUDGE_RULES, by which it decides."""

    forward: float
    backward: float
    principle_id: str = ""
    reasons: tuple[str, str] = ("", "")
    tokens: int = 0
    prompt_tokens: int = 0
    rule: str = BOTH_ORDERS

    @property
    def log_odds(self) -> float:
        """That `second` is better, the average of both orders, in nats. A leaning to one letter adds to the
        one what it takes from the other, so it falls out."""
        return (_log_odds(self.forward) + _log_odds(self.backward)) / 2

    def winner_by(self, rule: str) -> str:
        """ "first", "second" or "tie". By both orders what only one says is a tie; by the log-odds it is one
        where they are small."""
        if rule == LOG_ODDS:
            second, first = self.log_odds > INDIFFERENT, self.log_odds < -INDIFFERENT
        else:
            second = self.forward > 0.5 and self.backward > 0.5
            first = self.forward < 0.5 and self.backward < 0.5
        return "second" if second else "first" if first else "tie"

    @property
    def winner(self) -> str:
        return self.winner_by(self.rule)

    @property
    def second_wins(self) -> bool:
        return self.winner == "second"

    @property
    def first_wins(self) -> bool:
        return self.winner == "first"

    @property
    def tie(self) -> bool:
        return self.winner == "tie"

    def as_dict(self) -> dict[str, Any]:
        """For a record: JSON knows no nan, so that an order without a result is null."""
        row = {**asdict(self), "reasons": list(self.reasons)}
        row |= {"log_odds": self.log_odds, "winner": self.winner}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _log_odds(probability: float) -> float:
    """As far as a float tells a probability from 0 or 1: up to about 37 nats."""
    least = 2.0**-53
    return math.log(max(probability, least)) - math.log(max(1 - probability, least))


async def compare(
    engine: Engine,
    prompter: Prompter,
    case: Case,
    seed: int,
    adapter: str | None = None,
    *,
    reasoned: bool = True,
) -> Judgement:
    """Seeds depend on the case's id, its principle and the order shown. adapter: the one that judges (None:
    the base). reasoned: False reads the letters at once, to measure what the reason is worth."""

    async def in_order(order: str, a: str, b: str) -> tuple[Completion, float]:
        """(reason, P(B) of {A, B} as the next word after it)"""
        prompt = prompter.judge(case.instruction, a, b, case.principle)
        own_seed = row_seed(seed, case.id, f"judge {case.principle.id} {order}")
        reason = Completion("", 0, 0, "stop")
        if reasoned:
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
        engine.spec.judge_rule,
    )


def compare_all(
    engine: Engine,
    prompter: Prompter,
    cases: Sequence[Case],
    seed: int,
    adapter: str | None = None,
    *,
    reasoned: bool = True,
) -> list[Judgement]:
    """One judgement a case, in the cases' order."""
    return together(compare(engine, prompter, c, seed, adapter, reasoned=reasoned) for c in cases)


def judgement(by_principle: Sequence[Judgement], by_helpfulness: Judgement) -> dict[str, Any]:
    """The "judgement" of a record, whose first answer was `first` and whose revision was `second`. It
    passes if the revision wins by each principle and does not lose by helpfulness."""
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
