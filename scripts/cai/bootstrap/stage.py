"""One stage of a plan, main or control: its data, its training, its measurement, its gate. A run of its own.

The main line of a seed goes on from stage to stage. A control branches off the main line before its stage,
differs in one thing, and ends there.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cai.bootstrap.comparisons import BASE_HELPER, FROM_BASE, MAIN, RANDOM, SHUFFLED
from cai.bootstrap.context import Place, cast, run_name
from cai.bootstrap.controls import flipped, shuffled
from cai.bootstrap.plan import Stage
from cai.core import jsonl, schema
from cai.core.files import ROOT, directories, display_path, move_aside, sha256_file
from cai.core.prompt_files import Seed, load_seeds
from cai.core.run import Run
from cai.core.schema import TASK_TYPES
from cai.evaluation.guardrails import fresh_answers, watch
from cai.evaluation.model_pair import Subject
from cai.evaluation.stage_gates import CARRIED, MEASURED, STARVED, judged
from cai.evaluation.suites import evaluate
from cai.evaluation.suites.critic_probe import measure
from cai.evaluation.suites.task_success import ALL, REQUEST_NAMES, TEN
from cai.evaluation.suites.task_success import measure as succeed
from cai.evaluation.test_sets import REQUESTS, direction, measured, right_share, test_instructions
from cai.generation import milestones
from cai.generation.loop import Loop, Writers
from cai.generation.records import read_instructions, read_records
from cai.models.local_engine import LocalEngine
from cai.models.model import Model
from cai.models.registry import ModelSpec
from cai.models.session import SPEC_SETTINGS, Pipeline, chat_renderer, device_name
from cai.prompts.constitution import Constitution
from cai.prompts.templates import Prompter, exemplar_texts, fingerprint, hash_texts
from cai.training.dpo import train
from cai.training.settings import LEAST_STEPS, Settings

HELD_OUT = 0.1
TESTS = "data/prompts/tests.jsonl"
BASE_ROWS = "base.jsonl"  # in the plan's directory: what the base said, asked once for all stages and arms
BASE_ALONE = Writers()
ENDED = ("adapter", "status", "steps", "step")  # of a training's result; step: whose adapter is kept

# Of a stage: what decides about results without being part of them.
NO_SETTING = ("name", "title", "gate", "limits", "on_limit", "least_pairs")


# ---- the stage ----


def run_stage(stage: Stage, place: Place, arm: str = MAIN) -> dict[str, Any]:
    """The stage's row of results.json. What an interrupted call left is gone on from; a finished stage is
    only read."""
    plan, spec = place.plan, place.bench.spec
    spec = spec if stage.shots is None else replace(spec, shots=stage.shots)
    bits = stage.bits or spec.bits
    name = run_name(place.name, stage.name, place.seed, arm, place.first_seed)
    writers, roles, paths = cast(stage, place, arm)
    parent = place.parent
    own = {f"stage_{k}": v for k, v in asdict(stage).items() if k not in NO_SETTING}
    own |= {k: getattr(spec, k) for k in SPEC_SETTINGS}
    settings = own | {
        "plan": plan.name,
        "stage": stage.name,
        "arm": arm,
        "seed": place.seed,
        "model": spec.name,
        "train_bits": bits,
        "tests": plan.tests,
        "skills": sorted(set(plan.tasks) - set(TASK_TYPES)),  # measured beside the ten
        "roles": roles,
        "parent": parent and parent["adapter"],
        "before": [r["data_hash"] for r in place.before],
        "held_out": HELD_OUT,
        "principles": stage.per_answer,
        "constitution": place.constitution.hash,
        "prompts": fingerprint(),
        "exemplars": hash_texts(exemplar_texts()),
        "files": hash_texts([sha256_file(ROOT / path) for path in inputs(spec)]),
    }
    with Run.open(name, settings) as run:
        run.hourly_rate = place.hourly_rate
        result = run.manifest.get("result")
        if result is not None and _stands(result, stage, run):
            return _judged(result, stage, place, run)
        run.log(f"\n== {name}: {stage.title}" + ("" if arm == MAIN else f", control {arm}"))
        run.log("   " + ", ".join(f"{part} {who}" for part, who in roles.items()))
        run.record(model=spec.name, dollars_per_hour=run.hourly_rate)
        step = _Step(run, stage, place, arm, spec, bits, writers, roles, paths)
        result = step.result()
        run.record(result=result, adapter=result["adapter"])
        return _judged(result, stage, place, run)


def _stands(result: dict[str, Any], stage: Stage, run: Run) -> bool:
    """Whether a finished result needs nothing more: neither a training for which there are pairs enough by
    now, nor an adapter that somebody has removed since."""
    if result["state"] != MEASURED:
        return result["state"] == CARRIED and result["training_pairs"] < stage.least_pairs
    if trained(run.checkpoints):
        return True
    run.log(f"{display_path(run.checkpoints)} no longer holds the stage's adapter: it is trained again")
    move_aside(run.checkpoints)
    return False


def _judged(result: dict[str, Any], stage: Stage, place: Place, run: Run) -> dict[str, Any]:
    row = judged(result, stage, place.parent, run)
    run.record(row=row)
    return row


@dataclass
class _Step:
    run: Run
    stage: Stage
    place: Place
    arm: str
    spec: ModelSpec
    bits: int
    writers: Writers
    roles: dict[str, str]
    paths: dict[str, Path]

    def pipeline(self, model: Model, seed: int, writers: Writers = BASE_ALONE) -> Pipeline:
        prompter = Prompter(self.spec.shots, self.spec.requests, self.spec.list_shots, chat_renderer(model))
        engine = LocalEngine(model)
        loop = Loop(engine, prompter, self._principles(), self.spec, seed, self.stage.per_answer, writers)
        self.run.record(bits=model.bits, device=device_name(model))
        return Pipeline(self.run, self.spec, loop.constitution, model, loop)

    def _principles(self) -> Constitution:
        whole = self.place.constitution
        ids = self.stage.principles
        return replace(whole, principles=tuple(whole.by_id(i) for i in ids)) if ids else whole

    # -- data --

    def data(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(records, pairs), on the disk."""
        if self.arm == RANDOM:
            done, pairs = self._main_data()
            return done, self._keep(flipped(pairs, self.place.seed))
        if self.arm == FROM_BASE:
            done, pairs = self._main_data()
            own = [r["run"] for r in self.place.trained if r["adapter_run"] == r["run"]]
            earlier = [p for run in own for p in read_pairs(run)]
            return done, self._keep(list({p["id"] + p["kind"]: p for p in earlier + pairs}.values()))
        model_bits = self.stage.generate_bits or self.bits
        names = self.place.bench.carrying(model_bits, self.paths, self.run)
        writers = Writers(**{p: names.get(h) for p, h in asdict(self.writers).items()})
        # Of the stage's own: with one for all, the base as helper would write an earlier stage's data again.
        seed = schema.row_seed(self.place.seed, self.stage.name, "stage")
        p = self.pipeline(self.place.bench.model, seed, writers)
        args = SimpleNamespace(anchors=self.stage.anchors, held_out=HELD_OUT)
        if self.arm == SHUFFLED:
            done = self._shuffled(p)
        else:
            made = [r for b in self.place.before for r in read_instructions(directories(b["run"])[0])]
            rows = milestones.instructions(
                p, None, self.stage.examples, seeds=seeds(self.spec), tasks=self.stage.tasks,
                barred=[*test_instructions(self.spec), *(r["instruction"] for r in made)],
            )  # fmt: skip
            done = milestones.all_records(p, rows, judge=True, budget=self.place.budget)
            if self.arm == BASE_HELPER:
                done = self._within_budget(done)
        return done, milestones.all_pairs(p, done, args)

    def _within_budget(self, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Control (a) may cost as many examples as main, and as many tokens. Which examples go is decided by
        each one's own seed: they stand task by task, and from the end whole tasks would go."""
        main, _ = self._main_data()
        order = sorted(done, key=lambda r: schema.row_seed(self.place.seed, r["id"], "budget"))
        n = min(bisect_right(list(accumulate(map(tokens, order))), sum(map(tokens, main))), len(main))
        if n < len(done):
            self.run.log(f"main's budget is used up after {n} of {len(done)} examples: the rest is left out")
        used = {r["id"] for r in order[:n]}
        return [r for r in done if r["id"] in used]

    def _main_data(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        main = run_name(self.place.name, self.stage.name, self.place.seed, MAIN, self.place.first_seed)
        return read_records(directories(main)[0]), read_pairs(main)

    def _keep(self, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        path = self.run.data / "pairs.jsonl"
        if not path.exists() or jsonl.read(path, schema.PAIR_KEYS) != pairs:
            path.unlink(missing_ok=True)
            jsonl.append(path, pairs)
        return pairs

    def _shuffled(self, p: Pipeline) -> list[dict[str, Any]]:
        """The main line's answers, each revised in view of another answer's critiques."""
        main, _ = self._main_data()
        path = self.run.data / "records.jsonl"
        examples = shuffled(main, self._principles(), self.place.seed)
        have = {r["id"] for r in jsonl.read(path, schema.RECORD_KEYS)}
        todo = [e for e in examples if e.id not in have]
        for start in range(0, len(todo), milestones.WAVE):
            some = todo[start : start + milestones.WAVE]
            self.place.budget.check(len(some))
            with self.run.step("revision", quiet=True) as step:
                p.loop.revise(some)
                step.count([e.revision for e in some if e.revision], len(some))
            with self.run.step("judge", quiet=True) as step:
                step.count(p.loop.judge(some), len(some))
            jsonl.append(path, [p.loop.record(e) for e in some])
        return jsonl.read(path, schema.RECORD_KEYS)

    # -- training and measurement --

    def result(self) -> dict[str, Any]:
        done, pairs = self.data()
        seen = [p for p in pairs if not p["held_out"]]
        own = self._facts(done, pairs)
        if len(seen) < self.stage.least_pairs:
            self.run.log(f"{len(seen)} pairs to train on, at least {self.stage.least_pairs} are needed")
            parent = self.place.parent
            if self.arm != MAIN or parent is None:
                return own | {"state": STARVED}
            self.run.log("perhaps since the predecessor needs no training here: it is measured as it is")
            self.place.budget.step("measuring", self.place.expected(0))
            found = self._measure(done, pairs, parent["adapter"], self.place.adapter(parent))
            return own | found | {"state": CARRIED, "adapter_run": parent["adapter_run"]}
        ended = self._train(seen, [p for p in pairs if p["held_out"]])
        found = self._measure(done, pairs, ended.pop("adapter"), self.run.checkpoints, ended)
        return own | found | {"state": MEASURED, "training": ended}

    def _facts(self, done: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:

        parent = self.place.parent
        start = None if self.arm == FROM_BASE else parent
        row = lambda metric: None if metric is None else metric.row()  # noqa: E731
        texts = [[p[k] for k in ("id", "kind", "prompt", "chosen", "rejected")] for p in pairs]
        return {
            "seed": self.place.seed, "stage": self.stage.name, "arm": self.arm, "run": self.run.name,
            "parent": start and start["adapter"], "adapter": None, "adapter_run": self.run.name,
            "data_tokens": sum(map(tokens, done)), "data_hash": hash_texts(["\x1f".join(t) for t in texts]),
            "roles": self.roles, "examples": len(done), "kept": sum(r["kept"] for r in done),
            "training_pairs": sum(not p["held_out"] for p in pairs),
            "pairs": sum(p["kind"] == "revision" for p in pairs),
            "anchors": sum(p["kind"] == "anchor" for p in pairs),
            "direction": row(direction(pairs, self.spec)), "first_answers": row(right_share(done, self.spec)),
            "success": {}, "average": {"base": None, "trained": None, "predecessor": None}, "safety": {},
            "probes": {}, "sentinels": [], "rolled_back": False, "training": None,
        }  # fmt: skip

    def _train(self, seen: list[dict[str, Any]], held: list[dict[str, Any]]) -> dict[str, Any]:
        """What ENDED names of the training: its adapter's hash, and how it ended."""

        per_step = self.spec.batch_size * self.spec.gradient_accumulation
        steps = max(LEAST_STEPS, math.ceil(self.stage.passes * len(seen) / per_step))
        settings = Settings.of(self.spec, steps, self.place.seed, loss=self.stage.loss)
        parent = None if self.arm == FROM_BASE else self.place.parent
        start = parent and self.place.adapter(parent)
        place = self.run.checkpoints
        if not trained(place):
            self.place.budget.step("training and measuring", self.place.expected(steps))
        model = self.place.bench.bare(self.bits, self.run)
        self.run.log(
            f"training: {settings.loss}, {len(seen)} pairs, {steps} steps, from "
            + (f"the adapter of {parent['run']}" if parent else "the base model")
        )
        with self.run.step("training") as step:
            result = train(
                model, seen, held, settings, place, resume=True, start=start, log=self.run.log_only
            )
            step.examples = result.taken
        self.run.record(training={"settings": asdict(settings), "after": result.after})
        return {k: getattr(result, k) for k in ENDED}

    def _measure(self, done, pairs, digest: str, checkpoints: Path, ended=None) -> dict[str, Any]:

        name = self.place.bench.carrying(self.bits, {digest: checkpoints}, self.run)[digest]
        p = self.pipeline(self.place.bench.model, self.place.seed)
        subject = Subject(
            self.run, list(pairs), list(done), p.loop.engine, p.loop.prompter, self.spec, self.place.seed,
            adapter=name, digest=digest, revision=p.model.revision,
            shared=self.run.data.parent / BASE_ROWS,
        )  # fmt: skip
        asked = measured(self.spec, self.place.plan.tasks)
        found, _ = succeed(subject, subject.rows("success"), asked, self.place.plan.tests)
        self.run.log("success at held-out test instructions, base to trained")
        for task in asked:
            key = REQUEST_NAMES.get(task, task)
            two = [found[f"{key}, {who}"] for who in ("base", "trained")]
            self.run.log(f"  {key:26}{two[0].value:5.2f} to {two[1].value:4.2f}   n {two[0].n}")
        forgetting = evaluate(subject, ["forgetting"])["forgetting"]
        probed = measure(subject, subject.rows("probes"), self.place.constitution)
        probes = {who: {part: m.row() for part, m in parts.items()} for who, parts in probed.items()}
        sentinels = watch(
            {"forgetting": forgetting}, probes, pairs, self.stage.limits,
            answers=fresh_answers(subject), training=ended,
        )  # fmt: skip
        both = lambda key: {w: found[f"{key}, {w}"].row() for w in ("base", "trained")}  # noqa: E731
        parent = self.place.parent
        safety = {
            short: both(REQUEST_NAMES[k])
            for k, short in (("harmful", "harmful refused"), ("benign", "benign answered"))
            if k in asked
        }
        safety["harmless refused"] = {
            w: forgetting["metrics"][f"refusals of harmless instructions, {w}"] for w in ("base", "trained")
        }
        if "harmful refused" not in safety:
            safety["harmful refused"] = {
                w: forgetting["metrics"][f"refusals of harmful requests, {w}"] for w in ("base", "trained")
            }
        average = ALL if set(asked) - {*TASK_TYPES, *REQUESTS} else TEN
        return {
            "adapter": digest,
            "success": {t: both(t) for t in asked if t not in REQUESTS},
            "average": {**both(average), "predecessor": parent and parent["average"]["trained"]},
            "safety": safety,
            "probes": probes,
            "sentinels": [asdict(s) for s in sentinels],
        }


def tokens(record: Mapping[str, Any]) -> int:
    """Read and written for an example: answer, critiques, revision, and the judge's reasons."""
    found = record.get("judgement") or {}
    others = [found[k] for k in ("helpfulness", "against_refusal") if k in found]
    judged = sum(j["prompt_tokens"] + j["tokens"] for j in (*found.get("principles", ()), *others))
    return sum(record["tokens"].values()) + judged


def read_pairs(run: str) -> list[dict[str, Any]]:
    return jsonl.read(directories(run)[0] / "pairs.jsonl", schema.PAIR_KEYS | {"held_out": bool})


def trained(checkpoints: Path) -> bool:
    """Whether there is a finished adapter, as it was saved."""
    path, weights = checkpoints / "training.json", checkpoints / "adapter_model.safetensors"
    if not path.exists() or not weights.exists():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return manifest["status"] != "begun" and sha256_file(weights) == manifest["result"]["adapter"]


def inputs(spec: ModelSpec) -> list[str]:
    """The files that stages and what they are measured on are made of."""
    return [TESTS, spec.heldout, spec.neutral, spec.seeds, spec.skill_seeds]


def seeds(spec: ModelSpec) -> list[Seed]:
    """Seed instructions of the ten tasks and of the skills."""
    return [s for path in (spec.seeds, spec.skill_seeds) for s in load_seeds(Path(path))]
