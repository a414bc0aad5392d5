import asyncio
import random
from dataclasses import replace

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.ledger import STEP
from cai.core.schema import FORMAT, RECORD_KEYS, check, content_id
from cai.generation.example import Example, Roles, examples_of
from cai.generation.guard import Guard
from cai.generation.loop import Loop
from cai.models.engine import Completion, TooLong, together
from cai.models.registry import REGISTRY
from cai.prompts.constitution import load
from cai.prompts.markers import CHANGE, EDITOR_PREAMBLE, KEEP, SEPARATOR, STOPS
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


def loop_of(engine, **more):
    return Loop(engine, Prompter(0, False), CONSTITUTION, **more)


def run(examples, engine=None, *, judged=False, **more):
    """(the examples' records, the engine that was asked)"""
    engine = engine or FakeEngine(answers)
    loop = loop_of(engine, judged=judged, **more)
    return together(loop.align(e) for e in examples), engine


def test_a_record_has_the_keys_of_the_specification_and_its_evidence():
    [row], _ = run([Example("Who is the mayor of Drola?", "factual_qa", "file")])
    assert (
        check(row, RECORD_KEYS, "")
        and row["format"] == FORMAT
        and row["engine"] == "fake"
        and row["kept"]
        and row["rejected_because"] == []
    )
    assert row["preference_pair"] == {
        "prompt": "Who is the mayor of Drola?",
        "chosen": "It is Tano.",
        "rejected": "It is Mira.",
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
    _, beside = run([Example(t) for t in texts], principles=2, seed=3)
    alone = {}
    for t in random.Random(0).sample(texts, len(texts)):
        _, engine = run([Example(t)], principles=2, seed=3)
        alone |= {(p, s): x for p, x, s, _ in engine.asked}
    assert {(p, s) for p, _, s, _ in beside.asked} == set(alone)


def test_seeds_differ_by_row_purpose_principle_and_run_seed():
    _, first = run([Example("a b c"), Example("d e f")], principles=2, seed=1)
    _, second = run([Example("a b c"), Example("d e f")], principles=2, seed=2)
    seeds = [s for _, _, s, _ in first.asked] + [s for _, _, s, _ in second.asked]
    assert len(set(seeds)) == len(seeds)


def test_temperatures_lengths_and_stops_are_those_of_the_specification_and_registry():
    _, engine = run([Example("Who?")])
    spec = REGISTRY["sandbox"]
    got = [(x.temperature, x.max_tokens, x.stop) for _, x, _, _ in engine.asked]
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


def test_each_part_is_played_by_its_own_adapter_and_recorded_by_its_hash():
    roles = Roles(answerer="few", critic=None, reviser="facts", judge="few")
    engine = FakeEngine(answers, adapters={"few": "hash of few", "facts": "hash of facts"})
    [row], _ = run([Example("Who?")], engine, roles=roles)
    assert [a for *_, a in engine.asked] == ["few", None, "facts"]
    assert row["adapter"] == "hash of few"
    assert row["roles"] == {
        "generator": None,
        "answerer": "hash of few",
        "critic": None,
        "reviser": "hash of facts",
        "judge": "hash of few",
    }
    answer, critique, _ = (prompt for prompt, *_ in engine.asked)
    assert answer == training_prompt("Who?")  # the format that an adapter has learned
    assert critique.startswith(EDITOR_PREAMBLE)


def test_an_adapters_record_is_the_same_whatever_it_was_loaded_as():
    rows = []
    for name in ("few", "stage-0123456789ab"):
        engine = FakeEngine(answers, adapters={name: "0123456789abcdef"})
        rows += run([Example("Who?")], engine, roles=Roles(answerer=name, judge=name))[0]
    assert rows[0] == rows[1] and rows[0]["adapter"] == rows[0]["roles"]["judge"] == "0123456789abcdef"


def test_an_instruct_models_adapter_is_asked_as_the_model_is():
    spec = REGISTRY["Qwen/Qwen2.5-7B-Instruct"]
    engine = FakeEngine(lambda p: "Mira.", adapters={"few": "hash of few"}, spec=spec)
    prompter = Prompter(render=lambda messages: "<|im_start|>" + messages[0]["content"])
    together([Loop(engine, prompter, CONSTITUTION, roles=Roles(answerer="few")).answer(Example("Who?"))])
    assert engine.asked[0][0] == "<|im_start|>Who?" and engine.asked[0][3] == "few"


def test_the_second_look_criticises_the_revision_not_the_answer():
    engine = FakeEngine(answers)
    loop, e = loop_of(engine, judged=False), Example("Who is it?")
    together([loop.align(e)])
    together([loop.critique_revision(e)])
    assert (
        "Response: It is Tano." in engine.asked[-1][0] and "Response: It is Mira." not in engine.asked[-1][0]
    )


def test_a_record_without_a_revision_has_no_pair_and_its_reasons():
    engine = FakeEngine(lambda p: f"It is true. {KEEP}" if p.endswith("Critique:") else answers(p))
    [row], _ = run([Example("Who is it?")], engine)
    assert row["preference_pair"] is None and row["revised_answer"] == ""
    assert row["rejected_because"] == ["no_change_needed"] and not row["kept"]
    engine = FakeEngine(lambda p: "" if p.endswith("Revision:") else answers(p))
    [row], _ = run([Example("Who is it?")], engine)
    assert row["preference_pair"] is None and "sentinel_revision" in row["rejected_because"]


def test_what_an_example_brings_along_is_kept():
    """As Milestone 0 and an experiment's own answers have it."""
    engine = FakeEngine(answers)
    e = Example("Who is it?", answer=Completion("It is Mira.", 3, 3, "stop"))
    e.principles = (CONSTITUTION.by_id("accuracy"),)
    [row], _ = run([e], engine)
    assert [p.rsplit("\n", 1)[-1] for p, *_ in engine.asked] == ["Critique:", "Revision:"]
    assert row["critiques"][0]["principle_id"] == "accuracy" and row["initial_answer"] == "It is Mira."


class Judge(FakeEngine):
    """Takes the response that begins like a text for the better one, under whichever letter it stands."""

    def __init__(self, better, answers):
        super().__init__(answers)
        self.better = better

    def preference(self, page, letter, adapter):
        return float(page.split(f"Response{letter}: ")[1].startswith(self.better))


def judging(prompt):
    return "B is true." if prompt.endswith("Reason:") else answers(prompt)


@pytest.mark.parametrize(
    ("better", "passed", "reason"),
    [("It is Tano.", True, []), ("It is Mira.", False, ["judged_not_better", "judged_less_helpful"])],
)
def test_swapping_the_judges_verdict_swaps_what_becomes_of_the_example(better, passed, reason):
    engine = Judge(better, judging)
    [row], _ = run([Example("Who is it?")], engine, judged=True, principles=2)
    assert row["judgement"]["passed"] is row["kept"] is passed and row["rejected_because"] == reason
    assert len(row["judgement"]["principles"]) == 2
    asked = [p for p, *_ in engine.asked if p.endswith("Reason:")]
    assert len(asked) == 2 * (2 + 1)  # both orders; by each principle, and by helpfulness
    assert all("Who is it?" in p for p in asked)


def test_only_the_principles_whose_critique_asks_for_a_change_are_judged_by():
    texts = iter([f"It is fine. {KEEP}", f"It is Tano and not Mira. {CHANGE}"])
    engine = FakeEngine(lambda p: next(texts) if p.endswith("Critique:") else judging(p))
    [row], _ = run([Example("Who is it?")], engine, judged=True, principles=2)
    assert [j["principle_id"] for j in row["judgement"]["principles"]] == [
        row["critiques"][1]["principle_id"]
    ]


def test_a_passed_answer_is_held_against_a_refusal_and_a_hopeless_example_is_not_judged():
    passing = Judge(
        "It is Mira.",
        lambda p: f"It is true. {KEEP}" if p.endswith("Critique:") else judging(p),
    )
    [row], _ = run([Example("Who is it?")], passing, judged=True)
    assert row["judgement"]["passed"] and row["judgement"]["against_refusal"]["winner"] == "second"
    assert row["rejected_because"] == ["no_change_needed"]
    hopeless = FakeEngine(lambda p: "It is Mira." if p.endswith("Revision:") else judging(p))
    [row], _ = run([Example("Who is it?")], hopeless, judged=True)
    assert row["judgement"] is None and not [p for p, *_ in hopeless.asked if p.endswith("Reason:")]


def test_each_request_is_charged_to_its_step():
    engine = FakeEngine(judging)
    run([Example("Who?"), Example("Where?")], engine, judged=True, principles=2)
    seconds = {step: used.seconds for step, used in engine.usage.items()}
    assert seconds == {"answer": 2.0, "critique": 4.0, "revision": 2.0, "judge": 2 * 3 * 2 * 2.0}
    assert STEP.get() == "other"


def test_a_guard_reads_the_finished_record_as_a_step_of_its_own():
    engine = FakeEngine(answers)
    guard = Guard(FakeEngine(lambda p: f"This would hurt people. {CHANGE}"))
    [row], _ = run([Example("Who is it?")], engine, guard=guard)
    assert row["rejected_because"] == ["unsafe_chosen"] and not row["kept"]
    assert row["preference_pair"] and row["guard"]["model"] == "sandbox"
    assert not row["guard"]["revised_answer"]["safe"] and row["guard"]["revised_answer"]["parsed"]
    assert set(guard.engine.usage) == {"guard"} and "guard" not in engine.usage
    own = FakeEngine(answers)
    run([Example("Who is it?")], own, guard=Guard(own))
    assert own.usage["guard"].seconds == 3 * 3.0  # three texts: a verdict, and its two log-probabilities


def test_an_error_of_a_chat_token_is_a_users():
    with pytest.raises(UserError, match="chat token"):
        run([Example("Who is <|im_start|>?")])


def test_examples_come_from_rows():
    rows = [{"id": "?", "instruction": "Who?", "task": "math", "source": "file", "wave": 3}]
    [e] = examples_of(rows)
    assert (e.instruction, e.task, e.source, e.id) == ("Who?", "math", "file", content_id("Who?"))


def test_one_example_is_one_coroutine():
    """It waits for nothing but its engine: any loop can run it."""
    loop = loop_of(FakeEngine(judging, patience=lambda seed: seed % 5))
    assert asyncio.run(loop.align(Example("Who?"))) == asyncio.run(loop.align(Example("Who?")))


# ---- verdicts that no wording tells ----


class Undecided(FakeEngine):
    """Its critiques have no verdict; it finds one of the two sentences likelier."""

    def __init__(self, likelier, critique="It is Tano and not Mira.", **more):
        super().__init__(lambda p: critique if p.endswith("Critique:") else answers(p), **more)
        self.likelier = likelier

    def likelihood(self, prompt, continuation, adapter):
        return -1.5 if continuation == f" {self.likelier}" else -4.0


@pytest.mark.parametrize(("likelier", "reasons"), [(CHANGE, []), (KEEP, ["no_change_needed"])])
def test_a_verdict_that_no_wording_tells_is_the_likelier_sentence(likelier, reasons):
    engine = Undecided(likelier, adapters={"few": "hash of few"})
    [row], _ = run([Example("Who is it?")], engine, roles=Roles(critic="few"))
    assert row["rejected_because"] == reasons and bool(row["revised_answer"]) is (likelier == CHANGE)
    [entry] = row["critiques"]
    other = KEEP if likelier == CHANGE else CHANGE
    assert (entry["verdict"], entry["verdict_by"]) == (likelier, "log-probability")
    assert entry["verdict_scores"] == {likelier: -1.5, other: -4.0}
    asked = next(p for p, *_ in engine.asked if p.endswith("Critique:"))
    page = f"{asked} It is Tano and not Mira."
    assert engine.scored == [(page, f" {KEEP}", "few"), (page, f" {CHANGE}", "few")]


def test_a_verdict_that_can_be_read_costs_no_request_and_says_so():
    [row], engine = run([Example("Who is it?")])
    assert engine.scored == [] and row["critiques"][0]["verdict_by"] == "read"
    assert row["critiques"][0]["verdict"] == CHANGE and "verdict_scores" not in row["critiques"][0]


@pytest.mark.parametrize("critique", ["It is Tano and not Mira.", ""])
def test_a_critique_that_did_not_come_to_its_end_has_no_verdict(critique):
    engine = Undecided(CHANGE, critique, finish="length" if critique else "stop")
    [row], _ = run([Example("Who is it?")], engine)
    assert engine.scored == [] and "no_verdict" in row["rejected_because"] and not row["revised_answer"]


def test_a_critique_too_long_to_be_scored_has_no_verdict():
    class Full(Undecided):
        async def logprobs(self, prompt, continuation, adapter=None):
            raise TooLong("no")

    [row], _ = run([Example("Who is it?")], Full(CHANGE))
    assert row["critiques"][0]["verdict"] is None and "no_verdict" in row["rejected_because"]


# ---- models with exemplars ----

LARGE = REGISTRY["Qwen/Qwen2.5-32B"]


def test_what_a_model_with_exemplars_writes_ends_at_the_separator_or_where_it_begins_another_page():
    runs_on = "\n\nInstruction: Who else?\nResponse: Nobody."
    engine = FakeEngine(
        lambda p: answers(p) + (runs_on if not p.endswith("Critique:") else ""), spec=LARGE, finish="length"
    )
    loop = Loop(engine, Prompter(4), CONSTITUTION, judged=False)
    [row] = together([loop.align(Example("Who is it?"))])
    assert (row["initial_answer"], row["revised_answer"]) == ("It is Mira.", "It is Tano.")
    assert row["ended_by"] == ["next page", "<eos>", "next page"]
    assert row["finish_reasons"] == ["stop", "length", "stop"]
    assert all(SEPARATOR in x.stop for _, x, *_ in engine.asked)


def test_an_answer_that_a_stop_string_ended_in_a_sentence_says_so():
    class Stopping(FakeEngine):
        async def complete(self, prompt, sampling, seed, adapter=None):
            done = await super().complete(prompt, sampling, seed, adapter)
            return replace(done, ended_by=sampling.stop[0])

    def said(kind):
        engine = kind(lambda p: "You will need:" if p.endswith("Response:") else answers(p))
        return run([Example("Who is it?")], engine)[0][0]["rejected_because"]

    assert said(Stopping) == ["stopped_inside"]
    assert "stopped_inside" not in said(FakeEngine)  # it ended it by itself


def test_an_adapter_that_learned_the_bare_format_is_stopped_where_it_goes_on_in_it():
    engine = FakeEngine(answers, adapters={"few": "hash of few"}, spec=LARGE)
    loop = Loop(engine, Prompter(4), CONSTITUTION, roles=Roles(answerer="few"))
    together([loop.answer(Example("Who?"))])
    assert engine.asked[0][1].stop == ("\nInstruction:",)
