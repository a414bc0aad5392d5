"""The engines there are, and the one place that builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cai.models.device import this_device
from cai.models.engine import Engine
from cai.models.loader import load_tokenizer
from cai.models.local_engine import LocalEngine
from cai.models.model import Model
from cai.models.registry import ModelSpec
from cai.models.server_engine import FixedServers, ServerEngine
from cai.models.vllm_server import VllmServer, precision_of

LOCAL, VLLM = "local", "vllm"
ELSEWHERE = "elsewhere"  # the device of servers that somebody else runs


@dataclass(frozen=True)
class EngineChoice:
    """engine: LOCAL, VLLM (a server that we start on this machine), or the URLs of servers that somebody else
    runs, with commas between. bits: of the weights that generate. why: a sentence. deterministic: a server of
    ours gives the same texts whatever else is asked of it. beside_gb: GPU memory that it leaves to others."""

    engine: str = LOCAL
    bits: int = 16
    why: str = ""
    deterministic: bool = False
    beside_gb: float = 0.0

    @property
    def is_local(self) -> bool:
        return self.engine == LOCAL

    def settings(self) -> dict[str, Any]:
        """What rows depend on. In this process they are generated with the very weights that --bits names.
        deterministic: a run some of whose texts were not could not say that it can be repeated."""
        if self.is_local:
            return {}
        own = {"deterministic": True} if self.deterministic else {}
        return {"engine": "server", "engine_bits": self.bits, **own}


def engine_of(model: Model, max_batch: int | None = None) -> Engine:
    """The engine that generates and scores with a loaded model's weights, as they are at each call.
    max_batch: rows of a batch at most (default: the registry's)."""
    return LocalEngine(model, max_batch=max_batch)


def server_engine(spec: ModelSpec, choice: EngineChoice, log: Callable[[str], None]) -> Engine:
    """The engine of servers. Nothing is started or asked before the first request."""
    tokenizer, revision = load_tokenizer(spec, choice.bits)
    if choice.engine == VLLM:
        own = {"beside_gb": choice.beside_gb, "deterministic": choice.deterministic, "log": log}
        servers = VllmServer(spec, choice.bits, **own)
        precision, device = precision_of(choice.bits), this_device()
    else:
        servers = FixedServers(choice.engine.split(","))
        precision, device = f"taken for {choice.bits} bits (--engine-bits)", ELSEWHERE
    return ServerEngine(
        spec,
        servers,
        tokenizer,
        bits=choice.bits,
        precision=precision,
        revision=revision,
        device=device,
        deterministic=choice.deterministic,
        log=log,
    )
