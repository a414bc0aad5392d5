"""Speed and memory of a random model on this machine: one measurement a function.

Each returns plain numbers (seconds, tokens, bytes; bytes are None without a GPU) and goes through the engines
and the training that the milestones use.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.models import device as machine
from cai.models.engine import Engine, Sampling, complete_all
from cai.models.model import Model, free_memory
from cai.models.registry import ModelSpec
from cai.preflight.random_weights import shape_of, write_random
from cai.training.dpo import train_dpo
from cai.training.settings import Settings

PROMPT_TOKENS = 512  # a few exemplars
PAIRS = 8  # of an optimizer step
CONTEXT = 4096 + 64  # the longest pair, and what its format adds
COPIED = {"cuda": 4 << 30, "cpu": 64 << 20}  # bytes that are copied to see how fast memory is
TEMPERATURE = 0.7


@contextlib.contextmanager
def random_checkpoint(
    name: str, bits: int, scratch: Path, seed: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[ModelSpec, dict[str, Any]]]:
    """A random checkpoint of a shape in a directory that is removed again. Raises UserError without the disk
    space for it."""
    shape, cuda = shape_of(name), _cuda()
    need, free = shape.checkpoint_bytes(bits) * 1.05 / 1e9, machine.disk_free(scratch.absolute()) / 1e9
    if free < need:
        raise UserError(
            f"the random checkpoint takes {need:.0f} GB, {free:.1f} GB are free at {scratch}: "
            f"give --scratch a directory on a larger disk"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        target, device = Path(directory).absolute(), "cuda" if cuda else "cpu"
        size, seconds = timed(
            lambda: write_random(shape, target, bits=bits, device=device, seed=seed, progress=progress)
        )
        free_memory()
        yield spec_of(name, str(target)), {"checkpoint_bytes": size, "write_seconds": seconds}


def spec_of(name: str, place: str) -> ModelSpec:
    """Of a random model of a shape, which lies somewhere."""
    size = shape_of(name).parameters / 1e9
    return ModelSpec(f"random {name}", place, parameters=size, max_seq_length=CONTEXT)


def memory_rate() -> float:
    """Bytes a second that this machine's memory reads, or writes, by a copy of a large block."""
    import torch

    kind = "cuda" if _cuda() else "cpu"
    block = torch.empty(COPIED[kind], dtype=torch.uint8, device=kind)
    other = torch.empty_like(block)
    other.copy_(block)
    seconds = min(timed(lambda: other.copy_(block))[1] for _ in range(5))
    return 2 * COPIED[kind] / seconds


def generation(engine: Engine, tokenizer: Any, rows: int, new_tokens: int, seed: int) -> dict[str, Any]:
    """Tokens a second of so many rows at once; a short call before it, unmeasured, warms up."""
    prompts = [filler(tokenizer, PROMPT_TOKENS, seed + i) for i in range(rows)]
    complete_all(engine, prompts, Sampling(TEMPERATURE, 4), range(rows))
    forget_peak()
    drawn = Sampling(TEMPERATURE, new_tokens)
    done, seconds = timed(lambda: complete_all(engine, prompts, drawn, range(rows)))
    tokens = sum(c.tokens for c in done)
    return {
        "rows": rows,
        "prompt_tokens": sum(c.prompt_tokens for c in done) // rows,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak_bytes(),
    }


def first_token(engine: Engine, tokenizer: Any, seed: int) -> dict[str, Any]:
    """Seconds until a first token: of a prompt that nobody has asked before, and of one that differs from it
    only at its end, which a prefix cache makes shorter."""

    def asked(ending: int) -> tuple[list, float]:
        prompt = f"{prefix} {filler(tokenizer, 16, ending)}"
        return timed(lambda: complete_all(engine, [prompt], Sampling(TEMPERATURE, 1), [0]))

    prefix = filler(tokenizer, PROMPT_TOKENS, seed)
    asked(1)  # sets things up
    prefix = filler(tokenizer, PROMPT_TOKENS, seed + 1)
    done, new = asked(2)
    _, cached = asked(3)
    return {"prompt_tokens": done[0].prompt_tokens, "new_seconds": new, "cached_seconds": cached}


def dpo_step(model: Model, tokens: int, batch: int, seed: int) -> dict[str, Any]:
    """Seconds and peak memory of an optimizer step of 8 pairs of so many tokens a text, prompt included, in
    batches of `batch` pairs; fits: whether the GPU's memory sufficed."""
    spec = model.spec
    answer = tokens * 3 // 4
    pairs = [
        {
            "prompt": filler(model.tokenizer, tokens - answer, seed + 3 * i),
            "chosen": filler(model.tokenizer, answer, seed + 3 * i + 1),
            "rejected": filler(model.tokenizer, answer, seed + 3 * i + 2),
        }
        for i in range(PAIRS)
    ]
    how = {"batch_size": batch, "gradient_accumulation": PAIRS // batch, "max_length": CONTEXT}

    def train(steps: int):
        with tempfile.TemporaryDirectory() as output:
            return train_dpo(model, pairs, Settings.of(spec, steps, seed, **how), Path(output))

    found = {"tokens": tokens, "batch": batch, "accumulation": PAIRS // batch, "pairs": PAIRS}
    if "default" not in model.adapters:
        model.add_adapter(r=spec.lora_r, alpha=spec.lora_alpha, seed=seed)
    forget_peak()
    try:
        log, one = timed(lambda: train(1))
        _, two = timed(lambda: train(2))  # less `one`: without the trainer's start
    except Exception as error:
        if not machine_is_full(error):
            raise
        forget_reference(model)
        return found | {"fits": False}
    seconds = max(two - one, 0.0)
    return found | {"fits": True, "step_seconds": seconds, "loss": log[0]["loss"], "peak_bytes": peak_bytes()}


def machine_is_full(error: Exception) -> bool:
    """Whether an error says that the GPU's memory does not suffice."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def forget_reference(model: Model) -> None:
    """After a training that broke off: TRL's copy of the adapter would be in the way of the next."""
    if "ref" in model.model.peft_config:
        model.model.delete_adapter("ref")
    free_memory()


def filler(tokenizer: Any, tokens: int, seed: int) -> str:
    """Random words of about that many tokens, of those that the sandbox's texts are made of."""
    ids = random.Random(seed).choices(range(300, 1900), k=tokens)
    text = " ".join(tokenizer.decode(ids).split())  # which are more tokens, once they are read again
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]).strip()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds), with the GPU's queue drained on both sides."""
    import torch

    drain = torch.cuda.synchronize if _cuda() else lambda: None
    drain()
    start = time.perf_counter()
    result = work()
    drain()
    return result, time.perf_counter() - start


def forget_peak() -> None:
    import torch

    if _cuda():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if _cuda() else None


def weights_bytes() -> int | None:
    import torch

    return torch.cuda.memory_allocated() if _cuda() else None


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
