"""Where a suite keeps every single answer and verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai.core import jsonl, schema
from cai.core.errors import UserError
from cai.core.files import display_path

WHO = BASE, TRAINED = "base", "trained"
ROW_KEYS = {"id": str, "setup": str}
NUMBER = (int, float)
# What suites read in rows, by what their ids begin with, and the text whose hash an id ends in.
KEYS: dict[str, dict[str, Any]] = {
    "answer": {"instruction": str, "answer": str, "finish_reason": str, "tokens": int},
    "judgement": {**dict.fromkeys(("instruction", "base", "trained"), str), "score": NUMBER},
    "passage": {"text": str, "tokens": int, "logprob": NUMBER},
    "success": {"right": (bool, type(None))},
    "probe": {"right": (bool, type(None))},
    "critique": {"meaningful": bool},
    "on topic": {
        "silent": (str, type(None)),
        **{"critique?": (str, type(None)), "gain?": (*NUMBER, type(None)), "loss?": (*NUMBER, type(None))},
    },
    "mark": {"score": NUMBER},
    "pair": {
        **dict.fromkeys(("margin", "normalised_margin", "chosen_change"), NUMBER),
        **dict.fromkeys(("held_out", "base_prefers", "trained_prefers"), bool),
        **dict.fromkeys(("pair", "kind"), str),
    },
}
TEXTS = {
    "answer": ("instruction",),
    "judgement": ("instruction", "base", "trained"),
    "passage": ("text",),
}


class ResultStore:
    """The answers and verdicts of one suite: appended as they come, looked up by id, never made twice.

    A row that another suite of this run has made already is copied; one of the base alone (its "by") goes by
    way of `base`, the rows that other runs have of it, too. Rows of another setup (an adapter trained since,
    another seed) stay in the file and are not looked at. A row that is not what its id says, or not what is
    asked, was edited or comes from elsewhere: it is refused.
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
        wanted = json.loads(json.dumps(wanted))  # as they will be read back
        ids = [w["id"] for w in wanted]
        assert len(set(ids)) == len(ids), f"ids of {self.path.name} are not unique"
        copies = [self.elsewhere[i] for i in ids if i not in self.own and i in self.elsewhere]
        todo = [w for w in wanted if w["id"] not in self.own and w["id"] not in self.elsewhere]
        for w in wanted:
            row = self.own.get(w["id"]) or self.elsewhere.get(w["id"])
            if row and (other := sorted(key for key in w if row.get(key) != w[key])):
                raise UserError(
                    f"{display_path(self.path.parent)}/: the row {w['id']} has another {other[0]} than is "
                    "asked for now: remove it, then rerun the same command"
                )
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
        rows = {}
        for number, row in enumerate(jsonl.read(path, ROW_KEYS), 1):
            if row["setup"] == self.setup:
                if wrong := _wrong(row):
                    raise UserError(f"{display_path(path)}, line {number}: {wrong}; {jsonl.WAY_OUT}")
                rows[row["id"]] = row
        return rows


def _wrong(row: dict[str, Any]) -> str | None:
    """What speaks against a row."""
    kind, *rest = row["id"].split("/")
    if not rest or not schema.is_content_id(rest[-1]) and kind in TEXTS:
        return None
    if misfit := schema.misfit(row, KEYS.get(kind, {})):
        return misfit
    texts = "\n".join(row[key] for key in TEXTS.get(kind, ()))
    return "the id is not that of its texts" if texts and schema.is_foreign(rest[-1], texts) else None
