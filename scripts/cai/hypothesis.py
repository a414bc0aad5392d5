"""The verdict on the hypothesis that each stage's model can help to make its successor, in plain words, from
the numbers of results.json alone; and what would have falsified it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.arms import (
    ARMS,
    BASE_HELPER,
    FROM_BASE,
    HELPED,
    HURT,
    MAIN,
    NO_DIFFERENCE,
    RANDOM,
    REFUSED,
    SHUFFLED,
    UNKNOWN,
    Difference,
    compare,
    comparisons,
    runs_of,
    stages_of,
    training_pairs,
)
from cai.intervals import Metric
from cai.stage_gates import CARRIED

SUPPORTED, IN_PART, MIXED, NOT_SHOWN, AGAINST, UNANSWERED = (
    "supported", "supported in part", "mixed", "not shown", "against it", "unanswered"
)  # fmt: skip
SMALL = 0.05  # a gain that could not be larger than this counts as none
OTHER_QUANTITY = 1.25  # from this ratio on, arms trained on clearly different numbers of pairs


@dataclass(frozen=True)
class Verdict:
    """answer: one of the six above. headline: a sentence. reasons, caveats: sentences. tests: (what would
    falsify the hypothesis, what was found, whether it was found to hold up: None where it cannot be told)."""

    answer: str
    headline: str
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]
    tests: tuple[tuple[str, str, bool | None], ...]


def verdict(results: dict[str, Any]) -> Verdict:
    """Can each stage's model help to make its successor better? From the numbers alone."""
    helper, shuffled = comparisons(results, BASE_HELPER), comparisons(results, SHUFFLED)
    answer, headline = _answer(helper)
    if answer in (SUPPORTED, IN_PART) and shuffled:
        gained = {d.stage for d in helper if d.verdict == HELPED}
        empty = [d.stage for d in shuffled if d.stage in gained and d.verdict != HELPED]
        if empty:
            answer = IN_PART if gained - set(empty) else NOT_SHOWN
            headline += (
                f" But critiques of other examples taught as well at {_list(empty)}, as far as can be told, "
                "so the gain there need not come from what the critiques say."
            )
    reasons = [sentence(d) for d in helper]
    for stage in results["plan"]["stages"]:
        if stage["gate"]["safer"] and (d := compare(results, stage["name"], BASE_HELPER, REFUSED)):
            reasons.append(f"Harmful requests refused, {sentence(d)[0].lower()}{sentence(d)[1:]}")
    for arm in (SHUFFLED, RANDOM, FROM_BASE):
        reasons += [sentence(d) for d in comparisons(results, arm)]
    return Verdict(answer, headline, tuple(reasons), tuple(_caveats(results, helper)), _tests(results))


def _answer(helper: Sequence[Difference]) -> tuple[str, str]:
    told = [d for d in helper if d.verdict != UNKNOWN]
    if not told:
        return UNANSWERED, (
            "The question is unanswered: no stage after the first was also trained with the base model's "
            "help (control a), and without that comparison nobody can say what the predecessor added."
        )
    up, same, down = ([d.stage for d in told if d.verdict == v] for v in (HELPED, NO_DIFFERENCE, HURT))
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
    worth = ARMS[d.arm].worth
    return (
        f"At {d.stage}, {worth} {d.verdict}: {d.main.value:.2f} against {d.control.value:.2f}, difference "
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
    if uncompared and helper:
        said.append(f"Not compared with the base as helper: {_list(uncompared)}.")
    seeds = {s for d in helper for s, _ in d.by_seed}
    if helper and len(seeds) == 1:
        said.append(
            "One seed only: the intervals tell how far the test instructions go, and nothing about how "
            "another seed would have turned out. Three seeds are the least for a verdict to rest on."
        )
    elif helper and min(len(d.by_seed) for d in helper) < len(results["seeds"]):
        said.append("Some comparisons rest on fewer seeds than others; the numbers say on how many.")
    for d in helper:
        tokens = [
            sum(
                r.get("data_tokens", sum(r["tokens"].values()))
                for r in runs_of(results, d.stage, arm)
                if r["seed"] in dict(d.by_seed)
            )
            for arm in (MAIN, BASE_HELPER)
        ]
        if min(tokens) and max(tokens) / min(tokens) > 1.1:
            said.append(
                f"At {d.stage} the budgets differ: main used {tokens[0] / tokens[1]:.2f} times the tokens of "
                "the control."
            )
    carried = {
        stage: seeds
        for stage in stages
        if (seeds := [r["seed"] for r in runs_of(results, stage) if r.get("state") == CARRIED])
    }
    if carried:
        where = _list([f"{stage} (seed{'s' * (len(s) > 1)} {_list(s)})" for stage, s in carried.items()])
        said.append(
            f"Main had too few pairs to be trained, and its predecessor was carried over, at {where}: the "
            "numbers there are the predecessor's, and a difference to a control is not one of that training."
        )
    said += [s for arm in (BASE_HELPER, SHUFFLED, RANDOM) if (s := _quantity(results, arm))]
    same = [d.stage for d in helper if _helped_by_base_alone(results, d.stage)]
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


def _quantity(results: dict[str, Any], arm: str) -> str | None:
    """At which stages the arm trained on clearly more or fewer pairs than main did, over the seeds that are
    compared and in which main was trained."""
    found, words = [], set()
    for d in comparisons(results, arm):
        main = {r["seed"]: r for r in runs_of(results, d.stage) if r.get("state") != CARRIED}
        seeds = [s for s, _ in d.by_seed if s in main]
        own = sum(training_pairs(r) for r in runs_of(results, d.stage, arm) if r["seed"] in seeds)
        usual = sum(training_pairs(main[s]) for s in seeds)
        if max(own, usual) > OTHER_QUANTITY * min(own, usual):
            found.append(f"{d.stage} {own} against {usual}")
            words.add("fewer" if own < usual else "more")
    if not found:
        return None
    return (
        f"{ARMS[arm].title} trained on {' or '.join(sorted(words))} pairs than main, so its difference is "
        f"partly one of quantity: {', '.join(found)}."
    )


def _helped_by_base_alone(results: dict[str, Any], stage: str) -> bool:
    return all(player == "base" for run in runs_of(results, stage) for player in run["roles"].values())


def _tests(results: dict[str, Any]) -> tuple[tuple[str, str, bool | None], ...]:
    """The three findings that would speak against the hypothesis, and what became of each."""
    claims = {
        BASE_HELPER: "The base model as helper does as well as the predecessor.",
        SHUFFLED: "Critiques of other examples teach as well as critiques of the answer itself.",
        RANDOM: "Chosen and rejected paired at random train as well as real pairs.",
    }
    rows = []
    for arm, claim in claims.items():
        found = comparisons(results, arm)
        told = [d for d in found if d.verdict != UNKNOWN]
        if not told:
            rows.append((claim, "not tested", None))
            continue
        alike = [d for d in told if d.verdict == NO_DIFFERENCE and d.whole.interval[1] <= SMALL]
        groups = [
            ("no at", [d.stage for d in told if d.verdict == HELPED]),
            (f"yes, to within {SMALL:.0%}, at", [d.stage for d in alike]),
            ("too few cases to tell at", [
                d.stage for d in told if d.verdict == NO_DIFFERENCE and d not in alike
            ]),
            ("even better at", [d.stage for d in told if d.verdict == HURT]),
        ]  # fmt: skip
        holds = all(d.verdict == HELPED for d in told)
        fails = all(d.verdict == HURT or d in alike for d in told)
        rows.append(
            (claim, "; ".join(f"{w} {_list(s)}" for w, s in groups if s), holds if holds or fails else None)
        )
    return tuple(rows)


def _list(names: Sequence[str | int]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
