"""Measures a run's trained model against its base, and the run's critiques.

    python scripts/evaluate.py --run mvp                                # suite preference
    python scripts/evaluate.py --suite preference critique forgetting --run mvp
    python scripts/evaluate.py --suite truth --run mvp --limit 200      # the sandbox against its ground truth
    python scripts/evaluate.py --suite preference forgetting --gate --run full   # Milestone 3: its decision

Reads data/<run>/{run.json,records*.jsonl,pairs.jsonl} and the adapter in checkpoints/<run>/; the base model
is the run's. Writes data/<run>/evaluation/<suite>.json (every number with n and 95 % interval) and
<suite>.jsonl (every answer and verdict, as it is made). Stopped at any moment, the same command goes on.

--gate decides about a run that train_dpo.py has trained, by the suites that it needs, from this call or an
earlier one: what Milestone 2 asks, and that harmful requests are refused more often. HarmBench and MT-Bench
are not part of it yet. Exit status: 0 done, or GO; 3 NO-GO, 5 UNDECIDED, 2 bad input, 4 the budget reached.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cai.core import ledger
from cai.core.cli import GO, cli, parser
from cai.core.errors import UserError
from cai.core.files import display_path, move_aside
from cai.core.run import Run, read_manifest
from cai.costs import engine_choice, forecast
from cai.costs.budget import Budget
from cai.costs.units import local
from cai.evaluation import criteria, gates
from cai.evaluation.model_pair import ModelPair, source_of
from cai.evaluation.result_store import TRAINED
from cai.evaluation.suites import DECIDING, SUITES, evaluate, load_summary, marks_hash
from cai.models.device import hourly_rate
from cai.models.engines import EngineChoice
from cai.models.model import check_adapter
from cai.models.registry import SETTABLE, ModelSpec, resolve, with_values
from cai.models.session import open_engine, prompter_of

COMMON = ("run", "limit", "engine", "engine-bits", "deterministic", "threads")
COMMON += ("forecast", "budget", "hourly-rate")
ABOUT = "\n".join(f"  {suite.name:12}{suite.about}" for suite in SUITES.values())


def main() -> int:
    flags = parser(f"{__doc__}\nsuites:\n{ABOUT}", *COMMON, run="mvp")
    flags.add_argument("--suite", nargs="+", choices=SUITES, default=["preference"], help="what to measure")
    flags.add_argument("--fresh", action="store_true", help="move the run's earlier evaluation aside")
    flags.add_argument("--gate", action="store_true", help=f"decide Milestone 3, by {' and '.join(DECIDING)}")
    args = flags.parse_args()
    with Run.reopen(args.run) as run:
        summaries = earlier_summaries(run, args) if args.gate else {}
        files = ModelPair.open(run, limit=args.limit)
        models = models_of(run, args, files)
        ahead = forecast_of(models, args, files)
        if args.forecast:
            print(ahead.render() if ahead else "only files of the run are read: nothing to pay")
            return GO
        budget = Budget.ahead(args.budget, ahead) if ahead else None
        if args.fresh:
            move_aside(run.data / "evaluation")
        suites = list(dict.fromkeys(args.suite))
        if models:
            with load_pair(run, args, files, *models, budget, ahead.choice) as pair:
                summaries |= evaluate(pair, suites)
        else:
            summaries |= evaluate(files, suites)
        status = decide(run, summaries) if args.gate else GO
        run.log(
            f"\nnext: read {display_path(run.data)}/evaluation/*.jsonl, where every answer and verdict stands"
        )
    return status


def earlier_summaries(run: Run, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Summaries of an earlier call that the gate needs beside this one's suites. Raises UserError if there is
    none of this adapter with these marks, or if the run has another gate."""
    if "argv" not in run.manifest.get("training", {}):
        raise UserError(
            f"--gate decides about runs that train_dpo.py has trained; {run.name!r} is none: "
            "the command of its milestone decides, and reads review.jsonl again"
        )
    others = [name for name in DECIDING if name not in args.suite]
    if others and args.fresh:
        raise UserError(f"--gate with --fresh: add {' '.join(others)} to --suite, which --fresh moves aside")
    found = {name: load_summary(run.data, name, run.manifest["adapter"]) for name in others}
    if "preference" in found and found["preference"]["settings"].get("marks") != marks_hash(run):
        raise UserError("review.jsonl has changed since the suite preference ran: add preference to --suite")
    return found


def models_of(run: Run, args: argparse.Namespace, files: ModelPair) -> tuple[ModelSpec, int] | None:
    """(the base, the bits in which the adapter was trained); None where only texts are looked at. Raises
    UserError for what cannot be measured, before gigabytes are loaded."""
    suites = [SUITES[name] for name in args.suite]
    if not any(suite.asks_models for suite in suites):
        return None
    made = read_manifest(run.settings["data"]) or {} if "data" in run.settings else run.manifest
    settings = made.get("settings", {})
    name = run.manifest.get("model") or made.get("model") or run.settings.get("model")
    if not name:
        raise UserError(f"run {run.name!r} names no model: train it first (python scripts/train_dpo.py)")
    spec = resolve(name, instruct=settings.get("kind") == "instruct")
    try:  # --set, when it was made
        spec = with_values(spec, [f"{key}={settings[key]}" for key in SETTABLE if key in settings])
    except UserError as error:
        raise UserError(
            f"the settings in run.json of {run.name!r} were edited ({error}): restore it"
        ) from None
    for suite in suites:
        suite.fits(spec)
    fact = check_adapter(run.checkpoints, spec)
    if run.manifest.get("adapter") not in (None, fact["sha256"]):
        raise UserError(
            f"{display_path(run.checkpoints)} is not the adapter that run {run.name!r} has recorded: "
            "put that one back, or train the run again"
        )
    if not files.pairs:
        raise UserError(f"{display_path(source_of(run))}/pairs.jsonl holds no pairs: generate them first")
    return spec, fact["bits"]


def forecast_of(models: tuple[ModelSpec, int] | None, args: argparse.Namespace, files: ModelPair):
    """What an evaluation takes; None where nothing is to be paid."""
    if models is None:
        return None
    spec, bits = models
    units, n = local(bits, {"loading": 1, "evaluation": 1}), len(files.pairs)
    return engine_choice.forecast_of(spec, units, args, begun=files.run.manifest, examples=n, of="pairs")


@contextlib.contextmanager
def load_pair(
    run: Run,
    args: argparse.Namespace,
    files: ModelPair,
    spec: ModelSpec,
    bits: int,
    budget: Budget,
    choice: EngineChoice,
) -> Iterator[ModelPair]:
    """The run's two models beside its files."""
    run.hourly_rate = hourly_rate(args.hourly_rate)
    budget.watch(run)
    _, engine = open_engine(spec, bits, run, choice, adapter=(run.checkpoints, TRAINED), quiet=True)
    run.log(
        f"model: {spec.name}, {engine.precision}, revision {str(engine.revision)[:12]} ({engine.name})\n"
        f"adapter: {display_path(run.checkpoints)}, {engine.adapters[TRAINED][:12]}"
    )
    try:
        yield replace(files, engine=engine, prompter=prompter_of(engine))
    finally:
        engine.release()


def decide(run: Run, summaries: dict[str, dict[str, Any]]) -> int:
    """Milestone 3's gate, and how right its forecast was. Raises UserError for summaries of two setups."""
    if len({summaries[name]["settings"].get("setup") for name in DECIDING}) > 1:
        raise UserError(
            f"{' and '.join(DECIDING)} were not measured with the same prompts and settings: "
            f"run them together, --suite {' '.join(DECIDING)}"
        )
    status = gates.decide(run, criteria.m3(run, summaries))
    if "forecast" in run.manifest:
        run.log(forecast.accuracy(run.manifest["forecast"], run.name, ledger.read_ledger())[1])
    return status


if __name__ == "__main__":
    cli(main)
