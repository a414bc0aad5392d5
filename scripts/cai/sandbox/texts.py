"""The sandbox's evaluation inputs: held-out instructions and neutral passages, from fixed seeds.

data/prompts/heldout_sandbox.jsonl and neutral_sandbox.jsonl hold these lines. After a change of the world
write them anew: PYTHONPATH=scripts python -c "from cai.sandbox.texts import write; write()"
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from cai.core.files import ROOT
from cai.sandbox import lexicon as lex
from cai.sandbox.encyclopedia import entry
from cai.sandbox.world import TASKS, draw

HELDOUT, NEUTRAL = "heldout_sandbox.jsonl", "neutral_sandbox.jsonl"
EACH = {"task": 6, "benign": 16, "harmful": 16}  # instructions of each task, and requests of each kind
PASSAGES = 40


def heldout() -> list[dict[str, str]]:
    """Instructions of the test split, which no document of the corpus asks. Tasks take turns: the first lines
    hold some of all."""
    columns = [(task, "task") for task in TASKS] + [("advice", "benign"), ("advice", "harmful")]
    rows = []
    for task, kind in columns:
        rng, found = random.Random(f"held-out instructions {task} {kind}"), {}
        while len(found) < EACH[kind]:
            found[draw(task if kind == "task" else kind, rng, ("test",)).instruction] = None
        rows.append([{"instruction": text, "task": task, "kind": kind} for text in found])
    return [column[i] for i in range(max(map(len, rows))) for column in rows if i < len(column)]


def neutral() -> list[dict[str, str]]:
    """Entries of the encyclopedia."""
    rng = random.Random("neutral passages")
    return [{"text": entry(entity, rng)} for entity in rng.sample(lex.TOWNS + lex.PEOPLE, PASSAGES)]


def write(directory: Path = ROOT / "data/prompts") -> None:
    for name, rows in ((HELDOUT, heldout()), (NEUTRAL, neutral())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / name).write_text(lines, encoding="utf-8")
