"""Where a suite keeps every single answer and verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai.core import jsonl

WHO = BASE, TRAINED = "base", "trained"
ROW_KEYS = {"id": str, "setup": str}


class ResultStore:
    """The answers and verdicts of one suite: appended as they come, looked up by id, never made twice.

    A row that another suite of this run has made already is copied; one of the base alone (its "by") goes by
    way of `base`, the rows that other runs have of it, too. Rows of another setup (an adapter trained since,
    another seed) stay in the file and are not looked at.
    """

    def __init__(self, path: Path, setup: str, base: ResultStore | None = None, chunk: int = 64):
        self.path, self.setup, self.base, self.chunk = path, setup, base, chunk
        path.parent.mkdir(parents=True, exist_ok=True)
        mine, self.elsewhere = self._read(path), {}
        self.own = mine
        for other in sorted(path.parent.glob("*.jsonl")):
            if other != path:
                self.elsewhere |= self._read(other)
        self.before, self.found = {*self.own, *self.elsewhere}, 0

    def fill(self, wanted: Sequence[dict], work: Callable[[list[dict]], list[dict]]) -> list[dict[str, Any]]:
        """The rows wanted (ids, and what they ask), in order; work makes what is missing, some at a time."""
        ids = [w["id"] for w in wanted]
        assert len(set(ids)) == len(ids), f"ids of {self.path.name} are not unique"
        copies = [self.elsewhere[i] for i in ids if i not in self.own and i in self.elsewhere]
        todo = [w for w in wanted if w["id"] not in self.own and w["id"] not in self.elsewhere]
        self.found += len(self.before.intersection(ids))
        self.before.difference_update(ids)
        if copies:
            self._add(copies)
        if self.base is not None:
            of_base = [w for w in todo if w.get("by") == BASE]
            todo = [w for w in todo if w.get("by") != BASE]
            self._add([{**row, "setup": self.setup} for row in self.base.fill(of_base, work)])
        for start in range(0, len(todo), self.chunk):
            some = todo[start : start + self.chunk]
            made = zip(some, work(some), strict=True)
            self._add([{**asked, **found, "setup": self.setup} for asked, found in made])
        return [self.own[i] for i in ids]

    def _add(self, rows: list[dict]) -> None:
        jsonl.append(self.path, rows)
        self.own |= {r["id"]: r for r in rows}

    def _read(self, path: Path) -> dict[str, dict]:
        return {r["id"]: r for r in jsonl.read(path, ROW_KEYS) if r["setup"] == self.setup}
