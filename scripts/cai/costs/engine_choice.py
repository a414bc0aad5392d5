"""Which engine a run's texts come from: what a flag says, what the run has begun with, or what is cheaper."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cai.core.errors import UserError
from cai.core.run import read_manifest
from cai.models.engines import LOCAL, VLLM, EngineChoice
from cai.models.registry import ModelSpec

URL_BITS = 16  # of a server that somebody else runs, where --engine-bits does not say


def choice_of(
    args: argparse.Namespace,
    spec: ModelSpec,
    cheaper: Callable[[], EngineChoice],
    *,
    begun: Mapping[str, Any] | None,
    beside: ModelSpec | None = None,
) -> EngineChoice:
    """The engine of a run. cheaper: asked for one where --engine is auto and nothing has begun yet. begun:
    the settings of the run that goes on; it keeps what it has. beside: a guard on the same GPU. Raises
    UserError for flags that do not go together."""
    own = {
        "deterministic": args.deterministic,
        "beside_gb": beside.memory_gb(beside.bits) if beside and beside.name != spec.name else 0.0,
    }
    if args.engine not in ("auto", LOCAL, VLLM):
        if args.deterministic:
            raise UserError(
                "--deterministic is for a server that is started here: "
                "start yours with scripts/serve.py --deterministic"
            )
        return EngineChoice(args.engine, args.engine_bits or URL_BITS, "asked for by --engine")
    if args.engine == LOCAL:
        if args.engine_bits or args.deterministic:
            raise UserError(
                "--engine-bits and --deterministic are of a server: "
                "give --engine vllm or auto, or leave them out"
            )
        return EngineChoice(why="asked for by --engine")
    if args.engine == "auto" and begun:
        why = "with which this run has begun"
        if "engine" not in begun:
            return EngineChoice(why=why)
        return EngineChoice(VLLM, begun["engine_bits"], why, **own)
    return replace(cheaper(), **own)


def begun_settings(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """Of the run that a milestone's flags go on with."""
    return None if args.fresh else (read_manifest(args.run) or {}).get("settings")
