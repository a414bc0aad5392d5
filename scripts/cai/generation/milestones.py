"""What Milestones 1 to 3 share: each step takes what an interrupted run left and goes on from there."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.core import jsonl, prompt_files, schema
from cai.core.cli import parser
from cai.core.errors import UserError
from cai.core.files import display_path
from cai.core.ledger import read_ledger
from cai.core.prompt_files import load_heldout
from cai.costs.budget import Budget, check_budget
from cai.costs.forecast import accuracy, milestone_forecast
from cai.evaluation import gates
from cai.evaluation.model_pair import Subject
from cai.evaluation.suites import evaluate
from cai.generation import self_instruct
from cai.generation.guard import apply
from cai.generation.pairs import build
from cai.generation.progress import Progress
from cai.generation.prompt_sources import load
from cai.generation.records import INSTRUCTION_KEYS, in_shard, read_instructions, read_records
from cai.generation.waves import run_waves
from cai.generation.yield_stats import plot, table
from cai.models.session import Pipeline, open_pipeline
from cai.reports.review import write_report
from cai.training.dpo import train
from cai.training.settings import Settings

WAVE = 64  # examples


def add_flags(
    flags: argparse.ArgumentParser, *, principles: int, anchors: float, held_out: float, after: str
) -> None:
    """The flags of every generating milestone, beside the common ones."""
    flags.add_argument("--source", help="prompts from a file or dataset, instead of generating them")
    flags.add_argument(
        "--principles", type=int, default=principles, help="principles an answer is critiqued by"
    )
    flags.add_argument("--anchors", type=float, default=anchors, help="anchor pairs for each revision pair")
    flags.add_argument(
        "--held-out", type=float, default=held_out, help="share of examples kept for evaluation"
    )
    flags.add_argument("--no-judge", action="store_true", help="keep revisions that no judge has compared")
    flags.add_argument(
        "--wave",
        type=int,
        default=WAVE,
        help="examples that go through the loop together: what a kill can cost; more fill a larger GPU",
    )
    flags.add_argument("--plan", action="store_true", help="print the forecast and do nothing")
    flags.add_argument("--after", default=after, help="the run of the milestone before, whose gate is read")
    flags.add_argument(
        "--budget", type=float, help="dollars that the run may cost; it stops before passing them"
    )


def milestone(
    doc: str,
    name: str,
    *,
    after: str,
    limit: int,
    steps: int,
    held_out: float,
    suites: Sequence[str],
    criteria,
    following=None,
) -> int:
    """The main of a milestone that trains: its flags, its --plan, its run. doc: the script's docstring.
    criteria: of cai.criteria. following: what to say of the milestone after it, (flags) -> text."""
    common = ("run", "model", "bits", "seed", "limit", "constitution", "hourly-rate", "fresh", "force")
    flags = parser(doc, *common, run=name, limit=limit)
    add_flags(flags, principles=2, anchors=0.6, held_out=held_out, after=after)
    flags.add_argument("--steps", type=int, default=steps, help="DPO steps")
    flags.add_argument(
        "--loss", choices=("dpo", "dpo+nll", "orpo"), help="default: the model's in the registry"
    )
    args = flags.parse_args()
    check_flags(args)
    if args.plan:
        print(milestone_forecast(args, args.steps).render())
        return 0
    return run(args, suites, criteria, following)


def check_flags(args: argparse.Namespace) -> None:

    if args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least one example is needed")
    if args.principles < 1:
        raise UserError(f"--principles {args.principles}: must be at least 1")
    if args.wave < 1:
        raise UserError(f"--wave {args.wave}: a wave has at least one example")
    if not 0 <= args.anchors <= 4:
        raise UserError(f"--anchors {args.anchors}: a share from 0 (none) to 4 (four for each revision pair)")
    if not 0 < args.held_out <= 0.5:
        raise UserError(f"--held-out {args.held_out}: a share above 0, and at most 0.5")
    if getattr(args, "steps", 1) < 1:
        raise UserError(f"--steps {args.steps}: at least one step is needed")
    check_budget(args.budget)


def instructions(
    p: Pipeline,
    source: str | None,
    want: int,
    *,
    seeds: Sequence[Any] | None = None,
    tasks: Sequence[str] | None = None,
    barred: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The run's instructions: from the source, or generated in waves, each on the disk before the next.

    seeds: the model's own, if none are given; tasks: all that have seeds; barred: beside the evaluation
    prompts."""
    path, have = p.run.data / "instructions.jsonl", read_instructions(p.run.data)
    if source:
        rows, left_out, by_task, short = _from_source(p, source, want)
        jsonl.complete(path, rows, INSTRUCTION_KEYS)
    else:

        def keep(wave) -> None:
            step.count(wave.completions, len(wave.rows))
            jsonl.append(path, wave.rows)
            p.run.log(
                f"      wave {wave.number}: {len(wave.rows)} kept of {len(wave.rows) + len(wave.left_out)}"
            )

        loop = p.loop
        seeds = prompt_files.load_seeds(Path(p.spec.seeds)) if seeds is None else seeds
        with p.run.step("instructions") as step:
            made = self_instruct.self_instruct(
                loop.engine, loop.prompter, p.spec, seeds,
                want=want, seed=loop.seed, tasks=tasks, adapter=loop.writers.generator, known=have,
                on_wave=keep, barred=[*evaluation_prompts(p), *barred],
            )  # fmt: skip
        rows, left_out, by_task, short = made.rows, made.left_out, made.by_task, made.short
    if short:
        p.run.log(f"warning: {short}")
    if not rows:
        raise UserError(
            "no usable instruction: " + (f"every row of {source} was left out" if source else "see above")
        )
    p.run.log(f"[1] {len(rows)} instructions, by task {by_task}; left out: {dict(left_out) or 'none'}")
    p.run.record(instructions={"count": len(rows), "by_task": by_task, "left_out": dict(left_out)})
    return rows


def _from_source(p: Pipeline, source: str, want: int):

    loaded = load(source, want, evaluation_prompts(p))
    rows, left_out = [i.row() for i in loaded], loaded.left_out
    return rows, left_out, dict(Counter(r["task"] for r in rows)), None


def evaluation_prompts(p: Pipeline) -> list[str]:
    """What no training instruction may equal or come near to: held out before anything is generated."""

    return [h.instruction for h in load_heldout(Path(p.spec.heldout))]


def all_records(
    p: Pipeline,
    rows: Sequence[dict[str, Any]],
    *,
    judge: bool,
    budget,
    wave: int = WAVE,
    shard: tuple[int, int] = (1, 1),
    guard=None,
) -> list[dict[str, Any]]:
    """The loop over all instructions, with a progress line; the shard's records, and what took which."""

    mine = {r["id"] for r in rows if in_shard(r["id"], *shard)}
    have = [r for r in read_records(p.run.data) if r["id"] in mine]
    progress = Progress(len(mine), p.run, done=len(have), kept=sum(r["kept"] for r in have))

    def finished(made: list[dict[str, Any]]) -> None:
        if guard:
            with p.run.step("guard", quiet=True) as step:
                step.count(apply(guard, made), len(made))
        progress.advance(made)

    done = run_waves(p, rows, wave=wave, judge=judge, shard=shard, before=budget.check, after=finished)
    progress.close()
    if not done:
        raise UserError("this shard has no instructions: use fewer shards or more examples")
    report_yield(p, done)
    return done


def report_yield(p: Pipeline, done: Sequence[dict[str, Any]]) -> None:
    """What came of the examples: printed, plotted, and counted in run.json."""

    kept = sum(r["kept"] for r in done)
    reasons = Counter(reason for r in done for reason in r["rejected_because"])
    used = Counter(c["principle_id"] for r in done for c in r["critiques"])
    unused = [q.id for q in p.constitution.principles if q.id not in used]
    p.run.log(
        f"[2] {len(done)} records, {kept} kept; all but {len(unused)} principles used {' '.join(unused)}"
    )
    p.run.log(table(done))
    plot(done, p.run.data / "yields.png")
    counts = {"records": len(done), "kept": kept, "reasons": dict(reasons), "principles": dict(used)}
    p.run.record(counts=counts)


def all_pairs(p: Pipeline, done: Sequence[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """pairs.jsonl, built from the records once they are complete."""

    path = p.run.data / "pairs.jsonl"
    wanted = build(done, anchors=args.anchors, seed=p.loop.seed, held_out=args.held_out)
    jsonl.complete(path, wanted, schema.PAIR_KEYS)
    kinds = Counter(row["kind"] for row in wanted)
    held = sum(row["held_out"] for row in wanted)
    p.run.log(f"[3] {len(wanted)} pairs: {dict(kinds)}, {held} of them held out")
    p.run.record(pairs={"count": len(wanted), "kinds": dict(kinds), "held_out": held})
    return wanted


def adapter(p: Pipeline, pairs: Sequence[dict[str, Any]], steps: int, loss: str | None = None):
    """Trains on the pairs that are not held out; the Result of cai.training, its adapter loaded as
    "default"."""

    settings = Settings.of(p.spec, steps=steps, seed=p.loop.seed, loss=loss or p.spec.loss)
    seen = [row for row in pairs if not row["held_out"]]
    held = [row for row in pairs if row["held_out"]]
    with p.run.step("training") as step:
        result = train(p.model, seen, held, settings, p.run.checkpoints, resume=True, log=p.run.log)
        step.examples = result.taken
    if "default" not in p.model.adapters:  # trained by an earlier call of this command
        p.model.load_adapter(p.run.checkpoints, "default")
    p.run.record(
        adapter=result.adapter,
        training={"status": result.status, "steps": result.steps, "after": result.after},
    )
    return result


def measure(
    p: Pipeline, done, pairs, suites: Sequence[str], limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluation suites on base and trained model, and the review page."""

    loop = p.loop
    subject = Subject(
        p.run, list(pairs), list(done), loop.engine, loop.prompter, p.spec, loop.seed,
        adapter="default", digest=p.model.adapters["default"], revision=p.model.revision, limit=limit,
    )  # fmt: skip
    return evaluate(subject, suites)


def page(p: Pipeline) -> Path:

    path = write_report(p.run.data)
    p.run.log(
        f"\nread and judge the examples: {display_path(path)} (put the exported review.jsonl beside it)"
    )
    return path


def run(args: argparse.Namespace, suites: Sequence[str], criteria, following=None) -> int:
    """A whole milestone: generate, train, measure, gate."""

    before = gates.require(args.after, force=args.force)
    ahead = milestone_forecast(args, args.steps)
    own = {k: getattr(args, k) for k in ("source", "anchors", "no_judge", "held_out", "steps", "loss")}
    p = open_pipeline(args, principles=args.principles, limit=args.limit, **own)
    with p.run:
        p.run.log(before)
        if "forecast" not in p.run.manifest:
            p.run.record(forecast=ahead.as_dict())
        budget = Budget.of(args.budget, p.run, ahead.dollars_per_example)
        rows = instructions(p, args.source, args.limit)
        done = all_records(p, rows, judge=not args.no_judge, budget=budget, wave=args.wave)
        pairs = all_pairs(p, done, args)
        page(p)
        if not any(not row["held_out"] for row in pairs):
            raise UserError("no pair to train on: see the table above for which reason took how many")
        budget.step("training", ahead.dollars_of("training"))
        adapter(p, pairs, args.steps, args.loss)
        summaries = measure(p, done, pairs, suites)
        status = gates.decide(p.run, criteria(p.run, summaries))
        page(p)
        p.run.log(accuracy(p.run.manifest["forecast"], p.run.name, read_ledger())[1])
        if following:
            p.run.log(following(args))
    return status
