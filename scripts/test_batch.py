"""Milestone 1: ten examples, two principles each, about ten DPO steps, evaluation, GO or NO-GO.

    python scripts/test_batch.py                     # after test_single.py has said GO
    python scripts/test_batch.py --plan              # what it will take, from the last measured rates
    python scripts/test_batch.py --source prompts.csv --limit 20 --run batch-mine

Writes data/<run>/{instructions,records,pairs}.jsonl, run.json, report.html, yields.png and evaluation/;
checkpoints/<run>/. Killed at any moment, the same command goes on. Exit status: 0 GO, 3 NO-GO, 2 bad input,
4 the budget is reached.
"""

from __future__ import annotations

from cai.milestones import milestone
from cai.run import cli

STEPS = 10
SUITES = ("critique", "preference")


def main() -> int:
    return milestone(
        __doc__, "batch", after="single", limit=10, steps=STEPS, suites=SUITES, criteria=criteria
    )


def criteria(p, result, summaries) -> list:
    from cai.gates import Criterion, from_metric
    from cai.records import read
    from cai.run import shown

    log = read(p.run.checkpoints / "training.jsonl", {"step": int})
    losses = [row["loss"] for row in log if row.get("kind") == "train"]
    late = sum(losses[-3:]) / max(len(losses[-3:]), 1)
    fell = bool(losses) and late < losses[0]
    moved = f"{losses[0]:.3f} at step 1, {late:.3f} on average of the last three" if losses else "no step"
    trained, here = result.after["train"], shown(p.run.data)
    prefers = f"{trained['accuracy']:.0%} of {trained['n']} pairs that it was trained on"
    return [
        from_metric("critiques meaningful", summaries["critique"], "critiques meaningful", 0.7, here),
        Criterion("the DPO loss falls", fell, moved, shown(p.run.checkpoints / "curves.png")),
        Criterion("the trained model prefers the revisions", trained["accuracy"] > 0.5, prefers, here),
    ]


if __name__ == "__main__":
    cli(main)
