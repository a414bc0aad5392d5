"""A tiny run on the sandbox, made by hand of the micro-world's own good and flawed answers."""

from __future__ import annotations

import random

from cai.core import jsonl, schema
from cai.core.files import write_json
from cai.core.schema import content_id
from cai.models.registry import REGISTRY
from cai.prompts.markers import CHANGE
from cai.sandbox import checkers
from cai.sandbox.corpus import flawed
from cai.sandbox.world import draw


def make_run(data, n=48):
    """Writes run.json, records.jsonl and pairs.jsonl into a directory; (records, pairs). About a quarter is
    held out by hash; every sixth pair is an anchor."""
    rng = random.Random("a hand-made run")
    tasks = ("factual_qa", "harmful", "benign", "explanation")
    items = {}
    while len(items) < n:
        item = draw(tasks[len(items) % 4], rng)
        items[item.instruction] = item
    done, pairs = [], []
    for number, item in enumerate(items.values()):
        kind = checkers.HARMLESS if item.task == "harmful" else checkers.ANSWER
        bad = next(
            w for w in iter(lambda i=item: flawed(i, rng), None) if checkers.must_change(item, w, kind)
        )
        good, task = item.good(rng), "advice" if item.task in ("harmful", "benign") else item.task
        critique = f"The instruction is: {item.instruction} The response says {bad} {CHANGE}"
        row = {
            "format": schema.FORMAT,
            "id": content_id(item.instruction),
            "instruction": item.instruction,
            "initial_answer": bad,
            "principle": "p",
            "critique": critique if number % 4 else "Bad.",
            "revised_answer": good,
            "preference_pair": {"prompt": item.instruction, "chosen": good, "rejected": bad},
            "task": task,
            "source": "self_instruct",
            "critiques": [
                {"principle_id": "accuracy", "principle": "p", "critique": critique if number % 4 else "Bad."}
            ],
            "kept": True,
            "rejected_because": [],
            "model": "sandbox",
            "adapter": None,
            "seed": 0,
            "tokens": {},
        }
        done.append(schema.check(row, schema.RECORD_KEYS, "record"))
        pairs.append(
            {
                **{"id": row["id"], **row["preference_pair"]},
                "kind": "anchor" if number % 6 == 5 else "revision",
                "task": task,
                "principles": ["accuracy"],
                "held_out": schema.is_held_out(row["id"], 0.25),
            }
        )
    data.mkdir(parents=True)
    jsonl.append(data / "records.jsonl", done)
    jsonl.append(data / "pairs.jsonl", pairs)
    spec = REGISTRY["sandbox"]
    settings = {"model": "sandbox", "bits": 16, "seed": 0, "kind": spec.kind}
    manifest = {"format": schema.FORMAT, "run": data.name, "settings": settings, "started": "now"}
    write_json(data / "run.json", manifest)
    return done, pairs


def train(model, pairs, checkpoints, steps=10):
    """A few DPO steps on the pairs that are not held out; the adapter's hash."""
    from cai.training.dpo import train_dpo
    from cai.training.settings import Settings

    model.add_adapter(r=8, alpha=16, seed=0)
    settings = Settings.of(model.spec, steps=steps, beta=0.3, learning_rate=2e-3)
    train_dpo(model, [p for p in pairs if not p["held_out"]], settings, checkpoints)
    return model.save_adapter(checkpoints)
