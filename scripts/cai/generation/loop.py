"""The loop: answer, critique, revise. Pure: it takes an engine and gives back records; files are the caller's
business."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cai.core.schema import RECORD_KEYS, check, content_id, row_seed
from cai.generation.filters import WITHOUT_REVISION, Texts, reasons, verdict
from cai.generation.judge import HELPFUL, Case, Judgement, anchor_case, anchor_verdict, judge
from cai.generation.judge import verdict as verdict_of
from cai.generation.pairs import preference_pair
from cai.generation.refusals import is_refusal
from cai.models.engine import Completion, Engine, Sampling
from cai.models.registry import ModelSpec
from cai.prompts.constitution import Constitution, Principle
from cai.prompts.markers import CHANGE, STOPS
from cai.prompts.templates import Prompter
from cai.prompts.training_format import training_prompt

ANSWER_TEMPERATURE, CRITIQUE_TEMPERATURE, REVISION_TEMPERATURE = 0.7, 0.3, 0.3


@dataclass
class Example:
    """One instruction on its way through the loop; its stages fill the rest in."""

    instruction: str
    task: str = "unknown"
    source: str = "self_instruct"
    answer: Completion | None = None
    principles: tuple[Principle, ...] = ()
    critiques: tuple[Completion, ...] = ()
    revision: Completion | None = None
    judgement: dict[str, Any] | None = None
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = content_id(self.instruction)


@dataclass(frozen=True)
class Writers:
    """Who plays which part: the name of a loaded LoRA adapter, None for the base model."""

    generator: str | None = None
    answerer: str | None = None
    critic: str | None = None
    reviser: str | None = None
    judge: str | None = None


@dataclass(frozen=True)
class Loop:
    """The three stages for one model. principles: how many an answer is critiqued against; which ones follows
    from the row's own seed."""

    engine: Engine
    prompter: Prompter
    constitution: Constitution
    spec: ModelSpec
    seed: int = 0
    principles: int = 1
    writers: Writers = Writers()

    def answer(self, examples: Sequence[Example]) -> None:
        """A first answer to each. A base model is shown how answers look; an adapter of ours has learned the
        training format, and is asked in that."""
        plain = self.writers.answerer is not None and self.spec.kind == "base"
        render = training_prompt if plain else self.prompter.answer
        done = self._complete(
            "answer",
            examples,
            [render(e.instruction) for e in examples],
            ANSWER_TEMPERATURE,
            self.spec.answer_tokens,
            self.writers.answerer,
        )
        for example, completion in zip(examples, done, strict=True):
            example.answer = completion

    def critique(self, examples: Sequence[Example]) -> None:
        """Every answer against each of its principles. Principles that an example has already are kept."""
        for e in examples:
            e.principles = e.principles or self.pick(e)
        asked = [(e, p) for e in examples for p in e.principles]
        done = self._complete(
            "critique",
            [e for e, _ in asked],
            [self.prompter.critique(e.instruction, e.answer.text, p) for e, p in asked],
            CRITIQUE_TEMPERATURE,
            self.spec.critique_tokens,
            self.writers.critic,
            [p.id for _, p in asked],
        )
        rest = iter(done)
        for e in examples:
            e.critiques = tuple(itertools.islice(rest, len(e.principles)))

    def revise(self, examples: Sequence[Example]) -> None:
        """One revision of each answer that some critique wants changed; the others keep None."""
        examples = [e for e in examples if CHANGE in (verdict(c.text) for c in e.critiques)]
        prompts = [self.prompter.revision(e.instruction, e.answer.text, self._criticism(e)) for e in examples]
        done = self._complete(
            "revision", examples, prompts, REVISION_TEMPERATURE, self.spec.answer_tokens, self.writers.reviser
        )
        for example, completion in zip(examples, done, strict=True):
            example.revision = completion

    def judge(self, examples: Sequence[Example]) -> list[Judgement]:
        """Revision against first answer, in both orders: by each principle whose critique asked for the
        change, and by helpfulness. An answer that its critics passed is held against a refusal instead, since
        it may become an anchor. Examples that something else speaks against already are not worth the
        tokens."""
        asked = [e for e in examples if e.revision and not reasons(self._texts(e))]
        passed = [e for e in examples if not e.revision and self._may_anchor(e)]
        cases = [
            Case(e.id, e.instruction, e.answer.text, e.revision.text, p)
            for e in asked
            for p in self._at_stake(e)
        ]
        cases += [anchor_case(e.id, e.instruction, e.answer.text) for e in passed]
        found = judge(self.engine, self.prompter, self.spec, cases, self.seed, self.writers.judge)
        rest = iter(found)
        for e in asked:
            *by_principle, by_helpfulness = itertools.islice(rest, len(self._at_stake(e)))
            e.judgement = verdict_of(by_principle, by_helpfulness)
        for e in passed:
            e.judgement = anchor_verdict(next(rest))
        return found

    def _may_anchor(self, e: Example) -> bool:
        against = [r for r in reasons(self._texts(e)) if r in WITHOUT_REVISION]
        return against == ["no_change_needed"] and not is_refusal(e.answer.text)

    def _at_stake(self, e: Example) -> list[Principle]:
        criticism = zip(e.principles, e.critiques, strict=True)
        return [*(p for p, c in criticism if verdict(c.text) == CHANGE), HELPFUL]

    def _texts(self, e: Example) -> Texts:
        done = (e.answer, *e.critiques, *([e.revision] if e.revision else []))
        return Texts(
            e.instruction,
            e.answer.text,
            tuple(c.text for c in e.critiques),
            e.revision.text if e.revision else "",
            tuple(c.finish_reason for c in done),
            e.judgement,
        )

    def critique_revision(self, examples: Sequence[Example]) -> list[Completion]:
        """The critic asked again, about the revision and the first principle: a check, never part of a
        pair."""
        prompts = [self.prompter.critique(e.instruction, e.revision.text, e.principles[0]) for e in examples]
        return self._complete(
            "critique",
            examples,
            prompts,
            CRITIQUE_TEMPERATURE,
            self.spec.critique_tokens,
            self.writers.critic,
            ["again"] * len(examples),
        )

    def pick(self, example: Example) -> tuple[Principle, ...]:
        return self.constitution.pick(
            random.Random(row_seed(self.seed, example.id, "principles")), self.principles
        )

    def record(self, example: Example) -> dict[str, Any]:
        """The finished example with all its evidence, kept or not."""
        answer, revision = example.answer, example.revision
        done = (answer, *example.critiques, *([revision] if revision else []))
        texts = self._texts(example)
        against = reasons(texts)
        if revision is None:  # what speaks against a revision says nothing where there is none
            against = [r for r in against if r in WITHOUT_REVISION]
        pair = preference_pair(example.instruction, revision.text, answer.text) if revision else {}
        row = {
            "id": example.id,
            "instruction": example.instruction,
            "initial_answer": answer.text,
            "principle": "\n".join(p.principle for p in example.principles),
            "critique": "\n".join(c.text for c in example.critiques),
            "revised_answer": revision.text if revision else "",
            "preference_pair": pair,
            "task": example.task,
            "source": example.source,
            "critiques": [
                {"principle_id": p.id, "principle": p.principle, "critique": c.text}
                for p, c in zip(example.principles, example.critiques, strict=True)
            ],
            "kept": not against,
            "rejected_because": against,
            "model": self.spec.name,
            "adapter": self.writers.answerer,
            "writers": asdict(self.writers),
            "seed": self.seed,
            "finish_reasons": list(texts.finish),
            "judgement": example.judgement,
            "tokens": {
                "prompt": sum(c.prompt_tokens for c in done),
                "completion": sum(c.tokens for c in done),
            },
        }
        return check(row, RECORD_KEYS, f"record {example.id}")

    def _criticism(self, e: Example) -> list[tuple[Principle, str]]:
        return [(p, c.text) for p, c in zip(e.principles, e.critiques, strict=True)]

    def _complete(
        self,
        purpose: str,
        examples: Sequence[Example],
        prompts: Sequence[str],
        temperature: float,
        max_tokens: int,
        adapter: str | None,
        details: Sequence[str] = (),
    ) -> list[Completion]:
        """details: what tells rows of one example apart, so that each has a seed of its own."""
        details = details or [""] * len(examples)
        seeds = [row_seed(self.seed, e.id, purpose + d) for e, d in zip(examples, details, strict=True)]
        return self.engine.complete(
            prompts, Sampling(temperature, max_tokens, STOPS[purpose]), seeds, adapter
        )
