"""The engine contract: text in, text out, and scores of texts. Everything else sees a model through it alone.

One example of the pipeline is one coroutine that awaits an engine; the engine batches what is waiting. What a
prompt yields depends on the prompt, the sampling and its seed, never on which other prompts share its batch
(as far as rounding allows: models/local_engine.py says how far).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cai.core.errors import UserError
from cai.core.ledger import Usage
from cai.models.registry import ModelSpec
from cai.prompts.markers import stop_strings

EOS = "<eos>"  # what ended a text that ended by its own end token


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; stop strings are cut off the text."""

    temperature: float = 0.7
    max_tokens: int = 500
    stop: tuple[str, ...] = ()


def sampling(spec: ModelSpec, purpose: str, *, bare: bool = False) -> Sampling:
    """How a text of a purpose ("instruction", "answer", "critique", "revision", "judge") is drawn. bare: an
    answer in the training format, without exemplars."""
    tokens = {
        "instruction": spec.instruction_tokens,
        "answer": spec.answer_tokens,
        "critique": spec.critique_tokens,
        "revision": spec.answer_tokens,
        "judge": spec.critique_tokens,
    }
    stops = stop_strings(purpose, shots=spec.shots, instruct=spec.kind == "instruct", bare=bare)
    return Sampling(getattr(spec, f"{purpose}_temperature"), tokens[purpose], stops)


@dataclass(frozen=True)
class Completion:
    """tokens: generated ones, the end's included. finish_reason: "stop", "length" (cut off at max_tokens) or
    "too_long" (prompt and max_tokens exceed the context: nothing was generated). ended_by: EOS or the stop
    string that was met."""

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


class TooLong(UserError):
    """Prompt and continuation do not fit the model's context."""


def must_fit(spec: ModelSpec, tokens: int) -> None:
    if tokens > spec.max_seq_length:
        raise TooLong(
            f"prompt and continuation have {tokens} tokens, "
            f"the context of {spec.name} is {spec.max_seq_length}: shorten them"
        )


def single_tokens(options: Sequence[str], coded: Sequence[Sequence[int]]) -> list[int]:
    assert all(len(option) == 1 for option in coded), f"not single tokens: {options} are {coded}"
    return [option[0] for option in coded]


def check_scored(spec: ModelSpec, head: Sequence[int], tail: Sequence[int], continuation: str) -> None:
    """Raises UserError: nothing to score, or nothing before it; TooLong."""
    if not head or not tail:
        raise UserError(
            f"logprobs needs a prompt and a continuation of at least one token, got {continuation[:40]!r}"
        )
    must_fit(spec, len(head) + len(tail))


class ChatTemplate(Protocol):
    """special_tokens: the longest first; in a text that is data each has to be broken up. system: the message
    that the template adds where none is given, None if it adds none."""

    special_tokens: Sequence[str]
    system: str | None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str: ...


class Engine(Protocol):
    """name: its kind: "local", "vllm" (a server that we start), "server" (somebody else's). spec: of the base
    model. revision, bits: of its weights. precision: theirs, in words. caveat: what it cannot promise, None
    where a text depends on prompt, sampling and seed alone. adapters: name -> hash of those that may be
    asked for; None asks the base model. capacity: how many examples to have in flight. end_of_text: what
    ends a text in training. chat: an instruct model's template, None for a base model. usage: what its
    requests took, by the step that they were charged to (core.ledger)."""

    name: str
    spec: ModelSpec
    revision: str | None
    bits: int
    precision: str
    caveat: str | None
    device: str
    adapters: Mapping[str, str]
    capacity: int
    end_of_text: str
    chat: ChatTemplate | None
    usage: dict[str, Usage]

    async def complete(
        self, prompt: str, sampling: Sampling, seed: int, adapter: str | None = None
    ) -> Completion: ...

    async def choose(
        self, prompt: str, options: Sequence[str], adapter: str | None = None
    ) -> dict[str, float]:
        """The log-probability (nats) of each option, a single token, as the next word: one pass. Raises
        TooLong."""

    async def logprobs(self, prompt: str, continuation: str, adapter: str | None = None) -> Score:
        """Both texts are tokenized on their own, as in training. Raises TooLong."""

    def load_adapter(self, path: Path, name: str) -> None:
        """Makes a saved adapter available by name. Raises UserError: missing, damaged, of another base."""

    def release(self) -> None:
        """Gives this machine's GPU memory back, as far as a training needs it; the next request takes it
        again."""


def together(requests: Iterable[Awaitable[Any]]) -> list[Any]:
    """Runs requests side by side from code that is not asynchronous; their results in order."""

    async def gathered() -> list[Any]:
        return await asyncio.gather(*requests)

    return asyncio.run(gathered())


def complete_all(
    engine: Engine,
    prompts: Sequence[str],
    sampling: Sampling,
    seeds: Sequence[int],
    adapter: str | None = None,
) -> list[Completion]:
    return together(engine.complete(p, sampling, s, adapter) for p, s in zip(prompts, seeds, strict=True))


def logprobs_all(
    engine: Engine, prompts: Sequence[str], continuations: Sequence[str], adapter: str | None = None
) -> list[Score]:
    return together(engine.logprobs(p, c, adapter) for p, c in zip(prompts, continuations, strict=True))
