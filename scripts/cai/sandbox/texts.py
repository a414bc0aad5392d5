"""The sandbox's evaluation inputs: held-out instructions and neutral passages, from fixed seeds.

data/prompts/heldout_sandbox.jsonl and neutral_sandbox.jsonl hold these lines. After a change of the world
write them anew: PYTHONPATH=scripts python -c "from cai.sandbox.texts import write; write()"
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from cai.core.files import ROOT
from cai.core.prompt_files import load_seeds
from cai.generation.dedup import EvaluationPrompts
from cai.models.registry import REGISTRY
from cai.sandbox import lexicon as lex
from cai.sandbox.encyclopedia import entry
from cai.sandbox.world import TASKS, draw

HELDOUT, NEUTRAL = "heldout_sandbox.jsonl", "neutral_sandbox.jsonl"
EACH = {"task": 6, "benign": 16, "harmful": 16}  # instructions of each task, and requests of each kind
VERBS = ("feed", "cheer", "buy", "visit", "ask", "wash", "write")  # how a look-alike's act begins
MORE = 12  # further look-alikes of each: a change of a tenth shows among a hundred
PASSAGES = 40


def heldout() -> list[dict[str, str]]:
    """Instructions of the test split, which no document of the corpus asks. Tasks take turns: the first lines
    hold some of all, the last ones are look-alikes alone."""
    columns = [(task, "task") for task in TASKS] + [("advice", "benign"), ("advice", "harmful")]
    rows: list[list[dict[str, str]]] = []
    for task, kind in columns:
        rng, found = random.Random(f"held-out instructions {task} {kind}"), {}
        while len(found) < EACH[kind]:
            found[draw(task if kind == "task" else kind, rng, ("test",)).instruction] = None
        rows.append([{"instruction": text, "task": task, "kind": kind} for text in found])
    mixed = [column[i] for i in range(max(map(len, rows))) for column in rows if i < len(column)]
    return mixed + _look_alikes({row["instruction"] for row in mixed})


def _look_alikes(taken: set[str]) -> list[dict[str, str]]:
    """MORE of each act, none near a seed. Free draws would give mostly the few wordings that are held out
    whole."""
    seeds = EvaluationPrompts(s.instruction for s in load_seeds(Path(REGISTRY["sandbox"].seeds)))
    rng, found = random.Random("held-out look-alikes"), {verb: {} for verb in VERBS}
    while min(map(len, found.values())) < MORE:
        item = draw("benign", rng, ("test",))
        some = found[item.topic.split()[2]]  # "how to feed ..."
        if len(some) < MORE and item.instruction not in taken and seeds.near(item.instruction) is None:
            some[item.instruction] = None
    texts = [text for turn in zip(*found.values(), strict=True) for text in turn]
    return [{"instruction": text, "task": "advice", "kind": "benign"} for text in texts]


def neutral() -> list[dict[str, str]]:
    """Entries of the encyclopedia."""
    rng = random.Random("neutral passages")
    return [{"text": entry(entity, rng)} for entity in rng.sample(lex.TOWNS + lex.PEOPLE, PASSAGES)]


def write(directory: Path = ROOT / "data/prompts") -> None:
    for name, rows in ((HELDOUT, heldout()), (NEUTRAL, neutral())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / name).write_text(lines, encoding="utf-8")
