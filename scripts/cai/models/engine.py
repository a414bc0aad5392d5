"""The engine contract: text in, text out, scores of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; stop strings are cut off the text."""

    temperature: float = 0.7
    max_tokens: int = 500
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Completion:
    """tokens: generated ones, the end's included. finish_reason: "stop", "length" (cut off at max_tokens) or
    "too_long" (prompt and max_tokens exceed the context: nothing was generated). ended_by: "<eos>" or the
    stop string that was met."""

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: str
    ended_by: str | None = None


@dataclass(frozen=True)
class Score:
    """Log-probability (nats) of a continuation after its prompt: its tokens', and their sum."""

    total: float
    tokens: tuple[float, ...]


class Engine(Protocol):
    def complete(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int], adapter: str | None = None
    ) -> list[Completion]: ...

    def logprobs(
        self, prompts: Sequence[str], continuations: Sequence[str], adapter: str | None = None
    ) -> list[Score]: ...
