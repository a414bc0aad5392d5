"""What rows look like: the keys of records and pairs, an example's identity by its content, its seeds."""

from __future__ import annotations

import hashlib
import math
import re
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

# What code reads inside of a record's values.
_VERDICT = (type(None), {"safe": bool})
_COMPARED = {"prompt_tokens": int, "tokens": int}
RECORD_PARTS: dict[str, Any] = {
    "preference_pair": (type(None), {"prompt": str, "chosen": str, "rejected": str}),
    "critiques": [
        {"principle_id": str, "principle": str, "critique": str, "verdict?": (str, type(None))},
    ],
    "rejected_because": [str],
    "tokens": {str: int},
    "finish_reasons?": [str],
    "ended_by?": [(str, type(None))],
    "judgement?": (
        type(None),
        {
            "passed": bool,
            "principles?": [_COMPARED],
            **dict.fromkeys(("helpfulness?", "against_refusal?"), _COMPARED),
        },
    ),
    "guard?": (
        type(None),
        {"model": str, **dict.fromkeys(("instruction?", "initial_answer?", "revised_answer?"), _VERDICT)},
    ),
}

WHOLE_RECORD = RECORD_KEYS | RECORD_PARTS

PAIR_KEYS: dict[str, type] = {"id": str, "prompt": str, "chosen": str, "rejected": str, "kind": str}


def content_id(instruction: str) -> str:
    """The identity of an example: 16 hex digits of its instruction's SHA-256, white space folded."""
    folded = " ".join(instruction.split())
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def row_seed(run_seed: int, row_id: str, purpose: str) -> int:
    """A row's own seed, 0 <= seed < 2**31: it depends on the run's seed, the row and the purpose, never on
    the row's place."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{row_id}/{purpose}".encode()).digest()[:4], "big") >> 1


HELD_OUT = 0.1  # of the examples, where nothing else is said


def is_held_out(row_id: str, share: float = HELD_OUT) -> bool:
    """Whether an example is kept out of training to be measured on: by its content, so in every run alike."""
    return lot_of(row_id) % 1000 < 1000 * share


def lot_of(row_id: str) -> int:
    """The number by which an example is assigned to a side or a shard: the first 8 digits of its id."""
    if not re.match("[0-9a-f]{8}", row_id):
        raise UserError(f"the id {row_id!r} is no content hash")
    return int(row_id[:8], 16)


def is_content_id(row_id: str) -> bool:
    """Whether an id looks like one of content_id's."""
    return bool(re.fullmatch("[0-9a-f]{16}", row_id))


def is_foreign(row_id: str, instruction: str) -> bool:
    """Whether an id is that of another text."""
    return is_content_id(row_id) and row_id != content_id(instruction)


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
    """The row itself, if it has the keys of the schema with their types; more keys may stand beside them.

    A key that ends in "?" may be missing. A type is a type, several of which one must do, [type] (a list of
    such), {str: type} (texts to such), or keys of an object again. True is no number, NaN neither."""
    if wrong := misfit(row, keys):
        raise UserError(f"{where}: {wrong}")
    return row


def misfit(row: Any, keys: dict[str, Any]) -> str | None:
    """What of a row does not fit, in words; see check."""
    if not isinstance(row, dict):
        return "not a JSON object"
    for name, kind in keys.items():
        key = name.removesuffix("?")
        if key not in row:
            if key != name:
                continue
            return f"the key {key!r} is missing"
        if wrong := _against(row[key], kind):
            return f"{key!r} {wrong}"
    return None


def _against(value: Any, kind: Any) -> str | None:
    if isinstance(kind, tuple):
        found = [_against(value, one) for one in kind]
        # Of several the one that says most: an object that lacks a key is meant to be one.
        return None if None in found else max(found, key=len)
    if isinstance(kind, list) and isinstance(value, list):
        wrong = ((n, _against(item, kind[0])) for n, item in enumerate(value, 1))
        return next((f"has an item {n} that {what}" for n, what in wrong if what), None)
    if isinstance(kind, dict) and isinstance(value, dict):
        if list(kind) == [str]:
            kind = dict.fromkeys(value, kind[str])
        inner = misfit(value, kind)
        return inner and f"does not fit: {inner}"
    plain = kind if isinstance(kind, type) else type(kind)
    if not isinstance(value, plain) or isinstance(value, bool) and plain in (int, float):
        return f"is of type {type(value).__name__}"
    return "is no finite number" if isinstance(value, float) and not math.isfinite(value) else None
