"""What one unit of a step takes: as the latest run had it with the same model, engine, bits and device, else
as default_rates.py assumes, and said to be so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.costs.default_rates import (
    LARGE_TEXTS,
    SECONDS_A_DOWNLOADED_GB,
    SECONDS_OF_INSTALLING,
    SMALL_TEXTS,
    Machine,
    Texts,
    Tokens,
    machine_of,
)
from cai.costs.units import SERVER, UNITS, Weights, multiple
from cai.models import vllm_server
from cai.models.engines import ELSEWHERE
from cai.models.registry import ModelSpec

SMALLEST_SHARE = 0.05  # a small model on a GPU: launching its kernels takes as long as a large one's


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


def rates(
    ledger: Sequence[dict[str, Any]],
    spec: ModelSpec,
    weights: Weights,
    device: str,
    guard: ModelSpec | None = None,
) -> dict[str, Rate]:
    """step -> its rate: that of the latest run which has one for this model, engine, bits and device, else an
    assumption. A row without an engine is of a time when there was only the local one. Servers that somebody
    else runs are not of this device, whatever it is."""
    here = (spec.name, *weights, ELSEWHERE if weights.engine == SERVER else device)
    mine = [r for r in ledger if not r.get("interrupted") and _where(r) == here]
    return {
        step: _measured(step, mine) or _assumption(step, spec, weights, machine_of(device), guard)
        for step in UNITS
    }


def texts_of(spec: ModelSpec) -> Texts:
    return SMALL_TEXTS if spec.shots == 0 and spec.kind == "base" else LARGE_TEXTS


def _where(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("model"), row.get("engine") or "local", row.get("bits"), row.get("device")


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
    return (row.get("examples") or 0) * multiple(row["step"], row.get("principles") or 1)


def _assumption(
    step: str, spec: ModelSpec, weights: Weights, machine: Machine, guard: ModelSpec | None
) -> Rate:
    guarding = step == "guard" and guard is not None
    asked, held = (guard, Weights("local", guard.bits)) if guarding else (spec, weights)
    tokens = texts_of(spec).tokens.get(step, Tokens(0, 0, 0))
    once = {"download": SECONDS_A_DOWNLOADED_GB, "installing": SECONDS_OF_INSTALLING}
    if step == "loading" and held.engine == "vllm":
        once["loading"] = vllm_server.START_SECONDS
    if step in once:  # what does not grow with the model, or is counted by its size
        return Rate(once[step], 0, 0, "assumed")
    seconds = {**machine.seconds, "training": machine.training[weights.bits]}.get(step)
    if seconds is None:
        seconds = _reading_and_writing(tokens, held, machine)
    share = max(asked.parameters / machine.parameters, SMALLEST_SHARE) if asked.parameters else 1.0
    scaled = "" if share == 1.0 and asked.parameters else f", times {share:.3g} for its size"
    if not asked.parameters:
        scaled = ", as if it were as large"
    return Rate(share * seconds, tokens.read, tokens.generated, f"assumed{scaled}")


def _reading_and_writing(tokens: Tokens, weights: Weights, machine: Machine) -> float:
    """Seconds at the machine's speeds. A server does not read again what its prefix cache holds; a machine
    for which nothing is assumed of servers has the local speeds."""
    served = ("vllm", weights.bits) in machine.speeds and weights.engine != "local"
    speed = machine.speeds["vllm" if served else "local", weights.bits]
    read = tokens.read - tokens.shared * (weights.engine != "local")
    return read / speed.read + tokens.generated / speed.generate
