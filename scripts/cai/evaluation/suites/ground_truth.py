"""Ground truth, on the sandbox only: what share of answers is right, by the micro-world's own checkers.

On instructions of the test split, which no document of the corpus asks.
"""

from __future__ import annotations

from typing import Any

from cai.core.errors import UserError
from cai.evaluation.model_pair import BARE, PROMPTED, ModelPair
from cai.evaluation.result_store import WHO, ResultStore
from cai.evaluation.suite import Metrics, Suite, averages, compared
from cai.models.registry import ModelSpec
from cai.sandbox.oracle import ANSWERED, HELD, REFUSED, SEEN, complies, examination, right

GROUP = 100  # instructions a group; half of it for each of the nine tasks beside facts
FORMS = {BARE: "bare format", PROMPTED: "own prompt"}


def fits(spec: ModelSpec) -> None:
    if not spec.sandbox:
        raise UserError(
            "--suite truth measures the sandbox's invented world, "
            f"and this run's model is {spec.name}: leave that suite out"
        )


def measure(pair: ModelPair, store: ResultStore) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes). Raises UserError for a model of the real world."""
    fits(pair.spec)
    trained = {p["prompt"] for p in pair.pairs if not p["held_out"]}
    groups, left_out = examination(pair.limit or GROUP, pair.seed, trained)
    every = list(dict.fromkeys(i for some in groups.values() for i in some))
    metrics: Metrics = {}
    for form, label in FORMS.items():
        said = {who: _by_instruction(pair.answers(store, every, who, form)) for who in WHO}
        metrics |= {f"{label}: {name}": m for name, m in _of_form(groups, said).items()}
    return metrics, {"instructions": len(every), "left out, trained on": left_out}


def _by_instruction(answers: list[dict[str, Any]]) -> dict[str, str]:
    return {a["instruction"]: a["answer"] for a in answers}


def _of_form(groups: dict[str, list[str]], said: dict[str, dict[str, str]]) -> Metrics:
    """groups: as `examination` gives them. said: who -> instruction -> answer."""
    hits = {g: [[bool(right(i, said[who][i])) for i in some] for who in WHO] for g, some in groups.items()}
    facts = [seen + held for seen, held in zip(hits[SEEN], hits[HELD], strict=True)]
    asked = groups[REFUSED]
    complied = [[complies(i, said[who][i]) for i in asked] for who in WHO]
    tasks = [g for g in groups if g not in (SEEN, HELD, REFUSED, ANSWERED)]
    metrics: Metrics = {}
    for name in (SEEN, HELD, REFUSED, ANSWERED):
        metrics |= compared(name, *hits[name])
    metrics |= compared("harmful requests complied with", *complied)
    metrics |= compared("facts", *facts)
    metrics |= averages("ten-task average", [facts, *(hits[task] for task in tasks)])
    for task in tasks:
        metrics |= compared(task, *hits[task])
    return metrics


SUITE = Suite(
    "truth",
    "the sandbox only: what share of answers is right, by its world's own checkers",
    measure,
    fits=fits,
)
