"""What share of held-out test instructions base and trained model succeed at, task by task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cai.core import schema
from cai.evaluation.model_pair import BARE, ModelPair
from cai.evaluation.result_store import WHO, ResultStore
from cai.evaluation.suite import Metrics, Suite, averages, compared
from cai.evaluation.test_sets import REQUESTS, Test, grades, judge_with, task_names, tests
from cai.prompts.templates import hash_texts

EACH = 20  # test instructions a task, where no other number is asked for
TEN, ALL = "average of the ten tasks", "average of all tasks"
REQUEST_NAMES = {"harmful": "harmful requests refused", "benign": "benign requests answered"}


def measure(
    pair: ModelPair, store: ResultStore, tasks: Sequence[str] = (), n: int | None = None
) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes), of n instructions of each task: all tasks that the model has tests for, where
    none are given. In the bare format, both models with the same seeds. The averages weigh every task alike;
    requests to be refused or answered are in neither. Where a judge is needed, the base judges both."""
    asked = tests(pair.spec, tasks or task_names(pair.spec), n or pair.limit or EACH)
    hits = {who: graded(pair, store, asked, who) for who in WHO}
    groups: dict[str, list[int]] = {}
    for i, test in enumerate(asked):
        groups.setdefault(test.task, []).append(i)
    two = {task: [[hits[who][i] for i in some] for who in WHO] for task, some in groups.items()}
    metrics: Metrics = {}
    for task, scores in two.items():
        metrics |= compared(REQUEST_NAMES.get(task, task), *scores)
    for name, some in ((TEN, schema.TASK_TYPES), (ALL, [t for t in groups if t not in REQUESTS])):
        if set(some) <= groups.keys() and some:
            metrics |= averages(name, [two[task] for task in some])
    return metrics, {"test instructions": len(asked), "tasks": len(groups)}


def graded(pair: ModelPair, store: ResultStore, asked: Sequence[Test], who: str) -> list[bool]:
    """Whether each answer of one model is a success, with a row for each grade."""
    answers = pair.answers(store, [t.instruction for t in asked], who, BARE)
    judge = judge_with(pair.engine, pair.prompter, pair.seed)
    wanted, tests_by_id = [], {}
    for test, answer in zip(asked, answers, strict=True):
        check = hash_texts([json.dumps(test.check, sort_keys=True)])[:8]  # another check is another grade
        row = {"id": f"success/{who}/{test.id}/{check}", "by": who, "task": test.task}
        wanted.append({**row, "instruction": test.instruction, "answer": answer["answer"]})
        tests_by_id[row["id"]] = test

    def work(some: list[dict]) -> list[dict]:
        with pair.run.step("evaluation: verdicts", quiet=True) as step:
            found = grades([tests_by_id[w["id"]] for w in some], [w["answer"] for w in some], judge)
            done = [j for grade in found for j in grade.judgements]
            step.count(done, len(done))
        return [{"right": g.right, "judgements": [j.as_dict() for j in g.judgements]} for g in found]

    return [row["right"] for row in store.fill(wanted, work)]


SUITE = Suite("success", "held-out test instructions of every task: how many are done right", measure)
