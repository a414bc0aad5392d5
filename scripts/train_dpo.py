"""Trains a LoRA adapter on a run's preference pairs: pairs.jsonl in, adapter out.

    python scripts/train_dpo.py --run full                                # milestone 3, from the base model
    python scripts/train_dpo.py --data mvp --run mvp-nll --loss dpo+nll   # the same pairs, another adapter
    python scripts/train_dpo.py --run stage2 --from stage1 --epochs 3     # on from an earlier run's adapter

The same command again goes on from the last checkpoint; other settings under the same name stop and are
named. Held-out pairs are never trained on; they are measured along the way, and stop the training when the
chosen texts lose too much likelihood or nothing gets better. Pairs whose revision a person has marked as no
better (review.jsonl) are left out. Reads data/<run>/{pairs.jsonl,run.json,review.jsonl}. Writes
checkpoints/<run>/ (adapter, tokenizer, training.json, training.jsonl, curves.png), logs/. Exit status: 0
trained, 3 stopped because the chosen texts lost likelihood, 2 bad input.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

from cai.core.cli import GO, NO_GO, cli, parser
from cai.core.errors import UserError
from cai.core.files import directories, display_path
from cai.core.run import Run, git_commit, read_manifest, versions

ORIGIN = ("argv", "commit", "versions", "python")  # of the data: training does not overwrite them


def main() -> int:
    flags = parser(__doc__, "run", "model", "bits", "seed", "hourly-rate", "fresh", run="mvp", model=None)
    flags.add_argument("--data", metavar="RUN", help="train on this run's pairs (default: --run's own)")
    flags.add_argument("--from", dest="start", metavar="RUN", help="go on from this run's adapter")
    flags.add_argument(
        "--loss", help="dpo, dpo+nll (adds likelihood of the chosen), orpo (default: the registry's)"
    )
    length = flags.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="optimizer steps (default: two passes; few pairs: more)")
    length.add_argument("--epochs", type=float, help="passes over the pairs, instead of --steps")
    flags.add_argument("--lr", type=float, help="learning rate (default: the model's in the registry)")
    flags.add_argument("--beta", type=float, help="DPO's beta, ORPO's lambda (default: the registry's)")
    flags.add_argument(
        "--lora-r", type=int, help="LoRA rank; alpha keeps its ratio (default: the registry's)"
    )
    flags.add_argument("--every", type=int, help="steps between measurements and checkpoints")
    flags.add_argument(
        "--tracker", default="none", help="none, trackio, wandb (offline unless logged in), tensorboard"
    )
    args = flags.parse_args()
    if args.run == args.start:
        raise UserError(
            f"--from {args.start} is --run itself: give the new adapter a name of its own with --run"
        )

    from cai.models.registry import choose
    from cai.training.trackers import TRACKERS, check

    if args.tracker not in ("none", *TRACKERS):
        raise UserError(f"--tracker {args.tracker}: choose none, {', '.join(TRACKERS)}")
    check(args.tracker)
    source = args.data or args.run
    pairs, held_out, disputed = agreed(directories(source)[0])
    made = read_manifest(source) or {}
    name = args.model or made.get("model") or "auto"
    spec, why = choose(name, instruct=made.get("settings", {}).get("kind") == "instruct")
    if args.model is None and name != "auto":
        why = f"the model that made the pairs of {source}"
    start = directories(args.start)[1] if args.start else None
    settings = settings_of(args, spec, len(pairs), start)
    with open_run(args.run, source) as run:
        run.log(f"model: {spec.name} - {why}")
        if disputed:
            run.log(f"{disputed} pairs left out: a person does not prefer the revision (review.jsonl)")
        return train_and_tell(run, args, spec, settings, pairs, held_out, start)


def agreed(data: Path) -> tuple[list[dict], list[dict], int]:
    """(pairs to train on, held-out pairs, how many a person's marks took): a revision that a person finds no
    better than the first answer is not to be learnt."""
    from cai.evaluation.marks import preferred
    from cai.training.pair_files import read_pairs

    disputed = {i for i, better in preferred(data).items() if better != "revision"}
    both = read_pairs(data)
    pairs, held_out = (
        [row for row in rows if row["kind"] != "revision" or row["id"] not in disputed] for rows in both
    )
    if not pairs:
        raise UserError(
            f"{display_path(data)}/review.jsonl prefers the first answer, or neither, in every pair"
        )
    return pairs, held_out, sum(map(len, both)) - len(pairs) - len(held_out)


def settings_of(args, spec, pairs: int, start):
    """Flags over the registry's values. Raises UserError for those that make no sense."""
    from cai.training.dpo import lora_of
    from cai.training.settings import Settings, default_steps

    given = {"learning_rate": args.lr, "beta": args.beta, "every": args.every, "lora_r": args.lora_r}
    given = {k: v for k, v in given.items() if v is not None}
    if given.get("every", 1) < 1:
        raise UserError(f"--every {args.every}: must be at least 1")
    if args.epochs is not None and not 0 < args.epochs < math.inf:
        raise UserError(f"--epochs {args.epochs}: must be above 0")
    if args.lora_r is not None:
        given["lora_alpha"] = max(1, args.lora_r * spec.lora_alpha // spec.lora_r)
    if start is not None:
        from cai.models.model import check_adapter

        check_adapter(start, spec)
        rank, alpha = lora_of(start)
        if args.lora_r not in (None, rank):
            raise UserError(
                f"--lora-r {args.lora_r}: the adapter of --from {args.start} has rank {rank}; leave it out"
            )
        given |= {"lora_r": rank, "lora_alpha": alpha}
    per_step = spec.batch_size * min(spec.gradient_accumulation, math.ceil(pairs / spec.batch_size))
    steps = args.steps if args.steps is not None else default_steps(pairs, per_step)
    if args.epochs is not None:
        steps = math.ceil(args.epochs * pairs / per_step)
    return Settings.of(spec, steps, args.seed, loss=args.loss or spec.loss, **given).checked()


def open_run(name: str, source: str) -> Run:
    """The run with the settings that it has, so that training never changes what its data are."""
    earlier = read_manifest(name) or {}
    run = Run.open(name, earlier.get("settings", {"data": source}))
    run.record(**{k: earlier[k] for k in ORIGIN if k in earlier})
    return run


def train_and_tell(run: Run, args, spec, settings, pairs, held_out, start) -> int:
    from cai.models.device import hourly_rate
    from cai.models.loader import load
    from cai.models.session import device_name
    from cai.training.dpo import train
    from cai.training.likelihood_displacement import DISPLACED

    run.hourly_rate = hourly_rate(args.hourly_rate)
    with run.step("loading"):
        model = load(spec, args.bits)
        run.log(f"       {model.describe()}, ${run.hourly_rate:.2f} an hour")
    run.record(model=spec.name, bits=model.bits, device=device_name(model))
    origin = f"the adapter of {args.start}" if start else "the base model"
    reference = "none, ORPO compares without one" if settings.loss == "orpo" else origin
    run.log(
        f"{settings.loss}: {len(pairs)} pairs, {len(held_out)} held out, {settings.steps} steps, lr "
        f"{settings.learning_rate}, beta {settings.beta}, LoRA r {settings.lora_r}, alpha "
        f"{settings.lora_alpha}; from {origin}; reference: {reference}"
    )
    with run.step("training") as step:
        result = train(
            model, pairs, held_out, settings, run.checkpoints,
            resume=not args.fresh, start=start, log=run.log, tracker=args.tracker,
        )  # fmt: skip
        step.examples = result.taken
    how = {"argv": sys.argv, "commit": git_commit(), "versions": versions(), "data": args.data or run.name}
    run.record(adapter=result.adapter, training=how | {"settings": asdict(settings), **asdict(result)})
    tell(run, result)
    return NO_GO if result.status == DISPLACED else GO


def tell(run: Run, result) -> None:
    """The table at the end. likelier: chosen has more log-probability a token; it needs no reference."""
    from cai.core.stats import wilson

    run.log(
        f"\n{result.status}: the adapter of step {result.step} of {result.steps} is kept; "
        f"{result.trained_on} pairs trained on, {result.held_out} held out, {result.seconds:.0f} s\n"
        f"{'':20}{'n':>5}{'loss':>9}{'margin':>9}  "
        f"{'accuracy (95 %)':<20}{'likelier':>9}{'chosen':>10}{'rejected':>10}"
    )
    for name in result.after:
        for when, x in (("before", result.before[name]), ("after", result.after[name])):
            low, high = wilson(round(x["accuracy"] * x["n"]), x["n"])
            accuracy = (
                "as its reference" if when == "before" else f"{x['accuracy']:.2f} ({low:.2f} to {high:.2f})"
            )
            run.log(
                f"{name.replace('_', ' ') + ', ' + when:20}{x['n']:>5}{x['loss']:>9.4f}{x['margin']:>+9.3f}  "
                f"{accuracy:<20}{x['likelier']:>9.2f}{x['chosen']:>10.2f}{x['rejected']:>10.2f}"
            )
    here = display_path(run.checkpoints)
    run.log(
        f"wrote {here}/ (adapter, tokenizer, training.json, training.jsonl, curves.png), "
        f"{display_path(run.logs)}/\n"
        f"next: look at {here}/curves.png, then "
        f"python scripts/evaluate.py --suite preference --run {run.name}"
    )


if __name__ == "__main__":
    cli(main)
