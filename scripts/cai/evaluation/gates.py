"""Gates: GO or NO-GO at the end of a milestone, each criterion with what was measured, n, an interval, and
what to look at. What each milestone asks is in criteria.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.core.cli import GO, NO_GO
from cai.core.errors import UserError
from cai.core.run import Run, read_manifest
from cai.core.stats import wilson


@dataclass(frozen=True)
class Criterion:
    """n and interval are those of a rate (95 %, Wilson); None where there is nothing to count."""

    name: str
    passed: bool
    measured: str
    look_at: str
    n: int | None = None
    interval: tuple[float, float] | None = None


def rate(name: str, successes: int, n: int, at_least: float, look_at: str) -> Criterion:
    """A criterion on a rate: the point estimate decides, the interval says how far to trust it."""
    low, high = wilson(successes, n)
    share = successes / n if n else 0.0
    return Criterion(
        name,
        n > 0 and share >= at_least,
        f"{successes} of {n} ({share:.0%}, needs {at_least:.0%})",
        look_at,
        n,
        (round(low, 3), round(high, 3)),
    )


def from_metric(
    name: str, summary: dict[str, Any], metric: str, bound: float, look_at: str, *, at_most: bool = False
) -> Criterion:
    """A criterion on a metric of an evaluation suite: its value decides, n and interval stand beside it. A
    metric that nothing was counted for does not pass."""
    found = summary["metrics"][metric]
    value, need = found["value"], f"needs {'at most' if at_most else 'at least'} {bound:g}"
    passed = value is not None and (value <= bound if at_most else value >= bound)
    measured = f"{metric} {'not measured' if value is None else f'{value:.3f}'} ({need}), n {found['n']}"
    interval = tuple(found["interval"]) if found["interval"] else None
    return Criterion(name, passed, measured, look_at, found["n"], interval)


def decide(run: Run, criteria: Sequence[Criterion], record: str = "gate") -> int:
    """Prints the gate's table, records it in run.json, and gives the exit status: GO or NO_GO. record: its
    key there; the next milestone reads "gate"."""
    decision = "GO" if all(c.passed for c in criteria) else "NO-GO"
    table = [asdict(c) for c in criteria]
    title = record.replace("_", " ").capitalize()
    run.log("\n".join([f"\n{title}", *lines(table), f"{decision} for {run.name}"]))
    run.record(**{record: {"decision": decision, "criteria": table}})
    return GO if decision == "GO" else NO_GO


def lines(criteria: Sequence[dict[str, Any]]) -> list[str]:
    """Criteria, as run.json has them, for a person."""
    said = []
    for c in criteria:
        ends = f", 95 % interval {c['interval'][0]:.2f} to {c['interval'][1]:.2f}" if c["interval"] else ""
        said.append(f"  {'pass' if c['passed'] else 'FAIL'}  {c['name']}: {c['measured']}{ends}")
        said += [] if c["passed"] else [f"        look at: {c['look_at']}"]
    return said


def require(name: str, *, force: bool) -> str:
    """The decision of an earlier run's gate, as a sentence. Raises UserError unless it is GO or `force` is
    set."""
    gate: dict[str, Any] = (read_manifest(name) or {}).get("gate", {})
    found = gate.get("decision", "no decision yet")
    if found != "GO" and not force:
        raise UserError(
            f"the gate of run {name!r} says: {found}. "
            f"Look at data/{name}/ and run that milestone again, or go on with --force"
        )
    return f"the gate of run {name!r} says {found}" + (" (going on: --force)" if found != "GO" else "")
