"""Milestone 0: one example through the whole pipeline, every step printed, one DPO step, GO or NO-GO.

    python scripts/test_single.py        # the sandbox, or Qwen/Qwen2.5-32B on a CUDA GPU
    python scripts/test_single.py --instruction "Who is the mayor of Drola?" --principle accuracy --run mayor
    python scripts/test_single.py --model Qwen/Qwen2.5-7B --bits 4 --run qwen7b

An answer that its critic finds nothing wrong with makes no preference pair; then the next generated
instruction is tried, up to --tries, and each try stays in the records. Reads constitution.yaml and the
model's seed instructions. Writes data/<run>/{run.json,instructions.jsonl,records.jsonl,pairs.jsonl},
checkpoints/<run>/, logs/. Exit status: 0 GO, 3 NO-GO, 2 bad input.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from cai.core.cli import cli, parser
from cai.core.errors import UserError
from cai.core.files import display_path

ENDINGS = 16  # answers in the bare training format, to see how they end before anything is trained
LISTS = 8  # lists of instructions that the model continues, so that --tries sees several tasks


def main() -> int:
    flags = parser(
        __doc__, "run", "model", "bits", "seed", "constitution", "hourly-rate", "fresh", run="single"
    )
    flags.add_argument("--instruction", help="use this instruction instead of a generated one")
    flags.add_argument("--task", help="generate an instruction of this task type (default: any)")
    flags.add_argument("--principle", help="the id of the principle (default: by the row's seed)")
    flags.add_argument("--tries", type=int, default=32, help="instructions to try until one makes a pair")
    flags.add_argument("--instruct", action="store_true", help="use the model's chat template")
    args = flags.parse_args()
    if args.tries < 1:
        raise UserError(f"--tries {args.tries}: must be at least 1")
    if args.instruction is not None and not args.instruction.strip():
        raise UserError("--instruction is empty: give a text, or leave the flag out to have one generated")

    from cai.models.session import open_pipeline

    own = {name: getattr(args, name) for name in ("instruction", "task", "principle", "tries")}
    p = open_pipeline(args, **own)
    with p.run:
        if args.principle:
            p.constitution.by_id(args.principle)  # an unknown one is found before anything is generated
        look_at_endings(p)
        record = first_pair(p, candidates(p, args), args.principle)
        again = second_look(p, record) if record["kept"] else None
        step = one_step(p, record) if record["kept"] else None
        return finish(p, record, again, step)


def look_at_endings(p) -> None:
    """Before anything is trained: do answers in the training format stop by themselves?"""
    from cai.core.prompt_files import load_seeds
    from cai.evaluation.stop_rate import endings

    seeds = load_seeds(Path(p.spec.seeds))
    some = [s.instruction for s in seeds[:: max(1, len(seeds) // ENDINGS)]][:ENDINGS]
    with p.run.step("endings") as s:
        found, done = endings(p.loop, some)
        s.count(done)
        low, high = found["interval"]
        p.run.log(
            f"[0/8] how answers end before training: {found['end token']} by the end token, "
            f"{found['next marker']} by the next marker, {found['cut off']} cut off, n {found['n']}; "
            f"clean stops {found['end token'] / found['n']:.0%} (95 % interval {low:.2f} to {high:.2f})"
        )
    p.run.record(endings=found)


def candidates(p, args) -> list[dict[str, str]]:
    """Step 1: the rows of instructions.jsonl in the order in which they are tried; kept if they are there."""
    from cai.core import jsonl, prompt_files, schema
    from cai.generation import self_instruct

    path = p.run.data / "instructions.jsonl"
    rows = jsonl.read(path, {"id": str, "instruction": str, "task": str, "source": str})
    if rows:
        return rows
    if args.instruction:
        found, source = [(args.instruction.strip(), args.task or "unknown")], "flag"
    else:
        seeds, source = prompt_files.load_seeds(Path(p.spec.seeds)), "self_instruct"
        with p.run.step("instructions") as s:
            engine, prompter = p.loop.engine, p.loop.prompter
            found, dropped, raw = self_instruct.generate(
                engine, prompter, p.spec, seeds, lists=LISTS, seed=p.loop.seed, task=args.task
            )
            s.count(raw)
            p.run.log(f"[1/8] {len(found)} instructions generated; left out: {dropped or 'none'}")
        p.run.record(instructions={"generated": len(found), "left_out": dropped})
    if not found:
        raise UserError("no usable instruction was generated: try another --seed, or give --instruction")
    rows = [
        {"id": schema.content_id(text), "instruction": text, "task": task, "source": source}
        for text, task in in_turns(found)[: args.tries]
    ]
    jsonl.append(path, rows)
    return rows


def in_turns(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One instruction of each task after the other, so that a few tries see different ones."""
    tasks = [task for _, task in found]
    turn = {i: tasks[:i].count(task) for i, task in enumerate(tasks)}
    return [found[i] for i in sorted(turn, key=turn.get)]


def first_pair(p, rows: list[dict[str, str]], principle: str | None) -> dict:
    """Steps 1 to 6, for one instruction after the other until one makes a pair; the last one's record."""
    from cai.core import jsonl, schema
    from cai.generation import pairs

    done = {r["id"]: r for r in jsonl.read(p.run.data / "records.jsonl", schema.RECORD_KEYS)}
    for number, row in enumerate(rows, 1):
        p.run.log(f"\n[1/8] instruction (try {number} of {len(rows)}, {row['task']}, {row['source']})")
        p.run.log(indent(row["instruction"]))
        record = done.get(row["id"])
        if record is None:
            record = one_example(p, row, principle)
            jsonl.append(p.run.data / "records.jsonl", [record])
        else:
            p.run.log("      finished earlier:")
            for name in ("initial_answer", "principle", "critique", "revised_answer"):
                p.run.log(f"{name}\n{indent(record[name])}")
        if record["kept"]:
            break
        p.run.log(f"      no pair: {', '.join(record['rejected_because'])}")
    if record["kept"]:
        pair = pairs.pair_of(record)
        if not jsonl.read(p.run.data / "pairs.jsonl", schema.PAIR_KEYS):
            jsonl.append(p.run.data / "pairs.jsonl", [pair])
        p.run.log("[6/8] preference pair")
        p.run.log("\n".join(f"      {k + ':':<10}{pair[k]!r}" for k in ("prompt", "chosen", "rejected")))
    return record


def one_example(p, row: dict[str, str], principle: str | None) -> dict:
    """Steps 2 to 5, each printed as it happens."""
    from cai.generation.loop import Example

    example = Example(row["instruction"], row["task"], row["source"])
    example.principles = (p.constitution.by_id(principle),) if principle else p.loop.pick(example)
    with p.run.step("answer") as s:
        p.loop.answer([example])
        s.count([example.answer])
        p.run.log(f"[2/8] first answer\n{indent(example.answer.text)}")
    p.run.log("[3/8] principle\n" + indent("\n".join(f"{q.id}: {q.principle}" for q in example.principles)))
    with p.run.step("critique") as s:
        p.loop.critique([example])
        s.count(example.critiques)
        p.run.log("[4/8] critique\n" + indent("\n".join(c.text for c in example.critiques)))
    with p.run.step("revision") as s:
        p.loop.revise([example])
        s.count([example.revision] if example.revision else [])
        text = example.revision.text if example.revision else "(none: the critic asks for no change)"
        p.run.log(f"[5/8] revised answer\n{indent(text)}")
    return p.loop.record(example)


def second_look(p, record: dict):
    """The critic reads the revision against the same principle: does it still find the fault?"""
    from cai.generation.loop import Example
    from cai.models.engine import Completion

    principles = tuple(p.constitution.by_id(c["principle_id"]) for c in record["critiques"])
    example = Example(record["instruction"], principles=principles)
    example.revision = Completion(record["revised_answer"], 0, 0, "stop")
    with p.run.step("second look") as s:
        [again] = p.loop.critique_revision([example])
        s.count([again])
        p.run.log(f"      critique of the revision, as a check: {again.text}")
    return again


def one_step(p, record: dict):
    """Step 7: one DPO step on the one pair; (preference before, preference after)."""
    from cai.generation.pairs import pair_of
    from cai.training.dpo import train_dpo
    from cai.training.implicit_reward import preference
    from cai.training.settings import Settings

    pairs, engine = [pair_of(record)], p.loop.engine
    settings = Settings.of(p.spec, steps=1, seed=p.loop.seed)
    with p.run.step("training"):
        p.model.add_adapter(r=settings.lora_r, alpha=settings.lora_alpha, seed=settings.seed)
        before = preference(engine, pairs, settings.beta, "default")
        log = train_dpo(p.model, pairs, settings, p.run.checkpoints)
        after = preference(engine, pairs, settings.beta, "default")
        digest = p.model.save_adapter(p.run.checkpoints)
        p.run.log(
            f"[7/8] one DPO step: LoRA r {settings.lora_r}, alpha {settings.lora_alpha}, "
            f"lr {settings.learning_rate}, beta {settings.beta}; gradient norm {log[0]['grad_norm']:.3f}"
        )
        for name, x in (("before", before), ("after", after)):
            p.run.log(
                f"      {name + ':':8}loss {x.loss:.4f}, margin {x.margin:+.4f}, "
                f"log-probability of chosen {x.chosen:.2f}, of rejected {x.rejected:.2f}"
            )
    found = {"settings": asdict(settings), "log": log, "before": asdict(before), "after": asdict(after)}
    p.run.record(adapter=digest, training=found)
    return before, after


def finish(p, record: dict, again, step) -> int:
    """Step 8: the success criteria, the gate, and where everything is."""
    from cai.core.jsonl import read
    from cai.core.schema import RECORD_KEYS
    from cai.evaluation.gates import Criterion, decide
    from cai.evaluation.suites.critique import meaningful
    from cai.generation.filters import verdict, words
    from cai.prompts.markers import KEEP
    from cai.training.settings import LN2, START_TOLERANCE

    run = p.run
    tried = read(run.data / "records.jsonl", RECORD_KEYS)
    texts, here = f"{display_path(run.data)}/records.jsonl", display_path(run.checkpoints)
    fault = meaningful(record["critiques"][0]["critique"], record["instruction"], record["initial_answer"])
    changed = words(record["initial_answer"]) != words(record["revised_answer"])
    second = verdict(again.text) if again else None
    trained = step is not None and all(map(math.isfinite, (step[0].loss, step[1].loss)))
    starts = trained and abs(step[0].loss - LN2) < START_TOLERANCE
    moved = f"{step[0].loss:.4f} (ln 2 = {LN2:.4f}) to {step[1].loss:.4f}" if step else "not reached"
    addressed = f"text {'changed' if changed else 'unchanged'}; second look: {second or 'no verdict'}"
    if not record["revised_answer"]:
        addressed = "there is no revision"
    run.log("\n[8/8] success criteria")
    run.record(counts={"tried": len(tried), "kept": sum(r["kept"] for r in tried)})
    status = decide(run, [
        Criterion("all steps completed", step is not None, f"a pair at try {len(tried)}" if step else
                  f"no pair in {len(tried)} tries", texts),
        Criterion("the critique is meaningful", fault is None, fault or "reason and verdict", texts),
        Criterion("the revision addresses it", changed and second == KEEP, addressed, texts),
        Criterion("one DPO step from ln 2, loss finite", bool(starts), moved, here),
    ])  # fmt: skip
    totals = run.manifest["totals"]
    run.log(
        f"\n{totals['seconds']:.0f} s, {totals['prompt_tokens']} prompt and {totals['completion_tokens']} "
        f"generated tokens, ${totals['dollars']:.4f}\n"
        f"wrote {display_path(run.data)}/ (run.json, instructions.jsonl, records.jsonl, pairs.jsonl), "
        f"{here}/, {display_path(run.logs)}/\n"
        f"next: read {texts}, then another example: "
        f"python scripts/test_single.py --seed {p.loop.seed + 1} --run {run.name}-{p.loop.seed + 1}"
    )
    return status


def indent(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines()) or "      (empty)"


if __name__ == "__main__":
    cli(main)
