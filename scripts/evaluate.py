"""Measures a run's trained model against its base, and the run's critiques.

    python scripts/evaluate.py --run mvp                                # suite preference
    python scripts/evaluate.py --suite preference critique forgetting --run mvp
    python scripts/evaluate.py --suite truth --run mvp --limit 200      # the sandbox against its ground truth
    python scripts/evaluate.py --suite preference forgetting --gate --run full   # Milestone 3: GO or NO-GO

Reads data/<run>/{run.json,records*.jsonl,pairs.jsonl} and the adapter in checkpoints/<run>/; the base model
is the run's. Writes data/<run>/evaluation/<suite>.json (every number with n and 95 % interval) and
<suite>.jsonl (every answer and verdict, as it is made). Stopped at any moment, the same command goes on.

Suites: preference (implicit rewards on pairs; fresh answers judged in both orders), critique (how many mean
something), forgetting (perplexity, clean stops, variety, refusals), truth (the sandbox only: what is right),
success (held-out test instructions of every task).

--gate decides about a run that train_dpo.py has trained, by its suites preference and forgetting, from this
call or an earlier one: what Milestone 2 asks, and that harmful requests are refused more often. HarmBench and
MT-Bench are not part of it yet. Exit status: 0 done, or GO; 3 NO-GO, 2 bad input.
"""

from __future__ import annotations

from typing import Any

from cai.core.cli import GO, cli, parser
from cai.core.errors import UserError
from cai.core.files import display_path, move_aside
from cai.core.run import Run, read_manifest

NAMES = ("preference", "critique", "forgetting", "truth", "success")  # as cai.suites registers them
DECIDING = ("preference", "forgetting")  # what the gate needs


def main() -> int:
    flags = parser(__doc__, "run", "limit", "hourly-rate", run="mvp")
    flags.add_argument("--suite", nargs="+", choices=NAMES, default=["preference"], help="what to measure")
    flags.add_argument("--fresh", action="store_true", help="move the run's earlier evaluation aside")
    flags.add_argument("--gate", action="store_true", help="say GO or NO-GO (Milestone 3, see above)")
    args = flags.parse_args()
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: must be at least 1")
    with Run.reopen(args.run) as run:
        known = measured(run, args) if args.gate else {}
        if args.fresh:
            move_aside(run.data / "evaluation")
        subject = open_subject(run, args)
        from cai.evaluation.suites import evaluate

        known |= evaluate(subject, list(dict.fromkeys(args.suite)))
        status = decide(run, known) if args.gate else GO
        run.log(
            f"\nnext: read {display_path(run.data)}/evaluation/*.jsonl, where every answer and verdict stands"
        )
    return status


def measured(run: Run, args) -> dict[str, dict[str, Any]]:
    """Summaries of an earlier call that the gate needs beside this one's suites. Raises UserError if there is
    none of this adapter with these marks, or if the run has another gate."""
    if "argv" not in run.manifest.get("training", {}):
        raise UserError(
            f"--gate decides about runs that train_dpo.py has trained; {run.name!r} is none: the command of "
            "its milestone decides, and reads review.jsonl again"
        )
    from cai.evaluation.suites import load_summary, marks_hash

    others = [name for name in DECIDING if name not in args.suite]
    if others and args.fresh:
        raise UserError(f"--gate with --fresh: add {' '.join(others)} to --suite, which --fresh moves aside")
    found = {name: load_summary(run.data, name, run.manifest["adapter"]) for name in others}
    if "preference" in found and found["preference"]["settings"].get("marks") != marks_hash(run):
        raise UserError("review.jsonl has changed since the suite preference ran: add preference to --suite")
    return found


def decide(run: Run, summaries: dict[str, dict[str, Any]]) -> int:
    from cai.core import ledger
    from cai.costs import forecast
    from cai.evaluation import criteria, gates

    status = gates.decide(run, criteria.m3(run, summaries))
    if "forecast" in run.manifest:
        run.log(forecast.accuracy(run.manifest["forecast"], run.name, ledger.read_ledger())[1])
    return status


def open_subject(run: Run, args):
    """The run's pairs and records, and its two models unless only texts are looked at."""
    from cai.evaluation.model_pair import Subject
    from cai.evaluation.suites import SUITES

    if not any(SUITES[name].models for name in args.suite):
        return Subject.open(run, limit=args.limit)
    from cai.models.device import hourly_rate
    from cai.models.loader import load
    from cai.models.local_engine import LocalEngine
    from cai.models.model import check_adapter
    from cai.models.registry import resolve
    from cai.models.session import chat_renderer
    from cai.prompts.templates import Prompter

    made = read_manifest(run.settings["data"]) or {} if "data" in run.settings else run.manifest
    name = run.manifest.get("model") or made.get("model") or run.settings.get("model")
    if not name:
        raise UserError(f"run {run.name!r} names no model: train it first (python scripts/train_dpo.py)")
    spec = resolve(name, instruct=made.get("settings", {}).get("kind") == "instruct")
    fact = check_adapter(run.checkpoints, spec)  # before gigabytes are loaded
    run.hourly_rate = hourly_rate(args.hourly_rate)
    with run.step("loading", quiet=True):
        model = load(spec, fact["bits"])
        model.load_adapter(run.checkpoints, "trained")
    run.log(
        f"model: {model.describe()}\n"
        f"adapter: {display_path(run.checkpoints)}, {model.adapters['trained'][:12]}"
    )
    prompter = Prompter(spec.shots, spec.requests, spec.list_shots, chat_renderer(model))
    return Subject.open(run, LocalEngine(model), prompter, limit=args.limit)


if __name__ == "__main__":
    cli(main)
