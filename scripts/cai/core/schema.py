"""What rows look like: the keys of records and pairs, an example's identity by its content, its seeds."""

from __future__ import annotations

import hashlib
from typing import Any

from cai.core.errors import UserError

TASK_TYPES = (
    "factual_qa",
    "summarization",
    "explanation",
    "translation",
    "creative_writing",
    "code_generation",
    "math",
    "advice",
    "analysis",
    "comparison",
)
SKILLS = ("explicit", "implicit", "generation", "evaluation", "revision")
FORMAT = 2  # of run.json and records; 1 had the pairs' texts in the training format

RECORD_KEYS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "instruction": str,
    "initial_answer": str,
    "principle": str,
    "critique": str,
    "revised_answer": str,
    "preference_pair": (dict, type(None)),
    "task": str,
    "source": str,
    "critiques": list,
    "kept": bool,
    "rejected_because": list,
    "model": str,
    "adapter": (str, type(None)),
    "seed": int,
    "tokens": dict,
}

PAIR_KEYS: dict[str, type] = {"id": str, "prompt": str, "chosen": str, "rejected": str, "kind": str}


def content_id(instruction: str) -> str:
    """The identity of an example: 16 hex digits of its instruction's SHA-256, white space folded."""
    return hashlib.sha256(" ".join(instruction.split()).encode()).hexdigest()[:16]


def row_seed(run_seed: int, row_id: str, purpose: str) -> int:
    """A row's own seed, 0 <= seed < 2**31: it depends on the run's seed, the row and the purpose, never on
    the row's place."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{row_id}/{purpose}".encode()).digest()[:4], "big") >> 1


HELD_OUT = 0.1  # of the examples, where nothing else is said


def is_held_out(row_id: str, share: float = HELD_OUT) -> bool:
    """Whether an example is kept out of training to be measured on: by its content, so in every run alike."""
    return int(row_id[:8], 16) % 1000 < 1000 * share


def check_format(found: Any, where: str, run: str) -> None:
    """Raises UserError for a format that this program does not read; run: the run's name."""
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{where} is of format {found}, this program reads {FORMAT}: a newer one has written it, use that"
        )
    if found != FORMAT:
        raise UserError(
            f"{where} is of format {found or 1}, this program reads {FORMAT}: "
            f"python scripts/runs.py --convert {run} makes it one"
        )


def check(row: Any, keys: dict[str, Any], where: str) -> dict[str, Any]:
    """The row itself, if it has the keys of the schema with their types; more keys may stand beside them."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    for key, kind in keys.items():
        if key not in row:
            raise UserError(f"{where}: the key {key!r} is missing")
        if not isinstance(row[key], kind):
            raise UserError(f"{where}: {key!r} is of type {type(row[key]).__name__}")
    return row
