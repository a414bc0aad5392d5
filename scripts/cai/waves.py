"""Waves: a run's instructions through the loop, some at a time; each wave is on the disk before the next
begins.

What a wave writes depends on its rows alone, so a run that was killed goes on with the next wave and ends
with the rows of an undisturbed one, whatever the waves' size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai import records
from cai.loop import Example
from cai.pipeline import Pipeline
from cai.run import UserError

INSTRUCTION_KEYS = {"id": str, "instruction": str, "task": str, "source": str}


def read_instructions(directory: Path) -> list[dict[str, Any]]:
    return records.read(directory / "instructions.jsonl", INSTRUCTION_KEYS)


def read_records(directory: Path) -> list[dict[str, Any]]:
    """The records of a run, of all its shards, in the order of their instructions."""
    rows = {}
    for path in sorted(directory.glob("records*.jsonl")):
        for row in records.read(path, records.RECORD_KEYS):
            rows[row["id"]] = row
    order = [r["id"] for r in read_instructions(directory)]
    return [rows[i] for i in order if i in rows] or list(rows.values())


def run_waves(
    p: Pipeline,
    rows: Sequence[dict[str, Any]],
    *,
    wave: int,
    judge: bool = True,
    shard: tuple[int, int] = (1, 1),
    after: Callable[[list[dict]], None] = lambda finished: None,
    before: Callable[[int], None] = lambda examples: None,
) -> list[dict[str, Any]]:
    """Records of all rows that have none yet; gives back those of the shard.

    before: called with the number of examples of the coming wave (a budget stops here); after: with the
    wave's records (progress, a guard's verdicts are added there).
    """
    number, of = shard
    if not 1 <= number <= of:
        raise UserError(f"--shard {number}/{of}: the first number goes from 1 to the second")
    name = "records.jsonl" if of == 1 else f"records-{number:03}-of-{of:03}.jsonl"
    path = p.run.data / name
    mine = [r for r in rows if int(r["id"][:8], 16) % of == number - 1]
    finished = records.read(path, records.RECORD_KEYS)
    have = {r["id"] for r in finished}
    todo = [r for r in mine if r["id"] not in have]
    for start in range(0, len(todo), wave):
        some = todo[start : start + wave]
        before(len(some))
        made = one_wave(p, [Example(r["instruction"], r["task"], r["source"]) for r in some], judge=judge)
        after(made)
        records.append(path, made)
        finished += made
    return finished


def one_wave(p: Pipeline, examples: list[Example], *, judge: bool) -> list[dict[str, Any]]:
    """Answer, critique, revise and judge some examples; their records, in order."""
    n = len(examples)
    with p.run.step("answer", quiet=True) as s:
        p.loop.answer(examples)
        s.count([e.answer for e in examples], n)
    with p.run.step("critique", quiet=True) as s:
        p.loop.critique(examples)
        s.count([c for e in examples for c in e.critiques], n)
    with p.run.step("revision", quiet=True) as s:
        p.loop.revise(examples)
        s.count([e.revision for e in examples if e.revision], n)
    if judge:
        with p.run.step("judge", quiet=True) as s:
            s.count(p.loop.judge(examples), n)
    return [p.loop.record(e) for e in examples]
