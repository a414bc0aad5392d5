"""Which engine a run's texts come from: what a flag says, what the run has begun with, or what is cheaper by
the forecast, with vLLM's download, installing and starts in it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.ledger import read_ledger
from cai.core.run import read_manifest
from cai.core.text import format_duration
from cai.costs.default_rates import machine_of
from cai.costs.forecast import Alternative, Forecast, device_of, forecast
from cai.costs.units import SERVER, Units, Weights, add_units, local, milestone_units, on_server
from cai.models import device as machine
from cai.models import vllm_server
from cai.models.engines import LOCAL, VLLM, EngineChoice
from cai.models.fit import DISK_MARGIN, beside_gb, disk_fit
from cai.models.registry import ModelSpec, choose, with_values
from cai.models.server_engine import FixedServers
from cai.models.vllm_environment import OWN, check_driver
from cai.models.vllm_environment import environment as environment_place

AUTO = "auto"
URL_BITS = 16  # of a server that somebody else runs, where --engine-bits does not say
DETERMINISTIC_BITS = 16  # vLLM's batch-invariant kernels take no others


def choice_of(
    args: argparse.Namespace,
    spec: ModelSpec,
    cheaper: Callable[[], EngineChoice],
    *,
    begun: Mapping[str, Any] | None,
    guard: ModelSpec | None = None,
) -> EngineChoice:
    """The engine of a run. cheaper: asked for one where --engine is auto and nothing has begun yet, or vllm.
    begun: run.json of the run that goes on; it keeps what it has, but a flag that was given counts, and
    opening the run says what differs. guard: a model on the same GPU. Raises UserError for flags that do not
    go together."""
    own = {"deterministic": args.deterministic, "beside_gb": beside(spec, guard)}
    if args.engine not in (AUTO, LOCAL, VLLM):
        if args.deterministic:
            raise UserError(
                "--deterministic is for a server that is started here: "
                "start yours with scripts/serve.py --deterministic"
            )
        FixedServers(args.engine.split(","))  # raises UserError for URLs that cannot be
        return EngineChoice(args.engine, args.engine_bits or URL_BITS, "asked for by --engine")
    if args.engine == LOCAL:
        if args.engine_bits or args.deterministic:
            raise UserError(
                "--engine-bits and --deterministic are of a server: "
                "give --engine vllm or auto, or leave them out"
            )
        return EngineChoice(why="asked for by --engine")
    if args.engine == AUTO and begun:
        why = "with which this run has begun"
        if "engine" not in begun["settings"]:
            return _of_a_server(EngineChoice(why=why), args)
        cannot_start = not machine.visible_gpus() and not os.environ.get(OWN, "").strip()
        if begun.get("engine") == SERVER or cannot_start:
            raise UserError(
                "this run's texts come from servers"
                f"{', and there is no GPU here to start one on' if cannot_start else ' that ran already'}: "
                "give --engine the URLs of servers that run (evaluate.py also takes --engine local)"
            )
        return EngineChoice(VLLM, args.engine_bits or begun["settings"]["engine_bits"], why, **own)
    return replace(_of_a_server(cheaper(), args), **own)


def _of_a_server(choice: EngineChoice, args: argparse.Namespace) -> EngineChoice:
    """The choice. Raises UserError where it would leave out what the flags ask of a server."""
    if choice.is_local and (args.engine_bits or args.deterministic):
        raise UserError(
            f"--engine-bits and --deterministic are of a server, and this run has none ({choice.why}): "
            "give --engine vllm, or leave them out"
        )
    return choice


def begun_run(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """run.json of the run that a milestone's flags go on with."""
    return None if args.fresh else read_manifest(args.run)


# ---- what is cheaper ----


def choose_engine(
    spec: ModelSpec,
    units: Units,
    *,
    asked: str = AUTO,
    engine_bits: int | None = None,
    hourly_rate: float | None = None,
    device: str | None = None,
    guard: ModelSpec | None = None,
) -> EngineChoice:
    """asked: AUTO or VLLM. units: the whole work as the local engine would do it. device: this machine's,
    unless a forecast for another one is wanted. guard: a model that stays beside the engine. Raises UserError
    where vLLM is asked for and does not fit."""
    device = device or machine.this_device()
    if asked == VLLM and device == "cpu":
        return EngineChoice(VLLM, engine_bits or 16, "asked for by --engine")
    if device == "cpu":
        return EngineChoice(why="local: no GPU here")
    if asked == AUTO and not spec.parameters:
        return EngineChoice(why=f"local: nobody has said how large {spec.name} is")
    try:
        if device == machine.this_device():
            check_driver()
        bits = vllm_server.serving_bits(spec, engine_bits, memory_of(device), beside_gb=beside(spec, guard))
    except UserError as error:
        if asked == VLLM:
            raise
        return EngineChoice(why=f"local: {error}")
    served, mine = Weights(VLLM, bits), next(iter(units))
    if asked == VLLM:
        return EngineChoice(*served, "asked for by --engine")
    if device == machine.this_device() and (short := disk_short(spec, bits)):
        return EngineChoice(why=f"local: {short}")
    know = {"examples": 0, "hourly_rate": hourly_rate, "device": device, "guard": guard}
    here = forecast(spec, units, **know)
    there = forecast(spec, with_server(spec, units, served), **know)
    by_vllm, by_us = (
        f"{weights} would take {format_duration(f.seconds)}, ${f.dollars:.2f}"
        for weights, f in ((served, there), (mine, here))
    )
    if there.seconds < here.seconds:
        return EngineChoice(*served, f"{by_vllm}; {by_us}")
    return EngineChoice(why=f"{by_us}; {by_vllm}")


def memory_of(device: str) -> float:
    """GB of a GPU: this machine's, or what one of the name has."""
    here = next((gpu.memory / machine.GB for gpu in machine.visible_gpus() if gpu.name == device), 0.0)
    return here or machine_of(device).memory_gb


def beside(spec: ModelSpec, guard: ModelSpec | None) -> float:
    """GB that the guard's model takes on the same GPU; none if it is the one that writes."""
    return beside_gb(guard if guard and guard.name != spec.name else None)


def to_download(spec: ModelSpec, bits: int) -> float:
    """GB that a server still needs of its weights; what is in the cache, or of this checkout, is not
    fetched."""
    repo, revision = spec.source(bits)
    if (ROOT / repo).is_dir() or machine.cached(repo, revision):
        return 0.0
    return max(0.0, spec.download_gb(bits) - machine.cached_bytes(repo) / machine.GB)


def disk_short(spec: ModelSpec, bits: int) -> str:
    """What the disk lacks for the server's weights and its environment, and for the weights that training
    loads after it, in words; "" where it suffices."""
    weights = to_download(spec, bits) * DISK_MARGIN
    if spec.source(spec.bits)[0] != spec.source(bits)[0]:
        weights += disk_fit(spec, spec.bits).need
    environment = 0.0 if vllm_server.environment_ready() else vllm_server.ENVIRONMENT_GB
    cache, place = machine.cache_dir(), environment_place()
    if machine.same_disk(cache, place):
        needs = {cache: weights + environment}
    else:
        needs = {cache: weights, place: environment}
    for place, need in needs.items():
        if need > (free := machine.disk_free(place) / machine.GB):
            return (
                f"vLLM's and training's weights ({weights:.0f} GB) and vLLM's environment "
                f"({environment:.0f} GB) need more disk than the {free:.0f} GB that are free at {place}"
            )
    return ""


def with_server(spec: ModelSpec, units: Units, weights: Weights) -> dict[Weights, dict[str, float]]:
    """The work with a server, and what is to be done once before it. What a training loads is fetched with
    any engine, and in no forecast's time."""
    placed = on_server(units, weights)
    if weights.engine != VLLM:
        return placed
    fetched = {spec.source(held.bits)[0] for held in placed if held.engine == LOCAL}
    download = 0.0 if spec.source(weights.bits)[0] in fetched else to_download(spec, weights.bits)
    once = {"download": download, "installing": int(not vllm_server.environment_ready()), "loading": 1}
    return add_units([{weights: once}, placed])


def weights_of(choice: EngineChoice) -> Weights:
    """Of a choice that is not local."""
    return Weights(VLLM if choice.engine == VLLM else SERVER, choice.bits)


# ---- forecasts ----


def could_be_served(spec: ModelSpec, device: str) -> bool:
    """Whether there is a choice worth showing."""
    return device != "cpu" and spec.parameters > 0 and not spec.sandbox


def side_by_side(
    spec: ModelSpec, units: Units, *, guard: ModelSpec | None = None, **know: Any
) -> tuple[Alternative, ...]:
    """The same work by vLLM in FP8, by vLLM in 16 bits, and here."""
    device, rows = know["device"], []
    for weights in (Weights(VLLM, 8), Weights(VLLM, 16)):
        name, placed, note = str(weights), with_server(spec, units, weights), ""
        if not _fits(spec, weights, device):
            rows.append(Alternative(name, weights, None, f"does not fit into {device}"))
            continue
        if guard and not _fits(spec, weights, device, guard):
            placed = {held: {**some, "guard": 0} for held, some in placed.items()}
            note = f"without the guard, for which there is no room on {device}"
        rows.append(Alternative(name, weights, forecast(spec, placed, guard=guard, **know), note))
    held = " and ".join(str(weights).removeprefix("local ") for weights in units)
    here = forecast(spec, units, guard=guard, **know)
    return (*rows, Alternative(f"local {held}", next(iter(units)), here))


def _fits(spec: ModelSpec, weights: Weights, device: str, guard: ModelSpec | None = None) -> bool:
    try:
        vllm_server.serving_bits(spec, weights.bits, memory_of(device), beside_gb=beside(spec, guard))
    except UserError:
        return False
    return True


def forecast_of(
    spec: ModelSpec,
    units: Units,
    args: argparse.Namespace,
    *,
    begun: Mapping[str, Any] | None,
    examples: int,
    of: str = "examples",
    guard: ModelSpec | None = None,
    compared: bool = False,
) -> Forecast:
    """What the work will take with the engine of --engine. units: as the local engine would do it. begun: see
    choice_of. compared: with the other engines beside it."""
    ledger = read_ledger()
    device = device_of(spec, ledger)
    know = {"examples": examples, "of": of, "hourly_rate": args.hourly_rate, "device": device}
    know |= {"ledger": ledger, "guard": guard}

    def cheaper() -> EngineChoice:
        return choose_engine(
            spec,
            units,
            asked=args.engine,
            engine_bits=bits_asked_for(args),
            hourly_rate=args.hourly_rate,
            device=device if args.forecast else None,  # a forecast may be for another machine
            guard=guard,
        )

    choice = choice_of(args, spec, cheaper, begun=begun, guard=guard)
    placed = units if choice.is_local else with_server(spec, units, weights_of(choice))
    ahead = replace(forecast(spec, placed, **know), choice=choice)
    if compared and could_be_served(spec, device):
        ahead = replace(ahead, beside=side_by_side(spec, units, **know))
    return ahead


def bits_asked_for(args: argparse.Namespace) -> int | None:
    return args.engine_bits or (DETERMINISTIC_BITS if args.deterministic else None)


def milestone_forecast(
    args: argparse.Namespace,
    steps: int,
    examples: int,
    guard: ModelSpec | None = None,
    *,
    compared: bool = False,
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
    how = {"begun": begun_run(args), "examples": examples, "guard": guard, "compared": compared}
    return forecast_of(spec, local(args.bits or spec.bits, units), args, **how)
