"""An example on its way through the loop, and the record that it becomes: all its evidence, kept or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cai.core.schema import FORMAT, RECORD_KEYS, check, content_id
from cai.generation.filters import REASONS, Texts, reasons
from cai.generation.verdicts import Verdict, read_verdict
from cai.models.engine import EOS, Completion, Engine
from cai.prompts.constitution import Principle
from cai.prompts.markers import CHANGE


@dataclass(frozen=True)
class Roles:
    """Who plays which part: the name of a loaded LoRA adapter, None for the base model."""

    generator: str | None = None
    answerer: str | None = None
    critic: str | None = None
    reviser: str | None = None
    judge: str | None = None


@dataclass
class Example:
    """One instruction; the loop's steps fill the rest in. verdicts: of the critiques, where they are known
    other than from their texts. judgement: see judge.judgement."""

    instruction: str
    task: str = "unknown"
    source: str = "self_instruct"
    answer: Completion | None = None
    principles: Sequence[Principle] = ()
    critiques: Sequence[Completion] = ()
    verdicts: Sequence[Verdict] = ()
    revision: Completion | None = None
    judgement: dict[str, Any] | None = None
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = content_id(self.instruction)

    @property
    def criticism(self) -> list[tuple[Principle, str]]:
        return [(p, c.text) for p, c in zip(self.principles, self.critiques, strict=True)]

    @property
    def found(self) -> Sequence[Verdict]:
        """A verdict for each critique."""
        return self.verdicts or [Verdict(read_verdict(c.text)) for c in self.critiques]

    @property
    def at_stake(self) -> list[Principle]:
        """The principles whose critique asks for a change."""
        return [p for p, v in zip(self.principles, self.found, strict=True) if v.says == CHANGE]

    @property
    def must_change(self) -> bool:
        return bool(self.at_stake)

    @property
    def completions(self) -> tuple[Completion, ...]:
        return (self.answer, *self.critiques, *([self.revision] if self.revision else []))

    def against(self) -> list[str]:
        """The names of all reasons that speak against it. What speaks against a revision says nothing where
        there is none."""
        texts = Texts(
            self.instruction,
            self.answer.text,
            tuple(c.text for c in self.critiques),
            self.revision.text if self.revision else "",
            tuple(c.finish_reason for c in self.completions),
            self.judgement,
            tuple(v.says for v in self.found),
            tuple(c.text for c in (self.answer, self.revision) if c and c.ended_by not in (None, EOS)),
        )
        return [r for r in reasons(texts) if self.revision or REASONS[r].to_answer]


def examples_of(rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """rows: of instructions.jsonl."""
    return [Example(row["instruction"], row["task"], row["source"]) for row in rows]


def as_record(e: Example, engine: Engine, roles: Roles, seed: int) -> dict[str, Any]:
    """The row of records.jsonl. Adapters stand in it by their hashes, whatever they were loaded as."""
    hashes = {part: name and engine.adapters[name] for part, name in asdict(roles).items()}
    against = e.against()
    answer, revision = e.answer.text, e.revision.text if e.revision else ""
    pair = {"prompt": e.instruction, "chosen": revision, "rejected": answer} if revision else None
    row = {
        "format": FORMAT,
        "id": e.id,
        "instruction": e.instruction,
        "initial_answer": answer,
        "principle": "\n".join(p.principle for p in e.principles),
        "critique": "\n".join(c.text for c in e.critiques),
        "revised_answer": revision,
        "preference_pair": pair,
        "task": e.task,
        "source": e.source,
        "critiques": [
            {"principle_id": p.id, "principle": p.principle, "critique": text, **v.as_entry()}
            for (p, text), v in zip(e.criticism, e.found, strict=True)
        ],
        "kept": not against,
        "rejected_because": against,
        "model": engine.spec.name,
        "adapter": hashes["answerer"],
        "roles": hashes,
        "engine": engine.name,
        "precision": engine.precision,
        "seed": seed,
        "finish_reasons": [c.finish_reason for c in e.completions],
        "ended_by": [c.ended_by for c in e.completions],
        "judgement": e.judgement,
        "tokens": {
            "prompt": sum(c.prompt_tokens for c in e.completions),
            "completion": sum(c.tokens for c in e.completions),
        },
    }
    return check(row, RECORD_KEYS, f"record {e.id}")
