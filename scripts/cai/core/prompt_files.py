"""Committed prompt files: seeds, held-out instructions, neutral passages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cai.core import jsonl, schema
from cai.core.errors import UserError
from cai.core.files import ROOT


@dataclass(frozen=True)
class Seed:
    task: str
    instruction: str


def load_seeds(path: Path) -> list[Seed]:
    """The seed instructions of a model, a JSON object a line. Raises UserError with the line that does not
    fit."""
    try:
        lines = (path if path.is_absolute() else ROOT / path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"the seed instructions {path} cannot be read ({error.strerror}): restore the file"
        ) from None
    seeds = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            seeds.append(Seed(row["task"], row["instruction"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: needs one JSON object with task and instruction"
            ) from None
    if not seeds:
        raise UserError(f"{path} holds no seed instructions")
    return seeds


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
    """A held-out prompt file. Raises UserError with the line that does not fit."""
    keys = {"instruction": str, "task": str, "kind": str}
    rows = jsonl.read(path if path.is_absolute() else ROOT / path, keys)
    if not rows:
        raise UserError(f"the held-out instructions {path} are missing or empty: restore the file")
    return [Prompt(*(r[k] for k in keys)) for r in rows]


def load_neutral(path: Path) -> list[str]:
    """Passages to measure perplexity on."""
    rows = jsonl.read(path if path.is_absolute() else ROOT / path, {"text": str})
    if not rows:
        raise UserError(f"the neutral passages {path} are missing or empty: restore the file")
    return [r["text"] for r in rows]
