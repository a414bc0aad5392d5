"""An engine that answers from a script, so that the loop can be tested without a model."""

from __future__ import annotations

from cai.models.engine import Completion, Sampling, Score


class FakeEngine:
    """answers: prompt -> text. Remembers what it was asked."""

    def __init__(self, answers, finish="stop"):
        self.answers, self.finish = answers, finish
        self.asked: list[tuple[str, Sampling, int, str | None]] = []

    def complete(self, prompts, sampling, seeds, adapter=None):
        self.asked += [(p, sampling, s, adapter) for p, s in zip(prompts, seeds, strict=True)]
        texts = [self.answers(p) for p in prompts]
        return [
            Completion(t, len(t.split()), len(p.split()), self.finish, "<eos>")
            for t, p in zip(texts, prompts, strict=True)
        ]

    def logprobs(self, prompts, continuations, adapter=None):
        return [Score(-float(len(c)), (-float(len(c)),)) for c in continuations]
