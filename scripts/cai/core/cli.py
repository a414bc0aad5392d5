"""Flags and exit statuses of every script: one concept, one name, one check. What a flag's value must be is
said here; a script only names its flags and their defaults."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cai.core.errors import BudgetReached, UserError, explain_os_error
from cai.core.files import check_output
from cai.core.terminal import guard, say
from cai.core.text import is_broken, one_line

GO, BAD_INPUT, NO_GO, BUDGET, UNDECIDED, INTERRUPTED = 0, 2, 3, 4, 5, 130  # exit statuses of every script
# Signals often come in groups: what the first one has begun is not broken off by the next.
GROUP_SECONDS = 2.0
DOLLARS_PER_HOUR = 1.74  # an A100 80GB on RunPod's community cloud, as the specification has it


class Stopped(KeyboardInterrupt):
    """A signal that ends a run as Ctrl-C does: steps are billed, locks and half files put away."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def cli(main: Callable[[], int | None]) -> None:
    """Runs a script's main: its status is the exit status, a user's error is a sentence and not a
    traceback, and no terminal stops it."""
    guard()
    try:
        with _ended_by_signals():
            status = main() or GO
    except UserError as error:
        status = _complain(str(error))
    except BudgetReached as stop:
        say(f"budget: {stop}", error=True)
        status = BUDGET
    except KeyboardInterrupt as stop:
        why = str(stop) or "interrupted"
        say(f"\n{why}: nothing finished is lost, the same command resumes", error=True)
        status = getattr(stop, "status", INTERRUPTED)
    except OSError as error:
        sentence = explain_os_error(error)
        if sentence is None:
            raise
        status = _complain(sentence)
    sys.exit(status)


def _complain(sentence: str) -> int:
    say(f"error: {one_line(sentence)}", error=True)
    return BAD_INPUT


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM (Slurm, a spot machine that is taken back) and SIGHUP (a connection that drops) end like
    Ctrl-C. Where one is ignored, as SIGHUP under nohup, it stays so."""
    came = -math.inf

    def stop(number: int, frame: object) -> None:
        nonlocal came
        before, came = came, time.monotonic()
        if came - before > GROUP_SECONDS:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # to a loop its broken task is an error
            raise Stopped(number)

    main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGHUP) if main_thread else ()
    taken = [number for number in signals if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL if came < 0 else signal.SIG_IGN)


# ---- flags ----


@dataclass(frozen=True)
class Flag:
    """about: argparse's own. right: whether a given value can be; says: the sentence if it cannot."""

    help: str
    about: Mapping[str, Any] = field(default_factory=dict)
    right: Callable[[Any], bool] = lambda value: True
    says: str = ""


def _whole(text: str) -> int:
    """A whole number, and none that arithmetic with fractions could not hold."""
    try:
        number = int(text)
    except ValueError:
        several = "; several stand with spaces between" if "," in text else ""
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number{several}") from None
    if abs(number) > sys.maxsize:
        raise argparse.ArgumentTypeError(f"{text[:20]}... is too large")
    return number


MOST = 1_000_000  # examples, steps, instructions to try: more is a slip of the hand
MOST_LORA_R, MOST_LEARNING_RATE, MOST_BETA = 1024, 1.0, 1000.0
MOST_ROWS = 4096  # in a batch
LONGEST_NAME = 100  # of a run: files and directories are called after it, with something before and behind
SEEDS = range(2**32)  # those of torch and numpy


def is_engine(text: str) -> bool:
    """Whether --engine can be this: argv is recorded, so a URL with a password in it cannot."""
    url = r"https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?/?|https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?/?"
    return text in ("local", "vllm", "auto") or all(re.fullmatch(url, part) for part in text.split(","))


WHOLE, NUMBER, SWITCH = {"type": _whole}, {"type": float}, {"action": "store_true"}
NUMBERS = WHOLE | {"nargs": "+", "metavar": "N"}
FLAGS: dict[str, Flag] = {
    # what is run
    "run": Flag("the run's name: data/<run>/, checkpoints/<run>/, logs/<run>.log"),
    "model": Flag(
        "sandbox, a name of the registry, a hub id or a directory; auto: Qwen/Qwen2.5-32B on a CUDA GPU, "
        "sandbox elsewhere",
        {"default": "auto"},
    ),
    "bits": Flag(
        "load the weights in 4, 8 or 16 bits (default: the model's own)",
        WHOLE,
        lambda n: n in (4, 8, 16),
        "choose 4, 8 or 16",
    ),
    "engine": Flag(
        "local: the weights in this process; vllm: a server that is started on this GPU; auto: which of "
        "these the forecast finds cheaper; or the URLs of servers that run already, with commas between",
        {"default": "auto"},
        is_engine,
        "local, vllm, auto, or http(s)://host[:port] without a user's name, with commas between several",
    ),
    "engine-bits": Flag(
        "precision of a server's weights: 16, 8 (FP8) or 4 (default: what fits the GPU; 16 for URLs)",
        WHOLE,
        lambda n: n in (4, 8, 16),
        "choose 4, 8 or 16",
    ),
    "deterministic": Flag(
        "a server that is started here gives the same texts whatever else it is asked beside them; slower",
        SWITCH,
    ),
    "threads": Flag(
        "threads that a CPU computes with, as OMP_NUM_THREADS (default: as many as there are free cores)",
        WHOLE,
        lambda n: 1 <= n <= (os.cpu_count() or 1),
        f"must be from 1 to the {os.cpu_count() or 1} cores of this machine",
    ),
    "instruct": Flag("use the model's chat template", SWITCH),
    "set": Flag(
        "change a value of the model's entry in the registry: lengths, temperatures, training",
        {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"},
    ),
    "seed": Flag(
        "every random choice derives from this and from the row's own id",
        WHOLE | {"default": 0},
        lambda n: n in SEEDS,
        "must be from 0 to 2**32 - 1",
    ),
    "seeds": Flag(
        "the whole plan once for each",
        NUMBERS | {"default": [0]},
        lambda some: all(n in SEEDS for n in some) and len(set(some)) == len(some),
        "different numbers from 0 on are needed, up to 2**32 - 1",
    ),
    "constitution": Flag("the principles, a YAML file", {"default": "constitution.yaml"}),
    "fresh": Flag("move an earlier run of this name aside and start anew", SWITCH),
    "force": Flag("go on although an earlier gate did not say GO", SWITCH),
    "after": Flag("the run of the milestone before, whose gate is read"),
    # data
    "limit": Flag(
        "how many examples (with --pairs: at most)",
        WHOLE,
        lambda n: 1 <= n <= MOST,
        f"at least one example is needed, and {MOST:,} are the most",
    ),
    "pairs": Flag(
        "generate until there are so many revision pairs to train on",
        WHOLE,
        lambda n: 1 <= n <= MOST,
        f"at least one pair is needed, and {MOST:,} are the most",
    ),
    "held-out-pairs": Flag(
        "generate until there are so many revision pairs to measure with, too (default: 20)",
        WHOLE,
        lambda n: 1 <= n <= MOST,
        f"at least one pair is needed, and {MOST:,} are the most",
    ),
    "source": Flag("prompts from a file or dataset, instead of generating them"),
    "principles": Flag(
        "principles that an answer is critiqued by", WHOLE, lambda n: n >= 1, "must be at least 1"
    ),
    "anchors": Flag(
        "anchor pairs for each revision pair",
        NUMBER,
        lambda x: 0 <= x <= 4,
        "a share from 0 (none) to 4 (four for each revision pair)",
    ),
    "held-out": Flag(
        "share of examples kept for evaluation",
        NUMBER,
        lambda x: 0 < x <= 0.5,
        "a share above 0, and at most 0.5",
    ),
    "no-judge": Flag("keep revisions that no judge has compared", SWITCH),
    "guard": Flag("guard model: auto, none, or a model's name"),
    # training
    "loss": Flag("the loss to train with (default: the model's in the registry)"),
    "steps": Flag(
        "DPO steps",
        WHOLE,
        lambda n: 1 <= n <= MOST,
        f"at least one step is needed, and {MOST:,} are the most",
    ),
    "epochs": Flag(
        "passes over the pairs, instead of --steps",
        NUMBER,
        lambda x: 0 < x <= 1000,
        "must be above 0, and at most 1000",
    ),
    "lr": Flag(
        "learning rate (default: the model's in the registry)",
        NUMBER,
        lambda x: 0 < x <= MOST_LEARNING_RATE,
        f"must be above 0, and at most {MOST_LEARNING_RATE:g}",
    ),
    "beta": Flag(
        "DPO's beta, ORPO's lambda (default: the model's in the registry)",
        NUMBER,
        lambda x: 0 < x <= MOST_BETA,
        f"must be above 0, and at most {MOST_BETA:g}",
    ),
    "lora-r": Flag(
        "LoRA rank; alpha keeps its ratio (default: the model's in the registry)",
        WHOLE,
        lambda n: 1 <= n <= MOST_LORA_R,
        f"must be at least 1, and at most {MOST_LORA_R}",
    ),
    # cost
    "forecast": Flag("print what it will take, and do nothing", SWITCH),
    "budget": Flag(
        "dollars that the run may cost; it stops before passing them",
        NUMBER,
        lambda x: 0 < x < math.inf,
        "give dollars above 0, or leave the flag out",
    ),
    "hourly-rate": Flag(
        f"dollars per hour of this machine (default: {DOLLARS_PER_HOUR} with a GPU, else 0)",
        NUMBER,
        lambda x: 0 <= x < math.inf,
        "give dollars of at least 0",
    ),
    # measurement
    "batch-sizes": Flag(
        "rows that are generated at once",
        NUMBERS,
        lambda some: all(1 <= n <= MOST_ROWS for n in some),
        f"numbers from 1 to {MOST_ROWS} are needed",
    ),
}
RUNS = {"run": "--run", "after": "--after", "data": "--data", "start": "--from"}  # what names a run


# What every milestone that generates can be told.
GENERATING = (
    *("run", "model", "bits", "engine", "engine-bits", "deterministic", "threads", "set", "seed"),
    *("constitution", "limit", "pairs", "source"),
    *("principles", "anchors", "held-out", "no-judge", "after"),
    *("forecast", "budget", "hourly-rate", "fresh", "force"),
)


class Parser(argparse.ArgumentParser):
    """Checks the common flags' values, as UserErrors, right after it has parsed them."""

    def error(self, message: str) -> NoReturn:
        """What argparse does not understand, in a sentence and without the usage's many lines."""
        sys.exit(_complain(f"{message}; --help shows all flags"))

    def parse_args(self, *args: Any, **more: Any) -> argparse.Namespace:
        found = super().parse_args(*args, **more)
        for text in sys.argv:  # a run's manifest records them
            if is_broken(text):
                raise UserError(f"{text[:200]!r} is not in this terminal's encoding: give texts in UTF-8")
        for name, value in vars(found).items():
            if isinstance(value, str) and not value.strip():
                flag = RUNS.get(name, f"--{name.replace('_', '-')}")
                raise UserError(f"{flag} is empty: give a value, or leave the flag out")
        for name, flag in FLAGS.items():
            value = getattr(found, name.replace("-", "_"), None)
            if value is not None and not flag.right(value):
                said = " ".join(map(str, value)) if isinstance(value, list) else value
                raise UserError(f"--{name} {said}: {flag.says}")
        for name, flag in RUNS.items():
            if (value := getattr(found, name, None)) is not None:
                check_name(value, flag)
        if threads := getattr(found, "threads", None):
            os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is loaded, and for child processes
        works = "model" in vars(found) and not getattr(found, "forecast", False)
        if note := check_output(writable=works):
            say(f"note: {note}", error=True)
        return found


def check_name(name: str, flag: str = "--run") -> None:
    """Raises UserError for what cannot be a run's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", name):
        raise UserError(
            f"{flag} {name[:200]!r}: use letters, digits, '.', '_' and '-' "
            "(and one '/' between a plan and its stage)"
        )
    if any(part.lower().endswith(".part") for part in name.split("/")):
        raise UserError(f"{flag} {name[:200]!r}: files in the making end like this; choose another name")
    if max(map(len, name.split("/"))) > LONGEST_NAME:
        raise UserError(
            f"{flag} {name[:20]}...: a name has at most {LONGEST_NAME} letters; choose a shorter one"
        )
    if name.lower().split("/")[0] in ("constitutions", "prompts"):  # some file systems take A for a
        raise UserError(f"{flag} {name[:200]!r}: data/{name} holds committed inputs; choose another name")


def parser(
    doc: str,
    *names: str,
    choices: Mapping[str, Sequence[str] | Mapping[str, Any]] | None = None,
    **defaults: Any,
) -> Parser:
    """A parser with a script's docstring as its help and the named flags of FLAGS. choices: what a flag can
    be, where a registry says so; entries that have `says` are explained in the help."""
    p = Parser(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        entries = (choices or {}).get(name)
        own = {"choices": entries} if entries else {}
        says = [f"{e}: {entries[e].says}" for e in entries] if isinstance(entries, Mapping) else []
        p.add_argument(f"--{name}", help="; ".join([FLAGS[name].help, *says]), **FLAGS[name].about, **own)
    p.set_defaults(**defaults)
    return p


def is_given(flag: str) -> bool:
    """Whether a flag stands on the command line, rather than being its default."""
    name = "--" + flag.replace("_", "-")
    return any(a == name or a.startswith(f"{name}=") for a in sys.argv[1:])
