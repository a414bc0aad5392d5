"""How fast near duplicates are found: the index against comparing every pair, measured in one run.

    python scripts/benchmark_dedupe.py                    # 50,000 texts
    python scripts/benchmark_dedupe.py --limit 5000

The texts are made from the seed instructions: most of a seed's words are replaced by words of a large
vocabulary with the frequencies of natural language (Zipf), and some texts are copies of an earlier one with a
word or two changed. Every pair is compared for a sample of the texts only, by the same rapidfuzz routine, and
the time of the whole is reckoned from that. Both must find the same near duplicates. Seconds are those of one
core at work, so that what else runs on the machine counts little. Writes logs/benchmark-dedupe.json.
"""

from __future__ import annotations

import bisect
import itertools
import random
import time
from pathlib import Path

from cai.core.cli import cli, parser
from cai.core.errors import UserError
from cai.core.files import directories, display_path, write_json

SAMPLE = 300  # texts that are compared with every text before them
VOCABULARY = 30_000
COPIES = 0.1  # share of texts that are changed copies
REPLACED = (0.3, 0.9)  # share of a seed's words that are replaced, drawn for each text


def main() -> None:
    flags = parser(__doc__, "seed", "limit", limit=50_000)
    args = flags.parse_args()
    if args.limit < 100:
        raise UserError(f"--limit {args.limit}: must be at least 100")

    from cai.core.prompt_files import load_seeds
    from cai.generation.dedup import ROUGE_L, Deduper

    seeds = [s.instruction for s in load_seeds(Path("data/prompts/seeds.jsonl"))]
    texts = make(seeds, args.limit, random.Random(args.seed))
    print(f"{len(texts)} texts, {sum(len(t.split()) for t in texts) / len(texts):.1f} words each", flush=True)

    deduper, near = Deduper(), []
    start = time.process_time()
    for text in texts:
        near.append(deduper.add(text))
    seconds = time.process_time() - start
    print(
        f"index: {seconds:.1f} s, {len(texts) / seconds:.0f} texts/s; "
        f"{len(deduper)} kept, {len(texts) - len(deduper)} near duplicates (ROUGE-L >= {ROUGE_L})",
        flush=True,
    )

    kept = [i for i, found in enumerate(near) if found is None]
    sample = sorted(random.Random(args.seed).sample(range(len(texts)), min(SAMPLE, len(texts))))
    start = time.process_time()
    found, pairs = every_pair(texts, kept, sample)
    spent = time.process_time() - start
    differ = sum(found[i] != near[i] for i in sample)
    all_pairs = sum(bisect.bisect_left(kept, i) for i in range(len(texts)))
    brute = spent * all_pairs / pairs
    print(
        f"every pair: {pairs / spent / 1e6:.2f} million pairs/s over {len(sample)} texts; "
        f"all {all_pairs / 1e6:.0f} million pairs would take {brute:.0f} s"
    )
    print(f"ratio: {brute / seconds:.0f}; different findings: {differ} of {len(sample)}")
    result = {"texts": len(texts), "kept": len(kept), "seconds": round(seconds, 2)}
    result |= {"texts_per_second": round(len(texts) / seconds, 1), "every_pair_seconds": round(brute, 1)}
    result |= {"ratio": round(brute / seconds, 1), "sample": len(sample), "different": differ}
    path = directories("benchmark")[2] / "benchmark-dedupe.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"wrote {display_path(path)}")
    if differ:
        raise UserError(f"the index and the comparison of every pair disagree on {differ} texts: a defect")


def make(seeds: list[str], count: int, rng: random.Random) -> list[str]:
    """Machine-like instructions; see the top of this file."""
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


def every_pair(texts: list[str], kept: list[int], sample: list[int]) -> tuple[dict[int, str | None], int]:
    """For each text of the sample the first kept text before it that it is near to; and the pairs
    compared."""
    import numpy as np
    from cai.generation.dedup import ROUGE_L, character, words
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    numbers: dict[str, int] = {}
    coded = ["".join(character(numbers.setdefault(w, len(numbers))) for w in words(t)) for t in texts]
    earlier_texts = [coded[i] for i in kept]
    lengths = np.array([len(c) for c in earlier_texts])
    found, pairs = {}, 0
    for i in sample:
        before = bisect.bisect_left(kept, i)
        distances = process.cdist([coded[i]], earlier_texts[:before], scorer=Indel.distance, dtype=np.int32)[
            0
        ]
        whole = lengths[:before] + len(coded[i])
        near = np.flatnonzero(100 * (whole - distances) >= round(100 * ROUGE_L) * whole)
        found[i] = texts[kept[near[0]]] if len(near) else None
        pairs += before
    return found, pairs


if __name__ == "__main__":
    cli(main)
