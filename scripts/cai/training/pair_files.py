"""pairs.jsonl as training reads it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path
from cai.core.jsonl import read
from cai.core.schema import PAIR_KEYS, is_held_out
from cai.generation.records import read_records
from cai.prompts.markers import INSTRUCTION, RESPONSE

# ---- pairs ----


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
        where = f"{display_path(path)}, line {number}"
        if not (row["prompt"].startswith(f"{INSTRUCTION} ") and row["prompt"].endswith(f"\n{RESPONSE}")):
            raise UserError(
                f"{where}: 'prompt' is not in the training format (Instruction: ..., newline, Response:)"
            )
        for key in ("chosen", "rejected"):
            if not row[key].startswith(" ") or not row[key].strip():
                raise UserError(f"{where}: {key!r} must be a space and a text")
        if row["chosen"] == row["rejected"]:
            raise UserError(f"{where}: 'chosen' and 'rejected' are the same text")
        if not isinstance(row.get("held_out", False), bool):
            raise UserError(f"{where}: 'held_out' is neither true nor false")
        if "held_out" not in row and not re.match("[0-9a-f]{8}", row["id"]):
            raise UserError(
                f"{where}: 'id' is no content hash, so 'held_out' (true or false) must stand beside it"
            )
    apart = [row["held_out"] if "held_out" in row else is_held_out(row["id"]) for row in rows]
    if not all(apart):
        return [r for r, a in zip(rows, apart, strict=True) if not a], [
            r for r, a in zip(rows, apart, strict=True) if a
        ]
    if rows:
        raise UserError(f"{display_path(path)}: all {len(rows)} pairs are held out, none is left to train on")

    records = read_records(data)
    took = Counter(reason for r in records for reason in r["rejected_because"])
    why = ", ".join(f"{reason} {n}" for reason, n in took.most_common()) or "there are no records either"
    raise UserError(
        f"{display_path(path)} holds no pair. "
        f"Of {len(records)} records {sum(r['kept'] for r in records)} were kept; "
        f"against the others spoke: {why}. "
        f"Look at {display_path(data)}/records.jsonl, then generate more"
    )
