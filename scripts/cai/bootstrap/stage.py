"""One stage of a plan, main or control: its data, its training, its measurement, its gate. A run of its own.

The main line of a seed goes on from stage to stage. A control branches off the main line before its stage,
differs in one thing, and ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cai.bootstrap.context import StageContext, adapter_of, resolve_roles, role_names
from cai.bootstrap.controls import MAIN, tokens
from cai.bootstrap.plan import Stage
from cai.bootstrap.stage_gates import CARRIED, MEASURED, STARVED, judged
from cai.core import jsonl
from cai.core.files import ROOT, directories, display_path, move_aside, sha256_file, to_json, write_whole
from cai.core.prompt_files import Seed, load_seeds
from cai.core.run import Run
from cai.core.schema import HELD_OUT, PAIR_KEYS, TASK_TYPES, row_seed
from cai.evaluation import test_sets
from cai.evaluation.guardrails import on_policy_answers, watch
from cai.evaluation.model_pair import ModelPair
from cai.evaluation.suites import critic_probe, evaluate, task_success
from cai.evaluation.suites.task_success import ALL, REQUEST_NAMES, TEN
from cai.evaluation.test_sets import REQUESTS, label_accuracy, measured, right_share, test_instructions
from cai.generation.example import Example, Roles, examples_of
from cai.generation.filters import kept_ids
from cai.generation.instructions import make_instructions
from cai.generation.loop import Loop
from cai.generation.pairs import ANCHOR, REVISION, make_pairs, record_pairs
from cai.generation.records import make_records, read_instructions, read_records
from cai.generation.verdicts import Verdict, verdict_of
from cai.generation.yield_stats import report_yield
from cai.models.engine import Completion
from cai.models.registry import ModelSpec, row_settings
from cai.models.session import Session, prompt_settings, prompter_of, record_engine
from cai.prompts.constitution import Constitution
from cai.prompts.markers import CHANGE
from cai.prompts.templates import hash_texts
from cai.training.dpo import train
from cai.training.manifest import is_finished
from cai.training.pair_files import pair_rows
from cai.training.settings import Settings

BASE_ROWS = "base.jsonl"  # in the plan's directory: what the base said, asked once for all stages and arms
ENDED = ("adapter", "status", "steps", "step")  # of a training's result; step: whose adapter is kept
# Of a stage: what decides about results without being part of them.
NO_SETTING = ("name", "title", "gate", "limits", "on_limit", "least_pairs")


# ---- the stage ----


def run_stage(context: StageContext) -> dict[str, Any]:
    """The stage's row of results.json. What an interrupted call left is gone on from; a finished stage is
    only read."""
    plan, stage, spec, parent = context.plan, context.stage, context.spec, context.parent
    roles = resolve_roles(context)
    own = {f"stage_{k}": v for k, v in asdict(stage).items() if k not in NO_SETTING}
    own |= row_settings(spec) | prompt_settings()
    settings = own | {
        "plan": plan.name,
        "stage": stage.name,
        "arm": context.arm.name,
        "seed": context.seed,
        "model": spec.name,
        "train_bits": context.bits,
        **context.shared_model.choice.settings(),
        "tests": plan.tests,
        "skills": sorted(set(plan.tasks) - set(TASK_TYPES)),  # measured beside the ten
        "roles": role_names(roles),
        "parent": parent and parent["adapter"],
        "before": [r["data_hash"] for r in context.before],
        "held_out": HELD_OUT,
        "principles": stage.per_answer,
        "constitution": context.constitution.hash,
        "files": hash_texts([sha256_file(ROOT / path) for path in inputs(spec)]),
    }
    with Run.open(context.name, settings) as run:
        run.hourly_rate = context.hourly_rate
        context.budget.watch(run)
        result = run.manifest.get("result")
        if result is not None and _stands(result, stage, run):
            return _judged(result, context, run)
        control = "" if context.arm.name == MAIN else f", control {context.arm.name}"
        run.log(f"\n== {run.name}: {stage.title}{control}")
        run.log("   " + ", ".join(f"{part} {who}" for part, who in settings["roles"].items()))
        run.record(model=spec.name, dollars_per_hour=run.hourly_rate)
        result = StageRun(run, context, roles).result()
        run.record(result=result, adapter=result["adapter"])
        return _judged(result, context, run)


def _stands(result: dict[str, Any], stage: Stage, run: Run) -> bool:
    """Whether a finished result needs nothing more: neither a training for which there are pairs enough by
    now, nor an adapter that somebody has removed since."""
    if result["state"] != MEASURED:
        return result["state"] == CARRIED and result["training_pairs"] < stage.least_pairs
    if is_finished(run.checkpoints):
        return True
    run.log(f"{display_path(run.checkpoints)} no longer holds the stage's adapter: it is trained again")
    move_aside(run.checkpoints)
    return False


def _judged(result: dict[str, Any], context: StageContext, run: Run) -> dict[str, Any]:
    row = judged(result, context.stage, context.parent, run)
    run.record(row=row)
    return row


@dataclass
class StageRun:
    run: Run
    context: StageContext
    roles: Mapping[str, dict[str, Any] | None]  # see resolve_roles

    def session(self, seed: int) -> Session:
        """With the shared model as it is loaded, and this stage's number of exemplars."""
        c = self.context
        engine = c.shared_model.engine(c.spec)
        record_engine(self.run, engine)
        return Session(self.run, c.principles, engine, prompter_of(engine), None, seed)

    @property
    def seed_of_data(self) -> int:
        """The stage's own: with one for all, the base as helper would write an earlier stage's data again."""
        return row_seed(self.context.seed, self.context.stage.name, "stage")

    # -- data: what the arms of controls.py are made with --

    def data(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(records, pairs), on the disk."""
        return self.context.arm.data(self)

    def loop_of_roles(self) -> tuple[Session, Loop]:
        """Each part played as the stage's roles say. Whoever holds them holds the model: a training needs the
        memory, so they are not kept."""
        c, stage = self.context, self.context.stage
        paths = {r["adapter"]: adapter_of(r) for r in self.roles.values() if r}
        names = c.shared_model.carrying(stage.generate_bits or c.bits, paths, self.run)
        roles = Roles(**{part: r and names[r["adapter"]] for part, r in self.roles.items()})
        s = self.session(self.seed_of_data)
        return s, Loop(s.engine, s.prompter, s.constitution, s.seed, stage.per_answer, roles)

    def generated(self) -> list[dict[str, Any]]:
        """Records of the stage's own examples."""
        c, spec = self.context, self.context.spec
        session, loop = self.loop_of_roles()
        made = [r for b in c.before for r in read_instructions(directories(b["run"])[0])]
        rows = make_instructions(
            session,
            c.stage.examples,
            seeds=seeds(spec),
            tasks=c.stage.tasks,
            adapter=loop.roles.generator,
            barred=[*test_instructions(spec), *(r["instruction"] for r in made)],
        )
        return self._recorded(loop, examples_of(rows))

    def revised(
        self, critics_of: Callable[[list[dict[str, Any]]], Mapping[str, dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """The main line's answers; where a critic asked for a change, each is revised in view of the
        critiques of the record that critics_of gives it by id. What its critics passed stays as it is: it
        makes the same anchors."""
        main, _ = self.main_data()
        change = [r for r in main if CHANGE in map(verdict_of, r["critiques"])]
        critics, (_, loop) = critics_of(change), self.loop_of_roles()
        examples = [criticized(r, critics.get(r["id"], r), self.context.principles) for r in main]
        return self._recorded(loop, examples)

    def _recorded(self, loop: Loop, examples: Sequence[Example]) -> list[dict[str, Any]]:
        records = make_records(self.run, loop, examples)
        report_yield(self.run, self.context.principles, records)
        return records

    def paired(self, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        seed, anchors = self.seed_of_data, self.context.stage.anchors
        return records, make_pairs(self.run, records, anchors=anchors, seed=seed, held_out=HELD_OUT)

    def main_data(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        main = self.context.main
        return read_records(directories(main)[0]), read_pairs(main)

    def earlier_pairs(self) -> list[dict[str, Any]]:
        """Those that the main line's model was trained on before this stage."""
        own = [r["run"] for r in self.context.trained if r["adapter_run"] == r["run"]]
        return [p for run in own for p in read_pairs(run)]

    def keep(self, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """pairs.jsonl with these rows. Others can be there: with other limits other stages are rolled
        back, and (b) takes the pairs of those that count. Written whole: a kill leaves the old rows or
        the new."""
        path = self.run.data / "pairs.jsonl"
        if not path.exists() or jsonl.read(path, PAIR_KEYS) != pairs:
            lines = (to_json(row, path) + "\n" for row in pairs)
            write_whole(path, "".join(lines).encode())
        return pairs

    # -- training and measurement --

    def result(self) -> dict[str, Any]:
        c, parent = self.context, self.context.parent
        done, pairs = self.data()
        record_pairs(self.run, pairs)
        seen = [p for p in pairs if not p["held_out"]]
        own = self._facts(done, pairs)
        if len(seen) < c.stage.least_pairs:
            self.run.log(f"{len(seen)} pairs to train on, at least {c.stage.least_pairs} are needed")
            if c.arm.name != MAIN or parent is None:
                return own | {"state": STARVED}
            self.run.log("perhaps since the predecessor needs no training here: it is measured as it is")
            c.budget.step("measuring", c.expected(0))
            found = self._measure(done, pairs, parent["adapter"], adapter_of(parent))
            return own | found | {"state": CARRIED, "adapter_run": parent["adapter_run"]}
        ended = self._train(seen, [p for p in pairs if p["held_out"]])
        found = self._measure(done, pairs, ended.pop("adapter"), self.run.checkpoints, ended)
        return own | found | {"state": MEASURED, "training": ended}

    def _facts(self, done: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        c = self.context
        accuracy, first = label_accuracy(pairs, c.spec), right_share(done, c.spec)
        texts = [[p[k] for k in ("id", "kind", "prompt", "chosen", "rejected")] for p in pairs]
        return {
            **{"seed": c.seed, "stage": c.stage.name, "arm": c.arm.name, "run": self.run.name},
            "roles": role_names(self.roles),
            "parent": c.start and c.start["adapter"],
            "examples": len(done),
            "kept": len(kept_ids(done)),
            "pairs": sum(p["kind"] == REVISION for p in pairs),
            "anchors": sum(p["kind"] == ANCHOR for p in pairs),
            "training_pairs": sum(not p["held_out"] for p in pairs),
            "data_tokens": sum(map(tokens, done)),
            "data_hash": hash_texts(["\x1f".join(t) for t in texts]),
            "label_accuracy": accuracy and accuracy.row(),
            "first_answers": first and first.row(),
            # and what only a training and a measurement tell
            **{"adapter": None, "adapter_run": self.run.name, "rolled_back": False, "training": None},
            **{"success": {}, "safety": {}, "probes": {}, "guardrails": []},
            "average": {"base": None, "trained": None, "predecessor": None},
        }

    def _train(self, seen: list[dict[str, Any]], held: list[dict[str, Any]]) -> dict[str, Any]:
        """What ENDED names of the training: its adapter's hash, and how it ended."""
        c, output = self.context, self.run.checkpoints
        steps = c.stage.steps(len(seen), c.spec)
        settings = Settings.of(c.spec, steps, c.seed, loss=c.stage.loss)
        start = c.start and adapter_of(c.start)
        if not is_finished(output):
            c.budget.step("training and measuring", c.expected(steps))
        model = c.shared_model.bare(c.bits, self.run)
        self.run.log(
            f"training: {settings.loss}, {len(seen)} pairs, {steps} steps, from "
            + (f"the adapter of {c.start['run']}" if c.start else "the base model")
        )
        with self.run.step("training") as step:
            result = train(
                model,
                seen,
                held,
                settings,
                output,
                resume=True,
                start=start,
                log=self.run.log_only,
                budget=c.budget,
            )
            step.examples = result.taken
        self.run.record(training={"settings": asdict(settings), "after": result.after})
        return {k: getattr(result, k) for k in ENDED}

    def _measure(self, done, pairs, digest: str, checkpoints: Path, ended=None) -> dict[str, Any]:
        c = self.context
        name = c.shared_model.carrying(c.bits, {digest: checkpoints}, self.run)[digest]
        session = self.session(c.seed)
        shared = self.run.data.parent / BASE_ROWS
        pair = ModelPair(
            self.run, pairs, done, session.engine, session.prompter, c.seed, adapter=name, shared=shared
        )
        asked = measured(c.spec, c.plan.tasks)
        found, _ = task_success.measure(pair, pair.results("success"), asked, c.plan.tests)
        self.run.log("success at held-out test instructions, base to trained")
        for task in asked:
            key = REQUEST_NAMES.get(task, task)
            two = [found[f"{key}, {who}"] for who in ("base", "trained")]
            self.run.log(f"  {key:26}{two[0].value:5.2f} to {two[1].value:4.2f}   n {two[0].n}")
        forgetting = evaluate(pair, ["forgetting"])["forgetting"]
        probed = critic_probe.measure(pair, pair.results("probes"), c.constitution)
        probes = {who: {part: m.row() for part, m in parts.items()} for who, parts in probed.items()}
        guardrails = watch(
            forgetting["metrics"],
            probes,
            pairs,
            c.stage.limits,
            answers=on_policy_answers(pair),
            training=ended,
        )
        rows = forgetting["metrics"] | {name: m.row() for name, m in found.items()}

        def both(key: str) -> dict[str, Any]:
            return {who: rows[f"{key}, {who}"] for who in ("base", "trained")}

        harmful = REQUEST_NAMES["harmful"] if "harmful" in asked else "refusals of harmful requests"
        safety = {
            "harmful refused": both(harmful),
            "harmless refused": both("refusals of harmless instructions"),
        }
        if "benign" in asked:
            safety["benign answered"] = both(REQUEST_NAMES["benign"])
        average = ALL if set(asked) - {*TASK_TYPES, *REQUESTS} else TEN
        return {
            "adapter": digest,
            "success": {t: both(t) for t in asked if t not in REQUESTS},
            "average": {**both(average), "predecessor": c.parent and c.parent["average"]["trained"]},
            "safety": safety,
            "probes": probes,
            "guardrails": [asdict(g) for g in guardrails],
        }


def criticized(record: Mapping[str, Any], critic: Mapping[str, Any], constitution: Constitution) -> Example:
    """An example with a record's answer, and the critiques and principles of another record, or its own."""
    e = Example(record["instruction"], record["task"], record["source"])
    ended_by = (record.get("ended_by") or [None])[0]
    e.answer = Completion(record["initial_answer"], 0, 0, record["finish_reasons"][0], ended_by)
    finish = critic["finish_reasons"][1 : 1 + len(critic["critiques"])]
    e.critiques = tuple(
        Completion(c["critique"], 0, 0, f) for c, f in zip(critic["critiques"], finish, strict=True)
    )
    if all("verdict" in c for c in critic["critiques"]):
        e.verdicts = tuple(Verdict(c["verdict"], c.get("verdict_scores")) for c in critic["critiques"])
    e.principles = tuple(constitution.by_id(c["principle_id"]) for c in critic["critiques"])
    return e


def read_pairs(run: str) -> list[dict[str, Any]]:
    return pair_rows(directories(run)[0])


def inputs(spec: ModelSpec) -> list[str | Path]:
    """The files that stages and what they are measured on are made of."""
    return [test_sets.PATH, spec.heldout, spec.neutral, spec.seeds, spec.skill_seeds]


def seeds(spec: ModelSpec) -> list[Seed]:
    """Seed instructions of the ten tasks and of the skills."""
    return [s for path in (spec.seeds, spec.skill_seeds) for s in load_seeds(Path(path))]
