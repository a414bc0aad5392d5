"""Which engine generates and evaluates: the model in this process, or vLLM on the same GPU. The forecast
decides, with vLLM's download, installing and starts in it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.ledger import read_ledger
from cai.core.run import read_manifest
from cai.core.text import format_duration
from cai.costs.default_rates import machine_of
from cai.costs.forecast import Alternative, Forecast, device_of, forecast
from cai.costs.units import Units, Weights, add_units, local, milestone_units, on_server
from cai.models import device as machine
from cai.models import vllm_server
from cai.models.engines import LOCAL, VLLM, EngineChoice
from cai.models.fit import DISK_MARGIN
from cai.models.registry import ModelSpec, choose, with_values
from cai.models.vllm_environment import check_driver
from cai.models.vllm_environment import environment as environment_place

AUTO = "auto"
URL_BITS = 16  # of a server that somebody else runs, where --engine-bits does not say


def weights_of(choice: EngineChoice) -> Weights:
    return Weights(choice.kind, choice.bits)


def choose_engine(
    spec: ModelSpec,
    units: Units,
    *,
    asked: str = AUTO,
    engine_bits: int | None = None,
    deterministic: bool = False,
    begun: Mapping[str, Any] | None = None,
    hourly_rate: float | None = None,
    device: str | None = None,
    guard: ModelSpec | None = None,
) -> EngineChoice:
    """units: the whole work as the local engine would do it. begun: the settings of a run that goes on; it
    keeps the engine that it has. device: this machine's, unless a forecast for another one is wanted. guard:
    a model that stays beside the engine. Raises UserError for flags that do not go together, and where vLLM
    is asked for and does not fit."""
    device = device or machine.this_device()
    mine = next(iter(units))

    def here(why: str) -> EngineChoice:
        return EngineChoice(LOCAL, mine.bits, why)

    def served(bits: int, why: str) -> EngineChoice:
        return EngineChoice(VLLM, bits, why, deterministic, beside(guard))

    if asked not in (AUTO, LOCAL, VLLM):
        if deterministic:
            raise UserError(
                "--deterministic is for a server that is started here: "
                "start yours with scripts/serve.py --deterministic"
            )
        return EngineChoice(asked, engine_bits or URL_BITS, "asked for by --engine")
    if asked == LOCAL:
        if engine_bits or deterministic:
            raise UserError(
                "--engine-bits and --deterministic are of a server: "
                "give --engine vllm or auto, or leave them out"
            )
        return here("local, asked for by --engine")
    if asked == AUTO and begun:
        why = "this run has begun with it"
        return served(begun["engine_bits"], why) if "engine" in begun else here(why)
    if device == "cpu":
        if asked == VLLM:
            return served(engine_bits or 16, "vllm, asked for by --engine")
        return here("local: no GPU here")
    if asked == AUTO and not spec.parameters:
        return here(f"local: how large {spec.name} is is not known here")
    try:
        if device == machine.this_device():
            check_driver()
        bits = vllm_server.serving_bits(spec, engine_bits, memory_of(device), beside_gb=beside(guard))
    except UserError as error:
        if asked == VLLM:
            raise
        return here(f"local: {error}")
    weights = Weights(VLLM, bits)
    if asked == VLLM:
        return served(bits, f"{weights}, asked for by --engine")
    if device == machine.this_device() and (short := disk_short(spec, bits)):
        return here(f"local: {short}")
    know = {"examples": 0, "hourly_rate": hourly_rate, "device": device, "guard": guard}
    locally = forecast(spec, units, **know)
    remotely = forecast(spec, with_server(spec, units, weights), **know)
    cheaper, dearer = sorted(((remotely, weights), (locally, mine)), key=lambda each: each[0].seconds)
    why = f"{_short(*cheaper)}; {_short(*dearer)}"
    return served(bits, why) if cheaper[1] is weights else here(why)


def begun_settings(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """Of the run that a milestone's flags go on with."""
    return None if args.fresh else (read_manifest(args.run) or {}).get("settings")


def _short(f: Forecast, weights: Weights) -> str:
    return f"{weights} would take {format_duration(f.seconds)}, ${f.dollars:.2f}"


def memory_of(device: str) -> float:
    """GB of a GPU: this machine's, or what one of the name has."""
    here = next((gpu.memory / machine.GB for gpu in machine.visible_gpus() if gpu.name == device), 0.0)
    return here or machine_of(device).memory_gb


def beside(guard: ModelSpec | None) -> float:
    """GB that the guard's model takes on the same GPU."""
    return guard.memory_gb(guard.bits) if guard else 0.0


def to_download(spec: ModelSpec, bits: int) -> float:
    """GB that a server still needs of its weights; what is in the cache, or of this checkout, is not
    fetched."""
    repo, revision = spec.source(bits)
    if (ROOT / repo).is_dir() or machine.cached(repo, revision):
        return 0.0
    return max(0.0, vllm_server.download_gb(spec, bits) - machine.cached_bytes(repo) / machine.GB)


def disk_short(spec: ModelSpec, bits: int) -> str:
    """What the disk lacks for the server's weights and its environment, in words; "" where it suffices."""
    weights = to_download(spec, bits) * DISK_MARGIN
    environment = 0.0 if vllm_server.environment_ready() else vllm_server.ENVIRONMENT_GB
    cache, place = machine.cache_dir(), environment_place()
    if machine.same_disk(cache, place):
        needs = {cache: weights + environment}
    else:
        needs = {cache: weights, place: environment}
    for place, need in needs.items():
        if need > (free := machine.disk_free(place) / machine.GB):
            return (
                f"vLLM's weights ({weights:.0f} GB) and environment ({environment:.0f} GB) need more disk "
                f"than the {free:.0f} GB that are free at {place}"
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
        room = f"{memory_of(device):.0f} GB"
        if not _fits(spec, weights, device):
            rows.append(Alternative(name, weights, None, f"does not fit into {room}"))
            continue
        if guard and not _fits(spec, weights, device, guard):
            placed = {held: {**some, "guard": 0} for held, some in placed.items()}
            note = f"without the guard, for which {room} have no room"
        rows.append(Alternative(name, weights, forecast(spec, placed, guard=guard, **know), note))
    held = " and ".join(str(weights).removeprefix("local ") for weights in units)
    here = forecast(spec, units, guard=guard, **know)
    return (*rows, Alternative(f"local {held}", next(iter(units)), here))


def _fits(spec: ModelSpec, weights: Weights, device: str, guard: ModelSpec | None = None) -> bool:
    try:
        vllm_server.serving_bits(spec, weights.bits, memory_of(device), beside_gb=beside(guard))
    except UserError:
        return False
    return True


def forecast_of(
    spec: ModelSpec,
    units: Units,
    args: argparse.Namespace,
    *,
    examples: int,
    of: str = "examples",
    guard: ModelSpec | None = None,
    ledger: Sequence[dict[str, Any]] | None = None,
    compared: bool = False,
    begun: Mapping[str, Any] | None = None,
) -> Forecast:
    """What the work will take with the engine of --engine. units: as the local engine would do it. compared:
    with the other engines beside it. begun: see choose_engine."""
    ledger = read_ledger() if ledger is None else ledger
    only_looking = getattr(args, "forecast", False)  # which may be for another machine
    device = device_of(spec, ledger)
    know = {
        "examples": examples,
        "of": of,
        "hourly_rate": args.hourly_rate,
        "device": device,
        "ledger": ledger,
    }
    chosen = choose_engine(
        spec,
        units,
        asked=args.engine,
        engine_bits=args.engine_bits,
        deterministic=args.deterministic,
        begun=begun,
        hourly_rate=args.hourly_rate,
        device=device if only_looking else None,
        guard=guard,
    )
    placed = units if chosen.is_local else with_server(spec, units, weights_of(chosen))
    ahead = forecast(spec, placed, guard=guard, **know)
    beside_it = ()
    if compared and could_be_served(spec, device):
        beside_it = side_by_side(spec, units, guard=guard, **know)
    return replace(ahead, choice=chosen, beside=beside_it)


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
    units = local(args.bits or spec.bits, units)
    how = {"guard": guard, "compared": compared, "begun": begun_settings(args)}
    return forecast_of(spec, units, args, examples=examples, **how)
