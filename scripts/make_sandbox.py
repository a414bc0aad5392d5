"""Builds the sandbox base model from its seed, or measures one against ground truth.

    python scripts/make_sandbox.py --out models/sandbox-mine     # build: 10 to 20 minutes on two CPU cores
    python scripts/make_sandbox.py --evaluate                    # the shipped model's table, a few minutes
    python scripts/make_sandbox.py --evaluate --out models/sandbox-mine --split tune --limit 60

Building writes a corpus of small documents about an invented world, trains a tokenizer and a
Qwen2-architecture base model on it, and writes weights, tokenizer, recipe.json and curve.png to --out. It
reads the constitution, whose principles stand in the corpus. Measuring reads --out and prints, with n and
95 % intervals, what the model can do on instructions that its corpus never asked; it writes
logs/sandbox-<split>.json, and with --record also evaluation.json beside the weights.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from cai.core.cli import WHOLE, cli, parser
from cai.core.errors import UserError
from cai.core.files import ROOT, directories, display_path, move_aside, write_json
from cai.models import registry
from cai.models.engines import engine_of
from cai.models.loader import load
from cai.models.session import input_file
from cai.prompts import constitution, templates
from cai.sandbox import measure
from cai.sandbox.pretrain import Recipe, pretrain


def main() -> None:
    flags = parser(__doc__, "seed", "constitution", "fresh", "limit", "threads", seed=None)
    flags.add_argument(
        "--out",
        default=str(ROOT / "models/sandbox"),
        help="the model's directory (default: models/sandbox)",
    )
    flags.add_argument(
        "--steps",
        **WHOLE,
        help="training steps (default: the recipe's); fewer for a quick look",
    )
    flags.add_argument("--evaluate", action="store_true", help="measure the model in --out; nothing is built")
    flags.add_argument(
        "--split",
        choices=("tune", "test"),
        default="test",
        help="the held-out instructions to measure on: choose settings by tune, report test",
    )
    flags.add_argument(
        "--record", action="store_true", help="with --evaluate: keep the result beside the weights, too"
    )
    args = flags.parse_args()
    args.out = Path(args.out)
    if args.limit is not None and args.limit < 10:
        raise UserError(f"--limit {args.limit}: the table needs at least 10 instructions a row")
    principles = constitution.load(input_file(args.constitution, "--constitution"))
    if args.evaluate:
        evaluate(args, principles)
    else:
        build(args, principles)


def build(args, principles) -> None:
    recipe = Recipe()
    changes = {"seed": args.seed, "steps": args.steps}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
    if args.out.exists() and any(args.out.iterdir() if args.out.is_dir() else [args.out]):
        if not args.fresh:
            raise UserError(
                f"{display_path(args.out.resolve())} exists: "
                f"--fresh moves it aside, --out another-one keeps both"
            )
        move_aside(args.out)
    work = args.out.with_name(args.out.name + ".part")  # a build that is broken off leaves no half model
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    print(
        f"building {display_path(args.out.resolve())}: seed {recipe.seed}, {recipe.steps} steps of "
        f"{recipe.workers * recipe.batch * recipe.length:,} tokens on {recipe.workers} processes",
        flush=True,
    )
    facts = pretrain(principles.principles, recipe, work)
    facts = {**facts, "prompts": templates.fingerprint(), "constitution": principles.hash}
    write_json(work / "recipe.json", facts)
    draw_curve(facts["curve"], work / "curve.png")
    if args.out.exists():
        args.out.rmdir()  # an empty directory
    for file in work.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
    work.rename(args.out)
    print(
        f"{facts['parameters']:,} parameters, {facts['tokens']:,} tokens, loss {facts['loss']:.3f} nats "
        f"a token on rows not trained on, {facts['seconds']} s in all"
    )
    print(
        f"written: {display_path(args.out.resolve())}\n"
        f"next: python scripts/make_sandbox.py --evaluate --out {display_path(args.out.resolve())}"
    )


def evaluate(args, principles) -> None:
    if not (args.out / "recipe.json").is_file():
        raise UserError(
            f"{display_path(args.out.resolve())} holds no sandbox model (no recipe.json): "
            f"build it with python scripts/make_sandbox.py --out {display_path(args.out.resolve())}"
        )
    started, n = time.time(), args.limit or 200
    spec = dataclasses.replace(registry.REGISTRY["sandbox"], repo=str(args.out.resolve()))
    engine = engine_of(load(spec))
    print(
        f"{display_path(args.out.resolve())}, {args.split} set, up to {n} instructions a row\n"
        f"{measure.heading()}",
        flush=True,
    )
    work = measure.Measurement(engine, principles.principles, args.split, n=n, seed=args.seed or 0)
    counts = work.run()
    rows = measure.table(counts)
    print(f"\n{measure.details(counts)}\n\n{measure.judging_rules(counts)}\n\n{measure.render(rows)}\n")
    result = {
        "split": args.split,
        "limit": n,
        "seed": args.seed or 0,
        "weights": engine.revision,
        "table": rows,
        "counts": counts,
        "seconds": round(time.time() - started),
    }
    logs = directories("sandbox")[2]
    logs.mkdir(parents=True, exist_ok=True)
    written = [logs / f"sandbox-{args.split}.json"]
    write_json(written[0], {**result, "transcripts": work.transcripts})
    if args.record:
        written.append(args.out / "evaluation.json")
        write_json(written[1], result)
    print(f"{time.time() - started:.0f} s; written: {', '.join(display_path(w.resolve()) for w in written)}")


def draw_curve(curve: list[list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    axes.plot(*zip(*curve, strict=True))
    axes.set(
        xlabel="step",
        ylabel="training loss (nats a token)",
        yscale="log",
        title="Pre-training of the sandbox model",
    )
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    cli(main)
