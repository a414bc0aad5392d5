"""What a suite measures, and where it keeps every single answer and verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.core import jsonl, schema
from cai.core.errors import UserError
from cai.core.files import directories, display_path
from cai.core.prompt_files import Prompt, load_heldout
from cai.core.run import Run, read_manifest
from cai.evaluation.result_store import BASE, TRAINED, Rows
from cai.generation.dedup import EvaluationPrompts
from cai.generation.loop import ANSWER_TEMPERATURE
from cai.generation.records import read_records
from cai.models.engine import Sampling
from cai.models.local_engine import LocalEngine
from cai.models.registry import ModelSpec
from cai.prompts.markers import STOPS
from cai.prompts.templates import Prompter, fingerprint, hash_texts
from cai.prompts.training_format import instruction_of, training_prompt

BARE, PROMPTED = "bare", "prompted"  # the training format; the prompt that first answers are generated with


@dataclass(frozen=True)
class Subject:
    """A run and its two models: the base (the engine's model without an adapter) and the trained one.

    engine, prompter, spec: None where only the run's files are looked at. adapter: the name under which the
    trained one is loaded. digest: its SHA-256. limit: instructions a group, None for a suite's own number.
    shared: a file for what the base says, where several runs measure against the same base.
    """

    run: Run
    pairs: list[dict[str, Any]]
    records: list[dict[str, Any]]
    engine: LocalEngine | None = None
    prompter: Prompter | None = None
    spec: ModelSpec | None = None
    seed: int = 0
    adapter: str = TRAINED
    digest: str | None = None
    revision: str | None = None
    limit: int | None = None
    shared: Path | None = None

    @classmethod
    def open(
        cls,
        run: Run,
        engine: LocalEngine | None = None,
        prompter: Prompter | None = None,
        *,
        adapter: str = TRAINED,
        limit: int | None = None,
    ) -> Subject:
        """The run's files and, where an engine is given, its two models; adapter: loaded, and saved."""

        data, keys = source_of(run), schema.PAIR_KEYS | {"task": str, "held_out": bool}
        pairs, done = jsonl.read(data / "pairs.jsonl", keys), read_records(data)
        if not done:
            raise UserError(f"{display_path(data)} holds no records: generate them first")
        seed = run.settings.get("seed", 0)
        if engine is None:
            return cls(run, pairs, done, seed=seed, limit=limit)
        if not pairs:
            raise UserError(f"{display_path(data)}/pairs.jsonl holds no pairs: nothing was trained on them")
        model = engine.model
        digest = model.adapters[adapter]
        assert digest, f"the adapter {adapter!r} has not been saved"
        return cls(
            run, pairs, done, engine, prompter, model.spec, seed, adapter, digest, model.revision, limit
        )

    def rows(self, suite: str) -> Rows:
        """The answers and verdicts of a suite, in data/<run>/evaluation/<suite>.jsonl."""
        path = self.run.data / "evaluation" / f"{suite}.jsonl"
        base = self.shared and Rows(self.shared, replace(self, digest=None).setup)
        return Rows(path, self.setup, base)

    @property
    def setup(self) -> str:
        """What a row depends on beside its own id: rows of another adapter are not taken for this one's."""
        facts = {"adapter": self.digest, "revision": self.revision, "seed": self.seed}
        settings = self.run.settings  # a stage of a plan has bits of training beside those of generation
        facts |= {"prompts": fingerprint(), "bits": settings.get("bits", settings.get("train_bits"))}
        if self.spec is not None:
            facts |= {k: getattr(self.spec, k) for k in ("name", "shots", "answer_tokens", "critique_tokens")}
        return hash_texts([json.dumps(facts, sort_keys=True)])

    def adapter_of(self, who: str) -> str | None:
        return {BASE: None, TRAINED: self.adapter}[who]

    def answers(self, rows: Rows, instructions: Sequence[str], who: str, form: str) -> list[dict[str, Any]]:
        """Fresh answers, a row each. Base and trained model draw with the same seeds: they are paired."""
        plain = form == BARE and self.spec.kind == "base"
        render = training_prompt if plain else self.prompter.answer

        def work(wanted: list[dict]) -> list[dict]:
            ids = [schema.content_id(w["instruction"]) for w in wanted]
            seeds = [schema.row_seed(self.seed, i, "evaluation") for i in ids]
            sampling = Sampling(ANSWER_TEMPERATURE, self.spec.answer_tokens, STOPS["answer"])
            prompts = [render(w["instruction"]) for w in wanted]
            with self.run.step("evaluation: answers", quiet=True) as step:
                done = self.engine.complete(prompts, sampling, seeds, self.adapter_of(who))
                step.count(done, len(done))
            facts = ("finish_reason", "ended_by", "tokens")
            return [{"answer": c.text, **{k: getattr(c, k) for k in facts}} for c in done]

        wanted = [
            {
                "id": f"answer/{who}/{form}/{schema.content_id(i)}",
                "by": who,
                "format": form,
                "instruction": i,
            }
            for i in instructions
        ]
        return rows.fill(wanted, work)

    def heldout(self) -> tuple[list[Prompt], list[str]]:
        """Instructions to evaluate on, and those left out because training has seen them or something near.

        The run's own instructions that are held out by hash, kept or not, then the world's held-out file.
        """
        share = held_out_share(self.run)
        own = [
            Prompt(r["instruction"], r["task"], "own")
            for r in self.records
            if schema.is_held_out(r["id"], share)
        ]
        trained = EvaluationPrompts(instruction_of(p) for p in self.pairs if not p["held_out"])
        clear, near = [], []
        for prompt in {p.id: p for p in own + load_heldout(Path(self.spec.heldout))}.values():
            (clear if trained.near(prompt.instruction) is None else near).append(prompt)
        return clear[: self.limit], [p.instruction for p in near]


def source_of(run: Run) -> Path:
    """Where the pairs are that a run was trained on: its own data, or those of the run that it names."""
    return directories(run.settings["data"])[0] if "data" in run.settings else run.data


def held_out_share(run: Run) -> float:
    """The share of a run's examples that is kept out of its training."""
    made = read_manifest(run.settings["data"]) or {} if "data" in run.settings else run.manifest
    return made.get("settings", {}).get("held_out", schema.HELD_OUT)
