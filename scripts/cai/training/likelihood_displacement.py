"""What DPO does to the likelihood of the chosen texts: what the pairs tell of it before training, and a watch
during it.

DPO raises chosen over rejected, and is free to do so by lowering both. That is likely where the two texts are
nearly the same: their tokens share most of their gradients, so what is pushed down in one falls in the other
(Pal et al. 2024, arXiv:2402.13228, by edit distance; Razin et al. 2024, arXiv:2410.08847, by hidden states).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.prompts.training_format import training_pair

NEAR = 0.75  # edit similarity from which on chosen and rejected count as nearly the same text
MANY_NEAR = 0.5  # share of such pairs that makes the forecast "likely"
LONG_RATIO = 1.5  # chosen texts this much longer than rejected ones (or shorter) teach length itself
WARN_FALL = 0.1  # nats a token: the chosen texts' perplexity has risen by 11 %
STOP_FALL = 0.5  # nats a token: by 65 %
FEW = 8  # fewer held-out pairs stop nothing along the way: a mean over so few moves by chance
STOPPED_EARLY, DISPLACED = "stopped early", "displaced"
WAY_OUT = "Lower --lr, raise --beta, or use --loss dpo+nll"


@dataclass(frozen=True)
class PairStatistics:
    """Lengths in tokens, end token included. similarity: mean of 1 - edit distance / longer length, over
    tokens; near: share of pairs at NEAR or above; over_length: pairs longer than max_length; longest: of
    those that are not."""

    pairs: int
    prompt: float
    chosen: float
    rejected: float
    ratio: float
    p95: int
    max_length: int
    over_length: int
    longest: int
    similarity: float
    near: float

    def lines(self) -> list[str]:
        """What they tell, in sentences; warnings are marked by "!"."""
        found = [
            f"tokens: prompt {self.prompt:.0f}, chosen {self.chosen:.0f}, rejected {self.rejected:.0f} "
            f"on average (ratio {self.ratio:.2f}); "
            f"95 % of the pairs take at most {self.p95} of {self.max_length}",
            f"likeness of chosen and rejected: {self.similarity:.2f} on average, "
            f"{self.near:.0%} of the pairs at {NEAR} or more",
        ]
        if self.over_length:
            found.append(
                f"! {self.over_length} of {self.pairs} pairs are longer than {self.max_length} tokens: "
                "left out"
            )
        if not 1 / LONG_RATIO <= self.ratio <= LONG_RATIO:
            more = "longer" if self.ratio > 1 else "shorter"
            found.append(
                f"! chosen texts are much {more} than rejected ones: the model will learn to be {more}"
            )
        if self.near >= MANY_NEAR:
            found.append(
                "! chosen log-probabilities may fall: half of the pairs or more are nearly the same text; "
                "the loss dpo+nll holds them up"
            )
        return found


def pair_statistics(
    tokenizer: Any, pairs: Sequence[Mapping[str, Any]], max_length: int
) -> tuple[PairStatistics, list[bool]]:
    """Those of some pairs (at least one), and for each pair whether it fits into max_length."""
    from rapidfuzz.distance import Levenshtein

    rows = [
        {key: tokenizer(text, add_special_tokens=False)["input_ids"] for key, text in pair.items()}
        for pair in map(training_pair, pairs)
    ]
    chosen, rejected = ([len(row[side]) + 1 for row in rows] for side in ("chosen", "rejected"))
    whole = [len(row["prompt"]) + max(c, r) for row, c, r in zip(rows, chosen, rejected, strict=True)]
    like = [Levenshtein.normalized_similarity(row["chosen"], row["rejected"]) for row in rows]
    fits = [length <= max_length for length in whole]
    n = len(rows)
    found = PairStatistics(
        pairs=n,
        prompt=sum(len(row["prompt"]) for row in rows) / n,
        chosen=sum(chosen) / n,
        rejected=sum(rejected) / n,
        ratio=sum(chosen) / sum(rejected),
        p95=sorted(whole)[math.ceil(0.95 * n) - 1],
        max_length=max_length,
        over_length=n - sum(fits),
        longest=max((length for length, fit in zip(whole, fits, strict=True) if fit), default=0),
        similarity=sum(like) / n,
        near=sum(x >= NEAR for x in like) / n,
    )
    return found, fits


@dataclass
class Watch:
    """Looks at each held-out measurement: warns, or stops the training. patience: measurements without a
    lower held-out loss after which it stops early (0: never). stopped: why training has to stop, None while
    it goes on."""

    patience: int
    stop_fall: float = STOP_FALL
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    stopped: str | None = None

    def see_trained(self, step: int, fall: float) -> str | None:
        """As `see`, where too few pairs are held out: fall is that of the chosen texts trained on."""
        if fall <= self.stop_fall:
            return None
        self.stopped = DISPLACED
        return self._stops(f"!!! step {step}: {lost('train', fall)}")

    def see(self, step: int, n: int, loss: float, fall: float) -> str | None:
        """What to print, or None. n: held-out pairs; fall: of the chosen texts, nats a token since step 0."""
        if loss < self.best:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1
        said = f"!!! step {step}: {lost('held_out', fall)}"
        if n >= FEW and fall > self.stop_fall:
            self.stopped = DISPLACED
            return self._stops(said)
        if n >= FEW and self.patience and self.waited >= self.patience:
            self.stopped = STOPPED_EARLY
            return (
                f"step {step}: {self.waited} measurements without a lower held-out loss: "
                f"training stops early, the checkpoint of step {self.best_step} is kept"
            )
        if fall > WARN_FALL:
            return f"{said} since step 0 ({'stops' if n >= FEW else 'displaced'} above {self.stop_fall})"
        return None

    def _stops(self, said: str) -> str:
        return f"{said} (limit {self.stop_fall}): training stops, the last good checkpoint is kept. {WAY_OUT}"


def displaced(after: Mapping[str, Mapping[str, float]], stop_fall: float) -> str | None:
    """What a whole training has done to the chosen texts, in a sentence, if it is too much, however few they
    are: to the held-out ones, or to those trained on where none is held out. after: {"train" | "held_out":
    Preference}."""
    name = "held_out" if "held_out" in after else "train"
    fall, n = after[name]["fall"], after[name]["n"]
    return f"{lost(name, fall)} (n {n}, limit {stop_fall})" if fall > stop_fall else None


def lost(name: str, fall: float) -> str:
    which = {"held_out": "the held-out chosen texts", "train": "the chosen texts that are trained on"}[name]
    return f"{which} have lost {fall:.2f} nats a token"
