"""Where a stage of a plan stands: what came before it, and who plays which part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai.bootstrap.controls import ARMS, MAIN, Arm
from cai.bootstrap.plan import BASE, BEST, PREDECESSOR, Plan, Stage
from cai.bootstrap.stage_model import SharedModel
from cai.core.files import directories
from cai.costs.budget import Budget
from cai.models.registry import ModelSpec
from cai.prompts.constitution import Constitution


def run_name(plan: str, stage: str, seed: int, arm: str = MAIN, first_seed: int = 0) -> str:
    """data/<plan>/<stage>, with .seed<n> for other seeds than the first and .<control> for a control."""
    other = "" if seed == first_seed else f".seed{seed}"
    return f"{plan}/{stage}{other}{'' if arm == MAIN else f'.{arm}'}"


@dataclass(frozen=True)
class StageContext:
    """A stage or a control of it, with the main line's finished results before it, in order, and what all
    stages share. plan_run: the name of the plan's run."""

    plan: Plan
    stage: Stage
    arm: Arm
    plan_run: str
    seed: int
    first_seed: int
    before: tuple[dict[str, Any], ...]
    constitution: Constitution
    shared_model: SharedModel
    budget: Budget
    hourly_rate: float
    expected: Callable[[int], float]  # dollars of training so many steps, and measuring

    @property
    def name(self) -> str:
        return run_name(self.plan_run, self.stage.name, self.seed, self.arm.name, self.first_seed)

    @property
    def main(self) -> str:
        """The run of the main line at this stage."""
        return replace(self, arm=ARMS[MAIN]).name

    @property
    def spec(self) -> ModelSpec:
        spec = self.shared_model.spec
        return spec if self.stage.shots is None else replace(spec, shots=self.stage.shots)

    @property
    def bits(self) -> int:
        """Of the weights in training and measurement."""
        return self.stage.bits or self.spec.bits

    @property
    def principles(self) -> Constitution:
        """The constitution with the stage's own principles."""
        whole, ids = self.constitution, self.stage.principles
        return replace(whole, principles=tuple(whole.by_id(i) for i in ids)) if ids else whole

    @property
    def trained(self) -> tuple[dict[str, Any], ...]:
        """The results before that are part of the main line's model: neither rolled back nor starved."""
        return tuple(r for r in self.before if r["adapter"] and not r["rolled_back"])

    @property
    def parent(self) -> dict[str, Any] | None:
        """The result that the main line goes on from."""
        return self.trained[-1] if self.trained else None

    @property
    def start(self) -> dict[str, Any] | None:
        """The result whose adapter training begins with; None: the base."""
        return None if self.arm.from_base else self.parent


def adapter_of(result: Mapping[str, Any]) -> Path:
    return directories(result["adapter_run"])[1]


def resolve_roles(context: StageContext) -> dict[str, dict[str, Any] | None]:
    """By part the result whose adapter plays it; None: the base."""
    roles, parent = asdict(context.stage.roles), context.parent
    by_stage = {r["stage"]: r for r in context.trained}

    def player(part: str) -> dict[str, Any] | None:
        who = BASE if context.arm.base_helps else roles[part]
        who = best(parent, part) if who == BEST else who
        return None if who == BASE else by_stage.get(who, parent)

    return {part: player(part) for part in roles}


def role_names(roles: Mapping[str, dict[str, Any] | None]) -> dict[str, str]:
    return {part: result["stage"] if result else BASE for part, result in roles.items()}


def best(parent: Mapping[str, Any] | None, part: str) -> str:
    """Of base and predecessor whoever did better on the probes; the base where they are equal."""
    if parent is None:
        return BASE
    base, trained = (parent["probes"][who][part]["value"] for who in ("base", "trained"))
    return PREDECESSOR if (trained or 0.0) > (base or 0.0) else BASE
