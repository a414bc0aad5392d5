"""A check-up: rows that say what was looked at, how it stands and what to do, as a table and as JSON."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cai.core import files, run
from cai.core.cli import BAD_INPUT, GO
from cai.core.errors import UserError
from cai.core.terminal import say
from cai.core.text import one_line

OK, WARN, FAIL, UNCHECKED = "ok", "warn", "fail", "not checked"


@dataclass(frozen=True)
class Row:
    """One line of a report: what was looked at, how it stands, what was found, and what to do about it."""

    what: str
    status: str
    found: str
    do: str = ""


def table(rows: list[Row]) -> str:
    width = max(16, *(len(row.what) for row in rows))
    lines = []
    for row in rows:
        lines.append(f"  {row.what:<{width}}  {row.status:<11}  {one_line(row.found)}")
        if row.do:
            lines.append(f"  {'':<{width}}  {'':<11}  -> {row.do}")
    return "\n".join(lines)


def failed(rows: list[Row]) -> bool:
    return any(row.status == FAIL for row in rows)


class Report:
    """Rows, printed as they come, and the numbers behind them."""

    def __init__(self, **facts: Any):
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {
            "argv": sys.argv,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "commit": run.git_commit(),
            "python": sys.version.split()[0],
            "versions": run.versions(),
            **facts,
        }

    def head(self, text: str) -> None:
        say(("\n" if self.rows else "") + text)

    def add(self, *rows: Row) -> None:
        self.rows += rows
        say(table(list(rows)))

    def check(self, what: str, look: Callable[[], Row]) -> bool:
        """A check that breaks is a finding, with its traceback in the JSON. True unless it failed."""
        try:
            row = look()
        except UserError as error:
            row = Row(what, FAIL, str(error))
        except Exception as error:
            self.facts.setdefault("tracebacks", {})[what] = traceback.format_exc()
            said = f"{type(error).__name__}: {str(error).strip()[:300]}"
            row = Row(what, FAIL, said, "the JSON has the traceback")
        self.add(row)
        return row.status != FAIL

    def finish(self, path: Path) -> int:
        """Writes the JSON, says what failed and what was not checked, and returns the exit status."""
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {**self.facts, "rows": [asdict(r) for r in self.rows]})
        counts = {s: sum(row.status == s for row in self.rows) for s in (OK, WARN, FAIL, UNCHECKED)}
        say("\n" + ", ".join(f"{n} {s}" for s, n in counts.items()) + f"; wrote {files.display_path(path)}")
        for row in self.rows:
            if row.status in (FAIL, UNCHECKED):
                say(f"{row.status}: {row.what}: {row.found}")
        if counts[FAIL]:
            say("mend what failed, then run this again")
            return BAD_INPUT
        say("next: python scripts/test_single.py")
        return GO
