"""Main against each control, over seeds: what the predecessor's help, the critiques and the pairing were
worth. What it says about the hypothesis is analysis.py.

Everything follows from results.json (see results.py). A metric is {"value", "n", "interval"}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cai.bootstrap.controls import ARMS, MAIN
from cai.bootstrap.stage_gates import CARRIED
from cai.core.stats import NOTHING, Metric, mean, share

CEILING = 0.95  # where both arms do better than this there is no room left to differ in
HELPED, NO_DIFFERENCE, HURT, UNKNOWN = "helped", "made no measurable difference", "hurt", "cannot be told"


@dataclass(frozen=True)
class Difference:
    """Main minus a control at a stage. by_seed: (seed, difference); whole: over the seeds. main, other: the
    means of main and of the control over these seeds."""

    stage: str
    control: str
    by_seed: tuple[tuple[int, Metric], ...]
    whole: Metric
    main: Metric
    other: Metric

    @property
    def found(self) -> str:
        if self.whole.interval is None:
            return UNKNOWN
        low, high = self.whole.interval
        return HELPED if low > 0 else HURT if high < 0 else NO_DIFFERENCE

    @property
    def at_the_ceiling(self) -> bool:
        return self.found == NO_DIFFERENCE and min(self.main.value, self.other.value) > CEILING


def metric(row: dict[str, Any] | None) -> Metric:
    if row is None:
        return NOTHING
    return Metric(row["value"], row["n"], None if row["interval"] is None else tuple(row["interval"]))


def minus(a: Metric, b: Metric) -> Metric:
    """a - b, its interval from theirs by the square-and-add rule of independent estimates (Newcombe 1998,
    Statistics in Medicine 17:873). Both arms answer the same instructions, so it is rather too wide."""
    if a.value is None or b.value is None:
        return Metric(None, min(a.n, b.n), None)
    d = a.value - b.value
    if a.interval is None or b.interval is None:
        return Metric(d, min(a.n, b.n), None)
    down = math.hypot(a.value - a.interval[0], b.interval[1] - b.value)
    up = math.hypot(a.interval[1] - a.value, b.value - b.interval[0])
    return Metric(d, min(a.n, b.n), (d - down, d + up))


def over_seeds(found: Sequence[Metric], least: float = 0.0) -> Metric:
    """The mean over seeds of shares (of differences of shares: least = -1). Its interval is Student's t
    between the seeds or, where that is wider, the mean of the half-widths within them, each side for itself:
    every seed answers the same test instructions, so more seeds make that part no narrower. What has no
    interval within any seed is no share (pairs an example, dollars): there it is t alone, without an upper
    bound."""
    found = [m for m in found if m.value is not None]
    if len(found) < 2:
        return found[0] if found else NOTHING
    between, n = mean([m.value for m in found]), sum(m.n for m in found)
    middle, (low, high) = between.value, between.interval
    within = [m.interval is not None for m in found]
    if not any(within):
        return Metric(middle, n, (low if least < 0 else max(0.0, low), high))
    if not all(within):
        return Metric(middle, n, None)
    down = fmean(m.value - m.interval[0] for m in found)
    up = fmean(m.interval[1] - m.value for m in found)
    return Metric(middle, n, (max(least, min(low, middle - down)), min(1.0, max(high, middle + up))))


# ---- what is compared ----

Measure = Callable[[dict[str, Any]], Metric]
SUCCESS, REFUSED, HARMLESS_REFUSED = "success, average", "harmful refused", "harmless refused"


def _safety(name: str) -> Measure:
    return lambda run: metric(run["safety"].get(name, {}).get("trained"))


def pair_yield(run: dict[str, Any]) -> Metric:
    return share([True] * run["kept"] + [False] * (run["examples"] - run["kept"]))


def pairs_an_example(run: dict[str, Any]) -> Metric:
    """Nothing for controls that take the main line's pairs."""
    if not ARMS[run["arm"]].steps or not run["examples"]:
        return NOTHING
    return Metric(run["training_pairs"] / run["examples"], run["examples"], None)


def _a_pair(unit: str, count: int = 1) -> Measure:
    """What so many pairs took, with training and measuring: of arms that make all their data."""

    def of(run: dict[str, Any]) -> Metric:
        pairs = run["training_pairs"]
        if not ARMS[run["arm"]].own_examples or not pairs:
            return NOTHING
        return Metric(run[unit] * count / pairs, pairs, None)

    return of


MEASURES: dict[str, Measure] = {
    SUCCESS: lambda run: metric(run["average"]["trained"]),
    REFUSED: _safety(REFUSED),
    HARMLESS_REFUSED: _safety(HARMLESS_REFUSED),
    "label accuracy of pairs": lambda run: metric(run["label_accuracy"]),
    "first answers right": lambda run: metric(run["first_answers"]),
    "examples kept": pair_yield,
    "pairs for each example": pairs_an_example,
    "dollars for 100 pairs": _a_pair("dollars", 100),
    "seconds for a pair": _a_pair("seconds"),
}


# Known without a training. Told of seeds without one, too: main had few pairs there, and to leave them out
# would flatter it.
OF_DATA = ("label accuracy of pairs", "first answers right", "examples kept", "pairs for each example")


def stages_of(results: dict[str, Any]) -> list[str]:
    return [stage["name"] for stage in results["plan"]["stages"]]


def runs_of(results: dict[str, Any], stage: str, arm: str = MAIN) -> list[dict[str, Any]]:
    """By seed."""
    return sorted(
        (r for r in results["runs"] if r["stage"] == stage and r["arm"] == arm), key=lambda r: r["seed"]
    )


def _compared(run: dict[str, Any], control: str, measure: str) -> bool:
    """Whether the control can tell anything of this run of main: that run was trained, and, for the controls
    which put the base in the predecessor's place, went on from an earlier stage. It did not at the first
    stage, and where all before it were rolled back or starved."""
    if run["state"] == CARRIED and measure not in OF_DATA:
        return False
    return run["parent"] is not None or not ARMS[control].needs_predecessor


def compare(results: dict[str, Any], stage: str, control: str, measure: str = SUCCESS) -> Difference | None:
    """Main minus a control, over the seeds that have both and can be compared. None where no seed is left."""
    main, other = ({r["seed"]: r for r in runs_of(results, stage, a)} for a in (MAIN, control))
    main = {seed: r for seed, r in main.items() if _compared(r, control, measure)}
    of = MEASURES[measure]
    both = [(s, of(main[s]), of(other[s])) for s in main if s in other]
    both = [(s, a, b) for s, a, b in both if a.value is not None and b.value is not None]
    if not both:
        return None
    by_seed = tuple((s, minus(a, b)) for s, a, b in both)
    sides = [over_seeds([row[side] for row in both]) for side in (1, 2)]
    return Difference(stage, control, by_seed, over_seeds([d for _, d in by_seed], -1.0), *sides)


def comparisons(results: dict[str, Any], control: str, measure: str = SUCCESS) -> list[Difference]:
    """Of all stages that have the control, in their order."""
    found = (compare(results, stage, control, measure) for stage in stages_of(results))
    return [d for d in found if d is not None]
