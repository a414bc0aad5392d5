"""Milestone 2: a hundred examples to train on, others to measure with, 120 DPO steps, evaluation, a decision.

    python scripts/generate_mvp.py                          # after test_batch.py has said GO
    python scripts/generate_mvp.py --forecast               # what it will take
    python scripts/generate_mvp.py --limit 300 --budget 5   # more examples, and not more than five dollars

Writes data/<run>/{instructions,records,pairs}.jsonl, run.json, report.html, yields.png and evaluation/;
checkpoints/<run>/. Held-out examples are made beside the hundred, until there are 20 revision pairs of them
(at most 20 examples for each). Ends with how far the forecast was off, and what Milestone 3 will take. Killed
at any moment, the same command goes on, and reads review.jsonl again. Exit status: 0 GO, 3 NO-GO, 5 UNDECIDED
(too few cases to tell), 2 bad input, 4 the budget is reached.
"""

from __future__ import annotations

from cai.core.cli import GENERATING, GO, NO_GO, cli, parser
from cai.training.losses import LOSSES

EXAMPLES = 100  # to train on, unless --limit or --pairs says otherwise
HELD_OUT = 0.4  # of the instructions: what 20 pairs to measure with take beside these
SUITES = ("critique", "preference", "forgetting")


def main() -> int:
    args = parser(
        __doc__,
        *GENERATING,
        "held-out-pairs",
        "steps",
        "loss",
        choices={"loss": LOSSES},
        run="mvp",
        after="batch",
        principles=2,
        anchors=0.6,
        held_out=HELD_OUT,
        steps=120,
    ).parse_args()
    if args.limit is None and args.pairs is None:
        args.limit = EXAMPLES

    from cai.costs.budget import Budget
    from cai.costs.default_rates import REVISIONS_AN_EXAMPLE
    from cai.costs.engine_choice import milestone_forecast
    from cai.costs.forecast import report_accuracy
    from cai.evaluation.criteria import m2, no_pairs
    from cai.evaluation.gates import decide, require
    from cai.evaluation.suites import measure
    from cai.generation.example import examples_of
    from cai.generation.instructions import make_instructions
    from cai.generation.loop import Loop
    from cai.generation.pairs import make_pairs
    from cai.generation.prompt_sources import check
    from cai.generation.records import make_records
    from cai.generation.targets import HELD_OUT_PAIRS, Side, Target, until_enough
    from cai.generation.yield_stats import report_yield
    from cai.models.session import check_inputs, open_session
    from cai.reports.review import publish
    from cai.training.dpo import train_adapter
    from cai.training.settings import Settings
    from generate_full import next_milestone

    _, spec, _ = check_inputs(args)
    if args.source:
        check(args.source, spec)
    args.held_out_pairs = args.held_out_pairs or HELD_OUT_PAIRS
    target = Target(Side.of(args.pairs, args.limit), Side.of(args.held_out_pairs, None), args.held_out)
    ahead = milestone_forecast(
        args, args.steps, target.expected(REVISIONS_AN_EXAMPLE), compared=args.forecast
    )
    if args.forecast:
        print(ahead.render())
        return GO
    budget = Budget.ahead(args.budget, ahead)
    before = require(args.after, force=args.force)
    own = (
        *("principles", "limit", "pairs", "source", "anchors", "no_judge"),
        *("held_out", "held_out_pairs", "steps", "loss"),
    )
    with open_session(args, *own, budget=budget, choice=ahead.choice) as session:
        run, seed = session.run, session.seed
        run.log(before)
        ahead.note(run)
        loop = Loop(
            session.engine,
            session.prompter,
            session.constitution,
            seed,
            principles=args.principles,
            judged=not args.no_judge,
        )
        _, records = until_enough(
            target,
            lambda n: make_instructions(session, n, args.source),
            lambda rows: make_records(run, loop, examples_of(rows)),
        )
        report_yield(run, session.constitution, records)
        pairs = make_pairs(run, records, anchors=args.anchors, held_out=args.held_out, seed=seed)
        publish(run)
        if all(pair["held_out"] for pair in pairs):
            return decide(run, no_pairs(run, args.pairs))

        train_adapter(session, pairs, Settings.of(session.spec, args.steps, seed, loss=args.loss))
        summaries = measure(session, records, pairs, SUITES)
        status = decide(run, m2(run, summaries))
        publish(run)
        report_accuracy(run)
        if status != NO_GO:
            run.log(next_milestone(args))
    return status


if __name__ == "__main__":
    cli(main)
