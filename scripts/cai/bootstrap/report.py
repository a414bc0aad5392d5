"""The report of a plan, report.html and report.md, from its results.json: what every stage added, what it
cost, and whether the predecessor's help was worth anything against the controls.

report.md has its plots as PNG files beside it, in plots/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cai.bootstrap import plots
from cai.bootstrap.analysis import AGAINST, SMALL, SUPPORTED, conclude, signed
from cai.bootstrap.comparisons import (
    HARMLESS_REFUSED,
    HELPED,
    HURT,
    MEASURES,
    REFUSED,
    Measure,
    compare,
    comparisons,
    metric,
    over_seeds,
    pair_yield,
    runs_of,
    stages_of,
)
from cai.bootstrap.controls import ARMS, BASE_HELPER, CONTROLS, MAIN, letters
from cai.bootstrap.results import read
from cai.bootstrap.stage_gates import CARRIED, GO, STARVED
from cai.core.files import write_whole
from cai.core.stats import Metric
from cai.core.text import format_duration
from cai.reports.document import Block, Cell, Items, Picture, Table, Text, as_html, as_markdown
from cai.training.likelihood_displacement import DISPLACED, STOPPED_EARLY
from cai.training.settings import FINISHED

UNTRAINED = {CARRIED: "carried over", STARVED: "too few pairs"}
SUMMED = ("examples", "kept", "pairs", "anchors", "training_pairs", "seconds", "dollars")
ENDINGS = {
    DISPLACED: "displaced: the held-out chosen texts had become less likely",
    STOPPED_EARLY: "stopped early: the held-out loss fell no further",
}


def write(directory: Path) -> tuple[Path, Path]:
    """Writes report.html, report.md and plots/*.png from directory/results.json; gives the first two paths.

    Raises UserError for results that are not there or do not fit their schema."""
    results = read(directory)
    blocks = contents(results)
    drawn = directory / "plots"
    drawn.mkdir(exist_ok=True)
    for name in plots.there(results):
        write_whole(drawn / f"{name}.png", plots.render(results, name, "light", "png"))
    page, notes = directory / "report.html", directory / "report.md"
    write_whole(notes, as_markdown(blocks).encode("utf-8", "replace"))
    write_whole(page, as_html(f"{results['plan']['name']}: report", blocks).encode("utf-8", "replace"))
    return page, notes


def contents(results: dict[str, Any]) -> list[Block]:
    """The report as blocks, from the conclusion down to single figures."""
    plan, found, pictures = results["plan"], conclude(results), _pictures(results)
    seeds = ", ".join(map(str, results["seeds"]))
    tone = {SUPPORTED: "good", AGAINST: "bad"}.get(found.answer, "")
    state = "finished" if results["finished"] else "stopped" if results["stopped"] else "not finished"
    blocks: list[Block] = [
        Text("h1", plan["title"]),
        Text(
            "quiet",
            f"Plan {plan['name']}, {state}. Model {results['model']} in {results['bits']} bits; seeds "
            f"{seeds}; {format_duration(results['seconds'])} and ${results['dollars']:.2f} in all.",
        ),
        Text("h2", "Conclusion"),
        Text("quiet", plan["question"]),
        Text("lead", found.headline, tone),
        *([Items(found.caveats)] if found.caveats else []),
        Table(
            "What would falsify the hypothesis, and whether it was found. A claim is true at a stage where "
            "the control is better, or where there is no measurable difference and the interval of main "
            f"minus control ends at {SMALL:.2f} or below; where it ends higher, there are too few cases to "
            "tell. The hypothesis fails if a claim is true at every stage compared, stands against it if it "
            "is false at every one, and is open otherwise. Each interval holds for one comparison: of "
            "twenty, one is expected to leave zero out by chance.",
            ("If true, it fails", "Found", "The hypothesis"),
            [(claim, was, _holds(holds)) for claim, was, holds in found.tests],
        ),
        *pictures["differences"],
    ]
    blocks += [table for table in (_compared(results),) if table.rows]
    if not results["runs"]:
        return [*blocks, Text("p", "No stage has been measured yet.")]
    blocks += [Text("h2", "What every stage added"), *pictures["success"], _stages(results)]
    if pictures["tasks"]:
        blocks += [*pictures["tasks"], _tasks(results)]
    blocks += [Text("h2", "The arms side by side"), *_arms(results)]
    blocks += [Text("h2", "What it cost"), *pictures["cost"], _costs(results)]
    tables = [t for t in (_guardrails(results), _gates(results), _endings(results)) if t.rows]
    if tables:
        blocks += [Text("h2", "Guardrail metrics and gates"), *pictures["guardrails"], *tables]
    if pictures["guardrails"]:
        blocks += [Text("h2", "Critic and reviser"), _probes(results)]
    return [*blocks, Text("h2", "How to read the numbers"), Items(READING)]


READING = (
    "Brackets hold 95 % intervals. Over several seeds it is Student's t between the seeds or, where that is "
    "wider, the mean of the half-widths within the seeds, each side for itself. Every seed answers the same "
    "test instructions, so more seeds make that part no narrower. The same holds for differences.",
    "Pairs for each example are those to train on. They, dollars and seconds are no shares, and have an "
    "interval over several seeds only. What a pair took includes training and measuring, and is told of the "
    "arms that make all their data.",
    "A difference between arms takes their answers for independent, although both answer the same "
    "instructions; its interval is rather too wide than too narrow.",
    "No measurable difference does not mean no difference: the interval says how large one could be.",
    "Success is measured on test instructions that were fixed before the first stage and that no generator "
    "saw.",
    f"At the first stage the predecessor is the base model, so controls "
    f"{letters(lambda c: c.needs_predecessor)} begin with the second. "
    "The same holds of later stages where main had none to go on from. A seed in which main was not trained "
    "at a stage is left out of its comparisons, but for those of the data alone.",
)


def _compared(results: dict[str, Any]) -> Table:
    """Every comparison of success, seed by seed."""
    found = [(c.worth, d) for name, c in CONTROLS.items() for d in comparisons(results, name)]
    for stage in results["plan"]["stages"]:
        d = compare(results, stage["name"], BASE_HELPER, REFUSED) if stage["gate"]["safer"] else None
        found += [(f"{CONTROLS[BASE_HELPER].worth}: {REFUSED}", d)] if d else []
    rows = []
    for what, d in found:
        tone = {HELPED: "good", HURT: "bad"}.get(d.found, "")
        single = ", ".join(f"{m.value:+.2f}" for _, m in d.by_seed)
        cell = Cell(d.found + "; both near 1, no room for one" * d.at_the_ceiling, tone)
        values = f"{d.main.value:.2f}", f"{d.other.value:.2f}", signed(d.whole), single
        rows.append((what[0].upper() + what[1:], d.stage, cell, *values, str(d.by_seed[0][1].n)))
    head = ("What", "Stage", "Found", "With", "Without", "Difference", "By seed", "n a seed")
    return Table("Each comparison: success with it, and without it in the control.", head, rows)


def _pictures(results: dict[str, Any]) -> dict[str, list[Picture]]:
    """By name; an empty list for a plot that has nothing to show."""
    found: dict[str, list[Picture]] = {name: [] for name in plots.PLOTS}
    for name in plots.there(results):
        drawn = [plots.render(results, name, theme, "svg") for theme in plots.THEMES]
        found[name].append(Picture(f"plots/{name}.png", plots.PLOTS[name][0], *drawn))
    return found


def _holds(holds: bool | None) -> Cell:
    return Cell("open") if holds is None else Cell("stands", "good") if holds else Cell("fails here", "bad")


def said(m: Metric) -> str:
    if m.value is None:
        return "–"
    ends = f" ({m.interval[0]:.2f} to {m.interval[1]:.2f})" if m.interval else ""
    return f"{m.value:.2f}{ends}"


def _mean(runs: Sequence[dict[str, Any]], of: Measure) -> str:
    return said(over_seeds([of(r) for r in runs]))


def _main_stages(results: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    found = [(stage, runs_of(results, stage["name"])) for stage in results["plan"]["stages"]]
    return [(stage, runs) for stage, runs in found if runs]


def _untrained(runs: Sequence[dict[str, Any]]) -> str:
    """How many runs had no training, to be added to a text."""
    found = {name: sum(r["state"] == state for r in runs) for state, name in UNTRAINED.items()}
    return "".join(f"; {name} {n}" for name, n in found.items() if n)


def _stages(results: dict[str, Any]) -> Table:
    columns: dict[str, Measure] = {
        who.capitalize(): lambda r, who=who: metric(r["average"][who])
        for who in ("base", "predecessor", "trained")
    }
    columns |= {name.capitalize(): MEASURES[name] for name in (REFUSED, HARMLESS_REFUSED)}
    rows = []
    for stage, runs in _main_stages(results):
        passed, back = sum(r["gate"]["decision"] == GO for r in runs), sum(r["rolled_back"] for r in runs)
        gate = f"GO, {passed} of {len(runs)} seeds" + f"; rolled back {back}" * bool(back) + _untrained(runs)
        cell = Cell(gate, "good" if passed == len(runs) and not back else "bad")
        means = (_mean(runs, of) for of in columns.values())
        rows.append((f"{stage['name']}: {stage['title']}", *means, cell))
    what = "The predecessor's arm. Success: average share of test instructions done."
    return Table(what, ("Stage", *columns, "Gate"), rows)


def _tasks(results: dict[str, Any]) -> Table:
    stages = _main_stages(results)
    names = list(dict.fromkeys(task for _, runs in stages for r in runs for task in r["success"]))
    rows = []
    for task in names:
        of = [[r for r in runs if task in r["success"]] for _, runs in stages]
        trained = (_mean(runs, lambda r, t=task: metric(r["success"][t]["trained"])) for runs in of)
        two = [(r["seed"], metric(r["success"][task]["base"])) for runs in of for r in runs]
        base = {seed: m for seed, m in reversed(two) if m.value is not None}  # the same at every stage
        rows.append((task.replace("_", " "), said(over_seeds(list(base.values()))), *trained))
    head = ("Task", "Base", *(f"After {stage['name']}" for stage, _ in stages))
    return Table("Success by task, the predecessor's arm.", head, rows)


def _arms(results: dict[str, Any]) -> list[Table]:
    """A table a stage: every measure of main, and main minus each control."""
    tables = []
    for stage in stages_of(results):
        arms = [a for a in plots.arms_of(results) if runs_of(results, stage, a)]
        if MAIN not in arms:
            continue
        main = runs_of(results, stage)
        rows = [
            (name, _mean(main, of), *(_beside_main(results, stage, arm, name) for arm in arms[1:]))
            for name, of in MEASURES.items()
        ]
        seeds = f"{len(main)} seed{'s' * (len(main) > 1)}{_untrained(main)}"
        head = ("Measure", ARMS[MAIN].title, *(ARMS[a].title for a in arms[1:]))
        what = f"{stage}, {seeds}. Controls: value; main minus control, both of the seeds compared."
        tables.append(Table(what, head, rows))
    return tables


def _beside_main(results: dict[str, Any], stage: str, arm: str, measure: str) -> str:
    if d := compare(results, stage, arm, measure):
        return f"{d.other.value:.2f}; {signed(d.whole)}"
    alone = over_seeds([MEASURES[measure](r) for r in runs_of(results, stage, arm)])
    return "–" if alone.value is None else f"{alone.value:.2f}; not compared"


def _costs(results: dict[str, Any]) -> Table:
    rows = []
    for stage, arm in product(stages_of(results), plots.arms_of(results)):
        runs = runs_of(results, stage, arm)
        if not runs:
            continue
        total: Counter[str] = Counter()
        for r in runs:
            total.update({k: r[k] for k in SUMMED} | {"tokens": sum(r["tokens"].values())})
        kept, each = total["kept"], "–"
        if ARMS[arm].own_examples:
            each = f"${total['dollars'] / kept:.4f}, {total['seconds'] / kept:.1f} s" if kept else "none kept"
        rows.append(
            (
                *(stage, ARMS[arm].title, str(len(runs)), f"{kept} of {total['examples']}"),
                *(_mean(runs, pair_yield), f"{total['pairs']}, {total['anchors']} anchors"),
                *(str(total["training_pairs"]), each, f"{total['tokens'] / 1000:,.0f} k"),
                *(format_duration(total["seconds"]), f"${total['dollars']:.2f}"),
            )
        )
    head = ("Stage", "Arm", "Seeds", "Kept", "Yield", "Pairs", "To train on", "A kept example")
    head += ("Tokens", "Time", "Cost")
    what = (
        f"Sums over the seeds. Controls {letters(lambda c: not c.own_examples)} go on from main's examples, "
        "which their dollars do not include; so what a kept example cost is told of the other arms alone."
    )
    return Table(what, head, rows)


def _guardrails(results: dict[str, Any]) -> Table:
    """Those beyond their limits; where there is none, the five nearest to theirs."""
    main = [(stage["name"], run) for stage, runs in _main_stages(results) for run in runs]
    found = [(stage, run["seed"], row) for stage, run in main for row in run["guardrails"]]
    shown = [f for f in found if not f[2]["ok"]]
    caption = f"{len(shown)} of {len(found)} measurements beyond their limits, in the predecessor's arm."
    if not shown:
        shown = sorted(found, key=lambda f: -(plots.used_up(f[2]) or 0.0))[:5]
        caption = f"All {len(found)} measurements stayed within their limits. The five nearest to theirs:"
    rows = []
    for stage, seed, row in shown:
        value = "not measured" if row["value"] is None else f"{row['value']:.3f}"
        state = Cell("ok", "good") if row["ok"] else Cell(f"beyond; look at {row['look_at']}", "bad")
        rows.append((stage, str(seed), row["name"], value, f"{row['rule']} {row['limit']:g}", state))
    return Table(caption, ("Stage", "Seed", "Guardrail metric", "Value", "Limit", "State"), rows)


def _gates(results: dict[str, Any]) -> Table:
    rows = []
    for stage, runs in _main_stages(results):
        for run in runs:
            for c in run["gate"]["criteria"]:
                state = Cell("pass", "good") if c["passed"] else Cell(f"FAIL; look at {c['look_at']}", "bad")
                if c["passed"] is None:
                    state = Cell(f"too few cases to tell: {c['more']}")
                rows.append((stage["name"], str(run["seed"]), c["name"], c["measured"], state))
    head = ("Stage", "Seed", "Criterion", "Measured", "")
    return Table("The gates' criteria, the predecessor's arm.", head, rows)


def _endings(results: dict[str, Any]) -> Table:
    """Trainings that ended before their last step."""
    rows = []
    for run in results["runs"]:
        training = run["training"]
        if training is None or training["status"] == FINISHED:
            continue
        why = ENDINGS.get(training["status"], training["status"])
        kept = f"step {training['step']} of the {training['steps']} taken"
        rows.append((run["stage"], ARMS[run["arm"]].title, str(run["seed"]), why, kept))
    head = ("Stage", "Arm", "Seed", "Why it ended", "Adapter kept")
    return Table("Trainings that ended before their last step, all arms.", head, rows)


def _probes(results: dict[str, Any]) -> Table:
    def probe(part: str, who: str) -> Measure:
        return lambda run: metric(run["probes"].get(who, {}).get(part))

    asked = product(("critic", "reviser"), ("base", "trained"))
    columns = {f"{part.capitalize()}, {who}": probe(part, who) for part, who in asked}
    rows = []
    for stage, runs in _main_stages(results):
        played = sorted({", ".join(f"{k} {v}" for k, v in sorted(r["roles"].items())) for r in runs})
        rows.append((stage["name"], *(_mean(runs, of) for of in columns.values()), " / ".join(played)))
    head = ("Stage", *columns, "Who played which part")
    return Table("Share right on the fixed probes, the predecessor's arm.", head, rows)
