"""Milestone 1: ten revision pairs, two principles an example, about ten DPO steps, evaluation, a decision.

    python scripts/test_batch.py                     # after test_single.py has said GO
    python scripts/test_batch.py --forecast          # what it will take, from the last measured rates
    python scripts/test_batch.py --source prompts.csv --limit 20 --run batch-mine   # examples, not pairs
    python scripts/test_batch.py --set answer_temperature=1.0 lora_r=16 --run batch-warm

Writes data/<run>/{instructions,records,pairs}.jsonl, run.json, report.html, yields.png and evaluation/;
checkpoints/<run>/. Killed at any moment, the same command goes on. Exit status: 0 GO, 3 NO-GO, 5 UNDECIDED
(too few cases to tell), 2 bad input, 4 the budget is reached.
"""

from __future__ import annotations

from cai.core.cli import GENERATING, GO, cli, parser
from cai.training.losses import LOSSES

PAIRS = 10  # unless --pairs or --limit says otherwise
SUITES = ("critique", "preference")


def main() -> int:
    args = parser(
        __doc__,
        *GENERATING,
        "steps",
        "loss",
        choices={"loss": LOSSES},
        run="batch",
        after="single",
        principles=2,
        anchors=0.6,
        held_out=0.1,
        steps=10,
        engine="local",
    ).parse_args()
    if args.limit is None and args.pairs is None:
        args.pairs = PAIRS

    from cai.costs.budget import Budget
    from cai.costs.default_rates import REVISIONS_AN_EXAMPLE
    from cai.costs.engine_choice import milestone_forecast
    from cai.costs.forecast import report_accuracy
    from cai.evaluation.criteria import m1, no_pairs
    from cai.evaluation.gates import decide, require
    from cai.evaluation.suites import measure
    from cai.generation.example import examples_of
    from cai.generation.instructions import make_instructions
    from cai.generation.loop import Loop
    from cai.generation.pairs import make_pairs
    from cai.generation.prompt_sources import check
    from cai.generation.records import make_records
    from cai.generation.targets import Side, Target, until_enough
    from cai.generation.yield_stats import report_yield
    from cai.models.session import check_inputs, open_session
    from cai.reports.review import publish
    from cai.training.dpo import train_adapter
    from cai.training.settings import Settings

    _, spec, _ = check_inputs(args)
    if args.source:
        check(args.source, spec)
    target = Target(Side.of(args.pairs, args.limit), share=args.held_out)
    ahead = milestone_forecast(args, args.steps, target.expected(REVISIONS_AN_EXAMPLE))
    if args.forecast:
        print(ahead.render())
        return GO
    budget = Budget.ahead(args.budget, ahead)
    before = require(args.after, force=args.force)
    own = ("principles", "limit", "pairs", "source", "anchors", "no_judge", "held_out", "steps", "loss")
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
        status = decide(run, m1(run, summaries, pairs=args.pairs))
        publish(run)
        report_accuracy(run)
    return status


if __name__ == "__main__":
    cli(main)
