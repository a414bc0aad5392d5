"""What a run will take, from the last rates that were measured.

Every step of every run leaves a row in logs/ledger.jsonl. A forecast multiplies how often each step will
happen by the rates of the latest run of the same model, bits and device; a rate that nobody has measured
there is assumed (default_rates.py), and marked so. It loads nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai.core.files import directories
from cai.core.ledger import read_ledger
from cai.core.run import Run, read_manifest
from cai.core.text import format_bytes, format_duration, format_table
from cai.costs.default_rates import A100, CPU_BILLIONS, LARGE, SMALL, Assumed
from cai.costs.engine_choice import begun_settings, choice_of
from cai.models import device as machine
from cai.models.engines import EngineChoice
from cai.models.registry import ModelSpec, choose, with_values

# step -> what its rate is counted by. One critique an example and principle; one comparison more, for
# helpfulness.
UNITS = {
    "loading": "load",
    "instructions": "instruction",
    "answer": "example",
    "critique": "critique",
    "revision": "example",
    "judge": "comparison",
    "guard": "example",
    "training": "step",
    "evaluation": "evaluation",
}
PER_EXAMPLE = ("answer", "critique", "revision", "judge", "guard")
SMALLEST_SHARE = 0.05  # a small model on a GPU: launching its kernels takes as long as a large one's
Units = Mapping[int, Mapping[str, float]]  # bits -> step -> how many units of it


@dataclass(frozen=True)
class Rate:
    """What one unit of a step takes. source: "measured in run x, n 100", or "assumed" and how it was
    scaled."""

    seconds: float
    prompt_tokens: float
    completion_tokens: float
    source: str

    @property
    def measured(self) -> bool:
        return self.source.startswith("measured")


@dataclass(frozen=True)
class StepForecast:
    """A step in one precision: how many units, and their totals."""

    step: str
    bits: int
    units: float
    seconds: float
    prompt_tokens: float
    completion_tokens: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """bits: the precision that was named first. of: what the examples are called."""

    model: str
    bits: int
    device: str
    examples: int
    of: str
    hourly_rate: float
    lines: tuple[StepForecast, ...]
    disk: dict[str, tuple[float, str]]  # what -> (bytes, measured or assumed)
    memory_gb: tuple[float, str]  # of the GPU
    basis: str  # what the assumed rates are those of
    rates: Mapping[int, Mapping[str, Rate]]  # bits -> step -> rate, of every step there is
    choice: EngineChoice = EngineChoice()

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
            n * self.rates[bits][step].seconds for bits, some in units.items() for step, n in some.items()
        )

    def dollars_of(self, *steps: str) -> float:
        return sum(x.seconds for x in self.lines if x.step in steps) / 3600 * self.hourly_rate

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
        return {k: v for k, v in asdict(self).items() if k != "rates"} | {"totals": totals}

    def render(self) -> str:
        head = f"forecast for {self.examples} {self.of}: {self.model} in {self.bits} bits on {self.device}"
        rows = [("step", "units", "time", "tokens read", "generated", "dollars", "rate")]
        for x in self.lines:
            unit = UNITS[x.step] + ("s" if round(x.units) != 1 else "")
            amounts = self._amounts(x.seconds, x.prompt_tokens, x.completion_tokens)
            rows.append((x.step, f"{x.units:,.0f} {unit}", *amounts, x.source))
        total = self._amounts(self.seconds, *self.tokens)
        rows.append(("all", "", *total, f"at ${self.hourly_rate:.2f} an hour"))
        disk = "; ".join(f"{what} {format_bytes(n)} ({source})" for what, (n, source) in self.disk.items())
        assumed = any(x.source.startswith("assumed") for x in self.lines)
        basis = f"\nassumed: what is expected of {self.basis}" if assumed else ""
        return f"{head}\n{format_table(rows)}{basis}\ndisk: {disk or 'no more'}\nGPU memory: {self._memory()}"

    def _amounts(self, seconds: float, read: float, generated: float) -> tuple[str, str, str, str]:
        dollars = seconds / 3600 * self.hourly_rate
        return format_duration(seconds), f"{read:,.0f}", f"{generated:,.0f}", f"${dollars:.2f}"

    def _memory(self) -> str:
        need, source = self.memory_gb
        return f"{need:.0f} GB ({source})" if self.device != "cpu" else "none, it runs on the CPU"


def rates(
    ledger: Sequence[dict[str, Any]],
    spec: ModelSpec,
    bits: int,
    device: str,
    guard: ModelSpec | None = None,
) -> dict[str, Rate]:
    """step -> its rate: that of the latest run which has one for this model, bits and device, else an
    assumption."""
    here = (spec.name, bits, device)
    mine = [r for r in ledger if (r.get("model"), r.get("bits"), r.get("device")) == here]
    mine = [r for r in mine if not r.get("interrupted")]
    assumed = {step: _assumption(step, spec, device, guard) for step in UNITS}
    return {step: _measured(step, mine) or assumed[step] for step in UNITS}


def _measured(step: str, ledger: Sequence[dict[str, Any]]) -> Rate | None:
    if step == "evaluation":  # its rows since a model was loaded make one
        rows, current = [], []
        for row in ledger:
            if row["step"] == "loading":
                current = []
            elif row["step"].startswith("evaluation"):
                rows = current = [*current, row]
        units = 1.0
    else:
        rows = [r for r in ledger if r["step"] == step and _units(r)]
        rows = [r for r in rows if r["run"] == rows[-1]["run"]]  # the latest run that has any
        units = sum(map(_units, rows))
    if not rows:
        return None
    mean = lambda key: sum(r.get(key, 0) for r in rows) / units  # noqa: E731
    source = f"measured in run {rows[-1]['run']}, n {units:.0f}"
    return Rate(mean("seconds"), mean("prompt_tokens"), mean("completion_tokens"), source)


def _units(row: dict[str, Any]) -> float:
    if row["step"] == "loading":
        return 1.0
    return (row.get("examples") or 0) * _multiple(row["step"], row.get("principles") or 1)


def _multiple(step: str, principles: int) -> int:
    """Units of a step for one example."""
    return {"critique": principles, "judge": principles + 1}.get(step, 1)


def _table_for(device: str) -> Assumed:
    return SMALL if device == "cpu" else LARGE


def _assumption(step: str, spec: ModelSpec, device: str, guard: ModelSpec | None) -> Rate:
    table = _table_for(device)
    texts = SMALL if spec.shots == 0 and spec.kind == "base" else LARGE
    asked = guard if step == "guard" and guard else spec
    read, generated = texts.tokens.get(step, (0.0, 0.0))
    share = max(asked.parameters / table.parameters, SMALLEST_SHARE) if asked.parameters else 1.0
    seconds = share * table.seconds.get(step, read / table.read + generated / table.generate)
    scaled = "" if share == 1.0 and asked.parameters else f", times {share:.3g} for its size"
    if not asked.parameters:
        scaled = ", as if it were as large"
    return Rate(seconds, read, generated, f"assumed{scaled}")


def device_of(spec: ModelSpec, ledger: Sequence[dict[str, Any]]) -> str:
    """What a forecast is for: this machine's GPU; without one its CPU, where the model is small enough for
    that, else where the model has run before, else an A100."""
    here = machine.this_device()
    if here != "cpu" or spec.parameters <= CPU_BILLIONS:
        return here
    return next((r["device"] for r in reversed(ledger) if r.get("model") == spec.name), None) or A100


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
    known = {bits: rates(ledger, spec, bits, device, guard) for bits in units}
    lines = tuple(
        StepForecast(s, bits, n, n * r.seconds, n * r.prompt_tokens, n * r.completion_tokens, r.source)
        for bits, some in units.items()
        for s, n in some.items()
        if n and (r := known[bits][s])
    )
    trained = [bits for bits in units if units[bits].get("training")]
    memory = max(memory_gb(spec, bits, training=bits in trained, guard=guard) for bits in units)
    return Forecast(
        model=spec.name,
        bits=next(iter(units)),
        device=device,
        examples=examples,
        of=of,
        hourly_rate=machine.hourly_rate(hourly_rate, device),
        lines=lines,
        disk=_disk(spec, units, examples, bool(trained), ledger),
        memory_gb=(memory, "assumed; generation takes what is left for larger batches"),
        basis=_table_for(device).basis,
        rates=known,
    )


def milestone_units(
    examples: int,
    *,
    principles: int,
    steps: int,
    generated: bool = True,
    judge: bool = True,
    guard: bool = False,
) -> dict[str, float]:
    """How often each step of a milestone happens. steps: of training; generated: the model writes its own
    instructions; judge, guard: whether there is one."""
    units = {
        "loading": 1,
        "instructions": examples * generated,
        **{s: examples * _multiple(s, principles) for s in PER_EXAMPLE},
        "training": steps,
        "evaluation": 1,
    }
    return units | {"judge": units["judge"] * judge, "guard": units["guard"] * guard}


def milestone_forecast(
    args: argparse.Namespace, steps: int, examples: int, guard: ModelSpec | None = None
) -> Forecast:
    """What a milestone of these flags will take. steps: of training; guard: the model that guards."""
    spec = with_values(choose(args.model)[0], args.set)
    units = milestone_units(
        examples,
        principles=args.principles,
        steps=steps,
        generated=not args.source,
        judge=not args.no_judge,
        guard=guard is not None,
    )
    by_bits = {args.bits or spec.bits: units}
    found = forecast(spec, by_bits, examples=examples, hourly_rate=args.hourly_rate, guard=guard)
    begun = begun_settings(args)
    return replace(found, choice=choice_of(args, spec, EngineChoice, begun=begun, beside=guard))


def add_units(parts: Iterable[Units]) -> dict[int, dict[str, float]]:
    total: dict[int, dict[str, float]] = {}
    for part in parts:
        for bits, some in part.items():
            of = total.setdefault(bits, {})
            for step, n in some.items():
                of[step] = of.get(step, 0) + n
    return total


def weights_to_fetch(spec: ModelSpec, precisions: Iterable[int]) -> dict[str, float]:
    """Repository -> bytes, once per machine; none for a model of this checkout."""
    if spec.repo.startswith("models/"):
        return {}
    return {spec.source(bits)[0]: spec.download_gb(bits) * 1e9 for bits in precisions}


def _disk(
    spec: ModelSpec,
    units: Units,
    examples: int,
    training: bool,
    ledger: Sequence[dict[str, Any]],
) -> dict[str, tuple[float, str]]:
    """what -> (bytes, how that is known): what the model's latest runs took, where there are any."""
    table = SMALL if spec.sandbox else LARGE
    share = spec.parameters / table.parameters or 1.0
    record, checkpoint = (table.record, "assumed"), (table.checkpoint * share, "assumed")
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
    return found


def memory_gb(spec: ModelSpec, bits: int, *, training: bool, guard: ModelSpec | None = None) -> float:
    """GPU memory: weights and, for training, the adapter's weights, gradients and 8-bit optimizer, and
    activations."""
    need = spec.memory_gb(bits) + (guard.memory_gb(guard.bits) if guard and guard != spec else 0)
    if training:
        need += (2.5 * LARGE.checkpoint / 1e9 + 8) * spec.parameters / LARGE.parameters
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
