"""Forecasts of the milestones from their flags, and of a plan's stages and controls. They load nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.bootstrap.controls import ARMS, MAIN
from cai.bootstrap.plan import Plan, Stage
from cai.core import text
from cai.core.ledger import read_ledger
from cai.core.prompt_files import load_heldout
from cai.core.run import read_manifest
from cai.core.text import span
from cai.costs import forecast
from cai.costs.milestones import PAIRS_AN_EXAMPLE, device_of
from cai.evaluation.suites.critic_probe import probes
from cai.evaluation.test_sets import measured, tests
from cai.models.registry import ModelSpec
from cai.models.session import GPU_DOLLARS_PER_HOUR

USED = ("loading", "instructions", "answer", "critique", "revision", "judge", "training")  # by a plan


# ---- plans ----


@dataclass(frozen=True)
class _Part:
    """What an arm of a stage takes. examples: new ones; seconds: of its data, its training, its
    measurement."""

    stage: str
    arm: str
    examples: int
    pairs: int
    steps: int
    seconds: tuple[float, float, float]

    @property
    def whole(self) -> float:
        return sum(self.seconds)


def bootstrap(
    plan: Plan, spec: ModelSpec, controls: Sequence[str], seeds: int, hourly_rate: float | None
) -> str:
    """What a plan (as scaled for the model) will take with some of the controls: a table by stage and arm for
    one seed, and the totals of all seeds.

    It is on the high side: prompts are counted as if everybody needed exemplars, and every test answer as if
    it went to the judge. A large model on a machine without a GPU is forecast for an A100."""
    ledger = read_ledger()
    device = device_of(spec, ledger)
    rate = hourly_rate if hourly_rate is not None else GPU_DOLLARS_PER_HOUR if device != "cpu" else 0.0
    rates = {bits: forecast.rates(ledger, spec, bits, device) for bits in _precisions(plan, spec)}
    yields = {stage.name: _pairs_an_example(plan, stage, spec) for stage in plan.stages}
    parts = _parts(plan, spec, controls, rates, yields)
    say = lambda seconds: (span(seconds), f"${seconds / 3600 * rate:.2f}")  # noqa: E731
    head = ("stage", "examples", "pairs", "steps", "data", "training", "measuring", "all", "dollars")
    rows = [head]
    for p in parts:
        name = p.stage if p.arm == MAIN else f"  {ARMS[p.arm].title}"
        new = f"{p.examples:,}" if p.examples else "as above"
        rows.append((name, new, f"{p.pairs:,}", f"{p.steps:,}", *map(span, p.seconds), *say(p.whole)))
    sums = [("one seed", parts)] + [(f"{seeds} seeds", parts * seeds)] * (seeds > 1)
    if controls:
        sums = [("main line, one seed", [p for p in parts if p.arm == MAIN]), *sums]
    for name, some in sums:
        counts = (sum(of) for of in zip(*((p.examples, p.pairs, p.steps) for p in some), strict=True))
        times = [sum(of) for of in zip(*(p.seconds for p in some), strict=True)]
        rows.append((name, *(f"{n:,}" for n in counts), *map(span, times), *say(sum(times))))
    return "\n".join(
        (
            f"forecast for the plan {plan.name} ({plan.title}): {spec.name} on {device}, ${rate:.2f} an hour",
            text.columns(rows),
            *_known_from(rates, yields, forecast.basis(device)),
            *_room(plan, spec, ledger, rate, device, parts * seeds),
        )
    )


def _known_from(
    rates: Mapping[int, Mapping[str, forecast.Rate]], yields: Mapping[str, tuple[float, str]], basis: str
) -> list[str]:
    """Which rates and yields are measured, and which assumed."""
    said: dict[str, list[str]] = {}
    for bits, by_step in rates.items():
        said.setdefault(_grouped((step, by_step[step].source) for step in USED), []).append(str(bits))
    lines = [f"rates in {' and '.join(bits)} bits: {sources}" for sources, bits in said.items()]
    if not all(by_step[step].measured for by_step in rates.values() for step in USED):
        lines.append(f"assumed: what is expected of {basis}")
    each = _grouped((f"{stage} {n:.2f}", source) for stage, (n, source) in yields.items())
    return [*lines, f"pairs to train on for each example: {each}"]


def _grouped(known: Iterable[tuple[str, str]]) -> str:
    """(what, how that is known): "a, b: assumed; c: measured in run x, n 100"."""
    groups: dict[str, list[str]] = {}
    for what, source in known:
        groups.setdefault(source, []).append(what)
    return "; ".join(f"{', '.join(some)}: {source}" for source, some in groups.items())


def _room(
    plan: Plan,
    spec: ModelSpec,
    ledger: Sequence[dict[str, Any]],
    rate: float,
    device: str,
    parts: Sequence[_Part],
) -> list[str]:
    """Disk and GPU memory, as cost.forecast reckons them."""
    disk: dict[str, float] = {}
    memory = []
    trained = {_bits(stage, spec)[0] for stage in plan.stages}
    for bits in _precisions(plan, spec):
        steps = int(bits in trained)
        f = forecast.forecast(
            spec, bits, sum(p.examples for p in parts), principles=1, steps=steps,
            ledger=ledger, hourly_rate=rate, device=device,
        )  # fmt: skip
        disk["examples"] = f.disk["examples"][0]
        if steps:
            disk["adapters"] = f.disk["checkpoint"][0] * len(parts)
        if "weights" in f.disk:
            disk[f"weights in {spec.source(bits)[0]}"] = f.disk["weights"][0]
        memory.append(f"{f.memory_gb[0]:.0f} GB in {bits} bits" + " with training" * steps)
    said = "; ".join(f"{what} {text.size(n)}" for what, n in disk.items())
    return [f"disk: {said}"] + [f"GPU memory: {', '.join(memory)}"] * (device != "cpu")


def _parts(
    plan: Plan,
    spec: ModelSpec,
    controls: Sequence[str],
    rates: Mapping[int, Mapping[str, forecast.Rate]],
    yields: Mapping[str, tuple[float, str]],
) -> list[_Part]:
    """Every arm of every stage of one seed, as runner.Runner takes them."""

    parts, before, base_known = [], 0, set()
    for number, stage in enumerate(plan.stages):
        train, generate = _bits(stage, spec)
        own = round(yields[stage.name][0] * stage.examples)
        for arm in (MAIN, *controls):
            if not number and ARMS[arm].needs_predecessor:
                continue  # the same as main at the first stage
            pairs = own + before * ARMS[arm].from_base
            steps = stage.steps(pairs, spec)
            data: dict[str, float] = dict(ARMS[arm].units(stage.examples, stage.per_answer))
            if data and generate != train:
                data["loading"] = 1
            # A training needs a model without adapters: it is loaded anew.
            training = {"loading": 1, "training": steps}
            models = 1 if (train, stage.shots) in base_known else 2
            base_known.add((train, stage.shots))
            work = ((generate, data), (train, training), (train, _measuring(plan, spec, models)))
            seconds = tuple(sum(n * rates[b][s].seconds for s, n in units.items()) for b, units in work)
            new = stage.examples if ARMS[arm].own_examples else 0
            parts.append(_Part(stage.name, arm, new, pairs, steps, seconds))
        before += own
    return parts


def _measuring(plan: Plan, spec: ModelSpec, models: int) -> dict[str, float]:
    """Units of a stage's measurement: its models (2: the base for the first time, and the trained one) answer
    the tests and the held-out instructions, and go through the probes."""
    from pathlib import Path

    some, tried = tests(spec, measured(spec, plan.tasks), plan.tests), probes(spec)
    return {
        "answer": models * (len(some) + len(load_heldout(Path(spec.heldout)))),
        "critique": models * len(tried),
        "revision": models * sum(p.must_change for p in tried),
        "judge": models * 2 * sum("reference" in t.check for t in some),
    }


def _pairs_an_example(plan: Plan, stage: Stage, spec: ModelSpec) -> tuple[float, str]:
    """(pairs to train on for each example, how that is known): what the stage of an earlier run had."""
    name = f"{plan.name}/{stage.name}"
    made = read_manifest(name) or {}
    found = made.get("result") or {}
    if made.get("model") == spec.name and found.get("examples"):
        return found["training_pairs"] / found["examples"], f"measured in run {name}, n {found['examples']}"
    return PAIRS_AN_EXAMPLE, "assumed"


def _bits(stage: Stage, spec: ModelSpec) -> tuple[int, int]:
    """(of training and measurement, of generation)"""
    train = stage.bits or spec.bits
    return train, stage.generate_bits or train


def _precisions(plan: Plan, spec: ModelSpec) -> list[int]:
    return sorted({bits for stage in plan.stages for bits in _bits(stage, spec)})
