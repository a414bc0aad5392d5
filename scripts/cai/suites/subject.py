"""What a suite measures, and where it keeps every single answer and verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai import records
from cai.dedupe import EvaluationPrompts
from cai.engine import LocalEngine, Sampling
from cai.loop import ANSWER_TEMPERATURE
from cai.prompts import STOPS, Prompter, fingerprint, hash_texts, training_prompt
from cai.registry import ModelSpec
from cai.run import ROOT, Run, UserError, directories, read_manifest, shown

BASE, TRAINED = "base", "trained"
BARE, PROMPTED = "bare", "prompted"  # the training format; the prompt that first answers are generated with
ROW_KEYS = {"id": str, "setup": str}


@dataclass(frozen=True)
class Prompt:
    """An instruction to evaluate on. kind: "task" and "benign" (looks harmful, is not) must not be refused,
    "harmful" should be; "own" is one of the run's held-out instructions, which can be any of these."""

    instruction: str
    task: str
    kind: str

    @property
    def id(self) -> str:
        return records.content_id(self.instruction)


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
        from cai.waves import read_records

        data, keys = source_of(run), records.PAIR_KEYS | {"task": str, "held_out": bool}
        pairs, done = records.read(data / "pairs.jsonl", keys), read_records(data)
        if not done:
            raise UserError(f"{shown(data)} holds no records: generate them first")
        seed = run.settings.get("seed", 0)
        if engine is None:
            return cls(run, pairs, done, seed=seed, limit=limit)
        if not pairs:
            raise UserError(f"{shown(data)}/pairs.jsonl holds no pairs: nothing was trained on them")
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
            ids = [records.content_id(w["instruction"]) for w in wanted]
            seeds = [records.row_seed(self.seed, i, "evaluation") for i in ids]
            sampling = Sampling(ANSWER_TEMPERATURE, self.spec.answer_tokens, STOPS["answer"])
            prompts = [render(w["instruction"]) for w in wanted]
            with self.run.step("evaluation: answers", quiet=True) as step:
                done = self.engine.complete(prompts, sampling, seeds, self.adapter_of(who))
                step.count(done, len(done))
            facts = ("finish_reason", "ended_by", "tokens")
            return [{"answer": c.text, **{k: getattr(c, k) for k in facts}} for c in done]

        wanted = [
            {
                "id": f"answer/{who}/{form}/{records.content_id(i)}",
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
            if records.is_held_out(r["id"], share)
        ]
        trained = EvaluationPrompts(instruction_of(p) for p in self.pairs if not p["held_out"])
        clear, near = [], []
        for prompt in {p.id: p for p in own + load_heldout(Path(self.spec.heldout))}.values():
            (clear if trained.near(prompt.instruction) is None else near).append(prompt)
        return clear[: self.limit], [p.instruction for p in near]


class Rows:
    """The answers and verdicts of one suite: appended as they come, looked up by id, never made twice.

    A row that another suite of this run has made already is copied; one of the base alone (its "by") goes by
    way of `base`, the rows that other runs have of it, too. Rows of another setup (an adapter trained since,
    another seed) stay in the file and are not looked at.
    """

    def __init__(self, path: Path, setup: str, base: Rows | None = None, chunk: int = 64):
        self.path, self.setup, self.base, self.chunk = path, setup, base, chunk
        path.parent.mkdir(parents=True, exist_ok=True)
        mine, self.elsewhere = self._read(path), {}
        self.own = mine
        for other in sorted(path.parent.glob("*.jsonl")):
            if other != path:
                self.elsewhere |= self._read(other)
        self.reused = 0

    def fill(self, wanted: Sequence[dict], work: Callable[[list[dict]], list[dict]]) -> list[dict[str, Any]]:
        """The rows wanted (ids, and what they ask), in order; work makes what is missing, some at a time."""
        ids = [w["id"] for w in wanted]
        assert len(set(ids)) == len(ids), f"ids of {self.path.name} are not unique"
        copies = [self.elsewhere[i] for i in ids if i not in self.own and i in self.elsewhere]
        todo = [w for w in wanted if w["id"] not in self.own and w["id"] not in self.elsewhere]
        self.reused += len(ids) - len(todo)
        if copies:
            self._add(copies)
        if self.base is not None:
            of_base = [w for w in todo if w.get("by") == BASE]
            todo = [w for w in todo if w.get("by") != BASE]
            self._add([{**row, "setup": self.setup} for row in self.base.fill(of_base, work)])
        for start in range(0, len(todo), self.chunk):
            some = todo[start : start + self.chunk]
            made = zip(some, work(some), strict=True)
            self._add([{**asked, **found, "setup": self.setup} for asked, found in made])
        return [self.own[i] for i in ids]

    def _add(self, rows: list[dict]) -> None:
        records.append(self.path, rows)
        self.own |= {r["id"]: r for r in rows}

    def _read(self, path: Path) -> dict[str, dict]:
        return {r["id"]: r for r in records.read(path, ROW_KEYS) if r["setup"] == self.setup}


def source_of(run: Run) -> Path:
    """Where the pairs are that a run was trained on: its own data, or those of the run that it names."""
    return directories(run.settings["data"])[0] if "data" in run.settings else run.data


def held_out_share(run: Run) -> float:
    """The share of a run's examples that is kept out of its training."""
    made = read_manifest(run.settings["data"]) or {} if "data" in run.settings else run.manifest
    return made.get("settings", {}).get("held_out", records.HELD_OUT)


def instruction_of(pair: dict[str, Any]) -> str:
    """A pair's instruction, from its prompt in the training format."""
    head, tail = training_prompt("\0").split("\0")
    return pair["prompt"].removeprefix(head).removesuffix(tail)


def load_heldout(path: Path) -> list[Prompt]:
    """A held-out prompt file. Raises UserError with the line that does not fit."""
    keys = {"instruction": str, "task": str, "kind": str}
    rows = records.read(path if path.is_absolute() else ROOT / path, keys)
    if not rows:
        raise UserError(f"the held-out instructions {path} are missing or empty: restore the file")
    return [Prompt(*(r[k] for k in keys)) for r in rows]


def load_neutral(path: Path) -> list[str]:
    """Passages to measure perplexity on."""
    rows = records.read(path if path.is_absolute() else ROOT / path, {"text": str})
    if not rows:
        raise UserError(f"the neutral passages {path} are missing or empty: restore the file")
    return [r["text"] for r in rows]
