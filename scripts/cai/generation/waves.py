"""Waves: a run's instructions through the loop, some at a time; each wave is on the disk before the next
begins.

What a wave writes depends on its rows alone, so a run that was killed goes on with the next wave and ends
with the rows of an undisturbed one, whatever the waves' size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cai.core import jsonl
from cai.core.errors import UserError
from cai.generation.loop import Example
from cai.generation.records import in_shard, read_records, records_name
from cai.models.session import Pipeline


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
    path = p.run.data / records_name(number, of)
    mine = [r for r in rows if in_shard(r["id"], number, of)]
    finished = [r for r in read_records(p.run.data) if in_shard(r["id"], number, of)]
    have = {r["id"] for r in finished}
    todo = [r for r in mine if r["id"] not in have]
    for start in range(0, len(todo), wave):
        some = todo[start : start + wave]
        before(len(some))
        made = one_wave(p, [Example(r["instruction"], r["task"], r["source"]) for r in some], judge=judge)
        after(made)
        jsonl.append(path, made)
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
