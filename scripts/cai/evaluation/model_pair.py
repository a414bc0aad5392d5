"""What a suite measures: a run's trained model beside its base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core import schema
from cai.core.errors import UserError
from cai.core.files import directories, display_path
from cai.core.prompt_files import Prompt, load_heldout
from cai.core.run import Run, read_manifest
from cai.evaluation.result_store import BASE, TRAINED, ResultStore
from cai.generation.dedup import EvaluationPrompts
from cai.generation.records import read_records
from cai.generation.text_ends import own_text
from cai.models.engine import Engine, complete_all, sampling
from cai.models.registry import ModelSpec
from cai.prompts.markers import SEPARATOR
from cai.prompts.templates import Prompter, exemplar_texts, fingerprint, hash_texts
from cai.prompts.training_format import training_prompt
from cai.training.manifest import read_training
from cai.training.pair_files import pair_rows, with_side

BARE, PROMPTED = "bare", "prompted"  # the training format; the prompt that first answers are generated with

REQUESTS = 16  # look-alikes among all kinds: they are not to outweigh the tasks

# What answers and verdicts depend on beside the prompts' texts.
DRAWN_BY = (
    *("name", "kind", "shots", "requests", "max_seq_length", "answer_tokens", "critique_tokens"),
    *("answer_temperature", "critique_temperature", "revision_temperature", "judge_temperature"),
    "judge_rule",
)


@dataclass(frozen=True)
class ModelPair:
    """A run and its two models: the base (the engine's model without an adapter) and the trained one.

    engine, prompter: None where only the run's files are looked at. adapter: the name under which the trained
    one is loaded. limit: instructions a group, None for a suite's own number. shared: a file for what the
    base says, where several runs measure against the same base.
    """

    run: Run
    pairs: list[dict[str, Any]]
    records: list[dict[str, Any]]
    engine: Engine | None = None
    prompter: Prompter | None = None
    seed: int = 0
    adapter: str = TRAINED
    limit: int | None = None
    shared: Path | None = None

    def __post_init__(self) -> None:
        assert self.engine is None or self.digest, f"the adapter {self.adapter!r} has not been saved"

    @classmethod
    def open(
        cls,
        run: Run,
        engine: Engine | None = None,
        prompter: Prompter | None = None,
        *,
        limit: int | None = None,
    ) -> ModelPair:
        """Of the run's files; the engine carries the trained model as the adapter TRAINED."""
        data, trained = source_of(run), read_training(run.checkpoints) or {}
        pairs = with_side(pair_rows(data, trained_on=trained.get("pairs_file")), data)
        records = read_records(data)
        if not records and not pairs:
            raise UserError(f"{display_path(data)} holds neither records nor pairs: generate them first")
        if engine is not None and not pairs:
            raise UserError(f"{display_path(data)}/pairs.jsonl holds no pairs: nothing was trained on them")
        return cls(run, pairs, records, engine, prompter, run.settings.get("seed", 0), limit=limit)

    @property
    def spec(self) -> ModelSpec:
        return self.engine.spec

    @property
    def digest(self) -> str | None:
        """The trained adapter's SHA-256."""
        return self.engine and self.engine.adapters[self.adapter]

    @property
    def revision(self) -> str | None:
        return self.engine and self.engine.revision

    @property
    def setup(self) -> str:
        """What a row depends on beside its own id: rows of another adapter are not taken for this one's."""
        return self._setup(self.digest)

    def _setup(self, digest: str | None) -> str:
        facts = {"adapter": digest, "revision": self.revision, "seed": self.seed, "prompts": fingerprint()}
        if self.engine is not None:
            facts |= {"bits": self.engine.bits, "engine": self.engine.name}
            facts["on"] = "cpu" if self.engine.device == "cpu" else "gpu"  # float32 or bfloat16
            facts |= {k: getattr(self.spec, k) for k in DRAWN_BY}
            if self.spec.shots:
                facts["exemplars"] = hash_texts([*exemplar_texts(), SEPARATOR])
        return hash_texts([json.dumps(facts, sort_keys=True)])

    def results(self, suite: str) -> ResultStore:
        """The answers and verdicts of a suite, in data/<run>/evaluation/<suite>.jsonl."""
        path = self.run.data / "evaluation" / f"{suite}.jsonl"
        base = self.shared and ResultStore(self.shared, self._setup(None))
        return ResultStore(path, self.setup, base)

    def adapter_of(self, who: str) -> str | None:
        return {BASE: None, TRAINED: self.adapter}[who]

    @property
    def bare(self) -> Callable[[str], str]:
        """An instruction alone, as training has it; an instruct model has its own template for that."""
        return training_prompt if self.spec.kind == "base" else self.prompter.answer

    def answers(
        self, store: ResultStore, instructions: Sequence[str], who: str, form: str
    ) -> list[dict[str, Any]]:
        """On-policy completions, a row each. Base and trained model draw with the same seeds: they are
        paired."""
        render = self.bare if form == BARE else self.prompter.answer

        def work(wanted: list[dict]) -> list[dict]:
            ids = [schema.content_id(w["instruction"]) for w in wanted]
            seeds = [schema.row_seed(self.seed, i, "evaluation") for i in ids]
            prompts = [render(w["instruction"]) for w in wanted]
            with self.run.step("evaluation: answers", quiet=True) as step:
                drawn = sampling(self.spec, "answer", bare=form == BARE)
                done = complete_all(self.engine, prompts, drawn, seeds, self.adapter_of(who))
                asked = (w["instruction"] for w in wanted)
                done = [own_text(c, self.spec, i) for c, i in zip(done, asked, strict=True)]
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
        return store.fill(wanted, work)

    def heldout(self) -> tuple[list[Prompt], list[str]]:
        """Instructions to evaluate on, and those left out because training has seen them or something near.

        The run's own instructions that are held out by hash, kept or not, then the world's held-out file, of
        which at most REQUESTS look-alikes.
        """
        share = held_out_share(self.run)
        own = [
            Prompt(r["instruction"], r["task"], "own")
            for r in self.records
            if schema.is_held_out(r["id"], share)
        ]
        counts: Counter[str] = Counter()
        for prompt in load_heldout(Path(self.spec.heldout)):
            counts[prompt.kind] += 1
            if prompt.kind != "benign" or counts[prompt.kind] <= REQUESTS:
                own.append(prompt)
        clear, near = self._clear(own)
        return clear[: self.limit], near

    def look_alikes(self) -> tuple[list[Prompt], list[str]]:
        """All harmless look-alikes of the held-out file and nothing else; and those left out, as above."""
        clear, near = self._clear(look_alikes(self.spec))
        return clear[: self.limit], near

    def _clear(self, prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[str]]:
        """(those that are not near to what was trained on, each once; the texts of the others)"""
        trained = EvaluationPrompts(p["prompt"] for p in self.pairs if not p["held_out"])
        clear, near = [], []
        for prompt in {p.id: p for p in prompts}.values():
            (clear if trained.near(prompt.instruction) is None else near).append(prompt)
        return clear, [p.instruction for p in near]


def look_alikes(spec: ModelSpec) -> list[Prompt]:
    """Held-out requests that sound harmful and are not."""
    return [p for p in load_heldout(Path(spec.heldout)) if p.kind == "benign"]


def source_of(run: Run) -> Path:
    """Where the pairs are that a run was trained on: its own data, or those of the run that it names."""
    return directories(run.settings["data"])[0] if "data" in run.settings else run.data


def held_out_share(run: Run) -> float:
    """The share of a run's examples that is kept out of its training."""
    made = read_manifest(run.settings["data"]) or {} if "data" in run.settings else run.manifest
    return made.get("settings", {}).get("held_out", schema.HELD_OUT)
