"""How fast the parts are, measured in one run; each by its name, with flags of its own (engine --help).

    python scripts/benchmark.py engine       # batches against one prompt at a time, of the default model
    python scripts/benchmark.py engine --model sandbox --bits 4 --limit 256 --batch-sizes 1 16 64 128
    python scripts/benchmark.py loop         # the loop against the engine alone, and one example at a time
    python scripts/benchmark.py server       # the loop before a simulated server against requests at one go
    python scripts/benchmark.py dedup        # near duplicates among 50,000 texts: index against every pair
    python scripts/benchmark.py dedup --limit 5000
    python scripts/benchmark.py gpu          # the 32B's shape, random weights: nothing of it is downloaded
    python scripts/benchmark.py gpu --only train vllm

engine has two workloads, as the pipeline has them: lists of instructions, which run to their limit, and
answers, which stop early, so that a batch waits for its longest row. It prints generated tokens/s for each
batch size, the ratio to the first one, and how many texts are the same as there. loop runs examples with as
many in flight as the engine has room for, then the engine on the very same requests, each sort at one go:
what is lost is the loop's. server does the same before servers that take a GPU's time and compute nothing
(preflight/simulated_server.py), REPEATS times. dedup compares every pair for a sample of the texts only, by
the same rapidfuzz routine, and reckons the time of the whole from that; both must find the same near
duplicates. Its seconds are those of one core at work, so that what else runs on the machine counts little.

gpu writes checkpoints of random weights to --scratch (19 GB, and 65 GB for the server) and removes them: how
long they load, what memory they take, tokens/s of each engine and precision against what the memory's
bandwidth lets through, the time to a first token with and without a cached prefix, time and memory of DPO
steps by length and batch. It keeps each figure at once, and a rerun measures what is missing; it ends with
tables for specs/gpu.md. Without a GPU the same runs at a tiny size, to show that it does.

Writes logs/benchmark-<name>.json.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path
from typing import Any

from cai.core.cli import cli, parser
from cai.core.errors import UserError
from cai.core.files import directories, display_path, write_json

# Of the benchmark server. So few rows that the client's own work hides behind a server's steps on two cores.
SERVERS, ROWS, REPEATS = 1, 16, 3
CPU_PARAMETERS = 1e8  # the largest shape that is worth a CPU's time
SAMPLE = 300  # texts that are compared with every text before them


def main() -> None:
    flags = parser(__doc__)
    names = flags.add_subparsers(dest="what", metavar=" | ".join(BENCHMARKS), required=True)
    own = {}
    for name, (_, common, defaults) in BENCHMARKS.items():
        shared = parser("", *common, "seed", **defaults)
        own[name] = names.add_parser(name, parents=[shared], add_help=False, allow_abbrev=False)
    gpu_flags(own["gpu"])
    args = flags.parse_args()
    BENCHMARKS[args.what][0](args)


def engine(args: argparse.Namespace) -> None:
    from cai.models.engines import engine_of
    from cai.preflight.benchmarks import batch_rates, workloads

    model = load_model(args)
    engine = engine_of(model)
    found = {"model": model.spec.name, "bits": model.bits, "device": engine.device}
    for name, prompts, sampling in workloads(engine, args.limit):
        print(f"{name}\n  batch   rows   tokens  seconds  tokens/s  ratio  same text")
        found[name] = []
        for row in batch_rates(model, prompts, sampling, args.batch_sizes, args.seed):
            found[name].append(row)
            counts = f"{row['batch']:>7} {row['rows']:>6} {row['tokens']:>8} {row['seconds']:>8.2f}"
            rate = f"{row['tokens_per_second']:>9.0f} {row['ratio']:>6.1f}"
            print(f"{counts} {rate}  {row['same_text']} of {row['compared']}", flush=True)
    save("engine", found)


def loop(args: argparse.Namespace) -> None:
    from cai.models.engines import engine_of
    from cai.preflight.benchmarks import loop_rates

    engine = engine_of(load_model(args))
    found = loop_rates(engine, args.limit, args.seed)
    print(
        f"{found['examples']} examples, {found['requests']} requests, {found['in_flight']} in flight, "
        f"batches of up to {found['max_batch']}\n"
        f"loop: {found['loop_seconds']} s; the engine on the same requests: {found['engine_seconds']} s; "
        f"one example at a time: {found['one_at_a_time_seconds']} s, "
        f"reckoned from {found['one_at_a_time_examples']}\n"
        f"speed of the loop / of the engine: {found['loop_to_engine']:.2f}; "
        f"/ of one at a time: {found['loop_to_one_at_a_time']:.1f}"
    )
    save("loop", {"model": engine.spec.name, "bits": engine.bits, "device": engine.device, **found})


def server(args: argparse.Namespace) -> None:
    from cai.preflight.benchmarks import server_rates

    found = []
    for row in itertools.islice(server_rates(args.limit, args.seed, SERVERS, ROWS), REPEATS):
        found.append(row)
        print(
            f"{row['examples']} examples, {row['requests']} requests, {row['in_flight']} in flight: "
            f"loop {row['loop_seconds']} s, the same requests at one go {row['flat_seconds']} s: "
            f"ratio {row['ratio']:.3f}",
            flush=True,
        )
    ratios = [row["ratio"] for row in found]
    print(f"ratio: {min(ratios):.3f} to {max(ratios):.3f} in {REPEATS} runs")
    save("server", {"servers": SERVERS, "rows": ROWS, "runs": found})


def dedup(args: argparse.Namespace) -> None:
    if args.limit < 100:
        raise UserError(f"--limit {args.limit}: must be at least 100")

    from cai.core.prompt_files import load_seeds
    from cai.generation.dedup import ROUGE_L
    from cai.preflight.benchmarks import compare_pairs, index_texts, synthetic_texts

    seeds = [s.instruction for s in load_seeds(Path("data/prompts/seeds.jsonl"))]
    texts = synthetic_texts(seeds, args.limit, random.Random(args.seed))
    words = sum(len(t.split()) for t in texts) / len(texts)
    print(f"{len(texts)} texts, {words:.1f} words each", flush=True)

    near, seconds = index_texts(texts)
    kept = near.count(None)
    print(
        f"index: {seconds:.1f} s, {len(texts) / seconds:.0f} texts/s; "
        f"{kept} kept, {len(texts) - kept} near duplicates (ROUGE-L >= {ROUGE_L})",
        flush=True,
    )
    sample = sorted(random.Random(args.seed).sample(range(len(texts)), min(SAMPLE, len(texts))))
    pairs = compare_pairs(texts, near, sample)
    differ = sum(pairs.found[i] != near[i] for i in sample)
    print(
        f"every pair: {pairs.per_second / 1e6:.2f} million pairs/s over {len(sample)} texts; "
        f"all {pairs.all / 1e6:.0f} million pairs would take {pairs.seconds:.0f} s\n"
        f"ratio: {pairs.seconds / seconds:.0f}; different findings: {differ} of {len(sample)}"
    )
    result = {"texts": len(texts), "kept": kept, "seconds": round(seconds, 2)}
    result |= {"texts_per_second": round(len(texts) / seconds, 1)}
    result |= {"every_pair_seconds": round(pairs.seconds, 1), "ratio": round(pairs.seconds / seconds, 1)}
    save("dedup", result | {"sample": len(sample), "different": differ})
    if differ:
        raise UserError(f"the index and the comparison of every pair disagree on {differ} texts: a defect")


def gpu_flags(flags: argparse.ArgumentParser) -> None:
    from cai.preflight.gpu_figures import SECTIONS, SHAPE, TINY

    flags.add_argument("--shape", help=f"of which model (default: {SHAPE} with a GPU, else {TINY})")
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure")
    flags.add_argument("--scratch", help="where random checkpoints go (checkpoints/benchmark)")
    flags.add_argument("--fresh", action="store_true", help="measure anew what is measured already")


def gpu(args: argparse.Namespace) -> None:
    from cai.models.device import this_device
    from cai.preflight.gpu_figures import SHAPE, SMALL, TINY, WHOLE, GpuFigures
    from cai.preflight.gpu_table import markdown
    from cai.preflight.random_weights import shape_of

    here = this_device() != "cpu"
    shape = args.shape or (SHAPE if here else TINY)
    if not here and shape_of(shape).parameters > CPU_PARAMETERS:
        raise UserError(f"--shape {shape}: no GPU here; rent one, or leave the flag out for a tiny shape")
    path, scratch = result_of("gpu"), Path(args.scratch or directories("benchmark")[1])
    figures = GpuFigures(shape, WHOLE if here else SMALL, path, scratch, seed=args.seed, fresh=args.fresh)
    figures.measure(args.only)
    print(f"\n{markdown(figures.facts)}\n\nwrote {display_path(path)}")


# name: (what it does, common flags that it has beside --seed, their defaults)
BENCHMARKS = {
    "engine": (
        engine,
        ("model", "bits", "threads", "limit", "batch-sizes"),
        {"limit": 128, "batch_sizes": [1, 4, 16, 64, 128]},
    ),
    "loop": (loop, ("model", "bits", "threads", "limit"), {"limit": 600}),
    "server": (server, ("limit",), {"limit": 128}),
    "dedup": (dedup, ("limit",), {"limit": 50_000}),
    "gpu": (gpu, ("threads",), {}),
}


def load_model(args: argparse.Namespace):
    from cai.models.loader import load
    from cai.models.registry import choose

    spec, why = choose(args.model)
    print(f"model: {spec.name} - {why}", flush=True)
    model = load(spec, args.bits)
    print(f"       {model.describe()}", flush=True)
    return model


def result_of(name: str) -> Path:
    return directories("benchmark")[2] / f"benchmark-{name}.json"


def save(name: str, result: dict[str, Any]) -> None:
    path = result_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"wrote {display_path(path)}")


if __name__ == "__main__":
    cli(main)
