"""records.jsonl and pairs.jsonl: one schema, append-only, readable after any crash. Identity is by
content."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cai.prompts import training_completion, training_prompt
from cai.run import UserError

RECORD_KEYS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "instruction": str,
    "initial_answer": str,
    "principle": str,
    "critique": str,
    "revised_answer": str,
    "preference_pair": dict,
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
WAY_OUT = "mend or remove the line (every other row stays), then rerun the same command"
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


def preference_pair(instruction: str, chosen: str, rejected: str) -> dict[str, str]:
    """What DPO reads (Rafailov et al. 2023): the prompt in the training format, chosen = revision, rejected =
    first answer."""
    return {
        "prompt": training_prompt(instruction),
        "chosen": training_completion(chosen),
        "rejected": training_completion(rejected),
    }


def pair_of(record: dict[str, Any], kind: str = "revision") -> dict[str, str]:
    """The row of pairs.jsonl of a kept record."""
    assert record["kept"], (
        f"record {record['id']} was rejected because {record['rejected_because']}: it makes no pair"
    )
    return check({"id": record["id"], **record["preference_pair"], "kind": kind}, PAIR_KEYS, "pair")


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


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends rows and returns once they are on the disk. A half-written last line of a crash is cut off
    first; if the disk is full, what was written of these rows is taken back, so that the file always ends
    with a whole line. Other processes that append (two runs share a ledger) wait for each other."""
    block = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    # Unbuffered: a buffer would write its rest when the file is closed, after what was taken back.
    with open(path, "ab+", buffering=0) as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # goes with the file's closing, and with the process
        end = _cut_half_line(f)
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[f.write(rest) :]
            os.fsync(f.fileno())
        except OSError as error:
            os.ftruncate(f.fileno(), end)
            error.filename = error.filename or str(path)
            raise


def complete(path: Path, wanted: Sequence[dict[str, Any]], keys: dict[str, Any]) -> None:
    """Appends those of the wanted rows that a kill kept a file from having. Raises UserError if what it has
    is not their beginning: their inputs have changed since, or somebody edited it."""
    wanted = json.loads(json.dumps(wanted))  # as they will be read back
    have = read(path, keys)
    for number, row in enumerate(have, 1):
        if wanted[number - 1 : number] != [row]:
            raise UserError(
                f"{path}, line {number}: this run would write another row there, so what it is made from has "
                "changed, or the line was edited: restore it, or move the run aside with --fresh"
            )
    append(path, wanted[len(have) :])


def read(path: Path, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file ([] if there is none). A last line without its newline is a crash's and is left out;
    any other line that does not fit the schema is a UserError with its number."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        where = f"{path}, line {number}"
        try:
            rows.append(check(json.loads(line), keys, where))
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not JSON; {WAY_OUT}") from None
        except UserError as error:
            raise UserError(f"{error}; {WAY_OUT}") from None
    return rows


def _cut_half_line(f) -> int:
    """Truncates an open file after its last newline; the length that it then has."""
    end = f.seek(0, os.SEEK_END)
    cut = end
    while cut > 0:
        start = max(0, cut - 65536)
        f.seek(start)
        newline = f.read(cut - start).rfind(b"\n")
        if newline >= 0:
            cut = start + newline + 1
            break
        cut = start
    if cut != end:
        f.truncate(cut)
        f.seek(0, os.SEEK_END)
    return cut
