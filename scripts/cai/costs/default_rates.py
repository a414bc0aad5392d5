"""What a forecast takes where nothing has been measured yet: one table for each kind of machine, with its
reasons."""

from __future__ import annotations

from dataclasses import dataclass

CPU_BILLIONS = 3.2  # parameters of the largest model that anybody would run on a CPU
A100 = "one A100 80GB"  # what a larger one is forecast for where there is no GPU and it has run nowhere
ALONE = 13  # times its share of a full batch that a row by itself takes: 15 tokens a second for 200
REVISIONS_AN_EXAMPLE = 0.3  # revision pairs, for --pairs; the sandbox yields as many
PAIRS_AN_EXAMPLE = 0.8  # to train on, revisions and anchors; assumed, on the high side, until measured


@dataclass(frozen=True)
class Assumed:
    """What a forecast takes where nothing was measured. tokens: step -> (read, generated) a unit; seconds:
    step -> seconds a unit, where tokens are not what counts; read, generate: tokens a second in full batches;
    checkpoint: bytes of an adapter with its tokenizer; record: bytes that an example takes in data/<run>/."""

    basis: str
    parameters: float
    read: float
    generate: float
    tokens: dict[str, tuple[float, float]]
    seconds: dict[str, float]
    checkpoint: float
    record: float


# Four exemplars make each prompt about 700 tokens longer than its text; answers of 250 tokens and critiques
# of 150 are half of the registry's longest. NF4 on an A100 is expected to read 1,500 and to generate 200
# tokens a second in batches of 32. A comparison is two orders, each with a reason of 60 tokens, read once
# more for the letter. An evaluation is M2's: some 500 answers, 260 comparisons and 150 critiques.
LARGE = Assumed(
    "Qwen2.5-32B in NF4 on one A100",
    32.76,
    1500,
    200,
    {
        "instructions": (60, 40),
        "answer": (700, 250),
        "critique": (1000, 150),
        "revision": (1000, 250),
        "judge": (2700, 120),
        "guard": (1800, 15),
    },
    {"loading": 180, "training": 25, "evaluation": 1500},
    1.1e9,
    12_000,
)

# Tokens are those of 64 sandbox examples; speeds are those of two free CPU cores, a busy machine is several
# times slower; 60 DPO steps of 8 pairs took 9 s.
SMALL = Assumed(
    "the sandbox on two free CPU cores",
    0.004,
    20_000,
    2_000,
    {
        "instructions": (30, 30),
        "answer": (24, 9),
        "critique": (52, 27),
        "revision": (60, 9),
        "judge": (150, 40),
        "guard": (120, 40),
    },
    {"loading": 8, "training": 0.15, "evaluation": 60},
    6e6,
    6_000,
)
