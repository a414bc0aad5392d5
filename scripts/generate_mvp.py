"""Milestone 2: a hundred examples, a hundred DPO steps and more, evaluation on held-out pairs, GO or NO-GO.

    python scripts/generate_mvp.py                          # after test_batch.py has said GO
    python scripts/generate_mvp.py --forecast               # what it will take
    python scripts/generate_mvp.py --limit 300 --budget 5   # more examples, and not more than five dollars

Writes data/<run>/{instructions,records,pairs}.jsonl, run.json, report.html, yields.png and evaluation/;
checkpoints/<run>/. Ends with how far the forecast was off, and what Milestone 3 will take. Killed at any
moment, the same command goes on, and reads review.jsonl again. Exit status: 0 GO, 3 NO-GO, 2 bad input, 4 the
budget is reached.
"""

from __future__ import annotations

from cai.core.cli import GENERATING, GO, cli, parser
from cai.training.losses import LOSSES

HELD_OUT = 0.25  # a tenth of the few pairs that a hundred examples make would decide nothing
SUITES = ("critique", "preference", "forgetting")


def main() -> int:
    args = parser(
        __doc__,
        *GENERATING,
        "steps",
        "loss",
        choices={"loss": LOSSES},
        run="mvp",
        after="batch",
        limit=100,
        principles=2,
        anchors=0.6,
        held_out=HELD_OUT,
        steps=120,
    ).parse_args()

    from cai.costs.budget import Budget
    from cai.costs.forecast import milestone_forecast, report_accuracy
    from cai.evaluation.criteria import m2
    from cai.evaluation.gates import decide, require
    from cai.evaluation.suites import measure
    from cai.generation.example import examples_of
    from cai.generation.instructions import make_instructions
    from cai.generation.loop import Loop
    from cai.generation.pairs import make_pairs
    from cai.generation.prompt_sources import check
    from cai.generation.records import make_records
    from cai.generation.yield_stats import report_yield
    from cai.models.session import check_inputs, open_session
    from cai.reports.review import publish
    from cai.training.dpo import train_adapter
    from cai.training.settings import Settings
    from generate_full import next_milestone

    check_inputs(args)
    if args.source:
        check(args.source)
    ahead = milestone_forecast(args, args.steps)
    if args.forecast:
        print(ahead.render())
        return GO
    budget = Budget.ahead(args.budget, ahead)
    before = require(args.after, force=args.force)
    own = ("principles", "limit", "source", "anchors", "no_judge", "held_out", "steps", "loss")
    with open_session(args, *own, budget=budget) as session:
        run, seed = session.run, session.seed
        run.log(before)
        ahead.note(run)
        dollars = ahead.dollars_of("instructions")
        rows = make_instructions(session, args.limit, args.source, budget=budget, dollars=dollars)
        loop = Loop(
            session.engine,
            session.prompter,
            session.constitution,
            seed,
            principles=args.principles,
            judged=not args.no_judge,
        )
        records = make_records(run, loop, examples_of(rows), budget=budget)
        report_yield(run, session.constitution, records)
        pairs = make_pairs(run, records, anchors=args.anchors, held_out=args.held_out, seed=seed)
        publish(run)

        train_adapter(session, pairs, Settings.of(session.spec, args.steps, seed, loss=args.loss))
        summaries = measure(session, records, pairs, SUITES)
        status = decide(run, m2(run, summaries))
        publish(run)
        report_accuracy(run)
        run.log(next_milestone(args))
    return status


if __name__ == "__main__":
    cli(main)
