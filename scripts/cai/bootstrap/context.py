"""Where a stage of a plan stands: what came before it, and who plays which part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cai.bootstrap.comparisons import BASE_HELPER, MAIN
from cai.bootstrap.plan import BASE, BEST, PREDECESSOR, Plan, Stage
from cai.bootstrap.stage_model import Bench
from cai.core.files import directories
from cai.costs.budget import Budget
from cai.generation.loop import Writers
from cai.prompts.constitution import Constitution

PARTS = tuple(f.name for f in fields(Writers))


def run_name(plan: str, stage: str, seed: int, arm: str = MAIN, first_seed: int = 0) -> str:
    """data/<plan>/<stage>, with .seed<n> for other seeds than the first and .<arm> for a control."""
    other = "" if seed == first_seed else f".seed{seed}"
    return f"{plan}/{stage}{other}{'' if arm == MAIN else f'.{arm}'}"


@dataclass(frozen=True)
class Place:
    """Where a stage stands: the main line's finished results before it, in order, and what all share."""

    plan: Plan
    name: str  # of the plan's run
    seed: int
    first_seed: int
    before: tuple[dict[str, Any], ...]
    constitution: Constitution
    bench: Bench
    budget: Budget
    hourly_rate: float
    expected: Callable[[int], float]  # dollars of training so many steps, and measuring

    @property
    def trained(self) -> tuple[dict[str, Any], ...]:
        """The results before that are part of the main line's model: neither rolled back nor starved."""
        return tuple(r for r in self.before if r["adapter"] and not r["rolled_back"])

    @property
    def parent(self) -> dict[str, Any] | None:
        """The result that the next stage goes on from."""
        return self.trained[-1] if self.trained else None

    def adapter(self, result: Mapping[str, Any]) -> Path:
        return directories(result["adapter_run"])[1]


def cast(stage: Stage, place: Place, arm: str) -> tuple[Writers, dict[str, str], dict[str, Path]]:
    """(hashes of adapters by part, who that is by name, hash -> directory)."""
    roles, parent = asdict(stage.roles), place.parent
    if arm == BASE_HELPER:
        roles = dict.fromkeys(PARTS, BASE)
    by_stage = {r["stage"]: r for r in place.trained}
    hashes, named, paths = {}, {}, {}
    for part in PARTS:
        who = roles[part]
        if who == BEST:
            who = best(parent, part)
        result = None if who == BASE else parent if who == PREDECESSOR else by_stage.get(who, parent)
        hashes[part], named[part] = (None, BASE) if result is None else (result["adapter"], result["stage"])
        if result is not None:
            paths[result["adapter"]] = place.adapter(result)
    return Writers(**hashes), named, paths


def best(parent: Mapping[str, Any] | None, part: str) -> str:
    """Of base and predecessor whoever did better on the probes; the base where they are equal."""
    if parent is None:
        return BASE
    base, trained = (parent["probes"][who][part]["value"] for who in ("base", "trained"))
    return PREDECESSOR if (trained or 0.0) > (base or 0.0) else BASE
