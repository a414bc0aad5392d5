"""What share of held-out test instructions base and trained model succeed at, task by task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cai.core import schema
from cai.core.stats import Metric, average_of_groups, paired_difference, share
from cai.evaluation.model_pair import BARE, Subject
from cai.evaluation.result_store import BASE, TRAINED, Rows
from cai.evaluation.test_sets import REQUESTS, judge_with, task_names, tests, verdicts
from cai.prompts.templates import hash_texts

EACH = 20  # test instructions a task, where no other number is asked for
WHO = (BASE, TRAINED)
TEN, ALL = "average of the ten tasks", "average of all tasks"
REQUEST_NAMES = {"harmful": "harmful requests refused", "benign": "benign requests answered"}


def success(subject: Subject, rows: Rows) -> tuple[dict[str, Metric], dict[str, Any]]:
    """(metrics by name, notes): all tasks that the model has tests for, at most `subject.limit` of each."""
    return measure(subject, rows, task_names(subject.spec), subject.limit or EACH)


def measure(
    subject: Subject, rows: Rows, tasks: Sequence[str], n: int
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """The same on chosen tasks and n instructions of each; in the bare format, both models with the same
    seeds. The averages weigh every task alike; requests to be refused or answered are in neither. Where a
    judge is needed, the base judges both."""
    asked = tests(subject.spec, tasks, n)
    hits = {who: judged(subject, rows, asked, who) for who in WHO}
    groups = {task: [i for i, t in enumerate(asked) if t.task == task] for task in dict.fromkeys(tasks)}
    scores = {who: {task: [hits[who][i] for i in some] for task, some in groups.items()} for who in WHO}
    metrics: dict[str, Metric] = {}
    for task in groups:
        name = REQUEST_NAMES.get(task, task)
        metrics |= {f"{name}, {who}": share(scores[who][task]) for who in WHO}
        metrics[f"{name}, change"] = paired_difference(scores[BASE][task], scores[TRAINED][task])
    for name, some in ((TEN, schema.TASK_TYPES), (ALL, [t for t in groups if t not in REQUESTS])):
        if set(some) <= groups.keys() and some:
            metrics |= averages(name, [(scores[BASE][t], scores[TRAINED][t]) for t in some])
    return metrics, {"test instructions": len(asked), "tasks": len(groups)}


def averages(name: str, groups: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> dict[str, Metric]:
    """groups: (base's hits, trained's hits) of each task, answer by answer."""
    change = [[int(new) - int(old) for old, new in zip(*two, strict=True)] for two in groups]
    return {
        f"{name}, {BASE}": average_of_groups([base for base, _ in groups]),
        f"{name}, {TRAINED}": average_of_groups([trained for _, trained in groups]),
        f"{name}, change": average_of_groups(change, (-1.0, 1.0)),
    }


def judged(subject: Subject, rows: Rows, asked: Sequence, who: str) -> list[bool]:
    """Whether each answer of one model is a success, with a row for each verdict."""
    answers = subject.answers(rows, [t.instruction for t in asked], who, BARE)
    judge = judge_with(subject.engine, subject.prompter, subject.spec, subject.seed)
    wanted, tests_by_id = [], {}
    for test, answer in zip(asked, answers, strict=True):
        check = hash_texts([json.dumps(test.check, sort_keys=True)])[:8]  # another check is another verdict
        row = {"id": f"success/{who}/{test.id}/{check}", "by": who, "task": test.task}
        wanted.append({**row, "instruction": test.instruction, "answer": answer["answer"]})
        tests_by_id[row["id"]] = test

    def work(some: list[dict]) -> list[dict]:
        with subject.run.step("evaluation: verdicts", quiet=True) as step:
            found = verdicts([tests_by_id[w["id"]] for w in some], [w["answer"] for w in some], judge)
            done = [j for v in found for j in v.judgements]
            step.count(done, len(done))
        return [{"right": v.right, "judgements": [j.as_dict() for j in v.judgements]} for v in found]

    return [row["right"] for row in rows.fill(wanted, work)]
