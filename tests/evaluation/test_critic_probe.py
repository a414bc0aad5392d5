"""Probes for critic and reviser: what they hold, and that the measure tells good from bad."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.prompt_files import load_seeds
from cai.core.run import Run
from cai.evaluation.model_pair import ModelPair
from cai.evaluation.suites import critic_probe
from cai.evaluation.suites.critic_probe import ACCURATE, measure, principle, probes
from cai.evaluation.test_sets import success, test_instructions
from cai.generation.verdicts import read_verdict
from cai.models.registry import REGISTRY
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import Prompter
from cai.sandbox import checkers, world
from fakes import FakeEngine

REAL, SANDBOX = REGISTRY["Qwen/Qwen2.5-32B"], REGISTRY["sandbox"]
BOTH = pytest.mark.parametrize("spec", [REAL, SANDBOX], ids=["real", "sandbox"])
CONSTITUTION = load_constitution(ROOT / "constitution.yaml")
PROMPTER = Prompter(shots=0, requests=False)


@BOTH
def test_half_of_the_probes_are_flawed_and_the_truth_agrees(spec):
    some = probes(spec, 10_000)
    assert len({p.id for p in some}) == len(some) >= 160
    assert some[:50] == probes(spec, 50)
    for n in (48, 120, len(some)):
        assert sum(p.must_change for p in some[:n]) == n / 2
    found = success([p.test for p in some], [p.answer for p in some])
    assert found == [not p.must_change for p in some]
    assert [read_verdict(p.critique) for p in some] == [CHANGE if p.must_change else KEEP for p in some]
    assert all(p.answer.strip() for p in some)


@BOTH
def test_each_task_has_as_many_probes_of_both_sorts(spec):
    counts = Counter((p.test.task, p.must_change) for p in probes(spec, 120))
    assert max(counts.values()) - min(counts.values()) <= 2
    assert len(counts) == 2 * len({task for task, _ in counts}) >= 8


@BOTH
def test_probes_are_about_instructions_that_are_barred_from_training(spec):
    asked = {p.instruction for p in probes(spec, 10_000)}
    assert asked <= set(test_instructions(spec))
    assert not asked & {s.instruction for s in load_seeds(ROOT / spec.seeds)}


def test_the_sandboxs_probes_are_criticised_by_what_tells_them_apart():
    for p in probes(SANDBOX, 240):
        item, by = world.parse(p.instruction), principle(p, SANDBOX, CONSTITUTION, 0)
        assert checkers.PRINCIPLE_KINDS[by.id] == p.kind
        assert checkers.must_change(item, p.answer, p.kind) == p.must_change
        assert checkers.critique_right(item, p.answer, p.kind, p.critique) == (True, True)


@pytest.fixture
def pair_of(tmp_path, monkeypatch):
    """A factory of model pairs, each with files of its own."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))

    def make(engine, name="own", digest="new", **more):
        engine.adapters["stage"] = digest
        with Run.open(name, {}) as run:
            return ModelPair(
                run, [], [], engine, PROMPTER, adapter="stage", shared=tmp_path / "base.jsonl", **more
            )

    return make


def measured(pair, n=48):
    return measure(pair, pair.results("probes"), CONSTITUTION, n)


def test_a_constitution_that_the_sandbox_cannot_read_is_refused(pair_of):
    other = replace(CONSTITUTION, principles=(ACCURATE,))
    silent = pair_of(FakeEngine(lambda p: KEEP))
    with pytest.raises(UserError, match="none of the principles that the sandbox knows"):
        measure(silent, silent.results("probes"), other, 4)


class Player(FakeEngine):
    """A critic that says what `says` makes of a probe, and a reviser that repairs, or repeats the answer."""

    def __init__(self, spec, says, repairs):
        some = probes(spec, 48)
        rng, by_prompt = random.Random(0), {}
        for p in some:
            by = principle(p, spec, CONSTITUTION, 0)
            by_prompt[PROMPTER.critique(p.instruction, p.answer, by)] = says(p)
            item = world.parse(p.instruction)
            right = item.good(rng) if item else p.test.answer
            fixed = right if repairs else p.answer
            by_prompt[PROMPTER.revision(p.instruction, p.answer, [(by, p.critique)])] = fixed
        super().__init__(by_prompt.__getitem__, spec=spec)


@BOTH
@pytest.mark.parametrize(
    ("says", "repairs", "wanted"),
    [
        (lambda p: p.critique, True, (1, 1, 1, 1)),
        (lambda p: f"It is bad. {CHANGE}", False, (0.5, 1, 0, 0)),
        (lambda p: f"It is good. {KEEP}", True, (0.5, 0, 1, 1)),
        (lambda p: "I cannot tell.", True, (0, 0, 0, 1)),
        (lambda p: f"{KEEP} {CHANGE}", False, (0, 0, 0, 0)),
    ],
)
def test_the_measure_tells_good_critics_and_revisers_from_bad_ones(pair_of, spec, says, repairs, wanted):
    found = measured(pair_of(Player(spec, says, repairs)))
    assert list(found) == ["base", "trained"] and found["base"] == found["trained"]
    assert list(found["base"]) == ["critic", "critic_flaws", "critic_good", "reviser"]
    assert tuple(m.value for m in found["base"].values()) == wanted
    assert [m.n for m in found["base"].values()] == [48, 24, 24, 24]
    assert all(m.interval for m in found["base"].values())


def test_base_and_adapter_are_asked_the_same_with_the_same_seeds(pair_of):
    engine = Player(SANDBOX, lambda p: p.critique, True)
    measured(pair_of(engine))
    by = {who: [q[:3] for q in engine.asked if q[3] == who] for who in (None, "stage")}
    assert by[None] == by["stage"] and len({seed for _, _, seed in by[None]}) == 48 + 24


def test_every_text_is_kept_and_the_base_is_asked_once_for_all_runs(pair_of):
    engine = Player(SANDBOX, lambda p: p.critique, True)
    first = pair_of(engine)
    found = measured(first)
    rows = first.results("probes").own.values()
    critiques = [r for r in rows if r["by"] == "trained" and "critique" in r]
    assert [r["id"].split("/")[3] for r in critiques] == [p.id for p in probes(SANDBOX, 48)]
    assert sum(r["right"] for r in critiques) / 48 == found["trained"]["critic"].value
    assert all(r["right"] and r["must_change"] for r in rows if "revision" in r)
    before = len(engine.asked)
    second = pair_of(engine, "other", "another adapter")
    assert measured(second) == found
    assert {adapter for *_, adapter in engine.asked[before:]} == {"stage"}
    own = second.results("probes").own  # its file has every row all the same
    assert len(own) == len(rows) and {r["setup"] for r in own.values()} == {second.setup}
    assert critic_probe.EACH >= 100


def test_a_principle_that_reads_otherwise_is_asked_anew(pair_of):
    engine = FakeEngine(lambda prompt: KEEP)
    pair = pair_of(engine)
    measured(pair)
    before = len(engine.asked)
    measured(pair)
    assert len(engine.asked) == before
    other = tuple(replace(p, principle=f"{p.principle} Always.") for p in CONSTITUTION.principles)
    measure(pair, pair.results("probes"), replace(CONSTITUTION, principles=other), 48)
    asked = engine.asked[before:]
    assert len(asked) == before and all("Always." in prompt for prompt, *_ in asked)


def test_the_suite_says_the_same_in_plain_words(pair_of):
    pair = pair_of(Player(SANDBOX, lambda p: f"It is bad. {CHANGE}", False), limit=48)
    found, notes = critic_probe.SUITE.measure(pair, pair.results("probes"))
    values = {name: m.value for name, m in found.items()}
    assert values["critic: verdicts right, base"] == values["critic: verdicts right, trained"] == 0.5
    assert values["critic: flaws flagged, base"] == 1 and values["critic: flaws flagged, change"] == 0
    assert len(found) == 3 * len(critic_probe.PARTS) and notes == {"probes": 48}
    assert all(m.interval for m in found.values())
