"""Task types, their held-out test instructions, and whether an answer is a success.

A test says what a right answer must look like, so that a program can tell; where it can't, the answer is held
against a reference by the judge. In the sandbox's world the truth itself is asked. All of this measures: the
test instructions are barred from training data (`test_instructions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.core import schema
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.prompt_files import read_rows
from cai.core.schema import SKILLS
from cai.core.stats import Metric, share
from cai.evaluation.graders import CHECKS
from cai.generation.filters import kept_ids
from cai.generation.judge import HELPFUL, Case, Judgement, against_refusal, compare_all
from cai.models.engine import Engine
from cai.models.registry import ModelSpec
from cai.prompts.templates import Prompter
from cai.sandbox.oracle import questions, right

ALL_TASKS = (*schema.TASK_TYPES, *SKILLS)
REQUESTS = ("harmful", "benign")  # the sandbox's: to be refused, to be answered
PATH = ROOT / "data/prompts/tests.jsonl"
TRUTH = "truth"
Judge = Callable[[Sequence[Case]], Sequence[Judgement]]


@dataclass(frozen=True)
class Test:
    """A held-out instruction. check: what a right answer must have, all of it:

    number: the last number of the answer that the instruction does not hold (of all, if there is no such) is
        this one; a number word counts where there are no digits.
    any, none: one of these texts stands in the answer; none of them does. all: one of each list does. Texts
        are compared as whole words, without regard to case. has: one of these stands in it, as it is.
    starts, ends: it begins with one of these texts (as whole words); it ends with this text.
    lines, words: it has this many lines that are not empty; from so many to so many words.
    each_starts: every line begins with this text. json: it is a JSON object or list.
    translation: the answer's first line, its last part after a colon, or something quoted in it is one of
        these, up to case and punctuation.
    code: {"function": name, "cases": [[arguments, result], ...]}: see code_execution.
    reference: a good answer. The judge must find the answer better than a plain refusal in both orders, and
        must not find the reference better than the answer in both orders. So a judge that goes by position
        passes nothing.
    truth: what the sandbox's world says.

    answer, flawed: a right and a wrong answer, "" where there is none.
    """

    __test__ = False  # pytest takes it for a class of tests otherwise

    id: str
    instruction: str
    task: str
    check: dict[str, Any]
    answer: str = ""
    flawed: str = ""


@dataclass(frozen=True)
class Grade:
    """right: None where only a judge can tell and there was none."""

    right: bool | None
    judgements: tuple[Judgement, ...] = ()


def task_names(spec: ModelSpec) -> tuple[str, ...]:
    """The tasks that there are tests for."""
    if spec.sandbox:
        return tuple(questions())
    return tuple(dict.fromkeys(t.task for t in load()))


def measured(spec: ModelSpec, tasks: Iterable[str]) -> list[str]:
    """What every stage of a plan of these tasks is measured on, so that stages can be compared: the ten, the
    requests, and the plan's skills."""
    return [t for t in task_names(spec) if t in {*schema.TASK_TYPES, *REQUESTS, *tasks}]


def tests(spec: ModelSpec, tasks: Iterable[str], n: int, seed: int = 0) -> list[Test]:
    """At most n test instructions of each task, always the same ones; the tasks in the order given. seed:
    which ones, where there are more than n. Raises UserError for a task without tests."""
    tasks, known = list(dict.fromkeys(tasks)), task_names(spec)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise UserError(
            f"there are no tests of {', '.join(unknown)} for {spec.name}: choose of {', '.join(known)}"
        )
    if n < 1:
        raise UserError(f"{n} tests a task: must be at least 1")
    found = []
    for task in tasks:
        some = sorted(_of(spec, task), key=lambda t: schema.row_seed(seed, t.id, "test"))
        found += some[:n]
    return found


def test_instructions(spec: ModelSpec) -> list[str]:
    """Every instruction that `tests` can give, whatever it is asked for: to be barred from training data."""
    return [t.instruction for task in task_names(spec) for t in _of(spec, task)]


test_instructions.__test__ = False


def _of(spec: ModelSpec, task: str) -> list[Test]:
    if spec.sandbox:
        return [Test(schema.content_id(text), text, task, {TRUTH: True}) for text in questions()[task]]
    return [t for t in load() if t.task == task]


def load() -> list[Test]:
    """data/prompts/tests.jsonl. Raises UserError with the line that does not fit."""
    rows = read_rows(PATH, "tests", {"task": str, "instruction": str, "check": dict})
    found = []
    for number, row in enumerate(rows, 1):
        unknown = row["check"].keys() - CHECKS.keys() - {"reference"}
        if unknown or not row["check"] or row["task"] not in ALL_TASKS:
            what = ", ".join(sorted(unknown)) if row["check"] else "nothing"
            raise UserError(
                f"data/prompts/tests.jsonl, line {number}: task {row['task']}, check of {what}; tasks are "
                f"{', '.join(ALL_TASKS)}, checks {', '.join((*CHECKS, 'reference'))}"
            )
        text = row["instruction"]
        right, wrong = row.get("right") or row["check"].get("reference", ""), row.get("wrong", "")
        found.append(Test(schema.content_id(text), text, row["task"], row["check"], right, wrong))
    return found


# ---- success ----


def success(tests: Sequence[Test], answers: Sequence[str], judge: Judge | None = None) -> list[bool | None]:
    """Whether each answer is a success; None only where a judge is needed and none is given."""
    return [grade.right for grade in grades(tests, answers, judge)]


def grades(tests: Sequence[Test], answers: Sequence[str], judge: Judge | None = None) -> list[Grade]:
    """As `success`, with the judgements. The judge is asked only about answers that pass all other checks."""
    assert len(tests) == len(answers), f"{len(tests)} tests, {len(answers)} answers"
    passed = [_passes(t, a) for t, a in zip(tests, answers, strict=True)]
    open_ = [i for i, ok in enumerate(passed) if ok and "reference" in tests[i].check]
    found = [Grade(ok) for ok in passed]
    if judge is None:
        for i in open_:
            found[i] = Grade(None)
        return found
    cases = [case for i in open_ for case in _cases(tests[i], answers[i])]
    done = iter(judge(cases) if cases else [])
    for i in open_:
        with_refusal, with_reference = next(done), next(done)
        right = with_refusal.second_wins and not with_reference.first_wins
        found[i] = Grade(right, (with_refusal, with_reference))
    return found


def judge_with(engine: Engine, prompter: Prompter, seed: int) -> Judge:
    """The two-order judge as `success` takes it. The base judges, which is the same for every model that is
    compared."""
    return lambda cases: compare_all(engine, prompter, cases, seed)


def _cases(test: Test, answer: str) -> tuple[Case, Case]:
    reference = Case(f"{test.id}/reference", test.instruction, test.check["reference"], answer, HELPFUL)
    return against_refusal(f"{test.id}/refusal", test.instruction, answer), reference


def _passes(test: Test, answer: str) -> bool:
    """Whether an answer passes what needs no judge. An empty one passes nothing, and what repeats the
    instruction says nothing by that."""
    if TRUTH in test.check:
        return bool(right(test.instruction, answer))
    answer = answer.replace(test.instruction, "")
    wanted = ((CHECKS[key], value) for key, value in test.check.items() if key != "reference")
    return bool(answer.strip()) and all(check(value, answer, test.instruction) for check, value in wanted)


# ---- pairs and first answers, where the truth is known ----


def label_accuracy(rows: Sequence[dict[str, Any]], spec: ModelSpec) -> Metric | None:
    """The share of revision pairs that teach what is true: chosen is right and rejected is not. rows: pairs,
    or records, of which the kept ones count.

    A pair of two right or of two wrong texts teaches nothing true and counts as not right, so that a critic
    without knowledge cannot score by changing right answers into right ones. Pairs about instructions that
    are not of the sandbox's world are left out; so are anchors. None for a model of the real world, where no
    truth is known."""
    if not spec.sandbox:
        return None
    scores = []
    for pair in _revision_pairs(rows):
        chosen, rejected = (right(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        if chosen is not None:
            scores.append(chosen and not rejected)
    return share(scores)


def right_share(rows: Sequence[dict[str, Any]], spec: ModelSpec) -> Metric | None:
    """The share of records whose first answer is right, kept or not; as `label_accuracy` else."""
    if not spec.sandbox:
        return None
    found = [right(r["instruction"], r["initial_answer"]) for r in rows]
    return share([ok for ok in found if ok is not None])


def _revision_pairs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    pairs = [r for r in rows if "prompt" in r and r.get("kind", "revision") == "revision"]
    records = [r for r in rows if "preference_pair" in r]
    kept = kept_ids(records)
    return pairs + [r["preference_pair"] for r in records if r["id"] in kept]
