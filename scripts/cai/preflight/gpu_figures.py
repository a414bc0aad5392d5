"""What scripts/benchmark.py gpu measures, section by section. What is measured is kept at once and not
measured again: a rented GPU costs by the second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cai.core import run
from cai.core.errors import UserError
from cai.core.files import from_json, write_json
from cai.core.text import one_line
from cai.costs.units import Weights
from cai.models import device as machine
from cai.models.engine import Engine
from cai.models.engines import engine_of
from cai.models.loader import load, load_tokenizer
from cai.models.model import Model, free_memory
from cai.models.registry import ModelSpec
from cai.models.server_engine import ServerEngine
from cai.models.vllm_server import VllmServer, precision_of, serving_bits
from cai.preflight import measurements
from cai.preflight.random_weights import shape_of

SECTIONS = ("load", "generate", "train", "vllm")
SHAPE, TINY = "Qwen/Qwen2.5-32B", "tiny"
LOCAL = Weights("local", 4)
SERVED = {16: (8, 16), 4: (4,)}  # bits of a checkpoint -> those it is served in: FP8 is rounded on loading
BATCHES = (1, 4)  # pairs of a batch; accumulation makes 8 of them
WHAT_IT_IS = ("shape", "gpu", "driver", "versions")  # figures of another are no figures of this


@dataclass(frozen=True)
class Scale:
    """rows: of a batch, generated at once. lengths: tokens of a text in training."""

    rows: Sequence[int]
    new_tokens: int
    lengths: Sequence[int]


WHOLE = Scale((1, 8, 32, 64), 128, (512, 1024, 2048, 4096))
SMALL = Scale((1, 4), 8, (32, 64))  # the same lines at a size for any CPU


class GpuFigures:
    """facts: what was measured, as logs/benchmark-gpu.json has it."""

    def __init__(
        self,
        shape: str,
        scale: Scale,
        path: Path,
        scratch: Path,
        *,
        seed: int = 0,
        fresh: bool = False,
        log: Callable[[str], None] = print,
    ):
        self.shape, self.scale, self.path, self.scratch = shape, scale, path, scratch
        self.seed, self.log = seed, log
        gpu = next(iter(machine.visible_gpus()), None)
        self.facts: dict[str, Any] = {
            "shape": shape,
            "gpu": gpu and gpu.name,
            "driver": gpu and gpu.driver,
            "gpu_memory": gpu and gpu.memory,
            "versions": run.versions(),
            "commit": run.git_commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        earlier = from_json(path.read_text(encoding="utf-8")) if path.exists() and not fresh else {}
        if all(earlier.get(key) == self.facts[key] for key in WHAT_IT_IS):
            self.facts = earlier

    def measure(self, sections: Sequence[str]) -> None:
        """The sections, as far as they are not measured yet."""
        for section in SECTIONS:
            if section in sections:
                self.log(f"{section}:")
                getattr(self, f"_{section}")()

    # ---- the local engine ----

    @cached_property
    def model(self) -> Model:
        """A random one in NF4; the first to need it writes and loads it."""
        with self._checkpoint(4) as (spec, made):
            model, seconds = measurements.timed(lambda: load(spec, 4))
        made |= {"parameters": shape_of(self.shape).parameters, "load_seconds": seconds}
        made |= {"weights_bytes": measurements.weights_bytes(), "memory_rate": measurements.memory_rate()}
        self._keep("load", made)
        return model

    def _load(self) -> None:
        if "load" not in self.facts:
            assert self.model

    def _generate(self) -> None:
        if not self._whole(LOCAL):
            self._rates(LOCAL, engine_of(self.model, max(self.scale.rows)), self.model.tokenizer)

    def _train(self) -> None:
        found = self.facts.get("train", {})
        for batch in BATCHES:
            for tokens in self.scale.lengths:
                key = f"{batch} x {measurements.PAIRS // batch}, {tokens}"
                if key in found:
                    continue
                if any(not x["fits"] for x in found.values() if x["batch"] == batch):
                    break  # a shorter one did not
                if not found:  # the first of all pays for what is compiled
                    measurements.dpo_step(self.model, tokens, batch, self.seed)
                found[key] = measurements.dpo_step(self.model, tokens, batch, self.seed)
                self._keep("train", found)

    # ---- the server ----

    def _vllm(self) -> None:
        self.__dict__.pop("model", None)  # it would be in the server's way
        free_memory()
        for stored, served in SERVED.items():
            lacking = [bits for bits in served if not self._whole(Weights("vllm", bits))]
            if possible := [bits for bits in lacking if self._fits(bits)]:
                with self._checkpoint(stored) as (spec, _):
                    for bits in possible:
                        self._serve(spec, bits)

    def _fits(self, bits: int) -> bool:
        """Asked before 65 GB are written."""
        try:
            if not self.facts["gpu"]:
                raise UserError("vLLM needs a GPU, and there is none here")
            spec = measurements.spec_of(self.shape, self.shape)
            serving_bits(spec, bits, self.facts["gpu_memory"] / machine.GB)
        except UserError as error:
            self._not_measured(bits, error)
            return False
        return True

    def _serve(self, spec: ModelSpec, bits: int) -> None:
        weights = Weights("vllm", bits)
        tokenizer, _ = load_tokenizer(spec, bits)
        server = VllmServer(spec, bits, log=self.log)
        try:
            _, seconds = measurements.timed(server.urls)
            gpu = machine.visible_gpus()[0]
            started = {"start_seconds": seconds, "memory_bytes": gpu.memory - gpu.free}
            self._keep(str(weights), self.facts.get(str(weights), {}) | started)
            how = {"bits": bits, "precision": precision_of(bits), "revision": None, "device": gpu.name}
            engine = ServerEngine(spec, server, tokenizer, noise=True, log=self.log, **how)
            self._rates(weights, engine, tokenizer)
        except UserError as error:
            self._not_measured(bits, error)
        finally:
            server.stop()

    def _not_measured(self, bits: int, error: UserError) -> None:
        name = str(Weights("vllm", bits))
        self._keep(name, self.facts.get(name, {}) | {"not_measured": str(error)})

    # ---- both ----

    def _whole(self, weights: Weights) -> bool:
        """Whether an engine's figures are complete. What could not be measured is tried again."""
        found = self.facts.get(str(weights), {})
        rows = {x["rows"] for x in found.get("generation", [])}
        return "not_measured" not in found and "first_token" in found and rows.issuperset(self.scale.rows)

    def _rates(self, weights: Weights, engine: Engine, tokenizer: Any) -> None:
        """Tokens a second by rows against what the memory lets through, and the time to a first token."""
        name, new = str(weights), self.scale.new_tokens
        found = {k: v for k, v in self.facts.get(name, {}).items() if k != "not_measured"}
        rows = found.setdefault("generation", [])
        for number in self.scale.rows:
            if number not in {x["rows"] for x in rows}:
                made = measurements.generation(engine, tokenizer, number, new, self.seed)
                made["limit"] = self._limit(weights.bits, number, made["prompt_tokens"] + new / 2)
                rows.append(made)
                self._keep(name, found)
        self._keep(name, found | {"first_token": measurements.first_token(engine, tokenizer, self.seed)})

    def _limit(self, bits: int, rows: int, tokens: float) -> float | None:
        """Tokens a second that this memory lets through: the weights once a step, and each row's cache of so
        many tokens. None until `load` has measured the memory."""
        if "load" not in self.facts:
            return None
        shape = shape_of(self.shape)
        moved = shape.step_bytes(bits) + rows * tokens * shape.cache_bytes
        return rows * self.facts["load"]["memory_rate"] / moved

    def _checkpoint(self, bits: int):
        def progress(done: int, total: int) -> None:
            if done in (1, total) or not done % 16:
                self.log(f"  random weights: {done} of {total} files")

        return measurements.random_checkpoint(self.shape, bits, self.scratch, self.seed, progress)

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        self.facts[name] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.facts)
        self.log(f"  {name}: {one_line(_latest(found))}")


def _latest(found: Any) -> str:
    """What was measured last, for the terminal."""
    last = list(found.values())[-1] if isinstance(found, dict) else found[-1]
    if isinstance(last, dict | list) and last:
        return _latest(last)
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
