"""The loop: answer, critique, revise, judge. One example is one coroutine that awaits the engine.

It takes an engine and gives back records; files are the caller's business (generation/records.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cai.core.ledger import charged_to
from cai.core.schema import row_seed
from cai.generation.example import Example, Roles, as_record
from cai.generation.guard import Guard
from cai.generation.judge import HELPFUL, Case, against_refusal, anchor_judgement, compare, judgement
from cai.generation.refusals import is_refusal
from cai.generation.text_ends import own_text
from cai.generation.verdicts import Verdict, read_verdict
from cai.models.engine import Completion, Engine, TooLong, sampling
from cai.prompts.constitution import Constitution, Principle
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import Prompter
from cai.prompts.training_format import training_prompt


@dataclass(frozen=True)
class Loop:
    """principles: how many an answer is critiqued against; which ones follows from the example's own seed.
    roles: who plays which part. judged: whether the judge is asked."""

    engine: Engine
    prompter: Prompter
    constitution: Constitution
    seed: int = 0
    principles: int = 1
    roles: Roles = field(default_factory=Roles)
    judged: bool = True
    guard: Guard | None = None

    async def align(self, e: Example) -> dict[str, Any]:
        """An example from its instruction to its finished record. What it brings along is kept."""
        e.answer = e.answer or await self.answer(e)
        e.principles = e.principles or self.pick(e)
        e.critiques = e.critiques or await asyncio.gather(*(self.critique(e, p) for p in e.principles))
        e.verdicts = e.verdicts or await self.verdicts(e)
        if e.must_change:
            e.revision = await self.revise(e)
        if self.judged:
            e.judgement = await self.judge(e)
        record = as_record(e, self.engine, self.roles, self.seed)
        if self.guard:
            with charged_to("guard"):
                await self.guard.inspect(record)
        return record

    async def answer(self, e: Example) -> Completion:
        """A base model is shown how answers look; an adapter of ours has learned the training format, and is
        asked in that."""
        learned = self.roles.answerer is not None and self.engine.spec.kind == "base"
        prompt = training_prompt(e.instruction) if learned else self.prompter.answer(e.instruction)
        done = await self._ask("answer", e, prompt, self.roles.answerer, bare=learned)
        return own_text(done, self.engine.spec, e.instruction)

    def pick(self, e: Example) -> tuple[Principle, ...]:
        return self.constitution.pick(row_seed(self.seed, e.id, "principles"), self.principles)

    async def critique(self, e: Example, principle: Principle) -> Completion:
        prompt = self.prompter.critique(e.instruction, e.answer.text, principle)
        return await self._ask("critique", e, prompt, self.roles.critic, principle.id)

    async def verdicts(self, e: Example) -> list[Verdict]:
        return [await self.verdict(e, p, c) for p, c in zip(e.principles, e.critiques, strict=True)]

    async def verdict(self, e: Example, principle: Principle, critique: Completion) -> Verdict:
        """What a critique says; where its words say neither or both, the likelier of the two sentences after
        it. One that did not come to its end has none."""
        says = read_verdict(critique.text)
        if says or critique.finish_reason != "stop" or not critique.text:
            return Verdict(says)
        prompt = self.prompter.critique(e.instruction, e.answer.text, principle)
        page, options = self.prompter.verdict(prompt, critique.text), (KEEP, CHANGE)
        ask = (self.engine.logprobs(page, f" {option}", self.roles.critic) for option in options)
        try:
            with charged_to("critique"):
                scores = {o: s.total for o, s in zip(options, await asyncio.gather(*ask), strict=True)}
        except TooLong:
            return Verdict(None)
        return Verdict(max(scores, key=scores.get), scores)

    async def revise(self, e: Example) -> Completion:
        """One revision, in view of all critiques."""
        prompt = self.prompter.revision(e.instruction, e.answer.text, e.criticism)
        done = await self._ask("revision", e, prompt, self.roles.reviser)
        return own_text(done, self.engine.spec, e.instruction)

    async def critique_revision(self, e: Example) -> Completion:
        """The critic asked again, about the revision and the first principle: a check, never part of a
        pair."""
        prompt = self.prompter.critique(e.instruction, e.revision.text, e.principles[0])
        return await self._ask("critique", e, prompt, self.roles.critic, "again")

    async def judge(self, e: Example) -> dict[str, Any] | None:
        """Revision against first answer, in both orders: by each principle whose critique asked for the
        change, and by helpfulness. An answer that its critics passed is held against a refusal instead, since
        it may become an anchor. An example that something else speaks against is not worth the tokens."""
        against = e.against()
        if e.revision and not against:
            cases = [Case(e.id, e.instruction, e.answer.text, e.revision.text, p) for p in e.at_stake]
            by_helpfulness = Case(e.id, e.instruction, e.answer.text, e.revision.text, HELPFUL)
            *by_principle, helpful = await self._compare(*cases, by_helpfulness)
            return judgement(by_principle, helpful)
        if against == ["no_change_needed"] and not is_refusal(e.answer.text):
            return anchor_judgement(*await self._compare(against_refusal(e.id, e.instruction, e.answer.text)))
        return None

    async def _compare(self, *cases: Case) -> Sequence[Any]:
        with charged_to("judge"):
            asked = (compare(self.engine, self.prompter, c, self.seed, self.roles.judge) for c in cases)
            return await asyncio.gather(*asked)

    async def _ask(
        self,
        purpose: str,
        e: Example,
        prompt: str,
        adapter: str | None,
        detail: str = "",
        bare: bool = False,
    ) -> Completion:
        """detail: what tells requests of one example apart, so that each has a seed of its own."""
        seed = row_seed(self.seed, e.id, purpose + detail)
        with charged_to(purpose):
            drawn = sampling(self.engine.spec, purpose, bare=bare)
            return await self.engine.complete(prompt, drawn, seed, adapter)
