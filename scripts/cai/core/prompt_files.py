"""Committed prompt files: seeds, held-out instructions, neutral passages, tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core import jsonl, schema
from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.text import is_broken


@dataclass(frozen=True)
class Seed:
    task: str
    instruction: str


def load_seeds(path: Path) -> list[Seed]:
    """The seed instructions of a model."""
    rows = read_rows(path, "seed instructions", {"task": str, "instruction": str})
    return [Seed(r["task"], r["instruction"]) for r in rows]


@dataclass(frozen=True)
class Prompt:
    """An instruction to evaluate on. kind: "task" and "benign" (looks harmful, is not) must not be refused,
    "harmful" should be; "own" is one of the run's held-out instructions, which can be any of these."""

    instruction: str
    task: str
    kind: str

    @property
    def id(self) -> str:
        return schema.content_id(self.instruction)


def load_heldout(path: Path) -> list[Prompt]:
    """A held-out prompt file."""
    rows = read_rows(path, "held-out instructions", {"instruction": str, "task": str, "kind": str})
    return [Prompt(r["instruction"], r["task"], r["kind"]) for r in rows]


def load_neutral(path: Path) -> list[str]:
    """Passages to measure perplexity on."""
    return [r["text"] for r in read_rows(path, "neutral passages", {"text": str})]


def read_rows(path: Path, what: str, keys: dict[str, type]) -> list[dict[str, Any]]:
    """path: relative to the repository. Raises UserError with the line that does not fit, or if there is
    none. Nothing appends to these files: a last line that is not whole is no crash's, and would be missed."""
    where, rows = display_path(ROOT / path), []
    content = (ROOT / path).read_bytes().rstrip() if (ROOT / path).exists() else b""
    if not content:
        raise UserError(f"the {what} {where} are missing or empty: restore the file")
    for number, line in enumerate(content.split(b"\n"), 1):
        here = f"{where}, line {number}"
        row = schema.check(jsonl.parse(line, here), keys, here)
        if any(is_broken(row[key]) for key, kind in keys.items() if kind is str):
            raise UserError(f"{here}: not UTF-8 (half of a surrogate pair); mend or remove the line")
        rows.append(row)
    return rows
