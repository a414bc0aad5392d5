"""review.jsonl: what a person said of a run's examples on the review page."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.schema import check
from cai.generation.records import read_records

MARK_KEYS = {
    "id": str,
    "critique_meaningful": (bool, type(None)),
    "revision_better": (str, type(None)),
    "note": str,
    "time": str,
}
REVISION_BETTER = ("revision", "first", "tie", None)


@dataclass(frozen=True)
class Marks:
    """What a person said of one example; None where a question was left open.

    revision_better: "revision", "first" (the first answer is better) or "tie". time: ISO 8601, of the last
    change.
    """

    critique_meaningful: bool | None
    revision_better: str | None
    note: str
    time: str


def read_marks(run_dir: Path) -> dict[str, Marks]:
    """The marks in run_dir/review.jsonl by example, {} without that file; the last line of an id counts.

    Raises UserError, with the line's number, for a line that the page does not write, for an example that the
    run has not, and for a mark that was made on other texts than the run's.
    """
    path = run_dir / "review.jsonl"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); export it from the page again") from None
    examples = {record["id"]: record for record in read_records(run_dir)}
    marks = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row_id, mark = _mark(line, examples, f"{path}, line {number}")
            marks[row_id] = mark
    return marks


def preferred(run_dir: Path) -> dict[str, str]:
    """Which answer a person found better, by example: REVISION_BETTER, for those that were asked about it."""
    return {i: m.revision_better for i, m in read_marks(run_dir).items() if m.revision_better is not None}


def _mark(line: str, examples: dict[str, dict[str, Any]], where: str) -> tuple[str, Marks]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON; remove the line or export the file again") from None
    check(row, MARK_KEYS, where)
    if row["revision_better"] not in REVISION_BETTER:
        raise UserError(
            f"{where}: 'revision_better' is {row['revision_better']!r}: "
            "it can be 'revision', 'first', 'tie' or null"
        )
    try:
        datetime.fromisoformat(row["time"])
    except ValueError:
        raise UserError(f"{where}: 'time' is {row['time']!r}, which is no ISO 8601 time") from None
    record = examples.get(row["id"])
    if record is None:
        raise UserError(f"{where}: the run has no example {row['id']!r}; is this another run's review.jsonl?")
    if row.get("texts", texts := texts_digest(record)) != texts:
        raise UserError(
            f"{where}: example {row['id']} had other texts when it was marked; "
            "mark it on this run's report.html, or remove the line"
        )
    if row["revision_better"] is not None and not record["revised_answer"]:
        raise UserError(f"{where}: 'revision_better' is set, but example {row['id']} was not revised")
    return row["id"], Marks(*(row[key] for key in MARK_KEYS if key != "id"))


def texts_digest(record: dict[str, Any]) -> str:
    """Of what a person judges: a mark holds for these texts alone."""
    critiques = [[c["principle"], c["critique"]] for c in record["critiques"]]
    return json_digest([record["instruction"], record["initial_answer"], critiques, record["revised_answer"]])


def json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
