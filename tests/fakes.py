"""An engine that answers from a script, so that what asks engines can be tested without a model."""

from __future__ import annotations

from cai.models.engine import Completion, Sampling, Score
from cai.models.registry import REGISTRY
from cai.prompts.markers import END_OF_TEXT


class FakeEngine:
    """answers: prompt -> text. Remembers what it was asked: `asked` to complete, `scored` as continuations
    and options. A fake with another taste overrides write, likelihood or preference."""

    name, revision, bits, device, capacity, end_of_text, chat = "fake", "r", 16, "cpu", 64, END_OF_TEXT, None

    def __init__(self, answers=None, finish="stop", spec=REGISTRY["sandbox"], adapters=None):
        self.answers, self.finish, self.spec = answers, finish, spec
        self.adapters, self.usage = dict(adapters or {}), {}
        self.asked: list[tuple[str, Sampling, int, str | None]] = []
        self.scored: list[tuple[str, str, str | None]] = []

    async def complete(self, prompt, sampling, seed, adapter=None):
        self.asked.append((prompt, sampling, seed, adapter))
        text = self.write(prompt, adapter)
        return Completion(text, len(text.split()), len(prompt.split()), self.finish, "<eos>")

    async def choose(self, prompt, options, adapter=None):
        self.scored += [(prompt, option, adapter) for option in options]
        return {option: self.preference(prompt, option, adapter) for option in options}

    async def logprobs(self, prompt, continuation, adapter=None):
        self.scored.append((prompt, continuation, adapter))
        total = self.likelihood(prompt, continuation, adapter)
        return Score(total, (total / 2, total / 2))

    def load_adapter(self, path, name):
        self.adapters[name] = path.name

    def write(self, prompt, adapter):
        return self.answers(prompt)

    def likelihood(self, prompt, continuation, adapter):
        """The log-probability of a continuation: the longer, the less likely."""
        return -float(len(continuation))

    def preference(self, prompt, option, adapter):
        """The log-probability of a single word as the next one."""
        return self.likelihood(prompt, option, adapter)
