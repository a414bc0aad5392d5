"""How well a model plays critic and reviser, on a fixed set of answers that are known to be good or flawed.

The same for every stage of a plan, so that a fall shows. The reviser gets a critique that is right, so that
its own skill is measured and not its critic's. Probes are about test instructions, which are barred from
training (test_sets.test_instructions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.core import schema
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.stats import Metric, share
from cai.evaluation.model_pair import ModelPair
from cai.evaluation.result_store import BASE, TRAINED, WHO, ResultStore
from cai.evaluation.suite import Metrics, Suite, compared
from cai.evaluation.test_sets import TRUTH, Test, load, success
from cai.generation.verdicts import read_verdict
from cai.models.engine import complete_all, sampling
from cai.models.registry import ModelSpec
from cai.prompts.constitution import Constitution, Principle
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import hash_texts
from cai.sandbox.oracle import principle_kind, trials

EACH = 120  # probes, where no other number is asked for
ANSWER = "answer"  # a kind of principle: the answer should be right. The sandbox also has "harmless".
REAL_TASKS = ("factual_qa", "math", "explicit", "implicit")  # short answers, plainly right or wrong
# The parts that are measured, in plain words.
PARTS = {
    "critic": "critic: verdicts right",
    "critic_flaws": "critic: flaws flagged",
    "critic_good": "critic: good answers passed",
    "reviser": "reviser: revisions right",
}

# The principle of the real-world probes, whatever constitution a run has: these are about facts alone.
ACCURATE = Principle(
    "probe_accuracy",
    "Right facts and numbers",
    "The response should state only facts and numbers that are true.",
    "Check each fact and number in the response. Say which one is wrong, if any is, and what is right.",
    "Correct what is wrong in the response and leave the rest as it is.",
)


@dataclass(frozen=True)
class Probe:
    """An answer with its flaw, or without one. kind: of the principle that it is criticised by. critique:
    what a right critic says, which the reviser is shown. test: tells whether a revision is right."""

    id: str
    instruction: str
    answer: str
    must_change: bool
    kind: str
    critique: str
    test: Test


def probes(spec: ModelSpec, n: int = EACH) -> list[Probe]:
    """The first n probes, half of them flawed; tasks take turns. Fewer where there are no more."""
    return (_sandbox() if spec.sandbox else _real())[:n]


def measure(
    pair: ModelPair, store: ResultStore, constitution: Constitution, n: int = EACH
) -> dict[str, dict[str, Metric]]:
    """Of "base" and "trained" model:

    critic: the share of verdicts that are right (none at all is wrong); critic_flaws: of flawed answers that
    are flagged; critic_good: of good answers that are passed; reviser: of flawed answers whose revision is
    right. The same seeds for every adapter, so that two of them can be compared probe by probe. A row for
    every critique and every revision."""
    found = _hits(pair, store, constitution, n)
    return {who: {part: share(hits) for part, hits in parts.items()} for who, parts in found.items()}


def suite(pair: ModelPair, store: ResultStore) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes): the same as a suite of its own, by the repository's constitution."""
    constitution, n = load_constitution(ROOT / "constitution.yaml"), pair.limit or EACH
    found = _hits(pair, store, constitution, n)
    metrics: Metrics = {}
    for part, name in PARTS.items():
        metrics |= compared(name, found[BASE][part], found[TRAINED][part])
    return metrics, {"probes": len(found[BASE]["critic"])}


def _hits(
    pair: ModelPair, store: ResultStore, constitution: Constitution, n: int
) -> dict[str, dict[str, list[bool]]]:
    """{who: {part: whether each was right}}."""
    some = [(p, principle(p, pair.spec, constitution, pair.seed)) for p in probes(pair.spec, n)]
    flawed = [(p, by) for p, by in some if p.must_change]
    return {who: _hits_of(pair, store, some, flawed, who) for who in WHO}


def _hits_of(
    pair: ModelPair,
    store: ResultStore,
    some: Sequence[tuple[Probe, Principle]],
    flawed: Sequence[tuple[Probe, Principle]],
    who: str,
) -> dict[str, list[bool]]:
    def criticise(asked: list[tuple[Probe, Principle]]) -> list[dict[str, Any]]:
        prompts = [pair.prompter.critique(p.instruction, p.answer, by) for p, by in asked]
        texts = _said(pair, who, "critique", asked, prompts)
        wanted = [CHANGE if p.must_change else KEEP for p, _ in asked]
        return [{"critique": t, "right": read_verdict(t) == w} for t, w in zip(texts, wanted, strict=True)]

    def revise(asked: list[tuple[Probe, Principle]]) -> list[dict[str, Any]]:
        prompts = [pair.prompter.revision(p.instruction, p.answer, [(by, p.critique)]) for p, by in asked]
        texts = _said(pair, who, "revision", asked, prompts)
        right = success([p.test for p, _ in asked], texts)
        return [{"revision": t, "right": r} for t, r in zip(texts, right, strict=True)]

    said = _filled(store, some, who, "critique", criticise)
    by_kind = {
        flaw: [ok for (p, _), ok in zip(some, said, strict=True) if p.must_change is flaw]
        for flaw in (True, False)
    }
    return {
        "critic": said,
        "critic_flaws": by_kind[True],
        "critic_good": by_kind[False],
        "reviser": _filled(store, flawed, who, "revision", revise),
    }


def _said(
    pair: ModelPair, who: str, part: str, asked: Sequence[tuple[Probe, Principle]], prompts: Sequence[str]
) -> list[str]:
    """part: "critique" or "revision"."""
    seeds = [schema.row_seed(pair.seed, p.id, f"probe {part}") for p, _ in asked]
    with pair.run.step("evaluation: probes", quiet=True) as step:
        done = complete_all(pair.engine, prompts, sampling(pair.spec, part), seeds, pair.adapter_of(who))
        step.count(done, len(done))
    return [c.text for c in done]


def _filled(
    store: ResultStore,
    asked: Sequence[tuple[Probe, Principle]],
    who: str,
    part: str,
    work: Callable[[list[tuple[Probe, Principle]]], list[dict[str, Any]]],
) -> list[bool]:
    """Whether each was right, from the rows that are there or made now. A principle that reads otherwise, in
    another constitution, is another row."""

    def text_hash(by: Principle) -> str:
        return hash_texts([by.principle, by.critique_request, by.revision_request])[:8]

    by_id = {f"probe/{who}/{part}/{p.id}/{by.id}/{text_hash(by)}": (p, by) for p, by in asked}
    wanted = [
        {
            "id": i,
            "by": who,
            "instruction": p.instruction,
            "answer": p.answer,
            "principle_id": by.id,
            "must_change": p.must_change,
        }
        for i, (p, by) in by_id.items()
    ]
    return [r["right"] for r in store.fill(wanted, lambda some: work([by_id[w["id"]] for w in some]))]


def principle(probe: Probe, spec: ModelSpec, constitution: Constitution, seed: int) -> Principle:
    """What a probe is criticised by. The sandbox reads only the principles that it was trained on: those of
    the constitution that ask for the probe's kind of virtue, one of them by the probe's own seed."""
    if not spec.sandbox:
        return ACCURATE
    fitting = [p for p in constitution.principles if principle_kind(p.id) == probe.kind]
    if not fitting:
        raise UserError(
            f"{constitution.path} holds none of the principles that the sandbox knows "
            f"for {probe.kind} probes: use constitution.yaml, or a copy with some of its principles"
        )
    return fitting[schema.row_seed(seed, probe.id, "probe principle") % len(fitting)]


def _real() -> list[Probe]:
    """From the test instructions with a right and a wrong answer, tasks in turn: first each with one of the
    two, then each with the other."""
    groups = [[t for t in load() if t.task == task and t.flawed] for task in REAL_TASKS]
    first, second = [], []
    for place in range(max(map(len, groups))):
        for number, group in enumerate(groups):
            if place < len(group):
                flawed = (place + number) % 2 == 0
                first.append(_real_probe(group[place], flawed))
                second.append(_real_probe(group[place], not flawed))
    return first + second


def _real_probe(test: Test, flawed: bool) -> Probe:
    right, shown = test.answer, test.flawed if flawed else test.answer
    critique = (
        f'The response says "{shown}" This is wrong. What is right is this: {right} {CHANGE}'
        if flawed
        else f'The response says "{shown}" This is right. {KEEP}'
    )
    return Probe(
        _id(test.instruction, shown, ANSWER), test.instruction, shown, flawed, ANSWER, critique, test
    )


def _sandbox() -> list[Probe]:
    found = []
    for t in trials():
        test = Test(schema.content_id(t.instruction), t.instruction, t.task, {TRUTH: True})
        identity = _id(t.instruction, t.answer, t.kind)
        found.append(Probe(identity, t.instruction, t.answer, t.must_change, t.kind, t.critique, test))
    return found


def _id(*texts: str) -> str:
    return schema.content_id("\x1e".join(texts))


SUITE = Suite("probes", "how well both play critic and reviser, on answers known to be good or flawed", suite)
