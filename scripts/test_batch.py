"""Milestone 1: ten examples, two principles each, about ten DPO steps, evaluation, GO or NO-GO.

    python scripts/test_batch.py                     # after test_single.py has said GO
    python scripts/test_batch.py --plan              # what it will take, from the last measured rates
    python scripts/test_batch.py --source prompts.csv --limit 20 --run batch-mine

Writes data/<run>/{instructions,records,pairs}.jsonl, run.json, report.html, yields.png and evaluation/;
checkpoints/<run>/. Killed at any moment, the same command goes on. Exit status: 0 GO, 3 NO-GO, 2 bad input,
4 the budget is reached.
"""

from __future__ import annotations

from cai.core.cli import cli
from cai.evaluation.criteria import m1
from cai.generation.milestones import milestone

STEPS = 10
SUITES = ("critique", "preference")


def main() -> int:
    return milestone(
        __doc__,
        "batch",
        after="single",
        limit=10,
        steps=STEPS,
        held_out=0.1,
        suites=SUITES,
        criteria=m1,
    )


if __name__ == "__main__":
    cli(main)
