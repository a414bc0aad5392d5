"""Yield: how many examples make training pairs, by principle, by task and by reason, as a table and as a
plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.run import Run
from cai.core.stats import wilson
from cai.core.text import one_line
from cai.generation.filters import REASONS, final_reasons
from cai.prompts.constitution import Constitution

GROUPS = ("principle", "task", "reason")


@dataclass(frozen=True)
class Yield:
    """count of n examples. group "principle" or "task": those that make a pair, of those with this
    principle or task; "reason": those that this reason speaks against, of all. interval: 95 %, Wilson."""

    group: str
    name: str
    count: int
    n: int

    @property
    def share(self) -> float:
        return self.count / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.count, self.n)

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            **{"group": self.group, "name": self.name, "count": self.count, "n": self.n},
            "share": round(self.share, 4),
            "interval": [round(low, 4), round(high, 4)],
        }


def yields(records: Sequence[dict[str, Any]]) -> list[Yield]:
    """The yields of a run, best first within each group. An example with two principles counts under each."""
    against = final_reasons(records)
    asked, made = {g: Counter() for g in GROUPS[:2]}, {g: Counter() for g in GROUPS[:2]}
    for r in records:
        names = {"principle": {c["principle_id"] for c in r["critiques"]}, "task": {r["task"]}}
        for group, found in names.items():
            asked[group].update(found)
            made[group].update(found if not against[r["id"]] else ())
    rows = [Yield(g, name, made[g][name], n) for g in asked for name, n in asked[g].items()]
    counts = Counter(reason for found in against.values() for reason in set(found))
    rows += [Yield("reason", name, n, len(records)) for name, n in counts.items()]
    return sorted(rows, key=lambda y: (GROUPS.index(y.group), -y.share, -y.n, y.name))


def total(records: Sequence[dict[str, Any]]) -> Yield:
    against = final_reasons(records)
    return Yield("all", "all examples", sum(not found for found in against.values()), len(records))


def table(records: Sequence[dict[str, Any]]) -> str:
    """The yields as text: counts, shares and 95 % intervals; for a reason also what it means."""
    heads = {"principle": "pairs by principle", "task": "pairs by task", "reason": "no pair, by reason"}
    rows = [total(records), *yields(records)]
    width = max(len(one_line(y.name)) for y in rows)
    lines, group = [], ""
    for y in rows:
        if y.group != group and y.group in heads:
            lines.append(heads[y.group])
        group = y.group
        low, high = y.interval
        says = f"  {REASONS[y.name].says}" if y.name in REASONS else ""
        name = one_line(y.name)
        lines.append(
            f"  {name:<{width}}  {y.count:5d} of {y.n:<5d} {y.share:6.1%}  ({low:.0%} to {high:.0%}){says}"
        )
    return "\n".join(lines)


def plot(records: Sequence[dict[str, Any]], path: Path) -> Path:
    """The yields as a PNG, one panel a group, bars with 95 % intervals. Written whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = yields(records)
    panels = [[y for y in rows if y.group == group] for group in GROUPS]
    titles = ("Pairs by principle", "Pairs by task", "No pair, by reason")
    heights = [max(1, len(p)) for p in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 1.6 + 0.28 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axis, panel, title in zip(axes, panels, titles, strict=True):
        shares = [y.share for y in panel]
        ends = [y.interval for y in panel]
        low = [max(0.0, s - e[0]) for s, e in zip(shares, ends, strict=True)]
        high = [max(0.0, e[1] - s) for s, e in zip(shares, ends, strict=True)]
        color = "tab:red" if "No pair" in title else "tab:blue"
        axis.barh(range(len(panel)), shares, xerr=[low, high], color=color, alpha=0.75, ecolor="0.3")
        axis.set_yticks(range(len(panel)), [f"{y.name} ({y.count} of {y.n})" for y in panel], fontsize=8)
        axis.invert_yaxis()
        axis.set(title=title, xlim=(0, 1))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axis.grid(axis="x", alpha=0.3)
    part = path.with_name(path.name + ".part")
    try:
        figure.savefig(part, dpi=110, format="png")
    finally:
        pyplot.close(figure)
    part.replace(path)
    return path


def report_yield(run: Run, constitution: Constitution, records: Sequence[dict[str, Any]]) -> None:
    """What came of the examples: printed, plotted, and counted in run.json."""
    made = total(records)
    used = Counter(c["principle_id"] for r in records for c in r["critiques"])
    unused = [p.id for p in constitution.principles if p.id not in used]
    use = f"principles not used: {', '.join(unused)}" if unused else "every principle used"
    run.log(f"[2] {made.n} records, {made.count} kept; {use}\n{table(records)}")
    plot(records, run.data / "yields.png")
    reasons = {y.name: y.count for y in yields(records) if y.group == "reason"}
    run.record(counts={"records": made.n, "kept": made.count, "reasons": reasons, "principles": dict(used)})
