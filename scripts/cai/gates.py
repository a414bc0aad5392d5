"""Gates: GO or NO-GO at the end of a milestone, each criterion with what was measured, n, an interval, and
what to look at. What each milestone asks is in cai/criteria.py; `python -m cai.gates single batch mvp` prints
the verdicts of runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.filters import is_exemplar, normal, verdict
from cai.run import GO, NO_GO, Run, UserError, cli, directories, parser, read_manifest, shown

MIN_REASON_WORDS = 4  # a critique gives at least this much reason before its verdict
# Words that a critique of anything shares with anything: they do not show that it speaks of this answer.
COMMON_WORDS = frozenset(
    "all and any are but can did for get has have her his how its let may not off one our out she the too "
    "two use was who why yes yet you "
    "about also answer because been could does from give good help instruction into just make more must "
    "need only people question response should some that their them then there they this very what when "
    "which will with would write your".split()
)


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


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate; (0, 1) when nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def meaningful(critique: str, instruction: str, answer: str) -> str | None:
    """None for a critique that means something, else what is wrong with it. It must end in a verdict, give a
    reason in some words of its own, and speak of this instruction or this answer: share a word of content (or
    a number) with them."""
    if verdict(critique) is None:
        return "it ends without a verdict"
    reason = normal(critique).split()[: -len(normal(verdict(critique)).split())]
    if len(reason) < MIN_REASON_WORDS:
        return "it gives no reason"
    if is_exemplar(critique) or " ".join(reason) in (normal(instruction), normal(answer)):
        return "it is a copy"
    content = {
        w for w in normal(f"{instruction} {answer}").split() if len(w) > 2 or w.isdigit()
    } - COMMON_WORDS
    if not content & set(reason):
        return "it names nothing of the instruction or the answer"
    return None


def decide(run: Run, criteria: Sequence[Criterion], record: str = "gate") -> int:
    """Prints the gate's table, records it in run.json, and gives the exit status: GO or NO_GO. record: its
    key there; the next milestone reads "gate"."""
    verdict = "GO" if all(c.passed for c in criteria) else "NO-GO"
    table = [asdict(c) for c in criteria]
    run.say(
        "\n".join([f"\n{record.replace('_', ' ').capitalize()}", *lines(table), f"{verdict} for {run.name}"])
    )
    run.record(**{record: {"verdict": verdict, "criteria": table}})
    return GO if verdict == "GO" else NO_GO


def lines(criteria: Sequence[dict[str, Any]]) -> list[str]:
    """Criteria, as run.json has them, for a person."""
    said = []
    for c in criteria:
        ends = f", 95 % interval {c['interval'][0]:.2f} to {c['interval'][1]:.2f}" if c["interval"] else ""
        said.append(f"  {'pass' if c['passed'] else 'FAIL'}  {c['name']}: {c['measured']}{ends}")
        said += [] if c["passed"] else [f"        look at: {c['look_at']}"]
    return said


def require(name: str, *, force: bool) -> str:
    """The verdict of an earlier run's gate, as a sentence. Raises UserError unless it is GO or `force` is
    set."""
    gate: dict[str, Any] = (read_manifest(name) or {}).get("gate", {})
    found = gate.get("verdict", "no verdict yet")
    if found != "GO" and not force:
        raise UserError(
            f"the gate of run {name!r} says: {found}. Look at data/{name}/ and run that milestone again, or "
            "go on with --force"
        )
    return f"the gate of run {name!r} says {found}" + (" (going on: --force)" if found != "GO" else "")


def main() -> None:
    flags = parser("Prints the gates of runs, and where the last one's page is.")
    flags.add_argument("runs", nargs="+", help="names of runs")
    page = None
    for name in flags.parse_args().runs:
        gate = (read_manifest(name) or {}).get("gate", {"verdict": "no verdict", "criteria": []})
        print("\n".join([f"{gate['verdict']} for {name}", *lines(gate["criteria"])]))
        found = directories(name)[0] / "report.html"
        page = found if found.exists() else page
    if page:
        print(f"read and judge the examples: {shown(page)}")


if __name__ == "__main__":
    cli(main)
