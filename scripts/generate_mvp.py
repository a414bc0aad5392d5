"""Milestone 2: a hundred examples, a hundred DPO steps and more, evaluation on held-out pairs, GO or NO-GO.

    python scripts/generate_mvp.py                          # after test_batch.py has said GO
    python scripts/generate_mvp.py --plan                   # what it will take
    python scripts/generate_mvp.py --limit 300 --budget 5   # more examples, and not more than five dollars

Writes data/<run>/{instructions,records,pairs}.jsonl, run.json, report.html, yields.png and evaluation/;
checkpoints/<run>/. Ends with how far the forecast was off, and what Milestone 3 will take. Killed at any
moment, the same command goes on, and reads review.jsonl again. Exit status: 0 GO, 3 NO-GO, 2 bad input, 4 the
budget is reached.
"""

from __future__ import annotations

from cai.core.cli import cli
from cai.evaluation.criteria import m2
from cai.generation.milestones import milestone
from generate_full import next_milestone

STEPS = 120
HELD_OUT = 0.25  # a tenth of the few pairs that a hundred examples make would decide nothing
SUITES = ("critique", "preference", "forgetting")


def main() -> int:
    return milestone(
        __doc__,
        "mvp",
        after="batch",
        limit=100,
        steps=STEPS,
        held_out=HELD_OUT,
        suites=SUITES,
        criteria=m2,
        following=next_milestone,
    )


if __name__ == "__main__":
    cli(main)
