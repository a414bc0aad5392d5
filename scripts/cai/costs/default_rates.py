"""What a forecast takes where nothing has been measured yet: texts, machines and what is paid once, each with
its reason. Nothing here has been seen on a GPU; `scripts/benchmark.py gpu` measures it, and any run replaces
it.

Limits, for Qwen2.5-32B (32.76 billion parameters, 0.26 MB of cache a token): a token costs 65.5 GFLOP, so an
A100 (312 TFLOPS in bfloat16) reads at most 4,760 tokens a second. To generate, all weights and every row's
cache pass through memory at each step: bytes of a step / bandwidth is the least that a step takes, and it
gives each row in flight one token."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

CPU_BILLIONS = 3.2  # parameters of the largest model that anybody would run on a CPU
ALONE = 20  # times its share of a full batch that a row by itself takes: 15 tokens a second for 300
REVISIONS_AN_EXAMPLE = 0.3  # revision pairs, for --pairs; the sandbox yields as many
PAIRS_AN_EXAMPLE = 0.8  # to train on, revisions and anchors; assumed, on the high side, until measured
CHECKPOINT, CHECKPOINT_OF = 1.1e9, 32.76  # bytes of an adapter with its tokenizer, for so many billions

# What is paid once a machine: a hub that sends 50 MB a second, and pip for vLLM's packages.
SECONDS_A_DOWNLOADED_GB = 20.0
SECONDS_OF_INSTALLING = 300.0

# Dollars of the specification, to be read beside a forecast.
SPECIFICATION = {"M0": "0.87", "M1": "1.74", "M2": "5.22", "a stage": "10 to 14", "all": "50 to 150"}


class Tokens(NamedTuple):
    """Of a unit. shared: of those read, what a server has in its prefix cache from earlier requests."""

    read: float
    shared: float
    generated: float


@dataclass(frozen=True)
class Texts:
    """tokens: step -> those of a unit; record: bytes that an example takes in data/<run>/."""

    tokens: Mapping[str, Tokens]
    record: float


# Lengths of the prompts' characters, 4.4 to a token, with four exemplars; answers of 250 tokens and critiques
# of 150 are half of the registry's longest. Every prompt of a purpose begins with the same exemplars, and a
# revision's goes on from its critique's: a server has read that. A comparison is two orders, each with a
# reason of 60 tokens, and the whole read once more for the letter. An evaluation is M2's: some 500 answers,
# 260 comparisons and 150 critiques.
LARGE_TEXTS = Texts(
    {
        "instructions": Tokens(60, 0, 40),
        "answer": Tokens(290, 270, 250),
        "critique": Tokens(1170, 850, 150),
        "revision": Tokens(1350, 1170, 250),
        "judge": Tokens(4600, 3380, 120),
        "guard": Tokens(1800, 0, 15),
        "evaluation": Tokens(1_520_000, 1_140_000, 180_000),
    },
    12_000,
)
# Those of 64 sandbox examples, which need no exemplars.
SMALL_TEXTS = Texts(
    {
        "instructions": Tokens(30, 0, 30),
        "answer": Tokens(24, 0, 9),
        "critique": Tokens(52, 0, 27),
        "revision": Tokens(60, 40, 9),
        "judge": Tokens(150, 75, 40),
        "guard": Tokens(120, 0, 40),
        "evaluation": Tokens(60_000, 20_000, 20_000),
    },
    6_000,
)


class Speed(NamedTuple):
    """Tokens a second in full batches, and why."""

    read: float
    generate: float
    why: str


@dataclass(frozen=True)
class Machine:
    """What is assumed of a machine, for a model of so many billions of parameters; others are scaled.

    known_by: what its GPU's name holds. speeds: (engine, bits) -> speed. training: bits -> seconds of a step
    of 8 pairs. seconds: step -> seconds a unit, where tokens are not what counts. memory_gb: of 10^9
    bytes. bandwidth: GB a second."""

    name: str
    known_by: tuple[str, ...]
    model: str
    parameters: float
    memory_gb: float
    bandwidth: float
    speeds: Mapping[tuple[str, int], Speed]
    training: Mapping[int, float]
    seconds: Mapping[str, float]
    about: str

    @property
    def basis(self) -> str:
        return f"{self.model} on {self.name}"


LOADED = {"loading": 180.0}  # 20 GB from a disk of 0.2 GB/s, and Unsloth's import
BIG = ("Qwen2.5-32B", 32.76)

A100 = Machine(
    "one A100 80GB",
    ("A100",),
    *BIG,
    85.9,
    2039,
    {
        ("local", 4): Speed(
            1500,
            300,
            "from 5 rows on every layer is unpacked to 16 bits for each token: 140 GB a step, 14 steps/s, "
            "900 tokens/s for 64 rows; half of the slots wait for the batch's longest row, and batches are "
            "not always full",
        ),
        ("local", 8): Speed(1500, 200, "LLM.int8 splits every product in two; otherwise as NF4"),
        ("local", 16): Speed(2000, 200, "65 GB of weights leave room for 25 rows; half of the slots wait"),
        ("vllm", 8): Speed(
            2400,
            1500,
            "33 GB of weights and 21 GB of cache a step for 64 rows: 37 steps/s, 2,400 tokens/s at most; "
            "prompts come in between. Reading: half of what the chip computes",
        ),
        ("vllm", 16): Speed(2400, 500, "65 GB a step, 27 steps/s; room for 25 rows: 680 tokens/s at most"),
        ("vllm", 4): Speed(
            2000, 500, "bitsandbytes unpacks every layer at each step, as in the local engine"
        ),
    },
    # 5,000 tokens of 8 pairs, read by the reference, forward, again for the checkpoints, and back: 8 FLOP a
    # parameter and token, 1.3 PFLOP, at 40 % of the chip 11 s; NF4 is unpacked four times a batch, and
    # LLM.int8 is half as fast.
    {4: 15.0, 8: 25.0, 16: 12.0},
    LOADED,
    "312 TFLOPS; the 32B generates in every precision, and trains in 4 and 8 bits",
)
A100_40 = Machine(
    "one A100 40GB",
    ("A100", "40GB"),
    *BIG,
    42.9,
    1555,
    {
        ("local", 4): Speed(1500, 230, "three quarters of the bandwidth"),
        ("local", 8): Speed(1500, 150, "of smaller models: 38 GB of the 32B leave no room"),
        ("local", 16): Speed(2000, 150, "of smaller models: up to 14B"),
        ("vllm", 8): Speed(2400, 1100, "of smaller models: 33 GB of the 32B leave no room for a cache"),
        ("vllm", 16): Speed(2400, 380, "of smaller models: up to 14B"),
        ("vllm", 4): Speed(2000, 350, "12 GB of cache, 40 rows"),
    },
    {4: 15.0, 8: 25.0, 16: 12.0},
    LOADED,
    "an A100 80GB's chip, three quarters of its bandwidth; trains the 32B in NF4 with nothing to spare",
)
RTX_4090 = Machine(
    "one RTX 4090 (24 GB)",
    ("4090",),
    *BIG,
    25.8,
    1008,
    {
        ("local", 4): Speed(750, 150, "half of an A100's bandwidth and chip; the 32B has room for 6 rows"),
        ("local", 8): Speed(750, 100, "of smaller models: up to 14B"),
        ("local", 16): Speed(1000, 100, "of smaller models: up to 7B"),
        ("vllm", 8): Speed(1200, 750, "of smaller models: up to 14B"),
        ("vllm", 16): Speed(1200, 250, "of smaller models: up to 7B"),
        ("vllm", 4): Speed(1000, 250, "of smaller models: up to 14B"),
    },
    {4: 28.0, 8: 47.0, 16: 23.0},
    LOADED,
    "165 TFLOPS; no training of the 32B (33 GB): take the 14B in NF4, or the 7B",
)
# 60 DPO steps of 8 pairs took 9 s. A busy machine is several times slower.
ON_CPU = {("local", bits): Speed(20_000, 2_000, "seen on two free cores, in batches") for bits in (4, 8, 16)}
CPU = Machine(
    "two free CPU cores",
    (),
    "the sandbox",
    0.004,
    0,
    20,
    ON_CPU,
    dict.fromkeys((4, 8, 16), 0.15),
    {"loading": 8.0, "evaluation": 60.0},
    "float32",
)
MACBOOK = Machine(
    "an M2 MacBook's CPU",
    (),
    "the sandbox",
    0.004,
    0,
    100,
    {where: x._replace(why="as two cores of a server: nobody has tried") for where, x in ON_CPU.items()},
    CPU.training,
    CPU.seconds,
    "Unsloth and bitsandbytes know no Metal, so its GPU does nothing: the sandbox, and models of up to "
    "1.5B in float32 (6 GB a step: at most 16 steps/s)",
)
GPUS = (A100_40, RTX_4090, A100)  # the first that knows a name; what none knows is taken for the last
MACHINES = (A100, A100_40, RTX_4090, MACBOOK, CPU)


def machine_of(device: str, platform: str = sys.platform) -> Machine:
    """What is assumed of a device, named as models.device.this_device() names it."""
    if device == "cpu":
        return MACBOOK if platform == "darwin" else CPU
    return next((m for m in GPUS if all(part in device for part in m.known_by)), A100)


def known(device: str) -> bool:
    """Whether the machine is in the table, and not taken for an A100."""
    return device == "cpu" or any(all(part in device for part in m.known_by) for m in GPUS)
