"""Gates: GO, NO-GO or UNDECIDED at the end of a milestone, each criterion with what was measured, n, an
interval, and what to look at. What each milestone asks is in criteria.py.

Targets are met by the point. Harm must be excluded and a gain be shown by the interval: where it reaches over
the limit there are too few cases to tell, and the gate says how many more are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.core.cli import GO, NO_GO, UNDECIDED
from cai.core.errors import UserError
from cai.core.files import directories, display_path
from cai.core.run import Run, read_manifest
from cai.core.stats import wilson
from cai.models.model import WEIGHTS, saved_hash

DECISIONS = {GO: "GO", NO_GO: "NO-GO", UNDECIDED: "UNDECIDED"}  # exit status -> decision
SMALLEST_GAIN = 0.05  # of a win rate above one half; a gain that is surely smaller is none
MOST_MORE = 50  # times as many cases: an effect that needs more than these is hardly there


@dataclass(frozen=True)
class Criterion:
    """passed: None where there are too few cases to tell; more: then what would decide it. n and interval
    (95 %) are those of what was measured; None where there is nothing to count."""

    name: str
    passed: bool | None
    measured: str
    look_at: str
    n: int | None = None
    interval: tuple[float, float] | None = None
    more: str = ""


def rate(name: str, successes: int, n: int, at_least: float, look_at: str) -> Criterion:
    """A target on a rate that is counted here: the point decides, the interval says how far to trust it."""
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


@dataclass(frozen=True)
class Reader:
    """Makes criteria of one suite's metrics. by: how somebody gets more cases."""

    summary: Mapping[str, Any]
    look_at: str
    by: str = "a larger --limit"

    @property
    def more_by(self) -> str:
        """A suite that was limited has more cases at hand."""
        return "leaving --limit out" if self.summary.get("settings", {}).get("limit") else self.by

    def target(
        self, name: str, metric: str, at_least: float, *, above: bool = False, least_n: int = 1
    ) -> Criterion:
        """Met by the point, at `at_least` or (above) over it. Fewer than least_n cases decide nothing: with
        20, more than 0.8 of them is above one half by the interval, too."""
        value, n, _ = self._found(metric)
        need = f"needs {'more than' if above else 'at least'} {at_least:g}"
        if n < least_n:
            need += f" of at least {least_n}"
            return self._criterion(name, metric, None, need, f"{least_n - n} more by {self.more_by}")
        passed = value is not None and (value > at_least if above else value >= at_least)
        return self._criterion(name, metric, passed, need)

    def harmless(self, name: str, metric: str, at_most: float) -> Criterion:
        """What must not rise beyond a limit: the interval's upper end decides."""
        return self._bounded(name, metric, at_most, -1, f"needs its interval at most {at_most:g}")

    def kept(self, name: str, metric: str, at_least: float) -> Criterion:
        """What must not fall below a limit: the interval's lower end decides."""
        return self._bounded(name, metric, at_least, +1, f"needs its interval at least {at_least:g}")

    def better(self, name: str, metric: str, than: float, smallest: float = 0.0) -> Criterion:
        """Better is asked of the interval. One that reaches over `than` is not distinguishable from it: no
        gain if even its upper end is no gain worth having (than + smallest), else too few cases."""
        value, _, ends = self._found(metric)
        need = f"needs its whole interval above {than:g}"
        if ends is not None and ends[0] <= than < ends[1]:
            need += "; not distinguishable from it"
            if ends[1] < than + smallest:
                return self._criterion(name, metric, False, need)
        return self._bounded(name, metric, than, +1, need, strict=True)

    def _bounded(
        self, name: str, metric: str, limit: float, sign: int, need: str, *, strict: bool = False
    ) -> Criterion:
        """sign: +1 where the whole interval must be above the limit, -1 where below. A metric that nothing
        was counted for does not pass; one without an interval has too few cases for one."""
        value, n, ends = self._found(metric)
        if value is None or ends is None:
            return self._criterion(name, metric, None, need, f"more cases by {self.more_by}")
        near, far = ends if sign > 0 else ends[::-1]  # the end towards the limit, and the other
        inside = sign * (near - limit)
        if inside > 0 or (inside == 0 and not strict):
            return self._criterion(name, metric, True, need)
        if sign * (far - limit) < 0 or (strict and far == limit):
            return self._criterion(name, metric, False, need)
        more = f"{more_cases(value, near, n, limit)} by {self.more_by}"
        return self._criterion(name, metric, None, need, more)

    def _found(self, metric: str) -> tuple[float | None, int, tuple[float, float] | None]:
        found = self.summary["metrics"].get(metric)
        if found is None:  # of an earlier version of the suite
            raise UserError(f"{self.look_at} knows no {metric!r}: run that suite again (evaluate.py --fresh)")
        return found["value"], found["n"], tuple(found["interval"]) if found["interval"] else None

    def _criterion(self, name: str, metric: str, passed: bool | None, need: str, more: str = "") -> Criterion:
        value, n, ends = self._found(metric)
        shown = "not measured" if value is None else f"{value:.3f}"
        return Criterion(name, passed, f"{metric} {shown} ({need}), n {n}", self.look_at, n, ends, more)


def more_cases(value: float, near: float, n: int, limit: float) -> str:
    """How many more cases would bring the interval's near end to the limit, or the other end, if the value
    stays as it is: the interval's half width falls with the root of n."""
    distance = abs(value - limit)
    half = max(abs(value - near), 1e-9)
    needed = math.inf if distance == 0 else n * (half / distance) ** 2
    if needed > n * MOST_MORE:
        return f"more than {n * MOST_MORE:,} more (what is measured lies at the limit)"
    return f"about {max(1, math.ceil(needed - n)):,} more"


def decide(run: Run, criteria: Sequence[Criterion], record: str = "gate") -> int:
    """Prints the gate's table, records it in run.json with the hash of the adapter that it speaks of, and
    gives the exit status: GO, NO_GO or UNDECIDED. record: its key there; the next milestone reads "gate"."""
    status = outcome([c.passed for c in criteria])
    table = [asdict(c) for c in criteria]
    adapter = run.manifest.get("adapter") if record == "gate" else None
    title = record.replace("_", " ").capitalize()
    run.log("\n".join([f"\n{title}", *lines(table), f"{DECISIONS[status]} for {run.name}"]))
    if status == UNDECIDED:
        run.log("other flags are another run: give it a name with --run, or move this one aside with --fresh")
    run.record(**{record: {"decision": DECISIONS[status], "adapter": adapter, "criteria": table}})
    return status


def outcome(passed: Sequence[bool | None]) -> int:
    """Of what each criterion says: one failure is NO-GO; else one that cannot be told yet is UNDECIDED."""
    if False in passed or not passed:
        return NO_GO
    return UNDECIDED if None in passed else GO


def lines(criteria: Sequence[Mapping[str, Any]]) -> list[str]:
    """Criteria, as run.json has them, for a person."""
    said = []
    for c in criteria:
        ends = f", 95 % interval {c['interval'][0]:.2f} to {c['interval'][1]:.2f}" if c["interval"] else ""
        word = {True: "pass", False: "FAIL", None: "open"}[c["passed"]]
        said.append(f"  {word}  {c['name']}: {c['measured']}{ends}")
        said += [f"        too few cases to tell: {c['more']}"] if c["passed"] is None else []
        said += [] if c["passed"] else [f"        look at: {c['look_at']}"]
    return said


def of_another_adapter(name: str, gate: Mapping[str, Any], *, as_recorded: bool = False) -> str | None:
    """Why a run's gate does not speak of the adapter that it has now; None where it does. One without a hash,
    as that of data, speaks of any. as_recorded: see saved_hash."""
    if gate.get("adapter") is None:
        return None
    here = directories(name)[1]
    if not (here / WEIGHTS).exists():
        return "its adapter is not there"
    try:
        now = saved_hash(here, as_recorded=as_recorded)
    except UserError as error:
        return str(error)
    return None if now == gate["adapter"] else "it was another adapter's"


def decision_of(name: str, record: str = "gate") -> str:
    """GO, NO-GO or UNDECIDED of a run, or why it has no decision: a gate speaks of one adapter, by hash."""
    manifest = read_manifest(name) or {}
    gate = manifest.get(record)
    if not gate:
        return "no decision yet"
    by_criteria = DECISIONS[outcome([c.get("passed", False) for c in gate.get("criteria", [])])]
    if gate.get("decision") not in (by_criteria, "NO-GO"):  # which a guardrail metric may say
        return f"no decision (its criteria say {by_criteria}, not {gate.get('decision')}: it was edited)"
    if record == "gate" and manifest.get("adapter") and not gate.get("adapter"):
        return f"no decision yet ({gate['decision']}, of no adapter)"
    why = of_another_adapter(name, gate)
    return f"no decision yet ({gate['decision']}, but {why})" if why else gate["decision"]


def require(name: str, *, force: bool, record: str = "gate") -> str:
    """The decision of an earlier run's gate, as a sentence. Raises UserError unless it is GO or `force` is
    set."""
    found, gate = decision_of(name, record), record.replace("_", " ")
    data = directories(name)[0]
    if read_manifest(name) is None and not force:
        raise UserError(
            f"there is no run {name!r} yet, whose {gate} is read first ({display_path(data)}/): run the "
            "milestone before this one (README.md), name its run by --after, or go on with --force"
        )
    if found != "GO" and not force:
        raise UserError(
            f"the {gate} of run {name!r} says: {found}. "
            f"Look at {display_path(data)}/, make it anew with other flags (--fresh, or another --run and "
            "--after), or go on with --force"
        )
    return f"the {gate} of run {name!r} says {found}" + (" (going on: --force)" if found != "GO" else "")
