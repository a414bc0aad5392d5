"""What a run will take, from the last rates that were measured.

Every step of every run leaves a row in logs/ledger.jsonl. A forecast multiplies how often each step will
happen (units.py) by the rates of the latest run of the same model, engine, bits and device; a rate that
nobody has measured there is assumed (rates.py), and marked so. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cai.core.files import directories
from cai.core.ledger import read_ledger
from cai.core.run import Run, read_manifest
from cai.core.text import format_bytes, format_duration, format_table
from cai.costs.default_rates import (
    A100,
    CHECKPOINT,
    CHECKPOINT_OF,
    CPU_BILLIONS,
    SPECIFICATION,
    known,
    machine_of,
)
from cai.costs.rates import Rate, rates, texts_of
from cai.costs.units import GENERATING, PER_EXAMPLE, SERVER, UNITS, Units, Weights
from cai.models import device as machine
from cai.models import vllm_server
from cai.models.engines import ELSEWHERE, EngineChoice
from cai.models.registry import ModelSpec

# What the engines are compared by. Plans measure by the loop's steps: there it is all generation.
PARTS = {
    "once": ("download", "installing"),
    "loading": ("loading",),
    "generation": GENERATING,
    "training": ("training",),
    "evaluation": ("evaluation",),
}
ENVIRONMENT = "vLLM's environment"  # of a forecast's disk


@dataclass(frozen=True)
class StepForecast:
    """A step with some weights: how many units, and their totals."""

    step: str
    engine: str
    bits: int
    units: float
    seconds: float
    prompt_tokens: float
    completion_tokens: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """engine, bits: those that were named first. of: what the examples are called. choice: of the engine.
    beside: all engines that could do it."""

    model: str
    engine: str
    bits: int
    device: str
    examples: int
    of: str
    hourly_rate: float
    lines: tuple[StepForecast, ...]
    disk: dict[str, tuple[float, str]]  # what -> (bytes, measured or assumed)
    memory_gb: tuple[float, str]  # of the GPU
    basis: str  # what the assumed rates are those of
    rates: Mapping[Weights, Mapping[str, Rate]]  # weights -> step -> rate, of every step there is
    choice: EngineChoice = EngineChoice()
    beside: tuple[Alternative, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(line.seconds for line in self.lines)

    @property
    def tokens(self) -> tuple[float, float]:
        """(read, generated)"""
        return sum(x.prompt_tokens for x in self.lines), sum(x.completion_tokens for x in self.lines)

    @property
    def dollars(self) -> float:
        return self.seconds / 3600 * self.hourly_rate

    def seconds_of(self, units: Units) -> float:
        """What a part of the work takes, at the same rates."""
        return sum(
            n * self.rates[weights][step].seconds
            for weights, some in units.items()
            for step, n in some.items()
        )

    def seconds_in(self, *steps: str) -> float:
        return sum(x.seconds for x in self.lines if x.step in steps)

    def dollars_of(self, *steps: str) -> float:
        return self.seconds_in(*steps) / 3600 * self.hourly_rate

    @property
    def dollars_a_unit(self) -> dict[str, float]:
        """step -> dollars of one unit, with the weights that do it here (of several the dearest)."""
        first = next(iter(self.rates.values()))
        seconds = {step: rate.seconds for step, rate in first.items()}
        for x in sorted(self.lines, key=lambda x: x.seconds / x.units):
            seconds[x.step] = x.seconds / x.units
        return {step: each / 3600 * self.hourly_rate for step, each in seconds.items()}

    @property
    def dollars_per_example(self) -> float:
        return self.dollars_of(*PER_EXAMPLE) / max(self.examples, 1)

    def note(self, run: Run) -> None:
        """Keeps the forecast with a run as it was before the run began."""
        if "forecast" not in run.manifest:
            run.record(forecast=self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """For run.json, so that `accuracy` can compare it with what happened."""
        read, generated = self.tokens
        totals = {"seconds": self.seconds, "dollars": self.dollars}
        totals |= {"prompt_tokens": read, "completion_tokens": generated}
        return {k: v for k, v in asdict(self).items() if k not in ("rates", "beside")} | {"totals": totals}

    def render(self) -> str:
        head = f"forecast for {self.examples} {self.of}: {self.model} in {self.bits} bits on {self.device}"
        head += f"\nengine: {self.choice.why}" * bool(self.choice.why)
        rows = [("step", "by", "units", "time", "tokens read", "generated", "dollars", "rate")]
        for x in self.lines:
            unit = UNITS[x.step] + ("s" if round(x.units) != 1 else "")
            amounts = self._amounts(x.seconds, x.prompt_tokens, x.completion_tokens)
            by = str(Weights(x.engine, x.bits)) if x.step != "guard" else "its own model"
            rows.append((x.step, by, f"{x.units:,.0f} {unit}", *amounts, x.source))
        total = self._amounts(self.seconds, *self.tokens)
        rows.append(("all", "", "", *total, f"at ${self.hourly_rate:.2f} an hour"))
        disk = "; ".join(f"{what} {format_bytes(n)} ({source})" for what, (n, source) in self.disk.items())
        assumed = any(x.source.startswith("assumed") for x in self.lines)
        basis = f"\nassumed: what is expected of {self.basis}" if assumed else ""
        room = f"disk: {disk or 'no more'}\nGPU memory: {self._memory()}"
        return f"{head}\n{format_table(rows)}{basis}\n{room}{self.side_by_side()}"

    def side_by_side(self) -> str:
        """The engines that could do it, each with what it would take; nothing where there is no choice."""
        if not self.beside:
            return ""
        parts = {name: steps for name, steps in PARTS.items() if any(x.takes(steps) for x in self.beside)}
        rows = [("engine", *parts, "all", "dollars", "rates")]
        for x in self.beside:
            chosen = x.weights.engine == self.choice.engine
            chosen &= self.choice.is_local or x.weights.bits == self.choice.bits
            name = x.name + " (chosen)" * chosen
            if x.forecast is None:
                rows.append((name, *["-"] * (len(parts) + 2), x.note))
                continue
            lines, times = x.forecast.lines, [x.takes(steps) for steps in parts.values()]
            measured = sum(not line.source.startswith("assumed") for line in lines)
            known = f"{measured} of {len(lines)} measured" if measured else "assumed"
            amounts = *map(format_duration, (*times, x.forecast.seconds)), f"${x.forecast.dollars:.2f}"
            rows.append((name, *amounts, known + f"; {x.note}" * bool(x.note)))
        said = ", ".join(f"{what} ${dollars}" for what, dollars in SPECIFICATION.items())
        return f"\nside by side:\n{format_table(rows)}\nthe specification expects: {said}"

    def _amounts(self, seconds: float, read: float, generated: float) -> tuple[str, str, str, str]:
        dollars = seconds / 3600 * self.hourly_rate
        return format_duration(seconds), f"{read:,.0f}", f"{generated:,.0f}", f"${dollars:.2f}"

    def _memory(self) -> str:
        need, source = self.memory_gb
        return f"{need:.0f} GB ({source})" if self.device != "cpu" else "none, it runs on the CPU"


@dataclass(frozen=True)
class Alternative:
    """The same work by some engine. forecast: None where the note says why it cannot be."""

    name: str
    weights: Weights
    forecast: Forecast | None
    note: str = ""

    def takes(self, steps: Sequence[str]) -> float:
        return self.forecast.seconds_in(*steps) if self.forecast else 0.0


def device_of(spec: ModelSpec, ledger: Sequence[dict[str, Any]]) -> str:
    """What a forecast is for: this machine's GPU; without one its CPU, where the model is small enough for
    that, else where the model has run before, else an A100. What servers elsewhere run on is unknown."""
    here = machine.this_device()
    if here != "cpu" or spec.parameters <= CPU_BILLIONS:
        return here
    ran_on = [r["device"] for r in ledger if r.get("model") == spec.name and r["device"] != ELSEWHERE]
    return ran_on[-1] if ran_on and ran_on[-1] else A100.name


def forecast(
    spec: ModelSpec,
    units: Units,
    *,
    examples: int,
    of: str = "examples",
    hourly_rate: float | None = None,
    ledger: Sequence[dict[str, Any]] | None = None,
    device: str | None = None,
    guard: ModelSpec | None = None,
) -> Forecast:
    """What work of so many units will take. guard: the model that guards, if one does.

    hourly_rate, ledger, device: the default, what was measured, and device_of() unless given."""
    ledger = read_ledger() if ledger is None else ledger
    device = device or device_of(spec, ledger)
    found = {weights: rates(ledger, spec, weights, device, guard) for weights in units}
    lines = tuple(
        StepForecast(s, *weights, n, n * r.seconds, n * r.prompt_tokens, n * r.completion_tokens, r.source)
        for weights, some in units.items()
        for s, n in some.items()
        if n and (r := found[weights][s])
    )
    trained = [weights for weights in units if units[weights].get("training")]
    here = [weights for weights in units if weights.engine != SERVER] or list(units)
    memory = max(memory_gb(spec, w.bits, training=w in trained, guard=guard) for w in here)
    assumed_of = machine_of(device)
    return Forecast(
        model=spec.name,
        engine=next(iter(units)).engine,
        bits=next(iter(units)).bits,
        device=device,
        examples=examples,
        of=of,
        hourly_rate=machine.hourly_rate(hourly_rate, device),
        lines=lines,
        disk=_disk(spec, units, examples, bool(trained), ledger),
        memory_gb=(memory, "assumed; generation takes what is left for larger batches"),
        basis=assumed_of.basis + f", for want of figures for {device}" * (not known(device)),
        rates=found,
    )


def weights_to_fetch(spec: ModelSpec, all_weights: Iterable[Weights]) -> dict[str, float]:
    """Repository -> bytes, once per machine; none for a model of this checkout, or on somebody else's
    server."""
    if spec.repo.startswith("models/"):
        return {}
    return {
        spec.source(bits)[0]: spec.download_gb(bits) * 1e9 for engine, bits in all_weights if engine != SERVER
    }


def _disk(
    spec: ModelSpec,
    units: Units,
    examples: int,
    training: bool,
    ledger: Sequence[dict[str, Any]],
) -> dict[str, tuple[float, str]]:
    """what -> (bytes, how that is known): what the model's latest runs took, where there are any."""
    checkpoint = (6e6 if spec.sandbox else CHECKPOINT * (spec.parameters / CHECKPOINT_OF or 1.0), "assumed")
    record = (texts_of(spec).record, "assumed")
    latest_first = dict.fromkeys(r["run"] for r in reversed(ledger) if r.get("model") == spec.name)
    for name in reversed(latest_first):
        data, checkpoints, _ = directories(name)
        if n := sum(path.read_bytes().count(b"\n") for path in data.glob("records*.jsonl")):
            record = (_bytes(data) / n, f"measured in run {name}, n {n}")
        if any(checkpoints.glob("adapter_model.safetensors")):
            checkpoint = (_bytes(checkpoints), f"measured in run {name}")
    made = any(some.get("answer") for some in units.values())
    found = {"examples": (record[0] * examples, record[1])} if made else {}
    if training:
        found["checkpoint"] = checkpoint
    if weights := weights_to_fetch(spec, units):
        found["weights"] = (sum(weights.values()), "from the registry, once per machine")
    if any(w.engine == "vllm" for w in units):
        found[ENVIRONMENT] = (vllm_server.ENVIRONMENT_GB * 1e9, "assumed, once per machine")
    return found


def memory_gb(spec: ModelSpec, bits: int, *, training: bool, guard: ModelSpec | None = None) -> float:
    """GPU memory: weights and, for training, the adapter's weights, gradients and 8-bit optimizer, and
    activations."""
    need = spec.memory_gb(bits) + (guard.memory_gb(guard.bits) if guard and guard != spec else 0)
    if training:
        need += (2.5 * CHECKPOINT / 1e9 + 8) * spec.parameters / CHECKPOINT_OF
    return need


def report_accuracy(run: Run) -> None:
    """Says how far the forecast that a run began with was off."""
    if "forecast" in run.manifest:
        run.log(accuracy(run.manifest["forecast"], run.name, read_ledger())[1])


def accuracy(
    stored: dict[str, Any], run: str, ledger: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], str]:
    """How far a run's forecast was off: step -> actual / forecast seconds, and a table. "all": of the steps
    that have happened, so that a training which is still to come is not taken for one that cost nothing.

    stored: Forecast.as_dict(), as run.json has it under "forecast". Only rows since the run began count, so
    that an earlier run of the name does not."""
    began = (read_manifest(run) or {}).get("started", "")
    rows = [r for r in ledger if r["run"] == run and r.get("time", "") >= began]
    rate = stored["hourly_rate"] / 3600
    expected: dict[str, float] = {}
    for line in stored["lines"]:  # a step may have one in each precision
        expected[line["step"]] = expected.get(line["step"], 0.0) + line["seconds"]
    actual: dict[str, float] = {}
    for row in rows:
        step = row["step"].split(":")[0]
        actual[step] = actual.get(step, 0.0) + row["seconds"]
    expected["all"] = sum(seconds for step, seconds in expected.items() if actual.get(step))
    actual["all"] = sum(actual.values())
    factors = {s: actual[s] / expected[s] for s in expected if expected[s] and actual.get(s)}
    table = [("step", "forecast", "took", "factor", "forecast", "cost")]
    for step in [*(s for s in expected if s != "all"), *(s for s in actual if s not in expected), "all"]:
        took, said = actual.get(step, 0.0), expected.get(step, 0.0)
        factor = f"{factors[step]:.2f}" if step in factors else "-"
        table.append(
            (
                step,
                format_duration(said),
                format_duration(took),
                factor,
                f"${said * rate:.2f}",
                f"${took * rate:.2f}",
            )
        )
    return (
        factors,
        f"the forecast against what run {run} took (a factor above 1: longer)\n{format_table(table)}",
    )


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
