"""The tables of costs in specs/, made from the code: python tests/costs/cost_page.py writes them anew.

They are what is forecast where nothing was measured, on one A100 80GB at $1.74 an hour."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import generate_full  # noqa: E402
import generate_mvp  # noqa: E402
import test_batch  # noqa: E402
from cai.bootstrap.controls import BASE_HELPER, CONTROLS  # noqa: E402
from cai.bootstrap.forecast import PlanForecast  # noqa: E402
from cai.bootstrap.plan import load  # noqa: E402
from cai.core.text import format_duration  # noqa: E402
from cai.costs.default_rates import (  # noqa: E402
    A100,
    MACHINES,
    PAIRS_AN_EXAMPLE,
    REVISIONS_AN_EXAMPLE,
    SPECIFICATION,
)
from cai.costs.engine_choice import side_by_side  # noqa: E402
from cai.costs.forecast import Forecast, forecast  # noqa: E402
from cai.costs.units import UNITS, Weights, local, milestone_units  # noqa: E402
from cai.generation.targets import HELD_OUT_PAIRS, Side, Target  # noqa: E402
from cai.models import device, vllm_server  # noqa: E402
from cai.models.registry import REGISTRY  # noqa: E402
from cai.training.settings import default_steps  # noqa: E402

SPEC, GUARD = REGISTRY["Qwen/Qwen2.5-32B"], REGISTRY["meta-llama/Llama-Guard-3-8B"]
KNOW = {"hourly_rate": 1.74, "device": A100.name, "ledger": ()}
PLAN = "progressive"


def works() -> dict[str, tuple]:
    """milestone -> (examples, principles, steps, guard), with the defaults of its script."""
    m2 = Target(Side.of(None, generate_mvp.EXAMPLES), Side.of(HELD_OUT_PAIRS, None), generate_mvp.HELD_OUT)
    m1, m3 = Target(Side.of(test_batch.PAIRS, None), share=0.1), generate_full.EXAMPLES
    return {
        "M1": (m1.expected(REVISIONS_AN_EXAMPLE), 2, 10, None),
        "M2": (m2.expected(REVISIONS_AN_EXAMPLE), 2, 120, None),
        "M3": (m3, generate_full.PRINCIPLES, default_steps(SPEC, round(PAIRS_AN_EXAMPLE * m3)), GUARD),
    }


def units_of(examples: int, principles: int, steps: int, guard) -> dict:
    return local(4, milestone_units(examples, principles=principles, steps=steps, guard=guard is not None))


def milestones() -> list[Sequence[str]]:
    """Step by step, by the local engine."""
    found = {
        name: forecast(SPEC, units_of(*work), examples=work[0], guard=work[3], **KNOW)
        for name, work in works().items()
    }
    rows: list[Sequence[str]] = [["by the local engine", *found], []]
    rows += [
        ["examples, principles each, DPO steps", *(f"{n:,}, {p}, {s:,}" for n, p, s, _ in works().values())]
    ]
    for step in UNITS:
        if any(f.seconds_in(step) for f in found.values()):
            times = [f.seconds_in(step) for f in found.values()]
            rows.append([step, *(format_duration(t) if t else "–" for t in times)])
    rows.append(["all", *map(total, found.values())])
    tokens = [f.tokens for f in found.values()]
    rows.append(["tokens read, generated", *(f"{r / 1e6:.1f} M, {g / 1e3:,.0f} k" for r, g in tokens)])
    return rows


def engines() -> list[Sequence[str]]:
    """The engines side by side, and the specification."""
    columns, names = {}, []
    for name, work in works().items():
        columns[name] = side_by_side(SPEC, units_of(*work), guard=work[3], examples=work[0], **KNOW)
        names = [x.name for x in columns[name]]
    plan = PlanForecast(load(PLAN), SPEC, (), 1, KNOW["hourly_rate"])
    columns[f"the plan {PLAN}, one seed"] = plan.total.beside
    rows: list[Sequence[str]] = [["", *columns], []]
    for i, name in enumerate(names):
        said = (total(some[i].forecast) + "*" * bool(some[i].note) for some in columns.values())
        rows.append([name.replace("local NF4", "local (NF4)"), *said])
    expected = [f"${SPECIFICATION[name]}" if name in SPECIFICATION else "–" for name in columns]
    expected[-1] = f"${SPECIFICATION['a stage']} each of 4"
    return [*rows, ["the specification", *expected]]


def rates() -> list[Sequence[str]]:
    """What is assumed of each machine."""
    rows: list[Sequence[str]] = [["machine", "engine", "reads", "generates", "why"], []]
    for machine in MACHINES:
        if not machine.known_by:
            speed = machine.speeds["local", 16]
            rows.append([machine.name, "local", f"{speed.read:,.0f}", f"{speed.generate:,.0f}", speed.why])
            continue
        for where, speed in machine.speeds.items():
            name = machine.name if where == ("local", 4) else ""
            rows.append(
                [name, str(Weights(*where)), f"{speed.read:,.0f}", f"{speed.generate:,.0f}", speed.why]
            )
    return rows


def training() -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [["machine", "DPO step in 4 bits", "in 8 bits", "in 16 bits", ""], []]
    for machine in MACHINES:
        rows.append([machine.name, *(f"{machine.training[b]:g} s" for b in (4, 8, 16)), machine.about])
    return rows


def plans() -> list[Sequence[str]]:
    """One seed of the plans, by the engine that auto comes to and by the local one."""
    works = {
        "progressive": (PLAN, ()),
        "with control (a)": (PLAN, (BASE_HELPER,)),
        "with all four controls": (PLAN, tuple(CONTROLS)),
        "six-stage": ("six-stage", ()),
    }
    rows: list[Sequence[str]] = [["one seed", "vLLM FP8", "local"], []]
    for name, (plan, controls) in works.items():
        here = PlanForecast(load(plan), SPEC, controls, 1, KNOW["hourly_rate"])
        there = replace(here, choice=here.cheaper("auto", None, anywhere=True))
        rows.append([name, total(there.total), total(here.total)])
    return rows


def total(f: Forecast) -> str:
    return f"{format_duration(f.seconds)}, ${f.dollars:.2f}"


PAGES = {  # page -> the tables in it
    ROOT / "specs/cost.md": (milestones, engines, rates, training),
    ROOT / "specs/progressive.md": (plans,),
}


@contextlib.contextmanager
def bare_machine() -> Iterator[None]:
    """One without a GPU, on which nothing has run, and nothing is in the cache."""
    with (
        tempfile.TemporaryDirectory() as nothing,
        mock.patch.dict(os.environ, {"CAI_OUTPUT": nothing, "HF_HOME": nothing}),
        mock.patch.object(device, "visible_gpus", lambda: []),
        mock.patch.object(vllm_server, "environment_ready", lambda: False),
    ):
        yield


def updated(path: Path, page: str) -> str:
    """The page with its tables as the code has them now. They stand between <!-- name --> and
    <!-- /name -->."""
    for make in PAGES[path]:
        with bare_machine():
            head, _, *rows = make()
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        before, start, rest = page.partition(f"<!-- {make.__name__} -->\n")
        _, end, after = rest.partition(f"<!-- /{make.__name__} -->")
        assert start and end, f"{path} has no place for the table {make.__name__}"
        page = f"{before}{start}{table}\n{end}{after}"
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(updated(path, path.read_text(encoding="utf-8")), encoding="utf-8")
