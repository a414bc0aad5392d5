"""What training must not cost: fluency on neutral text, clean ends, variety, answers to harmless requests."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.core import schema
from cai.core.prompt_files import load_neutral
from cai.core.stats import NOTHING, Metric, Z, mean
from cai.evaluation.model_pair import BARE, ModelPair
from cai.evaluation.on_topic import ON_TOPIC, evidence, verdict
from cai.evaluation.result_store import BASE, TRAINED, WHO, ResultStore
from cai.evaluation.stop_rate import STOPPED, ending
from cai.evaluation.suite import Metrics, Suite, compared
from cai.generation.filters import normal
from cai.generation.refusals import is_refusal
from cai.models.engine import logprobs_all
from cai.prompts.markers import END_OF_TEXT

HARMLESS, HARMFUL = "refusals of harmless instructions", "refusals of harmful requests"
ASKED = {HARMLESS: ("task", "benign"), HARMFUL: ("harmful",)}
LOOKALIKES_REFUSED = "refusals of harmless look-alikes"
LOOKALIKES_ANSWERED = "harmless look-alikes answered on topic"
# What gates read:
NEUTRAL = "perplexity on neutral text"
PERPLEXITY = f"{NEUTRAL}, trained / base"
HARMLESS_CHANGE, HARMFUL_CHANGE = f"{HARMLESS}, change", f"{HARMFUL}, change"
LOOKALIKES_ANSWERED_CHANGE = f"{LOOKALIKES_ANSWERED}, change"


def measure(pair: ModelPair, store: ResultStore) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes). Every number for base and trained model, and how much it changed."""
    neutral = {who: passages(pair, store, who) for who in WHO}
    metrics = perplexity(neutral)
    prompts, near = pair.heldout()
    texts = [p.instruction for p in prompts]
    answers = {who: pair.answers(store, texts, who, BARE) for who in WHO}
    stops = [[ending(a["finish_reason"], a["ended_by"]) == STOPPED for a in answers[who]] for who in WHO]
    metrics |= compared("clean stops", *stops)
    said = {who: [a["answer"] for a in answers[who]] for who in WHO}
    for n in (1, 2, 3):
        metrics |= {f"distinct-{n}, {who}": distinct(said[who], n) for who in WHO}
    metrics |= compared("repeated endings", *(repeated_endings(said[who]) for who in WHO))
    for name, kinds in ASKED.items():
        asked = [i for i, p in enumerate(prompts) if p.kind in kinds]
        metrics |= compared(name, *([is_refusal(said[who][i]) for i in asked] for who in WHO))
    found, why, more = of_look_alikes(pair, store, math.log(metrics[f"{NEUTRAL}, {BASE}"].value))
    notes = {"held-out instructions": len(prompts), "left out, near to trained ones": len({*near, *more})}
    return metrics | found, notes | why


def of_look_alikes(
    pair: ModelPair, store: ResultStore, neutral_loss: float
) -> tuple[Metrics, dict[str, str], list[str]]:
    """(all look-alikes, refused and answered on topic; what became of the others; those left out, near to
    trained ones)"""
    prompts, near = pair.look_alikes()
    asked = [p.instruction for p in prompts]
    refused, verdicts = [], {}
    for who in WHO:
        said = [a["answer"] for a in pair.answers(store, asked, who, BARE)]
        refused.append([is_refusal(text) for text in said])
        verdicts[who] = [verdict(row, neutral_loss) for row in evidence(pair, store, asked, said, who)]
    answered = ([v == ON_TOPIC for v in verdicts[who]] for who in WHO)
    counts = {who: Counter(v for v in verdicts[who] if v != ON_TOPIC).most_common() for who in WHO}
    why = {f"look-alikes not answered, {who}": ", ".join(f"{v} {n}" for v, n in counts[who]) for who in WHO}
    metrics = compared(LOOKALIKES_REFUSED, *refused) | compared(LOOKALIKES_ANSWERED, *answered)
    return metrics, why, near


# ---- neutral text ----


def passages(pair: ModelPair, store: ResultStore, who: str) -> list[dict[str, Any]]:
    """A row a passage: its log-probability (nats) as a document of its own."""

    def work(wanted: list[dict]) -> list[dict]:
        texts = [w["text"] for w in wanted]
        with pair.run.step("evaluation: log-probabilities", quiet=True):
            scores = logprobs_all(pair.engine, [END_OF_TEXT] * len(texts), texts, pair.adapter_of(who))
        return [{"tokens": len(s.tokens), "logprob": s.total} for s in scores]

    texts = load_neutral(Path(pair.spec.neutral))
    ids = [f"passage/{who}/{schema.content_id(t)}" for t in texts]
    wanted = [{"id": i, "by": who, "text": t} for i, t in zip(ids, texts, strict=True)]
    return store.fill(wanted, work)


def perplexity(rows: Mapping[str, Sequence[dict[str, Any]]]) -> Metrics:
    """exp of the passages' mean loss a token; the ratio is paired by passage. rows: who -> passages."""
    loss = {who: [-r["logprob"] / r["tokens"] for r in rows[who]] for who in WHO}
    change = [new - old for old, new in zip(loss[BASE], loss[TRAINED], strict=True)]
    return {
        **{f"{NEUTRAL}, {who}": mean(loss[who], math.exp) for who in WHO},
        PERPLEXITY: mean(change, math.exp),
    }


# ---- variety ----


def distinct(texts: Sequence[str], n: int) -> Metric:
    """Different n-grams of words by n-grams in all, over all answers together (Li et al. 2016,
    arXiv:1510.03055); interval by the jackknife over answers. n is the number of answers."""
    grams = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in map(_words, texts)]
    whole = sum(grams, Counter())
    total = whole.total()
    if not total:
        return NOTHING
    value, answers = len(whole) / total, len(texts)
    without = []
    for own in grams:
        rest = total - own.total()
        if rest:
            without.append((len(whole) - sum(whole[g] == k for g, k in own.items())) / rest)
    if len(without) < 2:
        return Metric(value, answers, None)
    middle, k = sum(without) / len(without), len(without)
    error = math.sqrt((k - 1) / k * sum((w - middle) ** 2 for w in without))
    return Metric(value, answers, (max(0.0, value - Z * error), min(1.0, value + Z * error)))


def repeated_endings(texts: Sequence[str]) -> list[bool]:
    """Whether an answer ends with a sentence that another answer ends with, too: boilerplate that spreads."""
    last = [normal(re.split(r"(?<=[.!?])\s+", text.strip())[-1]) for text in texts]
    often = Counter(last)
    return [bool(end) and often[end] > 1 for end in last]


def _words(text: str) -> list[str]:
    return normal(text).split()


SUITE = Suite(
    "forgetting",
    "what training must not cost: perplexity, clean stops, variety, answers to harmless requests",
    measure,
    decides=True,
)
