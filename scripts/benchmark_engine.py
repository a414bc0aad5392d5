"""How much faster the in-process engine is in batches than with one prompt at a time, measured in one run.

    python scripts/benchmark_engine.py                       # the sandbox, or the GPU's default model
    python scripts/benchmark_engine.py --model sandbox --bits 4 --limit 256 --batch-sizes 1 16 64 128

Two workloads, as the pipeline has them: lists of instructions, which run to their limit, and answers, which
stop early, so that a batch waits for its longest row. Prints generated tokens/s for each batch size, the
ratio to batch size 1, and how many texts are the same as there; writes logs/benchmark-engine.json.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from cai.core.cli import cli, parser
from cai.core.errors import UserError
from cai.core.files import directories, display_path, write_json

FEW = 48  # rows that a small batch size is measured on: it is slow, and its rate needs no more


def main() -> None:
    flags = parser(__doc__, "model", "bits", "seed", "limit", limit=128)
    flags.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64, 128], help="rows at once")
    args = flags.parse_args()
    if min(args.batch_sizes) < 1 or args.limit < 1:
        raise UserError("--batch-sizes and --limit must be at least 1")

    from cai.core.prompt_files import load_seeds
    from cai.core.schema import row_seed
    from cai.models.engine import Sampling
    from cai.models.loader import load
    from cai.models.local_engine import LocalEngine
    from cai.models.registry import choose
    from cai.models.session import chat_renderer, device_name
    from cai.prompts.markers import STOPS
    from cai.prompts.templates import Prompter

    spec, why = choose(args.model)
    print(f"model: {spec.name} - {why}", flush=True)
    model = load(spec, args.bits)
    print(f"       {model.describe()}")
    prompter = Prompter(spec.shots, spec.requests, spec.list_shots, chat_renderer(model))
    seeds = [s.instruction for s in load_seeds(Path(spec.seeds))]
    rolls = [itertools.islice(itertools.cycle(seeds), i, None) for i in range(spec.list_shots)]
    lists = [prompter.instructions(some) for some in itertools.islice(zip(*rolls, strict=False), args.limit)]
    answers = [prompter.answer(s) for s in itertools.islice(itertools.cycle(seeds), args.limit)]
    row_seeds = [row_seed(args.seed, str(i), "benchmark") for i in range(args.limit)]
    found = {"model": spec.name, "bits": model.bits, "device": device_name(model)}
    for name, prompts, sampling in (
        ("lists", lists, Sampling(0.7, spec.instruction_tokens)),
        ("answers", answers, Sampling(0.7, spec.answer_tokens, STOPS["answer"])),
    ):
        print(
            f"{name}\n{'batch':>7} {'rows':>6} {'tokens':>8} {'seconds':>8} {'tokens/s':>9} {'ratio':>6}  "
            "same text"
        )
        LocalEngine(model, max_batch=8).complete(prompts[:8], sampling, row_seeds[:8])  # sets things up
        rows, texts = [], []
        for size in args.batch_sizes:
            count = min(len(prompts), max(FEW, size))
            engine = LocalEngine(model, max_batch=size)
            start = time.perf_counter()
            done = engine.complete(prompts[:count], sampling, row_seeds[:count])
            seconds = time.perf_counter() - start
            rate = sum(c.tokens for c in done) / seconds
            texts = texts or [c.text for c in done]
            same = sum(a == c.text for a, c in zip(texts, done, strict=False))
            row = {
                "batch": size,
                "rows": count,
                "tokens": sum(c.tokens for c in done),
                "seconds": round(seconds, 3),
            }
            row |= {
                "tokens_per_second": round(rate, 1),
                "same_text": same,
                "compared": min(len(texts), count),
            }
            rows.append(row | {"ratio": round(rate / (rows[0]["tokens_per_second"] if rows else rate), 2)})
            numbers = f"{size:>7} {count:>6} {row['tokens']:>8} {seconds:>8.2f} {rate:>9.0f}"
            print(f"{numbers} {rows[-1]['ratio']:>6.1f}  {same} of {row['compared']}", flush=True)
        found[name] = rows
    path = directories("benchmark")[2] / "benchmark-engine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(f"wrote {display_path(path)}")


if __name__ == "__main__":
    cli(main)
