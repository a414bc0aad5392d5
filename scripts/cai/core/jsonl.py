"""JSON lines: append-only, readable after any crash."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import encode, from_json, to_json
from cai.core.schema import check

WAY_OUT = "mend or remove the line (every other row stays), then rerun the same command"


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends rows and returns once they are on the disk. A half-written last line of a crash is cut off
    first, a whole one gets its newline; if the disk is full, what was written of these rows is taken back, so
    that the file always ends with a whole line. Other processes that append (two runs share a ledger) wait
    for each other."""
    block = encode("".join(to_json(row, path) + "\n" for row in rows))
    # Unbuffered: a buffer would write its rest when the file is closed, after what was taken back.
    with open(path, "ab+", buffering=0) as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # goes with the file's closing, and with the process
        end = _mend_last_line(f)
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
                f"{path}, line {number}: this run would write another row there, "
                "so what it is made from has changed, or the line was edited: "
                "restore it, or move the run aside with --fresh"
            )
    append(path, wanted[len(have) :])


def read(path: Path, keys: dict[str, Any], *, growing: bool = True) -> list[dict[str, Any]]:
    """The rows of a file ([] if there is none). In one that is still growing a half-written last line is a
    crash's and is left out; any other line that does not fit the schema is a UserError with its number."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    *lines, last = text.split(b"\n")
    rows = []
    if last and (_is_whole(last) or not growing):
        lines.append(last)
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            rows.append(check(from_json(line), keys, where))
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not JSON; {WAY_OUT}") from None
        except UserError as error:
            raise UserError(f"{error}; {WAY_OUT}") from None
    return rows


def parse(line: str | bytes, where: str) -> dict[str, Any]:
    """The object of a line that a person or another program wrote; where: file and line, for the sentence.
    Raises UserError also for a key that is there twice: the first of the two values would be lost."""

    def without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
        no_name_twice([key for key, _ in items], where)
        return dict(items)

    try:
        row = json.loads(line, object_pairs_hook=without_repeats)
    except RecursionError:
        raise UserError(
            f"{where}: not JSON that can be read, since it is nested too deeply; remove what is nested"
        ) from None
    except ValueError:
        raise UserError(f"{where}: not JSON; each line must be one object") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; each line must be one")
    return row


def no_name_twice(names: Sequence[str], where: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise UserError(f"{where}: {twice!r} is there twice; rename or remove one of them")


def _is_whole(last: bytes) -> bool:
    """Whether a last line without its newline is a row all the same: no beginning of an object is one."""
    try:
        return isinstance(json.loads(last), dict)
    except (ValueError, RecursionError):
        return False


def _mend_last_line(f) -> int:
    """Lets an open file end with a newline, behind its last whole line; the length that it then has."""
    end, last = f.seek(0, os.SEEK_END), b""
    start = end
    while start > 0 and b"\n" not in last:
        size = min(start, 65536)
        start = f.seek(start - size)
        last = f.read(size) + last
    last = last[last.rfind(b"\n") + 1 :]
    if not last:
        return end
    if _is_whole(last):
        f.write(b"\n")  # opened to append: it goes to the end
    else:
        f.truncate(end - len(last))
    return f.seek(0, os.SEEK_END)
