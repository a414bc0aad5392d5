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
from cai.models.loader import load
from cai.models.model import Model
from cai.preflight import measurements
from cai.preflight.random_weights import shape_of

SECTIONS = ("load", "generate", "train", "vllm")
SHAPE, TINY = "Qwen/Qwen2.5-32B", "tiny"
SERVED = (8, 16, 4)  # bits
BATCHES = (1, 4)  # pairs of a batch; accumulation makes 8 of them
WHAT_IT_IS = ("shape", "gpu", "driver", "versions")  # other figures are of something else


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
        gpus = machine.visible_gpus()
        self.facts: dict[str, Any] = {
            "shape": shape,
            "gpu": gpus[0].name if gpus else None,
            "driver": gpus[0].driver if gpus else None,
            "gpu_memory": gpus[0].memory if gpus else None,
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
        with measurements.random_checkpoint(self.shape, 4, self.scratch, self.seed, self._files) as (
            spec,
            made,
        ):
            model, seconds = measurements.timed(lambda: load(spec, 4))
        made |= {"parameters": shape_of(self.shape).parameters, "load_seconds": seconds}
        made |= {"weights_bytes": measurements.weights_bytes(), "memory_rate": measurements.memory_rate()}
        self._keep("load", made)
        return model

    def _load(self) -> None:
        if "load" not in self.facts:
            assert self.model

    def _generate(self) -> None:
        self._rates("local", 4, lambda: (engine_of(self.model, max(self.scale.rows)), self.model.tokenizer))

    def _train(self) -> None:
        found = self.facts.setdefault("train", {})
        for batch in BATCHES:
            for tokens in self.scale.lengths:
                key = f"{batch} x {measurements.PAIRS // batch}, {tokens}"
                if key not in found:
                    if any(not x["fits"] for x in found.values() if x["batch"] == batch):
                        break  # shorter ones did not fit
                    if not found:  # the first of all pays for what is compiled
                        measurements.dpo_step(self.model, tokens, batch, self.seed)
                    self._keep(
                        "train", found | {key: measurements.dpo_step(self.model, tokens, batch, self.seed)}
                    )
                    found = self.facts["train"]

    # ---- the server ----

    def _vllm(self) -> None:
        self.__dict__.pop("model", None)  # it would be in the server's way
        measurements.free_memory()
        for stored, served in ((16, (8, 16)), (4, (4,))):  # FP8 is rounded from 16 bits as they are loaded
            lacking = [bits for bits in served if not self._whole(str(Weights("vllm", bits)))]
            if not lacking:
                continue
            try:
                self._check_server(lacking)
                place = (self.shape, stored, self.scratch, self.seed, self._files)
                with measurements.random_checkpoint(*place) as (spec, _):
                    for bits in lacking:
                        self._served(spec, bits)
            except UserError as error:
                for bits in lacking:
                    self._not_measured(bits, error)

    def _check_server(self, lacking: Sequence[int]) -> None:
        """Before 65 GB are written. Raises UserError where none of them can be served."""
        from cai.models.vllm_server import serving_bits

        if not machine.visible_gpus():
            raise UserError("vLLM needs a GPU, and there is none here")
        shape = shape_of(self.shape)
        spec = measurements.spec_of(self.shape, shape.parameters)
        for bits in lacking:
            try:
                serving_bits(spec, bits, self.facts["gpu_memory"] / machine.GB)
            except UserError as error:
                refused = error
            else:
                return
        raise refused

    def _served(self, spec: Any, bits: int) -> None:
        from transformers import AutoTokenizer

        from cai.models.server_engine import ServerEngine
        from cai.models.vllm_server import VllmServer

        weights, tokenizer = Weights("vllm", bits), AutoTokenizer.from_pretrained(spec.repo)
        try:
            server = VllmServer(spec, bits, log=self.log)
            _, seconds = measurements.timed(server.urls)
            how = {"bits": bits, "precision": str(weights), "revision": None, "device": machine.this_device()}
            engine = ServerEngine(spec, server, tokenizer, **how)
            try:
                gpus = machine.visible_gpus()
                took = gpus[0].memory - gpus[0].free if gpus else None
                self._keep(str(weights), {"start_seconds": seconds, "memory_bytes": took})
                self._rates("vllm", bits, lambda: (engine, tokenizer))
            finally:
                engine.release()
        except UserError as error:
            self._not_measured(bits, error)

    def _not_measured(self, bits: int, error: UserError) -> None:
        name = str(Weights("vllm", bits))
        self._keep(name, self.facts.get(name, {}) | {"not_measured": str(error)})

    # ---- both ----

    def _whole(self, name: str) -> bool:
        """Whether an engine's figures are complete. What could not be measured is tried again."""
        found = self.facts.get(name, {})
        rows = {x["rows"] for x in found.get("generation", [])}
        return "not_measured" not in found and "first_token" in found and rows.issuperset(self.scale.rows)

    def _rates(self, engine: str, bits: int, opened: Callable[[], tuple[Engine, Any]]) -> None:
        """Tokens a second by rows against what the memory lets through, and the time to a first token."""
        name = str(Weights(engine, bits))
        if self._whole(name):
            return
        asked, tokenizer = opened()
        found = {k: v for k, v in self.facts.get(name, {}).items() if k != "not_measured"}
        rows = found.setdefault("generation", [])
        for number in self.scale.rows:
            if number not in {x["rows"] for x in rows}:
                made = measurements.generation(asked, tokenizer, number, self.scale.new_tokens, self.seed)
                made["limit"] = self.limit(bits, number, made["prompt_tokens"] + self.scale.new_tokens / 2)
                rows.append(made)
                self._keep(name, found)
        self._keep(name, found | {"first_token": measurements.first_token(asked, tokenizer, self.seed)})

    def limit(self, bits: int, rows: int, tokens: float) -> float | None:
        """Tokens a second that this memory lets through: weights once a step, each row's cache of so many
        tokens. None until `load` has measured it."""
        if "load" not in self.facts:
            return None
        shape = shape_of(self.shape)
        moved = shape.step_bytes(bits) + rows * tokens * shape.cache_bytes
        return rows * self.facts["load"]["memory_rate"] / moved

    def _keep(self, name: str, found: Any) -> None:
        self.facts[name] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.facts)
        self.log(f"  {name}: {one_line(_last(found))}")

    def _files(self, done: int, total: int) -> None:
        if done in (1, total) or done % 16 == 0:
            self.log(f"  random weights: {done} of {total} files")


def _last(found: Any) -> str:
    """What was measured last, for the terminal."""
    last = list(found.values())[-1] if isinstance(found, dict) else found
    last = last[-1] if isinstance(last, list) and last else last
    return (
        ", ".join(f"{k} {_number(v)}" for k, v in last.items()) if isinstance(last, dict) else _number(last)
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
