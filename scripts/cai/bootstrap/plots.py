"""The plots of a plan's report, from results.json: as PNG, and as SVG in a light and a dark theme."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from cai.bootstrap.comparisons import comparisons, metric, over_seeds, runs_of, stages_of
from cai.bootstrap.controls import ARMS, BASE_HELPER, MAIN
from cai.core.stats import Metric
from cai.evaluation.guardrails import AT_LEAST, WITHIN

THEMES = {
    "light": {"page": "#ffffff", "ink": "#1d2024", "quiet": "#5c636c", "line": "#d9dad6"},
    "dark": {"page": "#1e2125", "ink": "#e4e5e7", "quiet": "#a0a7b0", "line": "#41464e"},
}


def arms_of(results: dict[str, Any]) -> list[str]:
    """The arms that were run, in the order of ARMS."""
    there = {run["arm"] for run in results["runs"]}
    return [arm for arm in ARMS if arm in there]


def stages_with_runs(results: dict[str, Any]) -> list[str]:
    return [stage for stage in stages_of(results) if any(r["stage"] == stage for r in results["runs"])]


def colours_of(theme: str) -> dict[str, Any]:
    return THEMES[theme] | {"arms": {name: getattr(arm, theme) for name, arm in ARMS.items()}}


def render(results: dict[str, Any], name: str, theme: str, form: str) -> bytes:
    """One of PLOTS. form: "png" or "svg". The same results give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = colours_of(theme)
    page, ink, line = colours["page"], colours["ink"], colours["line"]
    settings = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), ink),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), ink),
        **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor", "grid.color"), line),
        **{"text.parse_math": False, "svg.hashsalt": "plan", "svg.fonttype": "path", "font.size": 9},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.alpha": 0.6},
        **{"axes.titlesize": 9.5, "axes.titlelocation": "left"},
        **{"legend.frameon": False, "legend.fontsize": 8.5},
    }
    with pyplot.rc_context(settings):
        figure = PLOTS[name][1](results, colours)
        out = io.BytesIO()
        meta = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(out, format=form, dpi=130, metadata=meta)
        pyplot.close(figure)
    return out.getvalue()


def _axes(width: float, height: float, columns: int = 1, **more: Any):
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height), constrained_layout=True, **more)


def _bar(axis: Any, x: float | None, y: float | None, m: Metric, colour: str, mark: str) -> None:
    """A value as a mark and its interval as a line, along y where x is given, else along x."""
    if m.value is None:
        return
    if m.interval:
        ends = ([x, x], m.interval) if y is None else (m.interval, [y, y])
        axis.plot(*ends, color=colour, lw=1.6, solid_capstyle="butt")
    axis.plot(m.value if x is None else x, m.value if y is None else y, mark, color=colour, ms=6.5)


def _by_stage(axis: Any, stages: Sequence[str], **more: Any) -> None:
    """A group of arms for each stage."""
    axis.set(xticks=range(len(stages)), xticklabels=stages, **more)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y")


def _by_row(axis: Any, names: Sequence[str], bottom: float) -> None:
    """A row for each name, from the top down."""
    axis.set(yticks=range(len(names)), yticklabels=names)
    axis.set_ylim(bottom, -0.6)
    axis.tick_params(axis="y", length=0)


def _beside(i: int, j: int, arms: Sequence[str]) -> float:
    """Where arm j stands in the group of stage i."""
    return i + (j - (len(arms) - 1) / 2) * 0.15


def success(results: dict[str, Any], colours: dict[str, Any]):
    """Success by stage, arms beside each other."""
    stages, arms = stages_with_runs(results), arms_of(results)
    figure, axis = _axes(9, 3.9)
    for i, stage in enumerate(stages):
        runs = runs_of(results, stage)
        base = over_seeds([metric(r["average"]["base"]) for r in runs]).value
        if base is not None:
            label = "base model" if i == 0 else None
            axis.plot([i - 0.42, i + 0.42], [base] * 2, "--", color=colours["quiet"], lw=1.2, label=label)
        for j, arm in enumerate(arms):
            own = [metric(r["average"]["trained"]) for r in runs_of(results, stage, arm)]
            x = _beside(i, j, arms)
            _bar(axis, x, None, over_seeds(own), colours["arms"][arm], ARMS[arm].mark)
            values = [m.value for m in own if m.value is not None]
            if len(values) > 1:
                at = [x + 0.045] * len(values)
                axis.plot(at, values, ".", color=colours["arms"][arm], ms=3.5, alpha=0.8)
    for arm in arms:
        axis.plot([], [], ARMS[arm].mark, color=colours["arms"][arm], label=ARMS[arm].title)
    _by_stage(axis, stages, ylim=(0, 1.02), xlim=(-0.55, len(stages) - 0.45))
    axis.set_ylabel("share of test instructions")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def differences(results: dict[str, Any], colours: dict[str, Any]):
    """Main minus each control, a row for each stage and control."""
    groups = [(arm, comparisons(results, arm)) for arm in arms_of(results) if arm != MAIN]
    rows = sum(len(found) for _, found in groups)
    figure, axis = _axes(9, max(2.0, 0.27 * rows + 0.35 * len(groups) + 0.6))
    y, places, labels = 0.0, [], []
    for arm, found in groups:
        colour = colours["arms"][arm]
        if found:
            place = axis.get_yaxis_transform()
            axis.text(0.01, y, ARMS[arm].title, color=colour, va="center", transform=place)
            y += 0.9
        for d in found:
            seeds = [m.value for _, m in d.by_seed]
            if len(seeds) > 1:
                axis.plot(seeds, [y + 0.3] * len(seeds), ".", color=colour, ms=4, alpha=0.8)
            _bar(axis, None, y, d.whole, colour, ARMS[arm].mark)
            places.append(y)
            labels.append(d.stage)
            y += 1
        y += 0.4 * bool(found)
    axis.axvline(0, color=colours["ink"], lw=1)
    axis.set(yticks=places, yticklabels=labels)
    axis.set_ylim(max(y - 0.6, 1), -0.6)
    reach = max((abs(x) for x in axis.get_xlim()), default=0.1)
    axis.set_xlim(-max(reach, 0.1), max(reach, 0.1))
    axis.set_xlabel("\u2190 control better      difference in success      predecessor's arm better \u2192")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    return figure


def tasks(results: dict[str, Any], colours: dict[str, Any]):
    """Success by task, a panel a stage: base, control (a) and main."""
    stages = [s for s in stages_with_runs(results) if runs_of(results, s)]
    names = list(dict.fromkeys(t for s in stages for r in runs_of(results, s) for t in r["success"]))
    figure, axes = _axes(9, 0.3 * max(len(names), 2) + 1.3, max(len(stages), 1), sharey=True, squeeze=False)
    sides = [("base", MAIN, colours["quiet"], "|", "base model")]
    sides += [("trained", a, colours["arms"][a], ARMS[a].mark, ARMS[a].title) for a in (BASE_HELPER, MAIN)]
    shown = set()
    for axis, stage in zip(axes[0], stages, strict=False):
        own = next(s for s in results["plan"]["stages"] if s["name"] == stage)["tasks"]
        for y, task in enumerate(names):
            for side, arm, colour, mark, label in sides:
                runs = [r for r in runs_of(results, stage, arm) if task in r["success"]]
                m = over_seeds([metric(r["success"][task][side]) for r in runs])
                if m.value is None:
                    continue
                faint = 1.0 if task in own else 0.45
                if m.interval and arm == MAIN and side == "trained":
                    axis.plot(m.interval, [y, y], color=colour, lw=1.3, alpha=faint)
                size, edge = (10, 1.6) if mark == "|" else (5.5, 0.5)
                axis.plot(m.value, y, mark, color=colour, ms=size, alpha=faint, markeredgewidth=edge)
                if label not in shown:
                    shown.add(label)
                    axes[0][0].plot([], [], mark, color=colour, ms=size, label=label)
        axis.set(title=stage, xlim=(-0.04, 1.04), xticks=(0, 0.5, 1))
        axis.tick_params(axis="y", length=0)
        axis.grid()
    _by_row(axes[0][0], [n.replace("_", " ") for n in names], len(names) - 0.4)
    if shown:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def cost(results: dict[str, Any], colours: dict[str, Any]):
    """What a kept example cost (of arms that make all their own) and what a stage cost, by stage and arm:
    dollars, or seconds where the machine costs nothing."""
    stages, arms = stages_with_runs(results), arms_of(results)
    unit = "dollars" if results["dollars"] else "seconds"
    figure, (left, right) = _axes(9, 3.1, 2)
    for axis, of in (
        (left, lambda r: r[unit] / r["kept"] if r["kept"] and ARMS[r["arm"]].own_examples else None),
        (right, lambda r: r[unit]),
    ):
        for j, arm in enumerate(arms):
            for i, stage in enumerate(stages):
                values = [v for r in runs_of(results, stage, arm) if (v := of(r)) is not None]
                if values:
                    axis.bar(_beside(i, j, arms), fmean(values), 0.13, color=colours["arms"][arm])
        _by_stage(axis, stages, ylabel=unit)
    left.set_title("a kept example, of arms that make all their own")
    right.set_title("a stage, with its training and measuring")
    for arm in arms:
        left.plot([], [], "s", color=colours["arms"][arm], label=ARMS[arm].title)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def used_up(row: dict[str, Any]) -> float | None:
    """How much of its limit a metric takes: 0 none, 1 all of it, more: beyond. None: not measured."""
    value, limit = row["value"], row["limit"]
    if value is None:
        return None
    if row["rule"] == AT_LEAST:
        return limit / value if value > 0 else 2.0
    if row["rule"] == WITHIN:
        value = max(value, 1 / value) if value > 0 else 2 * limit
    return max(0.0, value / limit) if limit else float(value > 0) * 2


def guardrails(results: dict[str, Any], colours: dict[str, Any]):
    """How near each guardrail metric of main came to its limit, the worst of the seeds."""
    stages = [s for s in stages_with_runs(results) if runs_of(results, s)]
    rows = [row for s in stages for r in runs_of(results, s) for row in r["guardrails"]]
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, axis = _axes(9, 0.32 * max(len(names), 2) + 1.2)
    colour, marks = colours["arms"][MAIN], [arm.mark for arm in ARMS.values()]
    for i, stage in enumerate(stages):
        for y, name in enumerate(names):
            own = [row for r in runs_of(results, stage) for row in r["guardrails"] if row["name"] == name]
            used = [u for u in map(used_up, own) if u is not None]
            if used:
                at = y + (i - (len(stages) - 1) / 2) * 0.2
                axis.plot(min(max(used), 2), at, marks[i % len(marks)], color=colour, ms=6, clip_on=False)
        axis.plot([], [], marks[i % len(marks)], color=colour, label=stage)
    axis.axvline(1, color=colours["ink"], lw=1.2)
    _by_row(axis, names, max(len(names) - 0.4, 0.6))
    axis.set_xlim(0, 2)
    axis.set_xticks((0, 0.5, 1, 1.5, 2), ("none", "half", "the limit", "1.5", "2 and more"))
    axis.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=max(len(stages), 1))
    return figure


# name -> (what it shows, how it is drawn)
PLOTS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any]]] = {
    "success": (
        "Success on the held-out test instructions by stage and arm; small dots: single seeds.",
        success,
    ),
    "differences": (
        "Success of the predecessor's arm minus that of each control; small dots: single seeds.",
        differences,
    ),
    "tasks": ("Success by task and stage; pale: tasks that the stage did not train.", tasks),
    "cost": (
        "What a kept example cost, of the arms that make all their own, and what a stage cost.",
        cost,
    ),
    "guardrails": ("How much of its limit each guardrail metric took, the worst seed.", guardrails),
}


def there(results: dict[str, Any]) -> list[str]:
    """The plots that these results have anything to show in."""
    main = [r for r in results["runs"] if r["arm"] == MAIN]
    something = {
        "success": any(r["average"]["trained"] for r in results["runs"]),
        "differences": any(comparisons(results, arm) for arm in arms_of(results) if arm != MAIN),
        "tasks": any(r["success"] for r in main),
        "cost": bool(results["runs"]),
        "guardrails": any(r["guardrails"] for r in main),
    }
    return [name for name in PLOTS if something[name]]
