"""The records of a run: all its instructions through the loop, each on the disk once it is finished; and
reading them back, of all shards, in the order of the instructions."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cai.core import jsonl, schema
from cai.core.errors import UserError
from cai.core.files import run_of
from cai.core.ledger import Usage
from cai.core.run import Run
from cai.costs.budget import Budget
from cai.generation.example import Example
from cai.generation.loop import Loop
from cai.generation.progress import Progress

INSTRUCTION_KEYS = {"id": str, "instruction": str, "task": str, "source": str}
RECORDS = re.compile(r"records(?:-(\d+)-of-(\d+))?\.jsonl")


def records_name(number: int, of: int) -> str:
    """The file of a shard's records: a run in one part has one of its own name."""
    return "records.jsonl" if of == 1 else f"records-{number:03}-of-{of:03}.jsonl"


def in_shard(row_id: str, number: int, of: int) -> bool:
    """Whether an example is of the shard number/of (number from 1), by its content."""
    return of == 1 or schema.lot_of(row_id) % of == number - 1


def read_instructions(directory: Path) -> list[dict[str, Any]]:
    """instructions.jsonl. Raises UserError for an id that is not its instruction's, or is there twice."""
    path, seen = directory / "instructions.jsonl", set()
    rows = jsonl.read(path, INSTRUCTION_KEYS)
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        if row["id"] != schema.content_id(row["instruction"]):
            raise UserError(f"{where}: the id is not that of the instruction; {jsonl.WAY_OUT}")
        if row["id"] in seen:
            raise UserError(f"{where}: the instruction is there twice; {jsonl.WAY_OUT}")
        seen.add(row["id"])
    return rows


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of a run, of all its shards, in the order of their instructions.

    Raises UserError for records that cannot be of one run: shards of two divisions, a record twice or of
    another shard, one whose instruction is not there, two models, adapters, seeds or guards.
    """
    order = {r["id"]: place for place, r in enumerate(read_instructions(directory))}
    rows: dict[str, dict[str, Any]] = {}
    divisions: dict[int, str] = {}
    for path in sorted(p for p in directory.glob("records*.jsonl") if RECORDS.fullmatch(p.name)):
        number, of = (int(n or 1) for n in RECORDS.fullmatch(path.name).groups())
        divisions[of] = path.name
        if len(divisions) > 1:
            raise UserError(
                f"{directory} holds records of two divisions into shards ({', '.join(divisions.values())}): "
                "move those that are not of this run out of it"
            )
        for line, row in enumerate(jsonl.read(path, schema.RECORD_KEYS), 1):
            where = f"{path}, line {line}"
            schema.check_format(row.get("format"), where, run_of(directory))
            try:
                against = _foreign(row, rows, order, (number, of)) or schema.misfit(row, schema.RECORD_PARTS)
            except UserError as error:
                against = str(error)
            if against:
                raise UserError(f"{where}: {against}; {jsonl.WAY_OUT}")
            rows[row["id"]] = row
    return sorted(rows.values(), key=lambda r: order[r["id"]]) if order else list(rows.values())


def _foreign(
    row: dict[str, Any], before: dict[str, dict[str, Any]], order: dict[str, int], shard: tuple[int, int]
) -> str | None:
    """What is wrong with a record in the place where it stands; None for one of the run's own."""
    if row["id"] in before:
        return "the record is there twice"
    if order and row["id"] not in order:
        return "its instruction is not in instructions.jsonl"
    if schema.is_foreign(row["id"], row["instruction"]):
        return "the id is not that of the instruction"
    if not in_shard(row["id"], *shard):
        return "the record is of another shard"
    first = next(iter(before.values()), row)
    for name, value in _origin(row).items():
        if value != _origin(first)[name]:
            return f"its {name} is {value}, that of the first record {_origin(first)[name]}"
    return None


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    """What all records of a run have in common."""
    guard = row.get("guard")
    guard = guard.get("model") if isinstance(guard, dict) else guard
    return {"model": row["model"], "adapter": row["adapter"], "seed": row["seed"], "guard": guard}


# ---- making them ----

T = TypeVar("T")


def make_records(
    run: Run,
    loop: Loop,
    examples: Sequence[Example],
    *,
    shard: tuple[int, int] = (1, 1),
) -> list[dict[str, Any]]:
    """The records of all examples of a shard, in order: those that are there, and those that are made now.

    As many examples are in flight as the engine has room for. Each is appended as it is finished, so a kill
    costs what is in flight, and the same command goes on with it. Raises BudgetReached once what was begun is
    finished.
    """
    number, of = shard
    path = run.data / records_name(number, of)
    mine = [e for e in examples if in_shard(e.id, number, of)]
    if not mine:
        raise UserError("this shard has no instructions: use fewer shards or more examples")
    wanted = {e.id for e in mine}
    have = {r["id"]: r for r in read_records(run.data) if r["id"] in wanted}
    budget = run.budget or Budget(None, lambda: 0.0)
    progress = Progress(len(mine), run, done=len(have), passed=sum(r["kept"] for r in have.values()))
    todo = budget.affordable(e for e in mine if e.id not in have)

    async def work() -> None:
        async for finished in as_finished(loop.align, todo, loop.engine.capacity):
            jsonl.append(path, finished)
            have.update((r["id"], r) for r in finished)
            clock.bill(len(finished))
            budget.finished(len(finished))
            progress.advance(finished)

    with contextlib.closing(progress), _Clock(run, loop) as clock:
        asyncio.run(work())
    budget.stop_if_reached()
    return [have[e.id] for e in mine]


async def as_finished(work: Callable[[T], Any], items: Iterable[T], at_once: int) -> AsyncIterator[list[Any]]:
    """Works on items, so many at a time; yields the results in groups, as they are finished. An error of one,
    or Ctrl-C, is raised after what is finished by then has been yielded."""
    todo, running, stopped = iter(items), {}, None
    while stopped is None:
        while len(running) < at_once and (item := next(todo, None)) is not None:
            running[asyncio.ensure_future(work(item))] = None
        if not running:
            return
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as cancelled:
            stopped = cancelled
        finished = [task for task in running if task.done()]  # in the order in which they were begun
        for task in finished:
            del running[task]
        failed = [error for task in finished if (error := _error_of(task))]
        if results := [task.result() for task in finished if not _error_of(task)]:
            yield results
        stopped = stopped or next(iter(failed), None)
    raise stopped


def _error_of(task: asyncio.Future) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


class _Clock:
    """Bills the time of the loop to its steps. A step's rate is its seconds by all examples that were
    finished, those that it had nothing to do for included."""

    def __init__(self, run: Run, loop: Loop):
        self.run, self.engines = run, [loop.engine, *([loop.guard.engine] if loop.guard else [])]
        self.finished, self.counted = 0, Counter()  # examples: in all; by step, those that its rows name

    def __enter__(self) -> _Clock:
        for engine in self.engines:
            engine.usage.clear()
        self.since = time.perf_counter()
        return self

    def bill(self, examples: int) -> None:
        """Up to now, if anything was asked since the last bill; else it comes with the next one."""
        self.finished += examples
        if usage := self._usage():
            self._enter(usage, {step: self.finished - self.counted[step] for step in usage})

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """What was in flight has cost, too, but tells of no example; a batch that was broken off is no
        step's."""
        rest = {step: self.finished - n for step, n in self.counted.items() if n < self.finished}
        usage = self._usage() or ({"broken off": Usage()} if kind else {})
        if usage:
            self._enter(usage, {})
        self.run.bill({step: Usage() for step in rest}, 0.0, rest)

    def _usage(self) -> dict[str, Usage]:
        usage: dict[str, Usage] = {}
        for engine in self.engines:  # the guard's may be the loop's own
            usage |= engine.usage
            engine.usage.clear()
        return usage

    def _enter(self, usage: dict[str, Usage], examples: dict[str, int]) -> None:
        now = time.perf_counter()
        self.run.bill(usage, now - self.since, examples)
        self.since = now
        self.counted.update(dict.fromkeys(usage, 0) | examples)
