"""Speed and memory of a random model on this machine: generation by batch size, one DPO step.

Each measurement returns plain numbers (seconds, tokens, bytes; bytes are None without a GPU) and goes through
the engine and the training that the milestones use.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.models.device import disk_free
from cai.models.engine import Sampling, complete_all
from cai.models.engines import engine_of
from cai.models.loader import load
from cai.models.model import Model
from cai.models.registry import resolve
from cai.preflight.random_weights import shape_of, write_random
from cai.training.dpo import train_dpo
from cai.training.settings import Settings

PROMPT_TOKENS, ANSWER_TOKENS = 512, 500  # a few exemplars; the specification's length of an answer
TIMED_STEPS = 4  # DPO steps after the first
CONTEXT = 4096


def random_model(
    name: str, scratch: Path, seed: int, rows: int, progress: Callable
) -> tuple[Model, dict[str, Any]]:
    """Writes a random checkpoint of a shape into a directory that is removed again, and loads it in 4 bits.

    rows: the largest batch it will generate. Raises UserError without the disk space or the memory for it.
    """
    import torch

    shape, cuda = shape_of(name), torch.cuda.is_available()
    need, free = shape.checkpoint_bytes * 1.05 / 1e9, disk_free(scratch.absolute()) / 1e9
    if free < need:
        raise UserError(
            f"the random checkpoint takes {need:.0f} GB, {free:.1f} GB are free at {scratch}: "
            f"give --scratch a directory on a larger disk"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    device = "cuda" if cuda else "cpu"
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        target = Path(directory).absolute()
        size, write_seconds = timed(
            lambda: write_random(shape, target, device=device, seed=seed, progress=progress)
        )
        if cuda:
            torch.cuda.empty_cache()
        spec = dataclasses.replace(
            resolve(str(target)),
            name=f"random {name}",
            parameters=shape.parameters / 1e9,
            max_seq_length=CONTEXT,
            batch_size=1,
            gradient_accumulation=1,
            max_batch=rows,
        )
        model, load_seconds = timed(lambda: load(spec, 4))
    weights = torch.cuda.memory_allocated() if cuda else None
    return model, {
        "name": name,
        "parameters": shape.parameters,
        "checkpoint_bytes": size,
        "weights_bytes": weights,
        "write_seconds": write_seconds,
        "load_seconds": load_seconds,
    }


def generation(model: Model, rows: int, new_tokens: int, seed: int) -> dict[str, Any]:
    """Tokens a second of one batch; a short call before it, unmeasured, warms up."""
    engine = engine_of(model, max_batch=rows)
    prompts = [filler(model.tokenizer, PROMPT_TOKENS, seed + i) for i in range(rows)]
    complete_all(engine, prompts, Sampling(0.7, 4), range(rows))
    forget_peak()
    done, seconds = timed(lambda: complete_all(engine, prompts, Sampling(0.7, new_tokens), range(rows)))
    tokens = sum(c.tokens for c in done)
    return {
        "rows": rows,
        "prompt_tokens": sum(c.prompt_tokens for c in done) // rows,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak_bytes(),
    }


def dpo_step(model: Model, seed: int) -> dict[str, Any]:
    """Seconds of an optimizer step of one pair, and of the first call, which pays for compilation."""
    pair = {
        "prompt": filler(model.tokenizer, 40, seed),
        "chosen": filler(model.tokenizer, ANSWER_TOKENS, seed + 1),
        "rejected": filler(model.tokenizer, ANSWER_TOKENS, seed + 2),
    }
    spec = model.spec
    model.add_adapter(r=spec.lora_r, alpha=spec.lora_alpha, seed=seed)
    forget_peak()

    def train(steps: int):
        with tempfile.TemporaryDirectory() as output:
            return train_dpo(model, [pair], Settings.of(spec, steps=steps, seed=seed), Path(output))

    log, first = timed(lambda: train(1))
    _, one = timed(lambda: train(1))
    _, several = timed(lambda: train(1 + TIMED_STEPS))  # less `one`: no trainer's start
    return {
        "lora_r": spec.lora_r,
        "pairs": 1,
        "answer_tokens": ANSWER_TOKENS,
        "first_seconds": first,
        "step_seconds": (several - one) / TIMED_STEPS,
        "loss": log[0]["loss"],
        "peak_bytes": peak_bytes(),
    }


def filler(tokenizer, tokens: int, seed: int) -> str:
    """Random words of about that many tokens."""
    ids = random.Random(seed).choices(range(300, len(tokenizer)), k=tokens)
    return " ".join(tokenizer.decode(ids).split())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds), with the GPU's queue drained on both sides."""
    import torch

    drain = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    drain()
    start = time.perf_counter()
    result = work()
    drain()
    return result, time.perf_counter() - start


def forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
