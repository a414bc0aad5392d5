"""An engine that answers from a script, so that what asks engines can be tested without a model."""

from __future__ import annotations

import asyncio

from cai.core.ledger import STEP, Usage
from cai.models.engine import Completion, Sampling, Score
from cai.models.registry import REGISTRY
from cai.prompts.markers import END_OF_TEXT


class FakeEngine:
    """answers: prompt -> text. Remembers what it was asked: `asked` to complete, `scored` as continuations
    and options. A fake with another taste overrides write, likelihood or preference. patience: seed -> how
    many rounds of the event loop a text takes. Each request is charged as a second."""

    name, revision, bits, device, end_of_text, chat = "fake", "r", 16, "cpu", END_OF_TEXT, None
    precision, caveat = "float32", None

    def __init__(
        self,
        answers=None,
        finish="stop",
        spec=REGISTRY["sandbox"],
        adapters=None,
        capacity=64,
        patience=lambda seed: 0,
    ):
        self.answers, self.finish, self.spec = answers, finish, spec
        self.adapters, self.usage = dict(adapters or {}), {}
        self.capacity, self.patience = capacity, patience
        self.asked: list[tuple[str, Sampling, int, str | None]] = []
        self.scored: list[tuple[str, str, str | None]] = []

    async def complete(self, prompt, sampling, seed, adapter=None):
        self.asked.append((prompt, sampling, seed, adapter))
        for _ in range(self.patience(seed)):
            await asyncio.sleep(0)
        text = self.write(prompt, adapter)
        self._charge(prompt, text)
        return Completion(text, len(text.split()), len(prompt.split()), self.finish, "<eos>")

    async def choose(self, prompt, options, adapter=None):
        self.scored += [(prompt, option, adapter) for option in options]
        self._charge(prompt)
        return {option: self.preference(prompt, option, adapter) for option in options}

    async def logprobs(self, prompt, continuation, adapter=None):
        self.scored.append((prompt, continuation, adapter))
        self._charge(prompt + continuation)
        total = self.likelihood(prompt, continuation, adapter)
        return Score(total, (total / 2, total / 2))

    def load_adapter(self, path, name):
        self.adapters[name] = path.name

    def release(self):
        pass

    def write(self, prompt, adapter):
        return self.answers(prompt)

    def likelihood(self, prompt, continuation, adapter):
        """The log-probability of a continuation: the longer, the less likely."""
        return -float(len(continuation))

    def preference(self, prompt, option, adapter):
        """The log-probability of a single word as the next one."""
        return self.likelihood(prompt, option, adapter)

    def _charge(self, read, written=""):
        used = self.usage.setdefault(STEP.get(), Usage())
        used.seconds += 1.0
        used.prompt_tokens += len(read.split())
        used.completion_tokens += len(written.split())
