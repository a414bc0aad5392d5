"""Cost: what a run will take, from the last rates that were measured, and a budget that it does not pass.

Every step of every run leaves a row in logs/ledger.jsonl. A forecast multiplies the rates of the latest run
of the same model, bits and device; a rate that nobody has measured there is assumed (cai/assumptions.py), and
marked so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cai.core.files import directories
from cai.core.run import read_manifest
from cai.core.text import format_bytes, format_duration, format_table
from cai.costs.default_rates import LARGE, SMALL, Assumed
from cai.models.device import this_device
from cai.models.registry import REGISTRY, ModelSpec

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


@dataclass(frozen=True)
class Rate:
    """What one unit of a step takes. source: "measured in run x, n 100", or "assumed" and how it was
    scaled."""

    step: str
    seconds: float
    prompt_tokens: float
    completion_tokens: float
    source: str

    @property
    def measured(self) -> bool:
        return self.source.startswith("measured")


@dataclass(frozen=True)
class Line:
    """A step of a forecast: how many units, and their totals."""

    step: str
    units: float
    seconds: float
    prompt_tokens: float
    completion_tokens: float
    source: str


@dataclass(frozen=True)
class Forecast:
    model: str
    bits: int
    device: str
    examples: int
    hourly_rate: float
    lines: tuple[Line, ...]
    disk: dict[str, tuple[float, str]]  # what -> (bytes, measured or assumed)
    memory_gb: tuple[float, str]  # of the GPU
    basis: str  # what the assumed rates are those of

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

    def dollars_of(self, *steps: str) -> float:
        return sum(x.seconds for x in self.lines if x.step in steps) / 3600 * self.hourly_rate

    @property
    def dollars_per_example(self) -> float:
        return self.dollars_of(*PER_EXAMPLE) / max(self.examples, 1)

    def as_dict(self) -> dict[str, Any]:
        """For run.json, so that `accuracy` can compare it with what happened."""
        read, generated = self.tokens
        totals = {"seconds": self.seconds, "dollars": self.dollars}
        return asdict(self) | {"totals": totals | {"prompt_tokens": read, "completion_tokens": generated}}

    def render(self) -> str:
        head = f"forecast for {self.examples} examples: {self.model} in {self.bits} bits on {self.device}"
        rows = [("step", "units", "time", "tokens read", "generated", "dollars", "rate")]
        for x in self.lines:
            unit = UNITS[x.step] + ("s" if round(x.units) != 1 else "")
            rows.append((x.step, f"{x.units:,.0f} {unit}", *self._amounts(x.seconds, x), x.source))
        read, generated = self.tokens
        total = Line("all", 0, self.seconds, read, generated, "")
        rows.append(("all", "", *self._amounts(self.seconds, total), f"at ${self.hourly_rate:.2f} an hour"))
        disk = "; ".join(f"{what} {format_bytes(n)} ({source})" for what, (n, source) in self.disk.items())
        assumed = any(x.source.startswith("assumed") for x in self.lines)
        basis = f"\nassumed: what is expected of {self.basis}" if assumed else ""
        return f"{head}\n{format_table(rows)}{basis}\ndisk: {disk}\nGPU memory: {self._memory()}"

    def _amounts(self, seconds: float, x: Line) -> tuple[str, str, str, str]:
        duration, dollars = format_duration(seconds), seconds / 3600 * self.hourly_rate
        return duration, f"{x.prompt_tokens:,.0f}", f"{x.completion_tokens:,.0f}", f"${dollars:.2f}"

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
    return Rate(step, mean("seconds"), mean("prompt_tokens"), mean("completion_tokens"), source)


def _units(row: dict[str, Any]) -> float:
    if row["step"] == "loading":
        return 1.0
    return (row.get("examples") or 0) * _multiple(row["step"], row.get("principles") or 1)


def _multiple(step: str, principles: int) -> int:
    """Units of a step for one example."""
    return {"critique": principles, "judge": principles + 1}.get(step, 1)


def _table_for(device: str) -> Assumed:
    return SMALL if device == "cpu" else LARGE


def basis(device: str) -> str:
    """What the assumed rates of a device are those of."""
    return _table_for(device).basis


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
    return Rate(step, seconds, read, generated, f"assumed{scaled}")


def forecast(
    spec: ModelSpec,
    bits: int,
    examples: int,
    *,
    principles: int,
    steps: int,
    ledger: Sequence[dict[str, Any]],
    hourly_rate: float,
    device: str | None = None,
    generated: bool = True,
    judge: bool = True,
    guard: ModelSpec | None = None,
    evaluations: int = 1,
) -> Forecast:
    """What a run of that many examples will take. steps: of training; generated: the model writes its own
    instructions; guard: the model that guards, if one does."""
    device = device or this_device()
    units = {
        "loading": 1,
        "instructions": examples * generated,
        **{s: examples * _multiple(s, principles) for s in PER_EXAMPLE},
        "training": steps,
        "evaluation": evaluations,
    }
    units["judge"] *= judge
    units["guard"] *= guard is not None
    found = rates(ledger, spec, bits, device, guard)
    lines = tuple(
        Line(s, n, n * r.seconds, n * r.prompt_tokens, n * r.completion_tokens, r.source)
        for s, n in units.items()
        if n and (r := found[s])
    )
    names = [r["run"] for r in reversed(ledger) if r.get("model") == spec.name]  # the latest first
    return Forecast(
        spec.name, bits, device, examples, hourly_rate, lines,
        _disk(spec, bits, examples, steps, list(dict.fromkeys(names))[::-1]),
        _memory(spec, bits, steps, guard), _table_for(device).basis,
    )  # fmt: skip


def _disk(
    spec: ModelSpec, bits: int, examples: int, steps: int, runs: Sequence[str]
) -> dict[str, tuple[float, str]]:
    """what -> (bytes, how that is known). runs: of this model, the latest last; what it took is what
    counts."""
    table = SMALL if spec is REGISTRY["sandbox"] else LARGE
    share = spec.parameters / table.parameters or 1.0
    record, checkpoint = (table.record, "assumed"), (table.checkpoint * share, "assumed")
    for name in runs:
        data, checkpoints, _ = directories(name)
        if n := sum(path.read_bytes().count(b"\n") for path in data.glob("records*.jsonl")):
            record = (_bytes(data) / n, f"measured in run {name}, n {n}")
        if any(checkpoints.glob("adapter_model.safetensors")):
            checkpoint = (_bytes(checkpoints), f"measured in run {name}")
    found = {"examples": (record[0] * examples, record[1])}
    if steps:
        found["checkpoint"] = checkpoint
    if not spec.repo.startswith("models/"):
        found["weights"] = (spec.download_gb(bits) * 1e9, "from the registry, once per machine")
    return found


def _memory(spec: ModelSpec, bits: int, steps: int, guard: ModelSpec | None) -> tuple[float, str]:
    """Weights and, for training, the adapter's weights, gradients and 8-bit optimizer, and activations."""
    need = spec.memory_gb(bits) + (guard.memory_gb(guard.bits) if guard and guard != spec else 0)
    if steps:
        need += (2.5 * LARGE.checkpoint / 1e9 + 8) * spec.parameters / LARGE.parameters
    return need, "assumed; generation takes what is left for larger batches"


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
    expected = {line["step"]: line["seconds"] for line in stored["lines"]}
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
        durations, dollars = map(format_duration, (said, took)), (f"${t * rate:.2f}" for t in (said, took))
        table.append((step, *durations, factor, *dollars))
    title = f"the forecast against what run {run} took (a factor above 1: longer)"
    return factors, f"{title}\n{format_table(table)}"


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
