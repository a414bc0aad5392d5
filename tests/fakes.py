"""An engine that answers from a script, so that the loop can be tested without a model."""

from __future__ import annotations

from cai.models.engine import Completion, Sampling, Score
from cai.models.registry import REGISTRY


class FakeEngine:
    """answers: prompt -> text. likely: (prompt, text) -> log-probability. Remembers what it was asked."""

    name, revision, bits, device, end_of_text, chat = "fake", "r", 16, "cpu", "<|endoftext|>", None

    def __init__(self, answers, finish="stop", spec=REGISTRY["sandbox"], likely=None, adapters=()):
        self.answers, self.finish, self.spec = answers, finish, spec
        self.likely = likely or (lambda prompt, text: -float(len(text)))
        self.adapters = {name: f"hash of {name}" for name in adapters}
        self.capacity, self.usage = 8, {}
        self.asked: list[tuple[str, Sampling, int, str | None]] = []

    async def complete(self, prompt, sampling, seed, adapter=None):
        self.asked.append((prompt, sampling, seed, adapter))
        text = self.answers(prompt)
        return Completion(text, len(text.split()), len(prompt.split()), self.finish, "<eos>")

    async def choose(self, prompt, options, adapter=None):
        return {option: self.likely(prompt, option) for option in options}

    async def logprobs(self, prompt, continuation, adapter=None):
        found = self.likely(prompt, continuation)
        return Score(found, (found,))
