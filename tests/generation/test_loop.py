import random

import pytest
from cai.core.files import ROOT
from cai.core.schema import RECORD_KEYS, content_id
from cai.generation.loop import Example, Loop, Writers
from cai.models.registry import REGISTRY
from cai.prompts.constitution import load
from cai.prompts.markers import CHANGE, EDITOR_PREAMBLE, KEEP, STOPS
from cai.prompts.templates import Prompter
from cai.prompts.training_format import training_prompt
from fakes import FakeEngine

CONSTITUTION = load(ROOT / "constitution.yaml")


def answers(prompt: str) -> str:
    last = prompt.rsplit("\n", 1)[-1]
    return {
        "Response:": "It is Mira.",
        "Critique:": f"It is Tano and not Mira. {CHANGE}",
        "Revision:": "It is Tano.",
    }[last]


def run(examples, engine=None, **more):
    engine = engine or FakeEngine(answers)
    loop = Loop(engine, Prompter(0, False), CONSTITUTION, REGISTRY["sandbox"], **more)
    loop.answer(examples)
    loop.critique(examples)
    loop.revise(examples)
    return [loop.record(e) for e in examples], engine


def test_a_record_has_the_keys_of_the_specification_and_its_evidence():
    [row], _ = run([Example("Who is the mayor of Drola?", "factual_qa", "file")])
    assert set(RECORD_KEYS) <= set(row) and row["kept"] and row["rejected_because"] == []
    assert row["preference_pair"] == {
        "prompt": "Instruction: Who is the mayor of Drola?\nResponse:",
        "chosen": " It is Tano.",
        "rejected": " It is Mira.",
    }
    assert (
        row["critiques"][0]["principle"] == row["principle"]
        and row["critiques"][0]["critique"] == row["critique"]
    )
    assert (row["task"], row["source"], row["id"]) == (
        "factual_qa",
        "file",
        content_id("Who is the mayor of Drola?"),
    )


def test_the_users_instruction_is_in_every_critique_and_revision_prompt():
    examples = [Example(f"What is thing number {i}?") for i in range(5)]
    _, engine = run(examples, principles=2)
    asked = [p for p, *_ in engine.asked]
    assert len(asked) == 5 + 10 + 5
    for i in range(5):
        assert sum(f"number {i}?" in p for p in asked) == 4


def test_with_several_principles_the_answer_is_revised_once_in_view_of_all():
    [row], engine = run([Example("Who?")], principles=3)
    last = engine.asked[-1][0]
    assert len(row["critiques"]) == 3 and len({c["principle_id"] for c in row["critiques"]}) == 3
    assert all(c["principle"] in last and c["critique"] in last for c in row["critiques"])
    assert row["principle"] == "\n".join(c["principle"] for c in row["critiques"])
    assert sum(p.endswith("Revision:") for p, *_ in engine.asked) == 1


def test_a_row_does_not_depend_on_the_rows_beside_it():
    texts = [f"What is thing number {i}?" for i in range(8)]
    _, together = run([Example(t) for t in texts], principles=2, seed=3)
    alone = {}
    for t in random.Random(0).sample(texts, len(texts)):
        _, engine = run([Example(t)], principles=2, seed=3)
        alone |= {(p, s): x for p, x, s, _ in engine.asked}
    assert {(p, s) for p, _, s, _ in together.asked} == set(alone)


def test_seeds_differ_by_row_purpose_principle_and_run_seed():
    _, first = run([Example("a b c"), Example("d e f")], principles=2, seed=1)
    _, second = run([Example("a b c"), Example("d e f")], principles=2, seed=2)
    seeds = [s for _, _, s, _ in first.asked] + [s for _, _, s, _ in second.asked]
    assert len(set(seeds)) == len(seeds)


def test_temperatures_lengths_and_stops_are_those_of_the_specification_and_registry():
    _, engine = run([Example("Who?")])
    spec = REGISTRY["sandbox"]
    got = [(x.temperature, x.max_tokens, list(x.stop)) for _, x, _, _ in engine.asked]
    assert got == [
        (0.7, spec.answer_tokens, STOPS["answer"]),
        (0.3, spec.critique_tokens, STOPS["critique"]),
        (0.3, spec.answer_tokens, STOPS["revision"]),
    ]
    assert (REGISTRY["Qwen/Qwen2.5-32B"].answer_tokens, REGISTRY["Qwen/Qwen2.5-32B"].critique_tokens) == (
        500,
        300,
    )


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (FakeEngine(lambda p: "" if p.endswith("Revision:") else answers(p)), "sentinel_revision"),
        (
            FakeEngine(lambda p: f"It is true. {KEEP}" if p.endswith("Critique:") else answers(p)),
            "no_change_needed",
        ),
        (FakeEngine(answers, finish="length"), "cut_off"),
        (FakeEngine(lambda p: "It is Mira." if p.endswith("Revision:") else answers(p)), "unchanged"),
    ],
)
def test_nothing_is_dropped_a_rejected_example_stays_with_its_reasons(engine, reason):
    [row], _ = run([Example("Who is it?")], engine)
    assert not row["kept"] and reason in row["rejected_because"] and row["initial_answer"]


def test_swapping_the_critics_verdict_swaps_what_becomes_of_the_example():
    kept = [
        run(
            [Example("Who is it?")],
            FakeEngine(
                lambda p, v=v: f"It is Tano and not Mira. {v}" if p.endswith("Critique:") else answers(p)
            ),
        )[0][0]["kept"]
        for v in (CHANGE, KEEP)
    ]
    assert kept == [True, False]


def test_each_part_is_played_by_its_own_adapter_and_recorded():
    writers = Writers(answerer="few", critic=None, reviser="facts")
    [row], engine = run([Example("Who?")], writers=writers)
    assert [a for *_, a in engine.asked] == ["few", None, "facts"]
    assert row["adapter"] == "few" and row["writers"]["reviser"] == "facts"
    answer, critique, _ = (prompt for prompt, *_ in engine.asked)
    assert answer == training_prompt("Who?")  # the format that an adapter has learned
    assert critique.startswith(EDITOR_PREAMBLE)


def test_the_second_look_criticises_the_revision_not_the_answer():
    engine = FakeEngine(answers)
    loop = Loop(engine, Prompter(0, False), CONSTITUTION, REGISTRY["sandbox"])
    examples = [Example("Who is it?")]
    loop.answer(examples)
    loop.critique(examples)
    loop.revise(examples)
    loop.critique_revision(examples)
    assert (
        "Response: It is Tano." in engine.asked[-1][0] and "Response: It is Mira." not in engine.asked[-1][0]
    )
