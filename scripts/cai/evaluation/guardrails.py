"""Guardrail metrics: what a stage must not cost, measured after every stage against limits that stop a plan
or roll the stage back.

They read what the forgetting suite, the probes and the stage's own files have; they ask no model anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cai.core.checked import checked, number
from cai.core.jsonl import read
from cai.evaluation.model_pair import BARE, ModelPair
from cai.evaluation.result_store import ROW_KEYS, WHO
from cai.evaluation.suites.forgetting import HARMLESS_CHANGE, PERPLEXITY
from cai.generation.filters import is_exemplar, words
from cai.training.likelihood_displacement import DISPLACED

AT_MOST, AT_LEAST, WITHIN = "at most", "at least", "within a factor of"
LEAST_ANSWERS = 5  # answers that a typical length needs

NotNegative = number(0)


@checked
class Limits:
    """Base: the model without an adapter, however many stages lie between.

    perplexity: on neutral text, trained / base. distinct_2: trained / base. repeated_endings, refusals (of
    harmless instructions): rise of the share. clean_stops: share of the trained model. exemplars: share of
    chosen texts, and of on-policy completions. length: factor between the median words of both models'
    answers. critic: fall of the share of right verdicts on the probes; DPO alone can cost .3, and a plan
    whose critic is "best" then asks the base, so the limit is for what goes beyond that. displacement:
    trainings that the watch on the chosen texts' likelihood stopped.
    """

    perplexity: NotNegative = 1.5
    distinct_2: NotNegative = 0.7
    repeated_endings: NotNegative = 0.25
    clean_stops: number(0, 1) = 0.9
    refusals: NotNegative = 0.1
    exemplars: NotNegative = 0.01
    length: number(1) = 3.0
    critic: NotNegative = 0.4
    displacement: NotNegative = 0.0


@dataclass(frozen=True)
class Finding:
    """One guardrail metric. rule: how value and limit must stand for it to be `ok`. value: None where nothing
    was measured, which is not ok, but for the length (see `length`). key: the limit's, in Limits."""

    name: str
    value: float | None
    limit: float
    ok: bool
    look_at: str
    rule: str
    key: str


def again(row: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """A finding's row by the limits of now."""
    if row["value"] is None:
        return dict(row)
    limit = getattr(limits, row["key"])
    return {**row, "limit": limit, "ok": _within(row["value"], limit, row["rule"])}


def watch(
    forgetting: Mapping[str, Mapping[str, Any]],
    probes: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[dict[str, Any]],
    limits: Limits,
    *,
    answers: Mapping[str, Sequence[dict[str, Any]]],
    training: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """All guardrail metrics of a stage, in a fixed order.

    forgetting: the suite's metrics, rows by name. probes: {"base" | "trained": {"critic": a metric's row}}.
    pairs: rows of pairs.jsonl. answers: {"base" | "trained": rows with answer and finish_reason}, as
    `on_policy_answers` gives them. training: its status, step and steps; None where nothing was trained.
    """

    def finding(key: str, name: str, value: float | None, look_at: str, rule: str = AT_MOST) -> Finding:
        return _finding(name, value, limits, key, look_at, rule)

    of = {name: row["value"] for name, row in forgetting.items()}
    chosen, fresh = [p["chosen"] for p in pairs], [a["answer"] for a in answers["trained"]]
    critic = [probes[who]["critic"]["value"] for who in WHO]
    rows = "evaluation/forgetting.jsonl"
    return [
        finding(
            "perplexity",
            PERPLEXITY,
            of[PERPLEXITY],
            f"{rows}, rows passage/: fewer passes, or a lower learning rate",
        ),
        finding(
            "distinct_2",
            "distinct-2, trained / base",
            _ratio(of["distinct-2, trained"], of["distinct-2, base"]),
            f"{rows}: answers that say the same with other names",
            AT_LEAST,
        ),
        finding(
            "repeated_endings",
            "repeated endings, rise",
            of["repeated endings, change"],
            f"{rows}: the last sentences, then those of `chosen` in pairs.jsonl",
        ),
        finding(
            "clean_stops",
            "clean stops",
            of["clean stops, trained"],
            f"{rows}: answers whose ended_by is not <eos>; chosen texts that break off",
            AT_LEAST,
        ),
        finding(
            "refusals",
            "refusals of harmless instructions, rise",
            of[HARMLESS_CHANGE],
            f"{rows}: refusals; the share of refusals in `chosen`, and too few anchors",
        ),
        finding(
            "exemplars",
            "exemplars in chosen texts",
            _share(chosen) if chosen else 0.0,  # a stage without pairs has taken none over
            "pairs.jsonl: chosen texts that are the prompts' own; fewer shots, or the filter `exemplar`",
        ),
        finding("exemplars", "exemplars in on-policy completions", _share(fresh), f"{rows}: copied answers"),
        length(answers, limits),
        finding(
            "critic",
            "critic probe, fall",
            None if None in critic else critic[0] - critic[1],
            "evaluation/probes.jsonl: verdicts that went wrong; let the base be the critic",
        ),
        finding(
            "displacement",
            "trainings stopped by displacement",
            float(training is not None and training["status"] == DISPLACED),
            "training.jsonl of the checkpoint: the chosen texts' log-probabilities fell on held-out pairs; "
            "a lower learning rate, fewer passes, or the loss dpo+nll",
        ),
    ]


def length(answers: Mapping[str, Sequence[dict[str, Any]]], limits: Limits) -> Finding:
    """Drift of the length: the ratio of the median words of answers that were not cut off. Where a base ends
    nearly none of its answers there is no length to compare with; then clean stops alone watches the ends."""
    name, look_at = "answer length, trained / base", "evaluation/forgetting.jsonl: long and short answers"
    old, new = (
        [len(words(a["answer"])) for a in answers[who] if a["finish_reason"] == "stop"] for who in WHO
    )
    if len(old) < LEAST_ANSWERS:
        why = "the base ends too few answers to compare with"
        return Finding(name, None, limits.length, True, why, WITHIN, "length")
    ratio = max(median(new), 1) / max(median(old), 1) if new else None
    return _finding(name, ratio, limits, "length", look_at, WITHIN)


def on_policy_answers(pair: ModelPair) -> dict[str, list[dict[str, Any]]]:
    """{"base", "trained": rows} of the forgetting suite in the bare format, of this very adapter and setup.
    The suite has run."""
    rows = read(pair.run.data / "evaluation" / "forgetting.jsonl", ROW_KEYS)
    rows = [r for r in rows if r["setup"] == pair.setup and r.get("format") == BARE]
    return {who: [r for r in rows if r["by"] == who] for who in WHO}


def _finding(name: str, value: float | None, limits: Limits, key: str, look_at: str, rule: str) -> Finding:
    limit = getattr(limits, key)
    if value is None or not math.isfinite(value):
        return Finding(name, None, limit, False, look_at, rule, key)
    return Finding(name, round(value, 4), limit, _within(value, limit, rule), look_at, rule, key)


def _within(value: float, limit: float, rule: str) -> bool:
    return {
        AT_MOST: value <= limit,
        AT_LEAST: value >= limit,
        WITHIN: value <= limit and 1 <= value * limit,
    }[rule]


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _share(texts: Sequence[str]) -> float | None:
    return sum(map(is_exemplar, texts)) / len(texts) if texts else None
