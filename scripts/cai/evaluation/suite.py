"""What an evaluation suite is: a file in suites/ that ends with its own entry of the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.core.stats import Metric, average_of_groups, paired_difference, share
from cai.evaluation.model_pair import ModelPair
from cai.evaluation.result_store import BASE, TRAINED, ResultStore
from cai.models.registry import ModelSpec

Metrics = dict[str, Metric]


@dataclass(frozen=True)
class Suite:
    """name: for --suite, and of the suite's files. about: a sentence for the help. measure: keeps answers and
    verdicts in the store, gives (metrics by name, notes). asks_models: base and trained model, rather than
    the run's files alone. decides: Milestone 3's gate reads it. fits: raises UserError for a model that it
    cannot measure, before that is loaded."""

    name: str
    about: str
    measure: Callable[[ModelPair, ResultStore], tuple[Metrics, dict[str, Any]]]
    asks_models: bool = True
    decides: bool = False
    fits: Callable[[ModelSpec], None] = lambda spec: None


def compared(name: str, base: Sequence[bool], trained: Sequence[bool]) -> Metrics:
    """A rate of both models on the same cases, and how much it changed."""
    return {
        f"{name}, {BASE}": share(base),
        f"{name}, {TRAINED}": share(trained),
        f"{name}, change": paired_difference(base, trained),
    }


def averages(name: str, groups: Sequence[Sequence[Sequence[bool]]]) -> Metrics:
    """A rate's average over tasks, each task weighing the same, of both models, and how much it changed.
    groups: (base's hits, trained's hits) of each task, case by case."""
    change = [[int(new) - int(old) for old, new in zip(*two, strict=True)] for two in groups]
    return {
        f"{name}, {BASE}": average_of_groups([base for base, _ in groups]),
        f"{name}, {TRAINED}": average_of_groups([trained for _, trained in groups]),
        f"{name}, change": average_of_groups(change, (-1.0, 1.0)),
    }
