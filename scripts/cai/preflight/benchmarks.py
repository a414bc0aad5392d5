"""What scripts/benchmark.py measures: the engine by batch size; the loop against the engine, and before
simulated servers; near duplicates by index and by every pair."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.files import ROOT
from cai.core.prompt_files import load_seeds
from cai.core.schema import row_seed
from cai.generation import self_instruct
from cai.generation.dedup import ROUGE_L, Deduper, character, words
from cai.generation.example import Example
from cai.generation.loop import Loop
from cai.generation.records import as_finished
from cai.models.engine import Engine, Sampling, complete_all, sampling, together
from cai.models.engines import engine_of
from cai.models.model import Model
from cai.models.registry import REGISTRY
from cai.models.server_engine import FixedServers, ServerEngine
from cai.models.session import prompter_of
from cai.preflight.simulated_server import SimulatedServer
from cai.prompts.constitution import load as load_constitution

# ---- the engine ----

FEW = 48  # rows that a small batch size is measured on: it is slow, and its rate needs no more


def workloads(engine: Engine, limit: int) -> list[tuple[str, list[str], Sampling]]:
    """(name, prompts, sampling) of the pipeline's two kinds of generation."""
    spec, prompter = engine.spec, prompter_of(engine)
    seeds = [s.instruction for s in load_seeds(Path(spec.seeds))]
    rolls = [itertools.islice(itertools.cycle(seeds), i, None) for i in range(spec.list_shots)]
    lists = [prompter.instructions(some) for some in itertools.islice(zip(*rolls, strict=False), limit)]
    answers = [prompter.answer(s) for s in itertools.islice(itertools.cycle(seeds), limit)]
    return [
        ("lists", lists, sampling(spec, "instruction")),
        ("answers", answers, sampling(spec, "answer")),
    ]


def batch_rates(
    model: Model, prompts: Sequence[str], drawn: Sampling, sizes: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each batch size: tokens a second, the ratio to the first, and how many texts are as there."""
    seeds = [row_seed(seed, str(i), "benchmark") for i in range(len(prompts))]
    complete_all(engine_of(model, max_batch=8), prompts[:8], drawn, seeds[:8])  # sets things up
    first, texts = 0.0, []
    for size in sizes:
        count = min(len(prompts), max(FEW, size))
        engine = engine_of(model, max_batch=size)
        start = time.perf_counter()
        done = complete_all(engine, prompts[:count], drawn, seeds[:count])
        seconds = time.perf_counter() - start
        tokens = sum(c.tokens for c in done)
        rate = round(tokens / seconds, 1)
        first, texts = first or rate, texts or [c.text for c in done]
        yield {
            "batch": size,
            "rows": count,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": rate,
            "same_text": sum(a == c.text for a, c in zip(texts, done, strict=False)),
            "compared": min(len(texts), count),
            "ratio": round(rate / first, 2),
        }


# ---- the loop ----

ALONE = 40  # examples that one at a time is measured on


class Recorder:
    """An engine that remembers what it was asked, by what can share a batch."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.asked: dict[tuple, list[tuple]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def complete(self, prompt, drawn, seed, adapter=None):
        self.asked.setdefault(("complete", drawn, adapter), []).append((prompt, drawn, seed, adapter))
        return await self._engine.complete(prompt, drawn, seed, adapter)

    async def choose(self, prompt, options, adapter=None):
        self.asked.setdefault(("choose", adapter), []).append((prompt, options, adapter))
        return await self._engine.choose(prompt, options, adapter)


def run_loop(engine: Engine, texts: Sequence[str], seed: int, at_once: int) -> float:
    """Seconds that these instructions take through the loop, so many at a time."""
    loop = Loop(engine, prompter_of(engine), load_constitution(ROOT / "constitution.yaml"), seed)

    async def work() -> None:
        async for _ in as_finished(loop.align, map(Example, texts), at_once):
            pass

    start = time.perf_counter()
    together([work()])
    return time.perf_counter() - start


def loop_rates(engine: Engine, limit: int, seed: int) -> dict[str, Any]:
    """The loop with everything in flight, the engine alone on the very same requests, and one example at a
    time. Ratios are of examples (and so of tokens) a second."""
    seeds = load_seeds(Path(engine.spec.seeds))
    made = self_instruct.self_instruct(engine, prompter_of(engine), seeds, want=limit, seed=seed)
    texts = [row["instruction"] for row in made.rows]
    recorder = Recorder(engine)
    run_loop(engine, texts[:8], seed, 8)  # sets things up
    in_loop = run_loop(recorder, texts, seed, engine.capacity)
    start = time.perf_counter()
    for (kind, *_), requests in recorder.asked.items():
        together(getattr(engine, kind)(*request) for request in requests)
    raw = time.perf_counter() - start
    some = texts[:ALONE]
    alone = run_loop(engine, some, seed, 1) / len(some) * len(texts)
    return {
        "examples": len(texts),
        "requests": sum(map(len, recorder.asked.values())),
        "in_flight": engine.capacity,
        "max_batch": engine.spec.max_batch,
        "loop_seconds": round(in_loop, 2),
        "engine_seconds": round(raw, 2),
        "one_at_a_time_seconds": round(alone, 2),
        "one_at_a_time_examples": len(some),
        "loop_to_engine": round(raw / in_loop, 3),
        "loop_to_one_at_a_time": round(alone / in_loop, 2),
    }


# ---- the loop before servers ----


def server_rates(limit: int, seed: int, servers: int, rows: int) -> Iterator[dict[str, Any]]:
    """Again and again: the loop before simulated servers, and the very same requests fired at once, both with
    so many rows on each server. ratio: of examples a second."""
    from transformers import AutoTokenizer

    spec = REGISTRY["sandbox"]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / spec.repo)
    seeds = [s.instruction for s in load_seeds(Path(spec.seeds))]
    texts = [f"{seeds[i % len(seeds)]} ({i})" for i in range(limit)]
    words = sorted({word for text in seeds for word in text.split() if word.isalpha()})
    own = {"bits": 8, "precision": "none", "revision": None, "device": "simulated", "rows": rows}
    with contextlib.ExitStack() as stack:
        there = [SimulatedServer(spec.repo, tokenizer, words) for _ in range(servers)]
        urls = [stack.enter_context(server).url for server in there]
        engine = ServerEngine(spec, FixedServers(urls), tokenizer, **own)
        run_loop(engine, texts[: 2 * servers], seed, 2 * servers)  # checks them
        while True:
            recorder = Recorder(engine)
            in_loop = run_loop(recorder, texts, seed, engine.capacity)
            asked = [(kind, r) for (kind, *_), group in recorder.asked.items() for r in group]
            start = time.perf_counter()
            together(getattr(engine, kind)(*request) for kind, request in asked)
            flat = time.perf_counter() - start
            yield {
                "examples": len(texts),
                "requests": len(asked),
                "in_flight": engine.capacity,
                "loop_seconds": round(in_loop, 2),
                "flat_seconds": round(flat, 2),
                "ratio": round(flat / in_loop, 3),
            }


# ---- near duplicates ----

VOCABULARY = 30_000
COPIES = 0.1  # share of texts that are changed copies
REPLACED = (0.3, 0.9)  # share of a seed's words that are replaced, drawn for each text


def synthetic_texts(seeds: list[str], count: int, rng: random.Random) -> list[str]:
    """Seed instructions, most of whose words are replaced by words of a large vocabulary with the frequencies
    of natural language (Zipf); some texts are copies of an earlier one with a word or two changed."""
    vocabulary = [f"w{i}" for i in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(VOCABULARY)))
    drawn = iter(())
    texts: list[str] = []
    while len(texts) < count:
        copy = bool(texts) and rng.random() < COPIES
        said = (rng.choice(texts) if copy else rng.choice(seeds)).split()
        share = 1.5 / len(said) if copy else rng.uniform(*REPLACED)
        for i in range(len(said)):
            if rng.random() < share:
                word = next(drawn, None)
                if word is None:
                    drawn = iter(rng.choices(vocabulary, cum_weights=weights, k=100_000))
                    word = next(drawn)
                said[i] = word
        texts.append(" ".join(said))
    return texts


def index_texts(texts: Sequence[str]) -> tuple[list[str | None], float]:
    """(for each text the one before it that it is near to, seconds of the processor)."""
    deduper = Deduper()
    start = time.process_time()
    near = [deduper.add(text) for text in texts]
    return near, time.process_time() - start


@dataclass(frozen=True)
class PairComparison:
    """found: text number -> the first kept text before it that it is near to. all: the pairs that comparing
    every text would take; seconds: what they would take at per_second."""

    found: dict[int, str | None]
    per_second: float
    all: int

    @property
    def seconds(self) -> float:
        return self.all / self.per_second


def compare_pairs(texts: Sequence[str], near: Sequence[str | None], sample: Sequence[int]) -> PairComparison:
    """Compares each text of the sample with every kept text before it. near: as index_texts gives it."""
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    kept = [i for i, found in enumerate(near) if found is None]
    start = time.process_time()
    numbers: dict[str, int] = {}
    coded = ["".join(character(numbers.setdefault(w, len(numbers))) for w in words(t)) for t in texts]
    earlier_texts = [coded[i] for i in kept]
    lengths = np.array([len(c) for c in earlier_texts])
    found, pairs = {}, 0
    for i in sample:
        before = bisect.bisect_left(kept, i)
        earlier = earlier_texts[:before]
        [distances] = process.cdist([coded[i]], earlier, scorer=Indel.distance, dtype=np.int32)
        whole = lengths[:before] + len(coded[i])
        hits = np.flatnonzero(100 * (whole - distances) >= round(100 * ROUGE_L) * whole)
        found[i] = texts[kept[hits[0]]] if len(hits) else None
        pairs += before
    spent = time.process_time() - start
    every = sum(bisect.bisect_left(kept, i) for i in range(len(texts)))
    return PairComparison(found, pairs / spent, every)
