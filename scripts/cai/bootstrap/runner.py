"""The main line of a plan: its stages one after the other, each with its controls, once for each seed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cai.bootstrap.context import StageContext
from cai.bootstrap.controls import ARMS, MAIN
from cai.bootstrap.forecast import PlanForecast
from cai.bootstrap.plan import Plan, Stage
from cai.bootstrap.results import FORMAT
from cai.bootstrap.stage import run_stage
from cai.bootstrap.stage_gates import NO_GO, UNDECIDED
from cai.bootstrap.stage_model import SharedModel
from cai.core import cli
from cai.core.files import directories, write_json
from cai.core.run import Run, read_manifest
from cai.core.text import format_duration
from cai.costs import budget
from cai.evaluation.gates import lines
from cai.models.registry import ModelSpec
from cai.prompts.constitution import Constitution


class Runner:
    """stopped: why the plan ended before its last stage, None where it did not. dollars: the budget for all
    seeds and controls together."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        spec: ModelSpec,
        constitution: Constitution,
        shared_model: SharedModel,
        dollars: float | None,
    ):
        self.run, self.plan, self.spec = run, plan, spec
        self.constitution, self.shared_model = constitution, shared_model
        ahead = PlanForecast(plan, spec, (), 1, run.hourly_rate, shared_model.choice)
        self._dollars = ahead.total.dollars_a_unit
        steps = ("instructions", "answer", "critique", "revision", "judge", "judge")  # two comparisons
        each = sum(self._dollars[step] for step in steps)
        self.budget = budget.Budget(dollars, self._spent, each, self._dollars)
        self.budget.watch(run)
        self.stopped: str | None = None
        self._ahead, self._done, self._began = 0, 0, time.monotonic()

    def follow(self, seed: int, controls: Sequence[str], *, force: bool) -> None:
        """One seed, to its end or to the first gate that says NO-GO. What is UNDECIDED is passed by, and
        said."""
        self._ahead = sum(1 + len(_possible(controls, n > 0)) for n in range(len(self.plan.stages)))
        before: tuple[dict[str, Any], ...] = ()
        for stage in self.plan.stages:
            main = self._one(stage, seed, before)
            if main["gate"]["decision"] == UNDECIDED:
                self.run.log(f"   {main['run']} is passed by undecided: {_why(main)}")
            if main["gate"]["decision"] == NO_GO and not main["rolled_back"] and not force:
                self._stop(f"seed {seed}, stage {stage.name}: {_why(main)}")
                return
            for control in _possible(controls, self._context(stage, seed, before).parent is not None):
                self._one(stage, seed, before, control)
            before = (*before, main)
        self._write()

    def _one(
        self, stage: Stage, seed: int, before: tuple[dict[str, Any], ...], arm: str = MAIN
    ) -> dict[str, Any]:
        row = run_stage(self._context(stage, seed, before, arm))
        self._write()
        self._done, self._ahead = self._done + 1, self._ahead - 1
        left = (time.monotonic() - self._began) / self._done * self._ahead
        self.run.log(
            f"   {row['run']} done; {self._ahead} runs of this seed ahead, about {format_duration(left)}; "
            f"${self._spent():.2f} so far"
        )
        if arm == MAIN:
            self.run.log("\n".join([f"\ngate of {row['run']}", *lines(row["gate"]["criteria"])]))
            for g in row["guardrails"]:
                if not g["ok"]:
                    self.run.log(f"  guardrail metric {g['name']}: {g['value']} ({g['rule']} {g['limit']})")
                    self.run.log(f"        look at: {g['look_at']}")
            end = ", rolled back to its predecessor" if row["rolled_back"] else ""
            self.run.log(f"{row['gate']['decision']} for {row['run']}{end}")
        return row

    def _context(
        self, stage: Stage, seed: int, before: tuple[dict[str, Any], ...], arm: str = MAIN
    ) -> StageContext:
        return StageContext(
            plan=self.plan,
            stage=stage,
            arm=ARMS[arm],
            plan_run=self.run.name,
            seed=seed,
            first_seed=self.run.manifest["first_seed"],
            before=before,
            constitution=self.constitution,
            shared_model=self.shared_model,
            budget=self.budget,
            hourly_rate=self.run.hourly_rate,
            expected=self._expected,
        )

    def _stop(self, why: str) -> None:
        self.stopped = why if self.stopped is None else f"{self.stopped}; {why}"
        self.run.log(f"\nstopped: {why} (--force goes on)")
        self._write()

    def rows(self) -> list[dict[str, Any]]:
        """The results of every finished stage and control, of this call and of earlier ones."""
        stages, arms = [s.name for s in self.plan.stages], list(ARMS)
        made = (m.get("row") for name, m in self._manifests().items() if "~" not in name)
        found = [row for row in made if row and row["stage"] in stages]
        return sorted(found, key=lambda r: (r["seed"], stages.index(r["stage"]), arms.index(r["arm"])))

    @property
    def status(self) -> int:
        """The exit status: GO if every gate of the main line said so, for all seeds that were run."""
        found = {r["gate"]["decision"] for r in self.rows() if r["arm"] == MAIN}
        if self.stopped or NO_GO in found:
            return cli.NO_GO
        return cli.UNDECIDED if UNDECIDED in found else cli.GO

    def results(self) -> dict[str, Any]:
        """What the report is made of (cai.bootstrap.report)."""
        rows = self.rows()
        seeds = sorted({r["seed"] for r in rows})
        main = {(r["seed"], r["stage"]) for r in rows if r["arm"] == MAIN}
        whole = bool(seeds) and all((seed, s.name) in main for seed in seeds for s in self.plan.stages)
        return {
            "format": FORMAT,
            "plan": self.plan.as_dict(),
            "model": self.spec.name,
            "bits": self.plan.stages[0].bits or self.spec.bits,
            "seeds": seeds,
            "dollars": sum(r["dollars"] for r in rows),
            "seconds": sum(r["seconds"] for r in rows),
            "finished": whole and self.stopped is None,
            "stopped": self.stopped,
            "runs": rows,
        }

    def _write(self) -> None:
        write_json(self.run.data / "results.json", self.results())

    def _expected(self, steps: int) -> float:
        return self._dollars["training"] * steps + self._dollars["evaluation"] + self._dollars["loading"]

    def _spent(self) -> float:
        """Dollars of all stages and controls so far, finished or not."""
        return sum(m.get("totals", {}).get("dollars", 0.0) for m in self._manifests().values())

    def _manifests(self) -> dict[str, dict[str, Any]]:
        """run.json of every stage and control that was begun, of those moved aside, too."""
        names = sorted(path.parent.name for path in self.run.data.glob("*/run.json"))
        return {name: read_manifest(f"{self.run.name}/{name}") or {} for name in names}


def _possible(controls: Sequence[str], parent: bool) -> list[str]:
    """The controls of a stage: without a predecessor it is the base, and some of them would be main again."""
    return [name for name in controls if parent or not ARMS[name].needs_predecessor]


def _why(row: dict[str, Any]) -> str:
    failed = [c["name"] for c in row["gate"]["criteria"] if not c["passed"]]
    failed += [f"the guardrail metric {name}" for name in row["gate"]["guardrails"]]
    return f"{', '.join(failed)} (look at {directories(row['run'])[0].name})"
