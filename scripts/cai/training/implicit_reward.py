"""How a model prefers one text to another, against its reference (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.models.engine import Engine, Score, logprobs_all
from cai.prompts.training_format import training_pair


@dataclass(frozen=True)
class Preference:
    """How a model prefers chosen over rejected, against its reference; averages over n pairs.

    loss: -log sigmoid(margin); margin: beta * [log p/p_ref (chosen) - log p/p_ref (rejected)] (eqs. 5 and 7
    of the paper); accuracy: the share of pairs with a margin above 0; chosen, rejected: mean log-probability
    of the texts, nats; likelier: the share of pairs whose chosen text has more log-probability a token, with
    no reference; fall: what the chosen texts have lost against the reference, nats a token.
    """

    n: int
    loss: float
    margin: float
    accuracy: float
    chosen: float
    rejected: float
    likelier: float = math.nan
    fall: float = 0.0


def preference(
    engine: Engine,
    pairs: Sequence[Mapping[str, str]],
    beta: float,
    adapter: str | None,
    reference: str | None = None,
) -> Preference:
    """Measures `adapter` against `reference` (None: the base model)."""
    return prefer(scores(engine, pairs, adapter), scores(engine, pairs, reference), beta)


def scores(engine: Engine, pairs: Sequence[Mapping[str, str]], adapter: str | None) -> list[Score]:
    """The scores of all chosen texts, then of all rejected ones: in the training format, the end token
    included, as they are trained on."""
    rows = [training_pair(p) for p in pairs]
    texts = [row[side] + engine.end_of_text for side in ("chosen", "rejected") for row in rows]
    return logprobs_all(engine, [row["prompt"] for row in rows] * 2, texts, adapter)


def prefer(policy: Sequence[Score], base: Sequence[Score], beta: float) -> Preference:
    """Preference from the scores of a policy and of its reference, both as `scores` orders them."""
    n = len(policy) // 2
    gain = [p.total - b.total for p, b in zip(policy, base, strict=True)]
    margins = [beta * (c - r) for c, r in zip(gain[:n], gain[n:], strict=True)]
    mean = [s.total / len(s.tokens) for s in policy]
    return Preference(
        n,
        sum(math.log1p(math.exp(-m)) if m > -30 else -m for m in margins) / n,
        sum(margins) / n,
        sum(m > 0 for m in margins) / n,
        sum(s.total for s in policy[:n]) / n,
        sum(s.total for s in policy[n:]) / n,
        sum(c > r for c, r in zip(mean[:n], mean[n:], strict=True)) / n,
        -sum(gain[:n]) / sum(len(s.tokens) for s in policy[:n]),
    )
