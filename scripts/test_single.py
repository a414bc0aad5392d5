"""Milestone 0: one example through the whole pipeline, every step printed, one DPO step, GO or NO-GO.

    python scripts/test_single.py        # the sandbox, or Qwen/Qwen2.5-32B on a CUDA GPU
    python scripts/test_single.py --instruction "Who is the mayor of Drola?" --principle accuracy --run mayor
    python scripts/test_single.py --model Qwen/Qwen2.5-7B --bits 4 --run qwen7b

An answer that its critic finds nothing wrong with makes no preference pair, nor does a revision that the
critic, asked again, finds fault with or misquotes; then the next generated instruction is tried, up to
--tries. Such a try is a line here, and whole in the records. Writes data/<run>/{run.json,instructions.jsonl,
records.jsonl,pairs.jsonl}, checkpoints/<run>/, logs/. Exit status: 0 GO, 3 NO-GO, 2 bad input, 4 the budget
reached.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from textwrap import shorten

from cai.core.cli import MOST, WHOLE, cli, parser
from cai.core.errors import UserError
from cai.core.files import display_path
from cai.core.schema import TASK_TYPES
from cai.core.text import one_line

ANSWERS = 16  # in the bare training format, to see how they end before anything is trained


def main() -> int:
    flags = parser(
        __doc__,
        *("run", "model", "bits", "threads", "instruct", "set", "seed", "constitution", "budget"),
        *("hourly-rate", "fresh"),
        run="single",
        loss="dpo",  # whatever the model's: it starts at ln 2
    )
    flags.add_argument("--instruction", help="use this instruction instead of a generated one")
    flags.add_argument("--task", choices=TASK_TYPES, help="generate an instruction of this type of task")
    flags.add_argument("--principle", help="the id of the principle (default: by the row's seed)")
    flags.add_argument("--tries", **WHOLE, default=32, help="instructions to try until one makes a pair")
    args = flags.parse_args()
    if not 1 <= args.tries <= MOST:
        raise UserError(f"--tries {args.tries}: must be at least 1, and at most {MOST:,}")

    from cai.generation.instructions import few_instructions
    from cai.generation.loop import Loop
    from cai.generation.prompt_sources import against
    from cai.models.session import open_session

    if args.instruction is not None and (reason := against(args.instruction.strip())):
        raise UserError(f"--instruction cannot be used ({reason.replace('_', ' ')}): give another text")
    own = ("instruction", "task", "principle", "tries", "loss")
    with open_session(args, *own, budget=budget_of(args)) as session:
        loop = Loop(session.engine, session.prompter, session.constitution, session.seed, judged=False)
        measure_stop_rate(session)
        rows = few_instructions(session, args.tries, args.task, args.instruction)
        record = first_pair(session, loop, rows, args.principle)
        step = one_step(session, record) if record["kept"] else None
        return finish(session, record, step)


def budget_of(args):
    """By the forecast's rates. Each text is asked for by itself here, which takes longer than its share of a
    full batch."""
    from cai.costs.budget import Budget
    from cai.costs.default_rates import ALONE
    from cai.costs.forecast import forecast
    from cai.costs.units import PER_EXAMPLE, local
    from cai.models.session import check_inputs

    _, spec, _ = check_inputs(args)
    units = dict.fromkeys(("loading", "instructions", *PER_EXAMPLE, "training"), 1.0)
    ahead = forecast(spec, local(args.bits or spec.bits, units), examples=1, hourly_rate=args.hourly_rate)
    budget = Budget.ahead(args.budget, ahead)
    rates = {step: dollars * (ALONE if step in PER_EXAMPLE else 1) for step, dollars in budget.rates.items()}
    budget.rates = rates | {"endings": ANSWERS * budget.rates["answer"], "second look": rates["critique"]}
    return budget


def measure_stop_rate(session) -> None:
    """Before anything is trained: do answers in the training format stop by themselves?"""
    from cai.core.prompt_files import load_seeds
    from cai.evaluation.stop_rate import stop_rate

    seeds = [s.instruction for s in load_seeds(Path(session.spec.seeds))]
    some = seeds[:: max(1, len(seeds) // ANSWERS)][:ANSWERS]
    with session.run.step("endings") as step:
        found, done = stop_rate(session.engine, session.prompter, some, session.seed)
        step.count(done)
        low, high = found["interval"]
        session.run.log(
            f"[0/8] how answers end before training: {found['end token']} by the end token, "
            f"{found['next marker']} by the next marker, {found['cut off']} cut off, n {found['n']}; "
            f"clean stops {found['end token'] / found['n']:.0%} (95 % interval {low:.2f} to {high:.2f})"
        )
    session.run.record(endings=found)


def first_pair(session, loop, rows: list[dict[str, str]], principle: str | None) -> dict:
    """Steps 1 to 6, for one instruction after the other until one makes a pair; the last one's record. A try
    that makes none is a line here; records.jsonl has it whole."""
    from cai.core import jsonl
    from cai.generation.pairs import keep_pairs, revision_pair
    from cai.generation.records import read_records

    run, tries = session.run, len(rows)
    done = {r["id"]: r for r in read_records(run.data)}
    if tries > 1:
        run.log("      one instruction after the other, until one makes a pair:")
    for number, row in enumerate(rows, 1):
        record = done.get(row["id"])
        with run.holding() as said:
            about = f"{row['task']}, {row['source']}{', finished earlier' if record else ''}"
            run.log(f"\n[1/8] instruction (try {number} of {tries}, {about})\n{indent(row['instruction'])}")
            if record is None:
                record = one_example(session, loop, row, principle, last=number == tries)
                jsonl.append(run.data / "records.jsonl", [record])
            else:
                parts = ("initial_answer", "principle", "critique", "revised_answer", "second_look")
                run.log("\n".join(f"      {p}\n{indent(record[p])}" for p in parts if p in record))
            if not record["kept"]:
                said.clear()
        if record["kept"]:
            keep_pairs(run, [revision_pair(record)])
            break
        why, text = ", ".join(record["rejected_because"]), " ".join(row["instruction"].split())
        run.log(f"      try {number}, {row['task']}, {row['source']}, {why}: {shorten(text, 70)}")
    return record


def one_example(session, loop, row: dict[str, str], principle: str | None, last: bool) -> dict:
    """Steps 2 to 6, each printed: what Loop.align does at one go. last: there is no other try, so that the
    gate tells of a revision that fails its second look."""
    from cai.evaluation.criteria import second_look
    from cai.generation.example import as_record, examples_of
    from cai.generation.pairs import revision_pair
    from cai.models.engine import together

    run, [e] = session.run, examples_of([row])
    e.principles = (session.constitution.by_id(principle),) if principle else loop.pick(e)
    with run.step("answer") as step:
        [e.answer] = together([loop.answer(e)])
        step.count([e.answer])
        run.log(f"[2/8] first answer\n{indent(e.answer.text)}")
    run.log("[3/8] principle\n" + indent("\n".join(f"{p.id}: {p.principle}" for p in e.principles)))
    with run.step("critique") as step:
        e.critiques = together(loop.critique(e, p) for p in e.principles)
        step.count(e.critiques)
        run.log("[4/8] critique\n" + indent("\n".join(c.text for c in e.critiques)))
    with run.step("revision") as step:
        if e.must_change:
            [e.revision] = together([loop.revise(e)])
            step.count([e.revision])
        text = e.revision.text if e.revision else "(none: the critic asks for no change)"
        run.log(f"[5/8] revised answer\n{indent(text)}")
    record = as_record(e, session.engine, loop.roles, session.seed)
    if not record["kept"]:
        return record
    pair = revision_pair(record)
    texts = (f"\n      {k + ':':<10}{pair[k]!r}" for k in ("prompt", "chosen", "rejected"))
    run.log("[6/8] preference pair" + "".join(texts))
    with run.step("second look") as step:
        [again] = together([loop.critique_revision(e)])
        step.count([again])
        run.log(f"      critique of the revision, as a check: {one_line(again.text)}")
    record["second_look"] = again.text
    if second_look(record, again.text) and not last:
        record |= {"kept": False, "rejected_because": ["second_look"]}
    return record


def one_step(session, record: dict):
    """Step 7: one DPO step on the one pair; (preference before, preference after)."""
    from cai.generation.pairs import revision_pair
    from cai.training.dpo import train_dpo
    from cai.training.implicit_reward import preference
    from cai.training.settings import Settings

    run, model, engine = session.run, session.model, session.engine
    pairs, settings = [revision_pair(record)], Settings.of(session.spec, 1, session.seed, loss="dpo")
    with run.step("training"):
        model.add_adapter(r=settings.lora_r, alpha=settings.lora_alpha, seed=settings.seed)
        before = preference(engine, pairs, settings.beta, "default")
        log = train_dpo(model, pairs, settings, run.checkpoints, run.log)
        after = preference(engine, pairs, settings.beta, "default")
        digest = model.save_adapter(run.checkpoints)
        run.log(
            f"[7/8] one DPO step: LoRA r {settings.lora_r}, alpha {settings.lora_alpha}, "
            f"lr {settings.learning_rate}, beta {settings.beta}; gradient norm {log[0]['grad_norm']:.3f}"
        )
        for name, x in (("before", before), ("after", after)):
            run.log(
                f"      {name + ':':8}loss {x.loss:.4f}, margin {x.margin:+.4f}, "
                f"log-probability of chosen {x.chosen:.2f}, of rejected {x.rejected:.2f}"
            )
    sides = {"before": asdict(before), "after": asdict(after)}
    run.record(adapter=digest, training={"settings": asdict(settings), "log": log, **sides})
    return before, after


def finish(session, record: dict, step) -> int:
    """Step 8: the success criteria, the gate, and where everything is."""
    from cai.evaluation.criteria import m0
    from cai.evaluation.gates import decide
    from cai.generation.records import read_records

    run = session.run
    tried = read_records(run.data)
    run.record(counts={"tried": len(tried), "kept": sum(r["kept"] for r in tried)})
    run.log("\n[8/8] success criteria")
    status = decide(run, m0(run, record, len(tried), record.get("second_look"), step))
    totals, seed = run.manifest["totals"], session.seed
    run.log(
        f"\n{totals['seconds']:.0f} s, {totals['prompt_tokens']} prompt and {totals['completion_tokens']} "
        f"generated tokens, ${totals['dollars']:.4f}\n"
        f"wrote {', '.join(f'{display_path(d)}/' for d in (run.data, run.checkpoints, run.logs))}\n"
        f"next: read {display_path(run.data)}/records.jsonl; for another example add "
        f"--seed {seed + 1} --run {run.name.removesuffix(f'-{seed}')}-{seed + 1} to this command"
    )
    return status


def indent(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines()) or "      (empty)"


if __name__ == "__main__":
    cli(main)
