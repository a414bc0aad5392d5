"""Progressive bootstrapping: a base model through the stages of a plan, each with its predecessor's help.

    python scripts/bootstrap.py --plan progressive --forecast               # what it will take; loads nothing
    python scripts/bootstrap.py --plan progressive --controls all --seeds 0 1 2
    python scripts/bootstrap.py --plan six-stage
    python scripts/bootstrap.py --plan mine.yaml --resume

A stage makes its data, trains from its predecessor's adapter, is measured on held-out test instructions, and
passes a gate before the next one begins. Controls branch off the main line at each stage and differ from it
in one thing. Reads specs/plans/<plan>.yaml or a file of your own, and the constitution. Writes
data/<plan>/<stage>[.seed<n>][.<control>]/, checkpoints/ alike, data/<plan>/results.json, report.html and
report.md. Killed at any moment, the same command goes on; more seeds or controls can be added later. A plan
stops at NO-GO; what is UNDECIDED is said and passed by. Exit status: 0 every stage passed, 3 a gate or a
guardrail metric said NO-GO, 5 a gate is UNDECIDED (too few cases to tell), 2 bad input, 4 the budget is
reached.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from cai.bootstrap.controls import CONTROLS
from cai.core.cli import GO, cli, parser
from cai.core.errors import BudgetReached, UserError
from cai.core.files import directories, display_path, write_json
from cai.core.run import Run, check_name, read_manifest


def main() -> int:
    common = ("run", "model", "engine", "engine-bits", "deterministic", "threads", "set", "constitution")
    flags = parser(__doc__, *common, "forecast", "budget", "hourly-rate", "seeds", "fresh", "force")
    flags.add_argument("--plan", required=True, help="progressive, six-stage, or a YAML file of your own")
    flags.add_argument(
        "--controls",
        nargs="+",
        default=["none"],
        choices=("all", "none", *CONTROLS),
        help="; ".join(f"{name} {c.letter}: {c.differs}" for name, c in CONTROLS.items()),
    )
    flags.add_argument("--resume", action="store_true", help="insist that there is a run to go on from")
    args = flags.parse_args()

    from cai.bootstrap import forecast
    from cai.bootstrap.plan import check, load
    from cai.costs.budget import refuse_dear
    from cai.costs.engine_choice import bits_asked_for, choice_of
    from cai.models.session import check_inputs

    constitution, spec, why = check_inputs(args)
    plan = load(args.plan).scaled(spec.name)
    controls = tuple(c for c in CONTROLS if c in args.controls or "all" in args.controls)
    check(plan, constitution)
    name = args.run or plan.name
    check_name(name)
    begun = None if args.fresh else read_manifest(name)
    ahead = forecast.PlanForecast(plan, spec, controls, len(args.seeds), args.hourly_rate)
    asked = (args.engine, bits_asked_for(args))
    choice = choice_of(args, spec, lambda: ahead.cheaper(*asked, anywhere=args.forecast), begun=begun)
    ahead = replace(ahead, choice=choice)
    if args.forecast:
        print(ahead.render())
        return GO
    refuse_dear(args.budget, ahead.total.dollars)
    if args.resume and not (directories(name)[0] / "run.json").exists():
        raise UserError(f"--resume: there is no run {name!r} to go on from; leave the flag out to begin one")
    return bootstrap(args, name, plan, spec, why, constitution, controls, choice)


def bootstrap(
    args: argparse.Namespace,
    name: str,
    plan,
    spec,
    why: str,
    constitution,
    controls: tuple[str, ...],
    choice,
) -> int:
    from cai.bootstrap.runner import Runner
    from cai.bootstrap.stage_model import SharedModel
    from cai.models.device import hourly_rate

    # A stage's own are in its run.
    settings = {"plan": plan.name, "model": spec.name, "constitution": constitution.hash} | choice.settings()
    with Run.open(name, settings, fresh=args.fresh) as run:
        run.hourly_rate = hourly_rate(args.hourly_rate)
        run.log(f"model: {spec.name} - {why}\nplan:  {plan.title} ({', '.join(s.name for s in plan.stages)})")
        run.record(model=spec.name, plan=plan.hash, first_seed=run.manifest.get("first_seed", args.seeds[0]))
        if not choice.is_local:
            run.log(f"engine: {choice.engine} - {choice.why}")
        shared = SharedModel(spec, run, choice)
        runner = Runner(run, plan, spec, constitution, shared, args.budget)
        try:
            for seed in args.seeds:
                runner.follow(seed, controls, force=args.force)
        except BudgetReached as reached:  # the report is of what there is
            runner.stopped = "; ".join(filter(None, (runner.stopped, f"budget: {reached}")))
            write_json(run.data / "results.json", runner.results())
            finish(run, runner)
            raise
        finally:
            shared.release()
        return finish(run, runner)


def finish(run: Run, runner) -> int:
    from cai.bootstrap.analysis import conclude
    from cai.bootstrap.report import write

    page, _ = write(run.data)
    found = conclude(runner.results())
    run.log(f"\n{found.headline}")
    for sentence in (*found.reasons, *found.caveats):
        run.log(f"  {sentence}")
    run.log(f"report: {display_path(page)}")
    return runner.status


if __name__ == "__main__":
    cli(main)
