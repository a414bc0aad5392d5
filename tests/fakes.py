"""An engine that answers from a script, so that the loop can be tested without a model."""

from __future__ import annotations

import asyncio

from cai.core.ledger import STEP, Usage
from cai.models.engine import Completion, Sampling, Score
from cai.models.registry import REGISTRY


class FakeEngine:
    """answers: prompt -> text. likely: (prompt, text) -> log-probability. patience: seed -> how many rounds
    of the event loop an answer takes. Remembers what it was asked; each request counts as a second."""

    name, revision, bits, device, end_of_text, chat = "fake", "r", 16, "cpu", "<|endoftext|>", None

    def __init__(
        self,
        answers,
        finish="stop",
        spec=REGISTRY["sandbox"],
        likely=None,
        adapters=(),
        capacity=8,
        patience=lambda seed: 0,
    ):
        self.answers, self.finish, self.spec, self.patience = answers, finish, spec, patience
        self.likely = likely or (lambda prompt, text: -float(len(text)))
        self.adapters = {name: f"hash of {name}" for name in adapters}
        self.capacity, self.usage = capacity, {}
        self.asked: list[tuple[str, Sampling, int, str | None]] = []

    async def complete(self, prompt, sampling, seed, adapter=None):
        self.asked.append((prompt, sampling, seed, adapter))
        for _ in range(self.patience(seed)):
            await asyncio.sleep(0)
        text = self.answers(prompt)
        done = Completion(text, len(text.split()), len(prompt.split()), self.finish, "<eos>")
        self._charge(done.prompt_tokens, done.tokens)
        return done

    async def choose(self, prompt, options, adapter=None):
        self._charge(len(prompt.split()), 0)
        return {option: self.likely(prompt, option) for option in options}

    async def logprobs(self, prompt, continuation, adapter=None):
        found = self.likely(prompt, continuation)
        return Score(found, (found,))

    def _charge(self, read, written):
        used = self.usage.setdefault(STEP.get(), Usage())
        used.seconds, used.prompt_tokens = used.seconds + 1.0, used.prompt_tokens + read
        used.completion_tokens += written
