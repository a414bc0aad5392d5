"""The instructions and records of a run, of all its shards, as they are read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cai.core import jsonl, schema
from cai.core.errors import UserError

INSTRUCTION_KEYS = {"id": str, "instruction": str, "task": str, "source": str}
RECORDS = re.compile(r"records(?:-(\d+)-of-(\d+))?\.jsonl")


def records_name(number: int, of: int) -> str:
    """The file of a shard's records: a run in one part has one of its own name."""
    return "records.jsonl" if of == 1 else f"records-{number:03}-of-{of:03}.jsonl"


def in_shard(row_id: str, number: int, of: int) -> bool:
    """Whether an example is of the shard number/of (number from 1), by its content."""
    return of == 1 or int(row_id[:8], 16) % of == number - 1


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
            against = _foreign(row, rows, order, in_shard(row["id"], number, of))
            if against:
                raise UserError(f"{path}, line {line}: {against}; {jsonl.WAY_OUT}")
            rows[row["id"]] = row
    return sorted(rows.values(), key=lambda r: order[r["id"]]) if order else list(rows.values())


def _foreign(
    row: dict[str, Any], before: dict[str, dict[str, Any]], order: dict[str, int], of_shard: bool
) -> str | None:
    """What is wrong with a record in the place where it stands; None for one of the run's own."""
    if row["id"] in before:
        return "the record is there twice"
    if not of_shard:
        return "the record is of another shard"
    if order and row["id"] not in order:
        return "its instruction is not in instructions.jsonl"
    first = next(iter(before.values()), row)
    for name, value in _origin(row).items():
        if value != _origin(first)[name]:
            return f"its {name} is {value}, that of the first record {_origin(first)[name]}"
    return None


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    """What all records of a run have in common."""
    guard = (row.get("guard") or {}).get("model")
    return {"model": row["model"], "adapter": row["adapter"], "seed": row["seed"], "guard": guard}
