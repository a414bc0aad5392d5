"""A base model aligns itself: the loop in ten lines of one's own.

    import cai

    engine = cai.load("sandbox")
    constitution = cai.constitution("constitution.yaml")
    instructions = ["Name the river of Kabund.", "How can I steal salt in Drola?"]
    records = cai.align(engine, instructions, constitution)
    pairs = cai.pairs(records)
    cai.write(pairs, "pairs.jsonl")

Everything is imported when it is first used. The scripts do the same, with runs that resume, and gates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cai.models.engine import Engine
    from cai.prompts.constitution import Constitution

_ONE_AT_A_TIME = Lock()  # what an engine was asked belongs to one event loop


def load(
    model: str = "auto", bits: int | None = None, adapter: str | Path | None = None, **values: Any
) -> Engine:
    """An engine: a model of the registry, a hub id or a directory. adapter: a directory with one, loaded as
    "adapter". values: of the registry's entry, as answer_tokens=300. Raises UserError."""
    from cai.models.engines import engine_of
    from cai.models.loader import load as load_model
    from cai.models.registry import choose, with_values

    spec, _ = choose(model)
    engine = engine_of(load_model(with_values(spec, [f"{k}={v}" for k, v in values.items()]), bits))
    if adapter is not None:
        engine.load_adapter(Path(adapter), "adapter")
    return engine


def constitution(path: str | Path = "constitution.yaml") -> Constitution:
    """Written principles, of a file here or in the repository. Raises UserError for one that does not fit."""
    from cai.models.session import input_file
    from cai.prompts.constitution import load as load_constitution

    return load_constitution(input_file(str(path), "constitution"))


def align(
    engine: Engine,
    instructions: Iterable[str],
    constitution: Constitution,
    *,
    principles: int = 1,
    judged: bool = True,
    seed: int = 0,
    adapter: str | None = None,
) -> list[dict[str, Any]]:
    """The loop over some instructions, side by side: a record each, in their order, kept or not.

    principles: how many an answer is critiqued by. adapter: who answers (a loaded one's name; None: the
    base). Raises UserError, before anything is asked, for what cannot be an instruction. Calls from several
    threads wait for each other."""
    from cai.core.errors import UserError
    from cai.generation.example import Example, Roles
    from cai.generation.loop import Loop
    from cai.generation.records import as_finished
    from cai.models.session import prompter_of

    if adapter is not None and adapter not in engine.adapters:
        raise UserError(f"no adapter {adapter!r} is loaded: there are {', '.join(engine.adapters) or 'none'}")
    roles = Roles(answerer=adapter)
    loop = Loop(engine, prompter_of(engine), constitution, seed, principles, roles, judged)
    texts = _checked(instructions, base=engine.spec.kind == "base")
    examples = {e.id: e for e in map(Example, texts)}

    async def work() -> dict[str, dict[str, Any]]:
        finished = as_finished(loop.align, examples.values(), engine.capacity)
        return {record["id"]: record async for group in finished for record in group}

    with _ONE_AT_A_TIME:
        done = _run(work())
    return [done[id] for id in examples]


def _run(coroutine: Coroutine) -> Any:
    """Also in a notebook, whose thread has a running loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _checked(instructions: Iterable[str], *, base: bool) -> list[str]:
    from cai.core.errors import UserError
    from cai.core.schema import content_id
    from cai.generation.prompt_sources import against
    from cai.prompts.markers import refuse_chat_tokens

    if isinstance(instructions, str):
        raise UserError(f"the instructions are one text, {instructions[:40]!r}: give a list of texts")
    texts, seen = list(instructions), set()
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"instruction {number} is {text!r}: give a text, or leave it out")
        if base:
            refuse_chat_tokens(text)
        if (reason := against(text)) not in (None, "too_long"):
            raise UserError(f"instruction {number}, {text[:40]!r}, cannot be one: {reason}; leave it out")
        if content_id(text) in seen:
            raise UserError(f"instruction {number}, {text[:40]!r}, is there twice: leave one of them out")
        seen.add(content_id(text))
    return texts


def pairs(
    records: Sequence[dict[str, Any]], *, anchors: float = 0.6, seed: int = 0, held_out: float = 0.1
) -> list[dict[str, Any]]:
    """Preference pairs of plain texts: prompt, chosen, rejected, and whether a pair is held out. Raises
    UserError for what are no records, and for shares that cannot be."""
    from cai.core.cli import FLAGS
    from cai.core.errors import UserError
    from cai.core.schema import WHOLE_RECORD, check
    from cai.generation.pairs import build

    if not FLAGS["anchors"].right(anchors):
        raise UserError(f"anchors {anchors}: {FLAGS['anchors'].says}")
    if not 0 <= held_out <= 0.5:
        raise UserError(f"held_out {held_out}: a share of at most 0.5")
    records = [check(row, WHOLE_RECORD, f"record {number}") for number, row in enumerate(records, 1)]
    return build(records, anchors=anchors, seed=seed, held_out=held_out)


def write(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Appends rows to a JSONL file; a crash leaves none half written. Raises UserError for what is no row."""
    from cai.core.errors import UserError
    from cai.core.jsonl import append

    rows = list(rows)
    if no_rows := [row for row in rows if not isinstance(row, dict)]:
        raise UserError(f"{str(no_rows[0])[:40]!r} is no row: give a list of records or of pairs")
    append(Path(path), rows)
