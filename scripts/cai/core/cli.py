"""Flags and exit statuses of every script: one concept, one name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from cai.core.errors import BudgetReached, UserError, explain_os_error

GO, BAD_INPUT, NO_GO, BUDGET, INTERRUPTED = 0, 2, 3, 4, 130  # exit statuses of every script


def cli(main: Callable[[], int | None]) -> None:
    """Runs a script's main: its status is the exit status, a user's error is a sentence and not a
    traceback."""
    try:
        sys.exit(main() or GO)
    except UserError as error:
        sys.exit(_complain(str(error)))
    except BudgetReached as stop:
        print(f"budget: {stop}", file=sys.stderr, flush=True)
        sys.exit(BUDGET)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing finished is lost, the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has seen enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except OSError as error:
        sentence = explain_os_error(error)
        if sentence is None:
            raise
        sys.exit(_complain(sentence))


def _complain(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return BAD_INPUT


# ---- flags: one concept, one name, in every script ----

COMMON_FLAGS: dict[str, dict[str, Any]] = {
    "run": dict(help="the run's name: data/<run>/, checkpoints/<run>/, logs/<run>.log"),
    "model": dict(
        default="auto",
        help="sandbox, a name of the registry, a hub id or a directory; auto: Qwen/Qwen2.5-32B "
        "on a CUDA GPU, sandbox elsewhere",
    ),
    "bits": dict(
        type=int, default=None, help="load the weights in 4, 8 or 16 bits (default: the model's own)"
    ),
    "seed": dict(type=int, default=0, help="every random choice derives from this and from the row's own id"),
    "limit": dict(type=int, default=None, help="how many examples"),
    "constitution": dict(default="constitution.yaml", help="the principles, a YAML file"),
    "hourly-rate": dict(
        type=float, default=None, help="dollars per hour of this machine (default: 1.74 with a GPU, else 0)"
    ),
    "fresh": dict(action="store_true", help="move an earlier run of this name aside and start anew"),
    "force": dict(action="store_true", help="go on although an earlier gate said NO-GO"),
}


def parser(doc: str, *common: str, **defaults: Any) -> argparse.ArgumentParser:
    """An argument parser with a script's docstring as its help and the common flags named."""
    p = argparse.ArgumentParser(
        description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in common:
        p.add_argument(f"--{name}", **COMMON_FLAGS[name])
    p.set_defaults(**defaults)
    return p
