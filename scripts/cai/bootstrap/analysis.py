"""What results.json says of the hypothesis that each stage's model can help to make its successor, in plain
words; and what would have falsified it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.bootstrap.comparisons import (
    HELPED,
    HURT,
    NO_DIFFERENCE,
    REFUSED,
    UNKNOWN,
    Difference,
    compare,
    comparisons,
    runs_of,
    stages_of,
)
from cai.bootstrap.controls import BASE_HELPER, CONTROLS, MAIN, SHUFFLED, letters
from cai.bootstrap.stage_gates import CARRIED
from cai.core.stats import Metric

SUPPORTED, IN_PART, MIXED = "supported", "supported in part", "mixed"
NOT_SHOWN, AGAINST, UNANSWERED = "not shown", "against it", "unanswered"
SMALL = 0.05  # a gain that could not be larger than this counts as none
OTHER_QUANTITY = 1.25  # from this ratio on, main and control trained on clearly different numbers of pairs


@dataclass(frozen=True)
class Conclusion:
    """answer: one of the six above. headline: a sentence. reasons, caveats: sentences. tests: (what would
    falsify the hypothesis, what was found, whether it was found to hold up: None where it cannot be told)."""

    answer: str
    headline: str
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]
    tests: tuple[tuple[str, str, bool | None], ...]


def conclude(results: dict[str, Any]) -> Conclusion:
    """Can each stage's model help to make its successor better? From the numbers alone."""
    helper, shuffled = comparisons(results, BASE_HELPER), _weighty(results, SHUFFLED)
    answer, headline = _answer(_weighty(results, BASE_HELPER))
    if answer in (SUPPORTED, IN_PART):
        gained = {d.stage for d in _weighty(results, BASE_HELPER) if d.found == HELPED}
        found = {d.stage: as_good(d) for d in shuffled if d.stage in gained}
        empty, unsure = ([s for s, good in found.items() if good is x] for x in (True, None))
        if empty:
            headline += (
                f" But critiques of other examples taught as well at {_list(empty)}, so the gain there need "
                "not come from what the critiques say."
            )
        if unsure:
            headline += (
                f" Whether critiques of other examples would have taught as well at {_list(unsure)} cannot "
                "be told: too few cases."
            )
        if empty or unsure:
            answer = IN_PART if gained - set(empty) else NOT_SHOWN
    reasons = [sentence(d) for d in helper]
    for stage in results["plan"]["stages"]:
        if stage["gate"]["safer"] and (d := compare(results, stage["name"], BASE_HELPER, REFUSED)):
            reasons.append(f"Harmful requests refused, {sentence(d)[0].lower()}{sentence(d)[1:]}")
    others = [name for name in CONTROLS if name != BASE_HELPER]
    for control in sorted(others, key=lambda name: not CONTROLS[name].claim):
        reasons += [sentence(d) for d in comparisons(results, control)]
    return Conclusion(answer, headline, tuple(reasons), tuple(_caveats(results, helper)), _tests(results))


def _weighty(results: dict[str, Any], control: str) -> list[Difference]:
    """Comparisons to decide by: where several seeds were run, one seed alone decides nothing."""
    least = min(2, len(results["seeds"]))
    return [d for d in comparisons(results, control) if len(d.by_seed) >= least]


def as_good(d: Difference) -> bool | None:
    """Whether a control was found to do as well as main: it is better, or no different and main's gain at
    most SMALL. False: main is better. None: the interval is too wide to tell."""
    if d.found == HELPED:
        return False
    return True if d.whole.interval and d.whole.interval[1] <= SMALL else None


def _answer(helper: Sequence[Difference]) -> tuple[str, str]:
    told = [d for d in helper if d.found != UNKNOWN]
    if not told:
        return UNANSWERED, (
            "The question is unanswered: at no stage after the first can main be compared with a training "
            "with the base model's help (control a), and without that nobody can say what the predecessor "
            "added."
        )
    up, same, down = ([d.stage for d in told if d.found == v] for v in (HELPED, NO_DIFFERENCE, HURT))
    count = f"{len(told)} stage{'s' * (len(told) > 1)}"
    if up and not down:
        if not same:
            where = f"at the one stage compared ({up[0]})" if len(told) == 1 else f"at all {count} compared"
            return SUPPORTED, (
                f"On these numbers, yes: {where} the predecessor's help made a better successor than the "
                "base model's help did."
            )
        return IN_PART, (
            f"In part: the predecessor's help made a better successor at {_list(up)}, and no measurable "
            f"difference at {_list(same)}."
        )
    if up and down:
        return MIXED, (
            f"Mixed: the predecessor's help made a better successor at {_list(up)} and a worse one at "
            f"{_list(down)}, compared with the base model's help."
        )
    if down:
        rest = f" At {_list(same)} there was no measurable difference." if same else ""
        return AGAINST, (
            "No: with the predecessor's help the successor came out worse than with the base model's help "
            f"at {_list(down)}.{rest}"
        )
    most = max(d.whole.interval[1] for d in told)
    return NOT_SHOWN, (
        f"Not shown: at none of {count} compared did the predecessor's help make a measurable difference "
        f"against the base model's help. A gain of up to {100 * most:.0f} points would still fit the numbers."
    )


def sentence(d: Difference) -> str:
    """A comparison in words, with sizes."""
    n = d.by_seed[0][1].n
    seeds = f"{len(d.by_seed)} seed{'s' * (len(d.by_seed) > 1)}"
    ceiling = " Both are so good that this stage could not show one." if d.at_the_ceiling else ""
    worth = CONTROLS[d.control].worth
    return (
        f"At {d.stage}, {worth} {d.found}: {d.main.value:.2f} against {d.other.value:.2f}, difference "
        f"{signed(d.whole)}; n {n} a seed, {seeds}.{ceiling}"
    )


def signed(m: Metric) -> str:
    if m.value is None:
        return "not measured"
    ends = f" ({m.interval[0]:+.3f} to {m.interval[1]:+.3f})" if m.interval else " (no interval)"
    return f"{m.value:+.3f}{ends}"


def _caveats(results: dict[str, Any], helper: Sequence[Difference]) -> list[str]:
    said, stages = [], stages_of(results)
    reached = [s for s in stages if runs_of(results, s)]
    missing = [s for s in stages if s not in reached]
    if results["stopped"]:
        said.append(f"The plan was stopped: {str(results['stopped']).rstrip('.')}.")
    elif not results["finished"]:
        said.append("The plan has not come to its end; this is what there is so far.")
    if missing:
        said.append(f"Not reached, so nothing is known of: {_list(missing)}.")
    uncompared = [s for s in reached[1:] if s not in {d.stage for d in helper}]
    if uncompared and any(r["arm"] == BASE_HELPER for r in results["runs"]):
        said.append(f"Not compared with the base as helper: {_list(uncompared)}.")
    seeds = {s for d in helper for s, _ in d.by_seed}
    if helper and len(seeds) == 1:
        said.append(
            "One seed only: the intervals tell how far the test instructions go, and nothing about how "
            "another seed would have turned out. Three seeds are the least for a conclusion to rest on."
        )
    elif helper and min(len(d.by_seed) for d in helper) < len(results["seeds"]):
        said.append("Some comparisons rest on fewer seeds than others; the numbers say on how many.")
        if alone := [d.stage for d in helper if len(d.by_seed) == 1]:
            said.append(
                f"One seed alone was compared at {_list(alone)}: another may turn out otherwise, so the "
                "conclusion leaves that out."
            )
    for d in helper:
        tokens = [
            sum(r["data_tokens"] for r in runs_of(results, d.stage, arm) if r["seed"] in dict(d.by_seed))
            for arm in (MAIN, BASE_HELPER)
        ]
        if min(tokens) and max(tokens) / min(tokens) > 1.1:
            said.append(
                f"At {d.stage} the budgets differ: main used {tokens[0] / tokens[1]:.2f} times the tokens of "
                "the control."
            )
    if carried := _where(results, lambda r: r["state"] == CARRIED):
        said.append(
            f"Main had too few pairs to be trained, and its predecessor was carried over, at {carried}: the "
            "numbers there are the predecessor's, and these seeds are left out of the comparisons, but for "
            "those of the data alone."
        )
    if orphans := _where(results, lambda r: r["stage"] != stages[0] and r["parent"] is None):
        said.append(
            f"Main had no earlier stage to go on from, so that its predecessor was the base, at {orphans}: "
            f"controls {letters(lambda c: c.needs_predecessor)} are the same as main there, and these seeds "
            "are not compared with them."
        )
    same_pairs = [name for name, c in CONTROLS.items() if not c.from_base]
    said += [s for name in same_pairs if (s := _quantity(results, name))]
    same = [d.stage for d in helper if _helped_by_base_alone(results, d)]
    if same:
        said.append(
            f"At {_list(same)} main had every part played by the base, too: there the comparison shows noise."
        )
    back = sorted(
        {r["stage"] for r in results["runs"] if r["arm"] == MAIN and r["rolled_back"]}, key=stages.index
    )
    if back:
        said.append(f"Rolled back after training, so not the start of what follows: {_list(back)}.")
    return said


def _where(results: dict[str, Any], chosen: Callable[[dict[str, Any]], bool]) -> str:
    """The stages, with their seeds, at which a run of main is so; an empty text where none is."""
    found = []
    for stage in stages_of(results):
        if seeds := [r["seed"] for r in runs_of(results, stage) if chosen(r)]:
            found.append(f"{stage} (seed{'s' * (len(seeds) > 1)} {_list(seeds)})")
    return _list(found) if found else ""


def _quantity(results: dict[str, Any], control: str) -> str | None:
    """Where the control trained on clearly more or fewer pairs than main did, over the seeds compared."""
    found, words = [], set()
    for d in comparisons(results, control):
        usual, own = (
            sum(r["training_pairs"] for r in runs_of(results, d.stage, a) if r["seed"] in dict(d.by_seed))
            for a in (MAIN, control)
        )
        if max(own, usual) > OTHER_QUANTITY * min(own, usual):
            found.append(f"{d.stage} {own} against {usual}")
            words.add("fewer" if own < usual else "more")
    if not found:
        return None
    return (
        f"{CONTROLS[control].title} trained on {' or '.join(sorted(words))} pairs than main, so its "
        f"difference is partly one of quantity: {', '.join(found)}."
    )


def _helped_by_base_alone(results: dict[str, Any], d: Difference) -> bool:
    runs = [r for r in runs_of(results, d.stage) if r["seed"] in dict(d.by_seed)]
    return all(player == "base" for run in runs for player in run["roles"].values())


def _tests(results: dict[str, Any]) -> tuple[tuple[str, str, bool | None], ...]:
    """The claims that would falsify the hypothesis, and what became of each (see as_good). The
    hypothesis fails if one is true at every stage compared, stands against it if it is false at every one."""
    rows = []
    for name, claim in ((name, c.claim) for name, c in CONTROLS.items() if c.claim):
        told = [d for d in _weighty(results, name) if d.found != UNKNOWN]
        good = [as_good(d) for d in told]
        groups = {
            "no at": [d for d in told if as_good(d) is False],
            f"yes, main's gain is at most {SMALL:.2f}, at": [
                d for d in told if as_good(d) and d.found != HURT
            ],
            "too few cases to tell at": [d for d in told if as_good(d) is None],
            "yes, the control is better, at": [d for d in told if d.found == HURT],
        }
        found = "; ".join(f"{said} {_list([d.stage for d in some])}" for said, some in groups.items() if some)
        holds = all(x is False for x in good)
        rows.append((claim, found or "not tested", holds if told and (holds or all(good)) else None))
    return tuple(rows)


def _list(names: Sequence[str | int]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
