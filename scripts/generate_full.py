"""Milestone 3, the data: 5,000 examples and more from any source, in shards, filtered by a guard model.

    python scripts/generate_full.py                           # after generate_mvp.py has said GO
    python scripts/generate_full.py --plan
    python scripts/generate_full.py --source prompts.csv --shard 2/8 --guard meta-llama/Llama-Guard-3-8B

Shards are told apart by the instruction's hash and merge by reading: each writes records of its own into
data/<run>/, and the call that finds all of them there builds pairs.jsonl. Shards on one machine run one after
the other; on several machines they need the same data/<run>/instructions.jsonl. Training and evaluation come
after it: train_dpo.py --run full, then evaluate.py --suite preference forgetting --gate --run full. Writes
data/<run>/{instructions,records*,pairs}.jsonl, run.json, report.html, yields.png. Killed at any moment, the
same command goes on. Exit status: 0 the data say GO, or other shards are missing; 3 NO-GO, 2 bad input, 4 the
budget is reached.
"""

from __future__ import annotations

import argparse
import re

from cai.core.cli import GO, cli, parser
from cai.core.errors import UserError
from cai.core.ledger import read_ledger
from cai.core.run import read_manifest
from cai.costs.default_rates import PAIRS_AN_EXAMPLE
from cai.costs.forecast import Forecast, device_of, milestone_forecast
from cai.generation.guard import default_guard
from cai.generation.milestones import add_flags, check_flags
from cai.models.registry import choose, resolve
from cai.training.settings import PASSES, default_steps

EXAMPLES, PRINCIPLES = 5000, 1


def main() -> int:
    common = ("run", "model", "bits", "seed", "limit", "constitution", "hourly-rate", "fresh", "force")
    flags = parser(__doc__, *common, run="full", limit=EXAMPLES)
    add_flags(flags, principles=PRINCIPLES, anchors=0.6, held_out=0.1, after="mvp")
    flags.add_argument("--shard", default="1/1", help="this process's part of the instructions, as 2/8")
    flags.add_argument("--guard", default="auto", help="guard model: auto, none, or a model's name")
    args = flags.parse_args()
    shard = re.fullmatch(r"(\d+)/(\d+)", args.shard)
    if not shard or not 1 <= int(shard[1]) <= int(shard[2]):
        raise UserError(f"--shard {args.shard!r}: write the part and the number of parts, as 2/8")
    check_flags(args)
    ahead, how = forecast(args, args.after)
    if args.plan:
        print(f"{ahead.render()}\n{how}")
        return GO
    return generate(args, (int(shard[1]), int(shard[2])), ahead)


def forecast(args: argparse.Namespace, measured_in: str) -> tuple[Forecast, str]:
    """(what the data, their training and evaluation will take, how the training's steps were reckoned): two
    passes over as many pairs as the yield of the run `measured_in` promises."""
    spec, made = choose(args.model)[0], read_manifest(measured_in) or {}
    pairs, examples = made.get("pairs"), made.get("counts", {}).get("records")
    each, source = PAIRS_AN_EXAMPLE, "assumed"
    if made.get("model") == spec.name and pairs and examples:
        each = (pairs["count"] - pairs["held_out"]) / examples
        source = f"measured in run {measured_in}, n {examples}"
    expected = round(each * args.limit)
    steps = default_steps(expected, spec.batch_size * spec.gradient_accumulation)
    guard = default_guard(device_of(spec, read_ledger())) if args.guard == "auto" else args.guard
    how = (
        f"training: {steps:,} steps, {PASSES} passes over about {expected:,} pairs, "
        f"{each:.2f} an example ({source})"
    )
    return milestone_forecast(args, steps, None if guard == "none" else resolve(guard)), how


def next_milestone(args: argparse.Namespace) -> str:
    """What Milestone 3 would take with its defaults, once the run of Milestone 2 with these flags is done."""
    own = {"limit": EXAMPLES, "principles": PRINCIPLES, "guard": "auto", "source": None, "no_judge": False}
    ahead, how = forecast(argparse.Namespace(**vars(args) | own), args.run)
    return f"\nnext, milestone 3 (generate_full.py, train_dpo.py, evaluate.py)\n{ahead.render()}\n{how}"


def generate(args, shard: tuple[int, int], ahead) -> int:
    from cai.costs.budget import Budget
    from cai.costs.forecast import accuracy
    from cai.evaluation import criteria, gates
    from cai.generation import milestones
    from cai.generation.guard import Guard
    from cai.generation.records import read_records
    from cai.models.session import open_pipeline

    before = gates.require(args.after, force=args.force)
    own = {k: getattr(args, k) for k in ("source", "anchors", "no_judge", "held_out", "guard")}
    p = open_pipeline(args, principles=args.principles, limit=args.limit, shards=shard[1], **own)
    with p.run:
        p.run.log(before)
        if "forecast" not in p.run.manifest:
            p.run.record(forecast=ahead.as_dict())
        guard = None if args.guard == "none" else Guard.open(args.guard, loaded=p.model)
        budget = Budget.of(args.budget, p.run, ahead.dollars_per_example)
        rows = milestones.instructions(p, args.source, args.limit)
        judge = not args.no_judge
        milestones.all_records(p, rows, judge=judge, budget=budget, wave=args.wave, shard=shard, guard=guard)
        everything = read_records(p.run.data)
        if len(everything) < len(rows):
            p.run.log(f"{len(everything)} of {len(rows)} records are there: run the other shards too")
            return GO
        if shard[1] > 1:
            p.run.log("all shards together:")
            milestones.report_yield(p, everything)
        pairs = milestones.all_pairs(p, everything, args)
        principles = [q.id for q in p.constitution.principles]
        asked = criteria.data(p.run, principles, rows, everything, pairs)
        status = gates.decide(p.run, asked, record="data_gate")
        milestones.page(p)
        p.run.log(accuracy(p.run.manifest["forecast"], p.run.name, read_ledger())[1])
        p.run.log(
            f"next: python scripts/train_dpo.py --run {args.run}, then\n"
            f"python scripts/evaluate.py --suite preference forgetting --gate --run {args.run}"
        )
    return status


if __name__ == "__main__":
    cli(main)
