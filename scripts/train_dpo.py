"""Trains a LoRA adapter on a run's preference pairs: pairs.jsonl in, adapter out.

    python scripts/train_dpo.py --run full                                # milestone 3, from the base model
    python scripts/train_dpo.py --data mvp --run mvp-nll --loss dpo+nll   # the same pairs, another adapter
    python scripts/train_dpo.py --run stage2 --from stage1 --epochs 3     # on from an earlier run's adapter
    python scripts/train_dpo.py --data mvp --run mvp-warm --set warmup=0.3 lora_alpha=16

The same command again goes on from the last checkpoint; other settings under the same name stop and are
named. Held-out pairs are never trained on; they are measured along the way, and stop the training when the
chosen texts lose too much likelihood or nothing gets better. Pairs whose revision a person has marked as no
better (review.jsonl) are left out, and so are those whose prompts models are evaluated on. pairs.jsonl must
be the one that its run wrote; --edited-pairs takes another. Data whose gate does not say GO are trained on
only with --force. Reads data/<run>/{pairs.jsonl,run.json,review.jsonl}. Writes checkpoints/<run>/ (adapter,
tokenizer, training.json, training.jsonl, curves.png), logs/. Exit status: 0 trained, 3 displaced (the chosen
texts lost too much likelihood), 2 bad input, 4 the budget is reached.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from cai.core.cli import GO, NO_GO, WHOLE, cli, parser
from cai.core.errors import UserError
from cai.core.files import directories, display_path, sha256_file
from cai.core.run import Run, git_commit, read_manifest, versions
from cai.training.losses import LOSSES
from cai.training.trackers import TRACKERS, check

COMMON = (
    *("run", "model", "bits", "threads", "set", "seed"),
    *("forecast", "budget", "hourly-rate", "fresh", "force"),
)
TRAINING = ("loss", "steps", "epochs", "lr", "beta", "lora-r")
SHORT = {"lr": "learning_rate", "beta": "beta", "lora_r": "lora_r"}  # flag -> value of --set
ORIGIN = ("argv", "commit", "versions", "python")  # of the data: training does not overwrite them


def main() -> int:
    args = read_flags()

    from cai.costs.budget import Budget
    from cai.evaluation.gates import require
    from cai.models.device import hourly_rate
    from cai.models.session import load_engine
    from cai.training.dpo import train
    from cai.training.likelihood_displacement import DISPLACED

    source = args.data or args.run
    data = directories(source)[0]
    pairs, held_out, disputed = agreed(data, edited=args.edited_pairs)
    start = directories(args.start)[1] if args.start else None
    spec, why = model_of(args, source)
    pairs, evaluated = apart_from_evaluation(pairs, spec)
    bits, why_bits = bits_of(args, spec, source)
    settings = settings_of(args, spec, len(pairs), start)
    ahead = forecast_of(args, spec, bits, len(pairs), settings.steps)
    if args.forecast:
        print(ahead.render())
        return GO
    if "shards" in (read_manifest(source) or {}).get("settings", {}):  # data that have a gate of their own
        require(source, force=args.force, record="data_gate")
    budget, pairs_file = Budget.ahead(args.budget, ahead), sha256_file(data / "pairs.jsonl")
    with open_run(args.run, source) as run:
        run.log(f"model: {spec.name} - {why}; {bits} bits, {why_bits}")
        if args.edited_pairs:
            run.log(f"{display_path(data)}/pairs.jsonl is taken as it is (--edited-pairs)")
        if disputed:
            run.log(f"{disputed} pairs left out: a person does not prefer the revision (review.jsonl)")
        if evaluated:
            run.log(f"{evaluated} pairs left out: models are evaluated on these prompts ({spec.heldout})")
        run.hourly_rate = hourly_rate(args.hourly_rate)
        budget.watch(run)
        model, _ = load_engine(spec, bits, run)
        origin = f"the adapter of {args.start}" if start else "the base model"
        reference = (
            origin
            if LOSSES[settings.loss].has_reference
            else f"none, {settings.loss.upper()} compares without one"
        )
        run.log(
            f"{settings.loss}: {len(pairs)} pairs, {len(held_out)} held out, {settings.steps} steps, "
            f"lr {settings.learning_rate}, beta {settings.beta}, "
            f"LoRA r {settings.lora_r}, alpha {settings.lora_alpha}; from {origin}; reference: {reference}"
        )
        where = {"resume": not args.fresh, "start": start, "tracker": args.tracker, "budget": budget}
        where["pairs_file"] = pairs_file
        with run.step("training") as step:
            result = train(model, pairs, held_out, settings, run.checkpoints, log=run.log, **where)
            step.examples = result.taken
        how = {"argv": sys.argv, "commit": git_commit(), "versions": versions(), "data": source}
        how |= {"pairs_file": pairs_file, "edited_pairs": args.edited_pairs}
        run.record(adapter=result.adapter, training=how | {"settings": asdict(settings), **asdict(result)})
        tell(run, result)
    return NO_GO if result.status == DISPLACED else GO


def read_flags():
    flags = parser(__doc__, *COMMON, *TRAINING, choices={"loss": LOSSES}, run="mvp", model=None)
    flags.add_argument("--data", metavar="RUN", help="train on this run's pairs (default: --run's own)")
    flags.add_argument(
        "--edited-pairs", action="store_true", help="train on pairs.jsonl although the run wrote another one"
    )
    flags.add_argument("--from", dest="start", metavar="RUN", help="go on from this run's adapter")
    flags.add_argument("--every", **WHOLE, help="steps between measurements and checkpoints")
    flags.add_argument(
        "--tracker",
        default="none",
        choices=("none", *TRACKERS),
        help="an experiment tracker; wandb is offline unless logged in",
    )
    args = flags.parse_args()
    if args.run == args.start:
        raise UserError(
            f"--from {args.start} is --run itself: give the new adapter a name of its own with --run"
        )
    if args.every is not None and args.every < 1:
        raise UserError(f"--every {args.every}: must be at least 1")
    if args.steps is not None and args.epochs is not None:
        raise UserError(f"--epochs {args.epochs} is not allowed with --steps {args.steps}: give one of them")
    check(args.tracker)
    return args


def agreed(data: Path, *, edited: bool = False) -> tuple[list[dict], list[dict], int]:
    """(pairs to train on, held-out pairs, how many a person's marks took): a revision that a person finds no
    better than the first answer is not to be learnt."""
    from cai.evaluation.marks import preferred
    from cai.training.pair_files import read_pairs

    disputed = {i for i, better in preferred(data).items() if better != "revision"}
    both = read_pairs(data, edited=edited)
    pairs, held_out = (
        [row for row in rows if row["kind"] != "revision" or row["id"] not in disputed] for rows in both
    )
    if not pairs:
        raise UserError(
            f"{display_path(data)}/review.jsonl prefers the first answer, or neither, in every pair"
        )
    return pairs, held_out, sum(map(len, both)) - len(pairs) - len(held_out)


def apart_from_evaluation(pairs: list[dict], spec) -> tuple[list[dict], int]:
    """(pairs to train on, how many were not since models are evaluated on their prompts). A run of ours has
    none of these; other people's pairs may."""
    from cai.core.prompt_files import load_heldout
    from cai.training.pair_files import apart_from

    rest, evaluated = apart_from(pairs, [p.instruction for p in load_heldout(Path(spec.heldout))])
    if not rest:
        raise UserError(
            f"all {len(pairs)} pairs have prompts that models are evaluated on ({spec.heldout}): "
            "train on other prompts"
        )
    return rest, len(evaluated)


def model_of(args, source: str):
    """(spec with the values of the flags, why it): the model that made the pairs, unless one is asked for."""
    from cai.models.registry import choose, with_values

    made = read_manifest(source) or {}
    name = args.model or made.get("model") or "auto"
    spec, why = choose(name, instruct=made.get("settings", {}).get("kind") == "instruct")
    if args.model is None and name != "auto":
        why = f"the model that made the pairs of {source}"
    given = [f"{key}={value}" for flag, key in SHORT.items() if (value := getattr(args, flag)) is not None]
    if args.lora_r is not None and not any(text.startswith("lora_alpha=") for text in args.set):
        given.append(f"lora_alpha={max(1, args.lora_r * spec.lora_alpha // spec.lora_r)}")
    return with_values(spec, [*args.set, *given]), why


def bits_of(args, spec, source: str) -> tuple[int, str]:
    """(precision, why it): the one in which the same model has made the pairs, unless one is asked for."""
    from cai.models.device import this_device
    from cai.models.loader import check_bits

    made = read_manifest(source) or {}
    theirs = made.get("settings", {}).get("bits")
    if args.bits is not None:
        bits, why = args.bits, "asked for by --bits"
    elif made.get("model") == spec.name and theirs in (4, 8, 16):
        bits, why = theirs, f"in which it made the pairs of {source}"
    else:
        bits, why = spec.bits, "the model's own"
    if not args.forecast:  # which may be for another machine
        check_bits(bits, gpu=this_device() != "cpu")
    return bits, why


def forecast_of(args, spec, bits: int, pairs: int, steps: int):
    from cai.costs.forecast import forecast
    from cai.costs.units import local

    units = local(bits, {"loading": 1, "training": steps})
    return forecast(spec, units, examples=pairs, of="pairs", hourly_rate=args.hourly_rate)


def settings_of(args, spec, pairs: int, start: Path | None):
    """Raises UserError for flags that make no sense."""
    from cai.models.model import check_adapter, lora_of
    from cai.training.settings import Settings, default_steps, steps_of

    own = {"every": args.every} if args.every else {}
    if start is not None:
        check_adapter(start, spec)
        own |= dict(zip(("lora_r", "lora_alpha"), lora_of(start), strict=True))
        told = args.lora_r is not None or any(text.startswith("lora_") for text in args.set)
        if told and (spec.lora_r, spec.lora_alpha) != (own["lora_r"], own["lora_alpha"]):
            raise UserError(
                f"LoRA rank {spec.lora_r}, alpha {spec.lora_alpha}: the adapter of --from {args.start} has "
                f"rank {own['lora_r']}, alpha {own['lora_alpha']}; leave --lora-r and --set lora_... out"
            )
    steps = args.steps or default_steps(spec, pairs)
    if args.epochs is not None:
        steps = steps_of(spec, pairs, args.epochs)
    return Settings.of(spec, steps, args.seed, loss=args.loss, **own).checked()


def open_run(name: str, source: str) -> Run:
    """The run with the settings that it has, so that training never changes what its data are."""
    earlier = read_manifest(name) or {}
    run = Run.open(name, earlier.get("settings", {"data": source}))
    run.record(**{k: earlier[k] for k in ORIGIN if k in earlier})
    return run


def tell(run: Run, result) -> None:
    run.log(f"\n{result.table()}")
    here = display_path(run.checkpoints)
    run.log(
        f"wrote {here}/ (adapter, tokenizer, training.json, training.jsonl, curves.png), "
        f"{display_path(run.logs)}/\n"
        f"next: look at {here}/curves.png, then "
        f"python scripts/evaluate.py --suite preference --run {run.name}"
    )


if __name__ == "__main__":
    cli(main)
