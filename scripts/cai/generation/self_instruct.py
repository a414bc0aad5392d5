"""Instructions that the model makes itself, by continuing lists of seeds (self-instruct: Wang et al.
2023)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cai.core.errors import UserError
from cai.core.prompt_files import Seed
from cai.core.schema import content_id, row_seed
from cai.generation.instruction_filters import InstructionFilter
from cai.generation.list_items import items
from cai.generation.task_balance import Balance
from cai.models.engine import Completion, Engine, complete_all, sampling
from cai.prompts.templates import Prompter, exemplar_texts

LISTS = 64  # lists in a wave at most
ITEMS = 2  # new instructions that a list is expected to give, at least


def generate(
    engine: Engine,
    prompter: Prompter,
    seeds: Sequence[Seed],
    *,
    lists: int,
    seed: int,
    task: str | None = None,
) -> tuple[list[tuple[str, str]], dict[str, int], list[Completion]]:
    """A few lists for one or two examples: no waves, nothing balanced, and only equal items are left out.

    Each list shows seeds of one task (`task`, or one drawn by the list's own seed), so that what comes
    belongs to that task. Gives back: [(instruction, task)], unique and in order; how many items each reason
    took; the raw completions.
    """
    tasks = []
    for number in range(lists):
        rng = random.Random(row_seed(seed, f"list {number}", "seeds"))
        tasks.append(task or rng.choice(sorted({s.task for s in seeds})))
    _check_tasks(tasks, seeds)
    done = _continue(engine, prompter, seeds, tasks, [], seed, "list")
    filtered, found, dropped = InstructionFilter((s.instruction for s in seeds), 1.0), [], Counter()
    for completion, list_task in zip(done, tasks, strict=True):
        for text, whole in items(completion):
            reason, _ = filtered.take(text, whole)
            if reason:
                dropped[reason] += 1
            else:
                found.append((text, list_task))
    return found, dict(dropped), done


@dataclass
class Wave:
    """What a wave of lists gave. rows: for instructions.jsonl; left_out: every other item, with the reason,
    and what it is near to, where that is the reason."""

    number: int
    rows: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    completions: list[Completion]


@dataclass
class Made:
    """rows: the instructions, earlier ones included; left_out: reason -> items, of all waves; by_task; short:
    why there are fewer than wanted, else None."""

    rows: list[dict[str, Any]]
    left_out: Counter[str] = field(default_factory=Counter)
    by_task: dict[str, int] = field(default_factory=dict)
    short: str | None = None


def self_instruct(
    engine: Engine,
    prompter: Prompter,
    seeds: Sequence[Seed],
    *,
    want: int,
    seed: int,
    tasks: Sequence[str] | None = None,
    adapter: str | None = None,
    known: Sequence[dict[str, Any]] = (),
    on_wave: Callable[[Wave], None] | None = None,
    barred: Iterable[str] = (),
) -> Made:
    """Waves of lists until there are `want` instructions, or no task gives anything new any more.

    A list is of one task and mixes its seeds with instructions that earlier waves kept; tasks that lack most
    get most lists. A wave depends on the seed, its number and what earlier waves kept, on nothing else, so
    that it does not matter where a run was interrupted: `known` are the rows that it had written, whole waves
    or not.

    tasks: the task types (default: all that have seeds). adapter: who writes the lists (None: the base).
    barred: evaluation prompts, which no instruction may equal or be near to. on_wave: called after each wave
    with what it gave, to write it down.
    """
    tasks = list(tasks or dict.fromkeys(s.task for s in seeds))
    _check_tasks(tasks, seeds)
    if want < 1:
        raise UserError(f"{want} instructions wanted: must be at least 1")
    if any("wave" not in row or "wave_rows" not in row for row in known):
        raise UserError("instructions.jsonl holds rows that no wave made: begin the run anew with --fresh")
    texts = [s.instruction for s in seeds]
    filtered = InstructionFilter(texts, engine.spec.near_duplicate, barred)
    balance = Balance(want, tasks, [*texts, *exemplar_texts()])
    rows, left_out, number = [], Counter(), 0
    unsaid: Counter[str] = Counter()  # what was left out since the last row, which the next one says
    earlier: dict[int, list[dict[str, Any]]] = {}
    for row in known:
        earlier.setdefault(row["wave"], []).append(row)
        filtered.keep(row["instruction"])
    while len(rows) < want and balance.open_tasks():
        list_tasks = balance.allot(LISTS, ITEMS)
        had = earlier.get(number, [])
        whole = had and (len(had) == had[0]["wave_rows"] or len(rows) + len(had) >= want)
        if whole or number < max(earlier, default=0):
            wave_rows = had
            for row in had:
                left_out.update(row.get("left_out", {}))
                balance.take(row["instruction"], row["task"])
        else:
            name = f"wave {number}, list"
            done = _continue(engine, prompter, seeds, list_tasks, rows, seed, name, adapter)
            wave = _wave(number, done, list_tasks, had, filtered, balance)
            wave_rows = had + wave.rows
            unsaid.update(item["reason"] for item in wave.left_out)
            if wave_rows:
                wave_rows[0].setdefault("left_out", dict(unsaid))
                left_out.update(wave_rows[0]["left_out"])
                unsaid.clear()
            wave.rows = wave.rows[: max(0, want - len(rows) - len(had))]
            if on_wave:
                on_wave(wave)
        balance.close_wave(list_tasks)
        rows += wave_rows
        number += 1
    rows = rows[:want]
    left_out.update(unsaid)
    short = None
    if len(rows) < want:
        short = (
            f"{len(rows)} of {want} instructions were found: every task gave next to nothing new in "
            f"{balance.PATIENCE} waves in a row; "
            f"add seed instructions to {engine.spec.seeds}, or ask for fewer"
        )
    by_task = Counter(row["task"] for row in rows)
    return Made(rows, left_out, {t: by_task[t] for t in tasks}, short)


def _wave(
    number: int,
    done: Sequence[Completion],
    tasks: Sequence[str],
    had: Sequence[dict[str, Any]],
    filtered: InstructionFilter,
    balance: Balance,
) -> Wave:
    """The items of a wave's lists, sorted into rows and what is left out. had: rows of this wave that a crash
    left; they are not made again."""
    ids, rows, left_out = {row["id"] for row in had}, [], []
    for row in had:
        balance.take(row["instruction"], row["task"])
    for completion, task in zip(done, tasks, strict=True):
        for text, whole in items(completion):
            identity = content_id(text)
            if identity in ids:
                ids.remove(identity)
                continue
            reason, other = filtered.take(text, whole, lambda text, task=task: balance.against(text, task))
            if reason:
                left_out.append({"instruction": text, "task": task, "reason": reason, "near": other})
                continue
            balance.take(text, task)
            rows.append({"id": identity, "instruction": text, "task": task, "source": "self_instruct"})
    for row in rows:
        row |= {"wave": number, "wave_rows": len(had) + len(rows)}
    return Wave(number, rows, left_out, list(done))


def _continue(
    engine: Engine,
    prompter: Prompter,
    seeds: Sequence[Seed],
    tasks: Sequence[str],
    made: Sequence[dict[str, Any]],
    seed: int,
    name: str,
    adapter: str | None = None,
) -> list[Completion]:
    """One continued list for each task, which shows seeds of it and, of every four texts one (of two or three
    also one), what was made before."""
    by_task: dict[str, list[str]] = {}
    for row in made:
        by_task.setdefault(row["task"], []).append(row["instruction"])
    prompts, row_seeds = [], []
    for number, task in enumerate(tasks):
        rng = random.Random(row_seed(seed, f"{name} {number}", "shots"))
        of_task, of_model = [s.instruction for s in seeds if s.task == task], by_task.get(task, [])
        machine = min(len(of_model), engine.spec.list_shots // 4 or engine.spec.list_shots // 2)
        human = min(len(of_task), engine.spec.list_shots - machine)
        shown = rng.sample(of_task, human) + rng.sample(of_model, machine)
        rng.shuffle(shown)
        prompts.append(prompter.instructions(shown))
        row_seeds.append(row_seed(seed, f"{name} {number}", "instructions"))
    return complete_all(engine, prompts, sampling(engine.spec, "instruction"), row_seeds, adapter)


def _check_tasks(tasks: Iterable[str], seeds: Sequence[Seed]) -> None:
    there = sorted({s.task for s in seeds})
    for task in tasks:
        if task not in there:
            raise UserError(f"no seed instruction is of the task {task!r}: there are {', '.join(there)}")
