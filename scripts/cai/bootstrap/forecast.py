"""How often each step of a plan's stages and controls happens, and what that will take. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cai.bootstrap.controls import ARMS, MAIN
from cai.bootstrap.plan import Plan, Stage
from cai.core import text
from cai.core.ledger import read_ledger
from cai.core.prompt_files import load_heldout
from cai.core.run import read_manifest
from cai.core.text import format_duration
from cai.costs.default_rates import PAIRS_AN_EXAMPLE
from cai.costs.engine_choice import (
    choose_engine,
    could_be_served,
    side_by_side,
    weights_of,
    with_server,
)
from cai.costs.forecast import ENVIRONMENT, Forecast, device_of, forecast, memory_gb, weights_to_fetch
from cai.costs.units import Units, Weights, add_units, local, on_server
from cai.evaluation.model_pair import look_alikes
from cai.evaluation.suites.critic_probe import probes
from cai.evaluation.test_sets import measured, tests
from cai.models.engines import LOCAL, VLLM, EngineChoice
from cai.models.registry import ModelSpec

USED = ("loading", "instructions", "answer", "critique", "revision", "judge", "training")  # by a plan


@dataclass(frozen=True)
class _Part:
    """An arm of a stage. examples: new ones; work: the units of its data, its training, its measurement."""

    stage: str
    arm: str
    examples: int
    pairs: int
    steps: int
    work: tuple[Units, ...]


@dataclass(frozen=True)
class PlanForecast:
    """What a plan (as scaled for the model) will take with some of the controls, by an engine.

    It is on the high side: prompts are counted as if everybody needed exemplars, and every test answer as if
    it went to the judge. A large model on a machine without a GPU is forecast for an A100."""

    plan: Plan
    spec: ModelSpec
    controls: Sequence[str]
    seeds: int
    hourly_rate: float | None
    choice: EngineChoice = EngineChoice()

    @cached_property
    def device(self) -> str:
        return device_of(self.spec, read_ledger())

    @cached_property
    def yields(self) -> dict[str, tuple[float, str]]:
        return {stage.name: _pairs_an_example(self.plan, stage, self.spec) for stage in self.plan.stages}

    @cached_property
    def here(self) -> list[_Part]:
        """Every arm of every stage of one seed, by the local engine."""
        return _parts(self.plan, self.spec, self.controls, self.yields)

    @cached_property
    def units(self) -> Units:
        """Of all seeds, by the local engine."""
        return add_units(u for p in self.here * self.seeds for u in p.work)

    def cheaper(self, asked: str, engine_bits: int | None, *, anywhere: bool) -> EngineChoice:
        """The engine for the whole plan. anywhere: on the machine that a forecast is for, not on this one.
        Raises UserError for one that is asked for and does not fit."""
        device = self.device if anywhere else None
        how = {"asked": asked, "engine_bits": engine_bits, "hourly_rate": self.hourly_rate}
        return choose_engine(self.spec, self.units, device=device, **how)

    @cached_property
    def total(self) -> Forecast:
        """Of all seeds, with what is paid once, and with the other engines beside it."""
        units = self.units
        know = {"hourly_rate": self.hourly_rate, "device": self.device}
        know["examples"] = self.seeds * sum(p.examples for p in self.here)
        placed = units if self.choice.is_local else with_server(self.spec, units, weights_of(self.choice))
        ahead = forecast(self.spec, dict(sorted(placed.items())), **know)
        served = could_be_served(self.spec, self.device)
        beside = side_by_side(self.spec, units, **know) if served else ()
        return replace(ahead, choice=self.choice, beside=beside)

    @cached_property
    def parts(self) -> list[_Part]:
        """As `here`, by the engine of choice."""
        if self.choice.is_local:
            return self.here
        place = weights_of(self.choice)
        return [replace(p, work=tuple(on_server(units, place) for units in p.work)) for p in self.here]

    def render(self) -> str:
        """A table by stage and arm for one seed, the totals of all seeds, and the engines side by side."""
        f, parts = self.total, self.parts

        def row(name: str, some: Sequence[_Part]) -> tuple[str, ...]:
            examples, pairs, steps = (
                sum(getattr(p, k) for p in some) for k in ("examples", "pairs", "steps")
            )
            times = [
                sum(f.seconds_of(p.work[i]) for p in some) for i in range(3)
            ]  # data, training, measuring
            new, all_of_it = f"{examples:,}" if examples else "as above", sum(times)
            dollars = f"${all_of_it / 3600 * f.hourly_rate:.2f}"
            return (
                name,
                new,
                f"{pairs:,}",
                f"{steps:,}",
                *map(format_duration, (*times, all_of_it)),
                dollars,
            )

        rows = [("stage", "examples", "pairs", "steps", "data", "training", "measuring", "all", "dollars")]
        rows += [row(p.stage if p.arm == MAIN else f"  {ARMS[p.arm].title}", [p]) for p in parts]
        if self.controls:
            rows.append(row("main line, one seed", [p for p in parts if p.arm == MAIN]))
        rows.append(row("one seed", parts))
        if self.seeds > 1:
            rows.append(row(f"{self.seeds} seeds", parts * self.seeds))
        return "\n".join(
            (
                f"forecast for the plan {self.plan.name} ({self.plan.title}): {f.model} on {f.device}, "
                f"${f.hourly_rate:.2f} an hour",
                f"engine: {self.choice.why}",
                text.format_table(rows),
                *self._paid_once(),
                *_known_from(f, self.yields),
                *_room(f, self.spec, len(parts) * self.seeds),
                *filter(None, [f.side_by_side().strip()]),
            )
        )

    def _paid_once(self) -> list[str]:
        if self.choice.engine != VLLM:
            return []
        once = (
            self.total.seconds
            - sum(self.total.seconds_of(u) for p in self.parts for u in p.work) * self.seeds
        )
        dollars = once / 3600 * self.total.hourly_rate
        said = f"{format_duration(once)}, ${dollars:.2f}"
        return [f"once, before all of it: vLLM's weights, its environment, its first start: {said}"]


def _known_from(f: Forecast, yields: Mapping[str, tuple[float, str]]) -> list[str]:
    """Which rates and yields are measured, and which assumed."""
    said: dict[str, list[str]] = {}
    for weights, by_step in f.rates.items():
        said.setdefault(_grouped((step, by_step[step].source) for step in USED), []).append(str(weights))
    lines = [f"rates of {' and '.join(some)}: {sources}" for sources, some in said.items()]
    if not all(by_step[step].measured for by_step in f.rates.values() for step in USED):
        lines.append(f"assumed: what is expected of {f.basis}")
    each = _grouped((f"{stage} {n:.2f}", source) for stage, (n, source) in yields.items())
    return [*lines, f"pairs to train on for each example: {each}"]


def _grouped(known: Iterable[tuple[str, str]]) -> str:
    """(what, how that is known): "a, b: assumed; c: measured in run x, n 100"."""
    groups: dict[str, list[str]] = {}
    for what, source in known:
        groups.setdefault(source, []).append(what)
    return "; ".join(f"{', '.join(some)}: {source}" for source, some in groups.items())


def _room(f: Forecast, spec: ModelSpec, adapters: int) -> list[str]:
    """Disk for all of it, and GPU memory in each precision."""
    disk = {"examples": f.disk["examples"][0], "adapters": f.disk["checkpoint"][0] * adapters}
    disk |= {f"weights in {repo}": n for repo, n in weights_to_fetch(spec, f.rates).items()}
    disk |= {what: n for what, (n, _) in f.disk.items() if what == ENVIRONMENT}
    trained = {Weights(x.engine, x.bits) for x in f.lines if x.step == "training"}
    memory = [
        f"{memory_gb(spec, weights.bits, training=weights in trained):.0f} GB in {weights.bits} bits"
        + " with training" * (weights in trained)
        for weights in f.rates
        if weights.engine == LOCAL
    ]
    said = "; ".join(f"{what} {text.format_bytes(n)}" for what, n in disk.items())
    return [f"disk: {said}"] + [f"GPU memory: {', '.join(memory)}"] * (f.device != "cpu")


def _parts(
    plan: Plan,
    spec: ModelSpec,
    controls: Sequence[str],
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
            measuring = _measuring(plan, spec, models)
            work = (local(generate, data), local(train, training), local(train, measuring))
            new = stage.examples if ARMS[arm].own_examples else 0
            parts.append(_Part(stage.name, arm, new, pairs, steps, work))
        before += own
    return parts


def _measuring(plan: Plan, spec: ModelSpec, models: int) -> dict[str, float]:
    """Units of a stage's measurement: its models (2: the base for the first time, and the trained one) answer
    the tests and the held-out instructions, whose look-alikes' answers the critic reads, and go through the
    probes."""
    some, tried = tests(spec, measured(spec, plan.tasks), plan.tests), probes(spec)
    return {
        "answer": models * (len(some) + len(load_heldout(Path(spec.heldout)))),
        "critique": models * (len(tried) + len(look_alikes(spec))),
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
