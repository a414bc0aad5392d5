"""Pre-training of the sandbox base model: tokenizer, packing, two CPU processes that average their gradients.

The recipe counts steps, not minutes, and all data is drawn from its seed before training begins: the same
recipe on the same kind of machine gives the same weights.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from cai.core.terminal import say
from cai.sandbox.corpus import Corpus
from cai.sandbox.packing import make_rows, train_tokenizer

# glibc returns freed memory to the system after every step, and page faults then cost a third of the time.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
PAD = 0  # <|endoftext|>, the first token
IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights. batch: rows a worker and step. held_rows: for the validation loss."""

    seed: int = 1
    steps: int = 2000
    workers: int = 2
    batch: int = 8
    length: int = 256
    vocabulary: int = 2048
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 50
    decay: float = 0.6  # the last part of the run over which the learning rate falls to nothing
    held_rows: int = 96


def build_model(recipe: Recipe, vocabulary: int):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=(vocabulary + 63) // 64 * 64,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=1024,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            bos_token_id=PAD,
            eos_token_id=PAD,
            pad_token_id=PAD,
        )
    )


def plain_attention(module, query, key, value, mask, scaling, **_):
    """Causal attention as plain products. torch's fused CPU kernel takes twice as long on short rows.

    query, key, value: [batch, heads, length, head size]; gives back [batch, length, heads, head size].
    """
    import torch

    batch, heads, length, size = query.shape
    q, k, v = (x.reshape(batch * heads, length, size) for x in (query, key, value))
    future = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    weights = torch.baddbmm(
        future.expand(batch * heads, -1, -1), q, k.transpose(1, 2), alpha=scaling
    ).softmax(-1)
    return (weights @ v).view(batch, heads, length, size).transpose(1, 2).contiguous(), None


def loss_of(model, rows):
    """Mean cross-entropy of next tokens in nats, padding left out. rows: [batch, length], -1 is padding."""
    import torch

    inputs = rows.clamp(min=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    labels = torch.where(rows < 0, IGNORE, rows)[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORE
    )


def rate(step: int, recipe: Recipe) -> float:
    """The factor on the learning rates: a short rise, a plateau, a long straight fall."""
    left = (recipe.steps - step) / max(1, recipe.steps)
    return max(0.01, min(1.0, (step + 1) / recipe.warmup, left / recipe.decay))


def pretrain(principles, recipe: Recipe, out: Path, report=print) -> dict:
    """Builds tokenizer and model, writes both into `out`, which must exist; what recipe.json records."""
    import torch.multiprocessing as mp

    started = time.time()
    corpus, rng = Corpus(principles), random.Random(f"corpus {recipe.seed}")
    documents = corpus.documents(rng)
    tokenizer = train_tokenizer([next(documents) for _ in range(12000)], recipe.vocabulary)
    tokenizer.save_pretrained(out)
    rows = make_rows(
        tokenizer,
        documents,
        recipe.steps * recipe.workers * recipe.batch + recipe.held_rows,
        recipe.length,
        rng,
    )
    tokens = int((rows >= 0).sum())
    report(
        f"corpus: {len(rows):,} rows of {recipe.length}, {tokens:,} tokens ({tokens / rows.size:.0%} full), "
        f"vocabulary {len(tokenizer)}, {time.time() - started:.0f} s"
    )

    import numpy as np

    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch) / "rows.npy", rows)
        (Path(scratch) / "job.json").write_text(
            json.dumps({"recipe": asdict(recipe), "vocabulary": len(tokenizer), "out": str(out)})
        )
        kept = {name: os.environ.get(name) for name in MALLOC}
        os.environ.update(MALLOC)  # read when the workers start
        try:
            mp.spawn(_worker, (scratch,), nprocs=recipe.workers, daemon=True)  # they end with us
        finally:
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        result = json.loads((Path(scratch) / "result.json").read_text())
    return {**asdict(recipe), "tokens": tokens, **result, "seconds": round(time.time() - started)}


def _worker(rank: int, scratch: str) -> None:
    import numpy as np
    import torch
    import torch.distributed as dist
    from transformers import AttentionInterface

    job = json.loads((Path(scratch) / "job.json").read_text())
    recipe, out = Recipe(**job["recipe"]), Path(job["out"])
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{scratch}/rendezvous",
        rank=rank,
        world_size=recipe.workers,
        timeout=timedelta(minutes=10),
    )
    rows = np.load(Path(scratch) / "rows.npy", mmap_mode="r")
    AttentionInterface.register("plain", plain_attention)
    model = build_model(recipe, job["vocabulary"]).train()
    model.set_attn_implementation("plain")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(
            matrices,
            lr=recipe.muon_lr,
            weight_decay=0.01,
            momentum=0.95,
            nesterov=True,
            adjust_lr_fn="original",
            ns_steps=4,
        ),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    curve, losses, started, reported = [], [], time.time(), 0.0
    for step in range(recipe.steps):
        for optimizer, base in zip(optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(step, recipe)
        first = (step * recipe.workers + rank) * recipe.batch
        loss = loss_of(model, torch.from_numpy(rows[first : first + recipe.batch].astype(np.int64)))
        loss.backward()
        losses.append(_average(model, loss.detach(), recipe.workers))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done, seconds = step + 1, time.time() - started
        if done % 25 == 0 or done == recipe.steps:
            curve.append([done, round(float(np.mean(losses[-25:])), 4)])
        if rank == 0 and (seconds - reported > 10 or done == recipe.steps):
            reported, speed = seconds, done * recipe.workers * recipe.batch * recipe.length / seconds
            say(
                f"step {done}/{recipe.steps}  loss {np.mean(losses[-50:]):.4f}  {speed:,.0f} tokens/s  "
                f"{seconds:.0f} s, {seconds / done * (recipe.steps - done):.0f} s left"
            )
    if rank == 0:
        model.to(torch.bfloat16).save_pretrained(out)
        result = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "curve": curve,
            "loss": held_loss(model, rows[-recipe.held_rows :]),
            "tokens_per_second": round(speed),
        }
        (Path(scratch) / "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def _average(model, loss, workers: int) -> float:
    """Gradients (in place) and the loss, averaged over the workers."""
    import torch
    import torch.distributed as dist

    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([loss.reshape(1), *(g.reshape(-1) for g in grads)])
    dist.all_reduce(flat)
    flat /= workers
    for grad, part in zip(grads, flat[1:].split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
    return float(flat[0])


def held_loss(model, rows) -> float:
    """The loss on packed rows that were not trained on, in nats a token."""
    import numpy as np
    import torch

    model.eval()
    with torch.no_grad():
        parts = [
            float(loss_of(model, torch.from_numpy(rows[i : i + 16].astype(np.int64))))
            for i in range(0, len(rows), 16)
        ]
    return round(float(np.mean(parts)), 4)
