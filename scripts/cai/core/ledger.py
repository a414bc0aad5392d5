"""logs/ledger.jsonl: what every step of every run took. Forecasts take their rates from it.

A step that has the machine to itself is timed by the clock (Run.step). Steps that run side by side, as those
of many examples in the loop do, are told apart by the engine, which charges each batch to the step that asked
for it (`charged_to`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from cai.core import jsonl
from cai.core.files import directories

TEXT = (str, type(None))
LEDGER_KEYS = {"run": str, "step": str, "seconds": (int, float), "dollars": (int, float), "engine?": TEXT}
STEP: ContextVar[str] = ContextVar("step", default="other")


@dataclass
class Usage:
    """Seconds of an engine at work, tokens read and generated."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@contextlib.contextmanager
def charged_to(step: str) -> Iterator[None]:
    """What is asked of an engine within is this step's."""
    token = STEP.set(step)
    try:
        yield
    finally:
        STEP.reset(token)


def read_ledger() -> list[dict[str, Any]]:
    return jsonl.read(directories("x")[2] / "ledger.jsonl", LEDGER_KEYS)
