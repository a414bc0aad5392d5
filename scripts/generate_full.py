"""Milestone 3, the data: 5,000 examples and more from any source, in shards, filtered by a guard model.

    python scripts/generate_full.py                           # after generate_mvp.py has said GO
    python scripts/generate_full.py --forecast
    python scripts/generate_full.py --source prompts.csv --shard 2/8 --guard meta-llama/Llama-Guard-3-8B

Shards are told apart by the instruction's hash and merge by reading: each writes records of its own into
data/<run>/, and the call that finds all of them there builds pairs.jsonl. Shards on one machine run one after
the other; on several machines they need the same data/<run>/instructions.jsonl. Training and evaluation come
after it: train_dpo.py --run full, then evaluate.py --suite preference forgetting --gate --run full. Writes
data/<run>/{instructions,records*,pairs}.jsonl, run.json, report.html, yields.png. Killed at any moment, the
same command goes on. Exit status: 0 the data say GO, or other shards are missing; 3 NO-GO, 5 UNDECIDED
(too few pairs to measure with), 2 bad input, 4 the budget is reached.
"""

from __future__ import annotations

import argparse
import re

from cai.core.cli import GENERATING, GO, cli, parser
from cai.core.errors import UserError

EXAMPLES, PRINCIPLES = 5000, 1  # by default


def main() -> int:
    flags = parser(
        __doc__,
        *GENERATING,
        "guard",
        run="full",
        after="mvp",
        guard="auto",
        principles=PRINCIPLES,
        anchors=0.6,
        held_out=0.1,
    )
    flags.add_argument("--shard", default="1/1", help="this process's part of the instructions, as 2/8")
    args = flags.parse_args()
    shard = read_shard(args.shard)
    if args.pairs and shard[1] > 1:
        raise UserError(
            f"--pairs with --shard {args.shard}: a shard does not know the others' pairs; use --limit"
        )
    if args.limit is None and args.pairs is None:
        args.limit = EXAMPLES

    from cai.costs.budget import Budget
    from cai.costs.forecast import report_accuracy
    from cai.evaluation.criteria import data
    from cai.evaluation.gates import decide, require
    from cai.generation.example import examples_of
    from cai.generation.guard import Guard, check_guard
    from cai.generation.instructions import make_instructions
    from cai.generation.loop import Loop
    from cai.generation.pairs import make_pairs
    from cai.generation.prompt_sources import check
    from cai.generation.records import make_records, read_records
    from cai.generation.targets import Side, Target, until_enough
    from cai.generation.yield_stats import report_yield
    from cai.models.session import check_inputs, open_session
    from cai.reports.review import publish

    _, spec, _ = check_inputs(args)
    if args.source:
        check(args.source, spec)
    ahead, how = forecast(args, args.after)
    if args.forecast:
        print(f"{ahead.render()}\n{how}")
        return GO
    check_guard(args.guard)
    budget = Budget.ahead(args.budget, ahead)
    target = Target(Side.of(args.pairs, args.limit), share=args.held_out)
    before = require(args.after, force=args.force)
    args.shards = shard[1]
    own = ("principles", "limit", "pairs", "shards", "source", "anchors", "no_judge", "held_out", "guard")
    with open_session(args, *own, budget=budget, choice=ahead.choice) as session:
        run, seed = session.run, session.seed
        run.log(before)
        ahead.note(run)
        guard = Guard.open(args.guard, loaded=session.engine, run=run)
        run.pin(guard=guard and guard.engine.spec.name)  # what auto means depends on the machine
        loop = Loop(
            session.engine,
            session.prompter,
            session.constitution,
            seed,
            principles=args.principles,
            judged=not args.no_judge,
            guard=guard,
        )
        rows, records = until_enough(
            target,
            lambda n: make_instructions(session, n, args.source),
            lambda rows: make_records(run, loop, examples_of(rows), shard=shard),
        )
        report_yield(run, session.constitution, records)
        if shard[1] > 1:
            records = read_records(run.data)
            if len(records) < len(rows):
                run.log(f"{len(records)} of {len(rows)} records are there: run the other shards too")
                return GO
            run.log("all shards together:")
            report_yield(run, session.constitution, records)
        pairs = make_pairs(run, records, anchors=args.anchors, held_out=args.held_out, seed=seed)

        principles = [p.id for p in session.constitution.principles]
        status = decide(run, data(run, principles, rows, records, pairs), record="data_gate")
        publish(run)
        report_accuracy(run)
        if status == GO:
            run.log(
                f"next: python scripts/train_dpo.py --run {args.run}, then\n"
                f"python scripts/evaluate.py --suite preference forgetting --gate --run {args.run}"
            )
    return status


def read_shard(text: str) -> tuple[int, int]:
    """(number, of how many)"""
    shard = re.fullmatch(r"([0-9]{1,3})/([0-9]{1,3})", text)
    if not shard or not 1 <= int(shard[1]) <= int(shard[2]):
        raise UserError(
            f"--shard {text[:40]!r}: write the part and the number of parts (at most 999), as 2/8"
        )
    return int(shard[1]), int(shard[2])


def forecast(args: argparse.Namespace, measured_in: str):
    """(what the data, their training and evaluation will take, how the training's steps were reckoned): as
    many as the yield of the run `measured_in` promises pairs for."""
    from cai.core.ledger import read_ledger
    from cai.core.run import read_manifest
    from cai.costs.default_rates import PAIRS_AN_EXAMPLE, REVISIONS_AN_EXAMPLE
    from cai.costs.engine_choice import milestone_forecast
    from cai.costs.forecast import device_of
    from cai.generation.guard import guard_spec
    from cai.generation.targets import Side
    from cai.models.registry import choose, with_values
    from cai.training.settings import default_steps

    spec, made = with_values(choose(args.model)[0], args.set), read_manifest(measured_in) or {}
    pairs, records = made.get("pairs"), made.get("counts", {}).get("records")
    each, source = PAIRS_AN_EXAMPLE, "assumed"
    if made.get("model") == spec.name and pairs and records:
        each = (pairs["count"] - pairs["held_out"]) / records
        source = f"measured in run {measured_in}, n {records}"
    examples = Side.of(args.pairs, args.limit).expected(REVISIONS_AN_EXAMPLE)
    expected = max(1, round(each * examples))
    steps = default_steps(spec, expected)
    how = (
        f"training: {steps:,} steps, {spec.passes:g} passes over about {expected:,} pairs, "
        f"{each:.2f} an example ({source})"
    )
    guard = guard_spec(args.guard, device_of(spec, read_ledger()))
    return milestone_forecast(args, steps, examples, guard, compared=True), how


def next_milestone(args: argparse.Namespace) -> str:
    """What Milestone 3 would take with its defaults, once the run of Milestone 2 with these flags is done."""
    own = {"run": "full", "limit": EXAMPLES, "pairs": None, "principles": PRINCIPLES}
    own |= {"guard": "auto", "source": None, "no_judge": False}
    ahead, how = forecast(argparse.Namespace(**vars(args) | own), args.run)
    return f"\nnext, milestone 3 (generate_full.py, train_dpo.py, evaluate.py)\n{ahead.render()}\n{how}"


if __name__ == "__main__":
    cli(main)
