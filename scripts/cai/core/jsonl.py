"""JSON lines: append-only, readable after any crash."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.schema import check

WAY_OUT = "mend or remove the line (every other row stays), then rerun the same command"


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
