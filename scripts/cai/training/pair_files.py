"""pairs.jsonl as training reads it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, run_of
from cai.core.jsonl import read
from cai.core.schema import PAIR_KEYS, is_held_out
from cai.core.text import is_broken
from cai.generation.filters import final_reasons
from cai.generation.records import read_records
from cai.prompts.markers import CHAT_TOKENS, END_OF_TEXT, INSTRUCTION, RESPONSE
from cai.prompts.training_format import training_prompt


def read_pairs(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(pairs to train on, held-out pairs) of a run's data directory.

    Raises UserError for rows that do not fit the schema (file, line and key), and where there is no pair:
    then it says which filter took how many of the records.
    """
    path = data / "pairs.jsonl"
    if not path.is_file():
        raise UserError(
            f"{display_path(path)} is missing: generate a run's data first, or name another run with --data"
        )
    rows = read(path, PAIR_KEYS)
    for number, row in enumerate(rows, 1):
        try:
            _check(row, data)
        except UserError as error:
            raise UserError(f"{display_path(path)}, line {number}: {error}") from None
    sides: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in rows:
        sides[row["held_out"] if "held_out" in row else is_held_out(row["id"])].append(row)
    if rows and not sides[False]:
        raise UserError(f"{display_path(path)}: all {len(rows)} pairs are held out, none is left to train on")
    if not rows:
        raise UserError(f"{display_path(path)} holds no pair. {_why_none(data)}, then generate more")
    return sides[False], sides[True]


def _check(row: dict[str, Any], data: Path) -> None:
    """Raises UserError for what is no pair of plain texts."""
    for key in ("prompt", "chosen", "rejected"):
        if not row[key].strip():
            raise UserError(f"{key!r} is empty")
        if is_broken(row[key]):
            raise UserError(f"{key!r} is not UTF-8 (half of a surrogate pair)")
    if row["prompt"].startswith(f"{INSTRUCTION} ") and row["prompt"].endswith(f"\n{RESPONSE}"):
        raise UserError(
            "'prompt' is in the training format, as older files had it, and not the instruction alone: "
            f"python scripts/runs.py --convert {run_of(data)} makes plain texts of them"
        )
    training_prompt(row["prompt"])  # no chat token in it
    token = next((t for t in (*CHAT_TOKENS, END_OF_TEXT) if t in row["chosen"]), None)
    if token:
        raise UserError(f"'chosen' holds the special token {token}, which would be trained: remove it")
    if row["chosen"] == row["rejected"]:
        raise UserError("'chosen' and 'rejected' are the same text")
    if not isinstance(row.get("held_out", False), bool):
        raise UserError("'held_out' is neither true nor false")
    if "held_out" not in row and not re.match("[0-9a-f]{8}", row["id"]):
        raise UserError("'id' is no content hash, so 'held_out' (true or false) must stand beside it")


def _why_none(data: Path) -> str:
    """What spoke against the records of a run without pairs."""
    against = final_reasons(read_records(data))
    took = Counter(reason for reasons in against.values() for reason in reasons)
    why = ", ".join(f"{reason} {n}" for reason, n in took.most_common()) or "there are no records either"
    kept = sum(not reasons for reasons in against.values())
    return (
        f"Of {len(against)} records {kept} were kept; against the others spoke: {why}. "
        f"Look at {display_path(data)}/records.jsonl"
    )
