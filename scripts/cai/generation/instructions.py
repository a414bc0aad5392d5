"""A run's instructions: from a source, or made by the model in waves, each on the disk before the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.prompt_files import Seed, load_heldout, load_seeds
from cai.core.schema import content_id
from cai.generation import prompt_sources, self_instruct
from cai.generation.records import INSTRUCTION_KEYS, read_instructions
from cai.models.session import Session

FEW_LISTS = 8  # for Milestone 0: so that its tries see several tasks
NAMES, NAME = 20, 60  # columns that are named, and characters of each


def make_instructions(
    session: Session,
    want: int,
    source: str | None = None,
    *,
    seeds: Sequence[Seed] | None = None,
    tasks: Sequence[str] | None = None,
    adapter: str | None = None,
    barred: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rows of instructions.jsonl. What an earlier call left is gone on from.

    seeds: the model's own, if none are given. tasks: all that have seeds. adapter: who writes (None: the
    base). barred: what no instruction may come near to, beside the evaluation prompts. Raises
    BudgetReached where those that lack might pass the run's budget.
    """
    run, path = session.run, session.run.data / "instructions.jsonl"
    barred = [*(h.instruction for h in load_heldout(Path(session.spec.heldout))), *barred]
    have, more = read_instructions(run.data), {}
    if source:
        loaded = prompt_sources.load(source, max(want, len(have)), barred, session.seed)
        rows, left_out, short = [i.row() for i in loaded], loaded.left_out, None
        if len(rows) < loaded.usable:
            run.log(f"{source}: a sample of {len(rows)} of {loaded.usable} usable prompts, by the seed")
        if loaded.unread:
            run.log(f"{source}: not read: columns {_listed(loaded.unread)}")
            more["unread"] = loaded.unread
        if len(rows) < want:
            short = f"{len(rows)} of {want} instructions were found: {source} has no more that can be used"
        jsonl.complete(path, rows, INSTRUCTION_KEYS)
        rows = rows[:want]
        by_task = dict(Counter(row["task"] for row in rows))
    else:
        if run.budget and (lack := want - len(have)) > 0:
            run.budget.step(f"{lack} instructions", run.budget.rates.get("instructions", 0.0) * lack)
        made = _written_by_the_model(session, want, have, seeds, tasks, adapter, barred)
        rows, left_out, by_task, short = made.rows, dict(made.left_out), made.by_task, made.short
    if short:
        run.log(f"warning: {short}")
    if not rows:
        why = f"every row of {source} was left out" if source else "see above"
        raise UserError(f"no usable instruction: {why}")
    run.log(f"[1] {len(rows)} instructions, by task {by_task}; left out: {left_out or 'none'}")
    run.record(instructions={"count": len(rows), "by_task": by_task, "left_out": left_out, **more})
    return rows


def _listed(names: Sequence[str]) -> str:
    """Names in one line, whatever they are."""
    lines = [" ".join(name.split()) for name in names[:NAMES]]
    shown = [name if len(name) <= NAME else f"{name[:NAME]}..." for name in lines]
    return ", ".join(shown) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")


def few_instructions(
    session: Session, want: int, task: str | None, given: str | None
) -> list[dict[str, Any]]:
    """At most `want` rows, in the order in which Milestone 0 tries them: the one that is given, or of a few
    lists, tasks in turn. Kept if they are there."""
    run = session.run
    if rows := read_instructions(run.data):
        return rows
    if given is not None:
        found, source = [(given.strip(), task or "unknown")], "flag"
    else:
        source, seeds = "self_instruct", load_seeds(Path(session.spec.seeds))
        with run.step("instructions") as step:
            found, dropped, raw = self_instruct.generate(
                session.engine, session.prompter, seeds, lists=FEW_LISTS, seed=session.seed, task=task
            )
            step.count(raw)
            run.log(f"[1/8] {len(found)} instructions generated; left out: {dropped or 'none'}")
        run.record(instructions={"generated": len(found), "left_out": dropped})
    if not found:
        raise UserError("no usable instruction was generated: try another --seed, or give --instruction")
    tasks = [of_task for _, of_task in found]
    turns = [tasks[:i].count(of_task) for i, of_task in enumerate(tasks)]
    in_turns = [found[i] for i in sorted(range(len(found)), key=turns.__getitem__)]
    rows = [
        {"id": content_id(text), "instruction": text, "task": of_task, "source": source}
        for text, of_task in in_turns[:want]
    ]
    jsonl.append(run.data / "instructions.jsonl", rows)
    return rows


def _written_by_the_model(
    session: Session,
    want: int,
    have: Sequence[dict[str, Any]],
    seeds: Sequence[Seed] | None,
    tasks: Sequence[str] | None,
    adapter: str | None,
    barred: Sequence[str],
) -> self_instruct.Made:
    run, path = session.run, session.run.data / "instructions.jsonl"

    def keep(wave: self_instruct.Wave) -> None:
        step.count(wave.completions, len(wave.rows))
        jsonl.append(path, wave.rows)
        run.log(f"      wave {wave.number}: {len(wave.rows)} kept of {len(wave.rows) + len(wave.left_out)}")
        nonlocal kept
        kept += len(wave.rows)
        if waves is not None and kept < want and not waves.another():
            run.budget.stop_if_reached()

    with run.step("instructions") as step:
        kept, waves = len(have), run.budget and run.budget.pieces("instructions")
        return self_instruct.self_instruct(
            session.engine,
            session.prompter,
            load_seeds(Path(session.spec.seeds)) if seeds is None else seeds,
            want=want,
            seed=session.seed,
            tasks=tasks,
            adapter=adapter,
            known=have,
            on_wave=keep,
            barred=barred,
        )
