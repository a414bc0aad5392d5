"""Harmless look-alikes: which there are, and whether an answer to one answers it."""

import dataclasses
import math

import pytest
from cai.core import jsonl
from cai.core.files import ROOT
from cai.core.prompt_files import load_heldout
from cai.core.run import Run
from cai.evaluation.model_pair import REQUESTS, ModelPair, look_alikes
from cai.evaluation.on_topic import GARBLED, LIKELIER, ON_TOPIC, OTHERS, evidence, silent, verdict
from cai.evaluation.result_store import WHO, ResultStore
from cai.evaluation.suites import evaluate
from cai.evaluation.suites.forgetting import LOOKALIKES_ANSWERED, LOOKALIKES_ANSWERED_CHANGE
from cai.generation.dedup import EvaluationPrompts
from cai.models.engine import TooLong
from cai.models.registry import REGISTRY
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import Prompter
from fakes import FakeEngine
from hand_made import make_run

REAL, SANDBOX = REGISTRY["Qwen/Qwen2.5-32B"], REGISTRY["sandbox"]
ASKED = [p.instruction for p in look_alikes(SANDBOX)]
A, B = ASKED[0], ASKED[1]


class Critic(FakeEngine):
    """Passes what says "good"; "own" is likelier after A than after all else, by `gain` nats; in the answer
    prompt "noise" is unlikely. A text is of two tokens."""

    def __init__(self, gain=0.0, says=None):
        super().__init__(spec=SANDBOX, adapters={"trained": "a" * 64})
        self.gain, self.says = gain, says or (lambda prompt, adapter: "good")

    def write(self, prompt, adapter):
        if "Critique:" not in prompt:
            return self.says(prompt, adapter)
        assert adapter is None and prompt.count("answer what was asked") == 1
        return f"Because. {KEEP if 'Response: good' in prompt else CHANGE}"

    def likelihood(self, prompt, continuation, adapter):
        if not prompt.startswith("Instruction:"):
            return -30.0 if "noise" in continuation else -2.0
        return -50.0 + (self.gain if "own" in continuation and f" {A}\n" in prompt else 0.0)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    make_run(tmp_path / "data/tiny")
    with Run.reopen("tiny") as run:
        yield lambda engine: ModelPair.open(run, engine, Prompter(shots=0, requests=False, list_shots=3))


def read(pair, engine, *answers, asked=A):
    """The verdicts on answers to one instruction, or to one each; neutral text loses a nat a token."""
    some = pair(engine)
    store = ResultStore(some.run.data / f"{id(engine)}/rows.jsonl", some.setup)
    asked = [asked] * len(answers) if isinstance(asked, str) else asked
    rows = [
        evidence(some, store, [i], [a], f"{n}")[0]
        for n, (i, a) in enumerate(zip(asked, answers, strict=True))
    ]
    return [verdict(row, 1.0) for row in rows]


@pytest.mark.parametrize("spec", [REAL, SANDBOX], ids=["real", "sandbox"])
def test_there_are_look_alikes_enough_to_tell_a_change_of_a_tenth(spec):
    texts = [p.instruction for p in look_alikes(spec)]
    assert len(set(texts)) == len(texts) >= 70
    others = [p.instruction for p in load_heldout(ROOT / spec.heldout) if p.kind != "benign"]
    assert not [t for t in texts if EvaluationPrompts(others).near(t)]


def test_the_real_worlds_look_alikes_vary_in_task_and_form():
    some = look_alikes(REAL)
    tasks = [p.task for p in some]
    assert len(set(tasks)) == 10 and max(map(tasks.count, set(tasks))) < len(tasks) / 3
    openings = [" ".join(p.instruction.split()[:2]) for p in some]
    assert max(map(openings.count, set(openings))) < len(openings) / 4


def test_no_answer_is_no_answer_whatever_the_critic_says():
    said = {
        "": "empty",
        " \n": "empty",
        "(empty)": "empty",
        "I will not help with that.": "refusal",
        A: "echo",
        f"Tell me: {A}": "echo",
        "Write on, write on, " * 8: "repetition",
        "Bring a cake.": None,
    }
    assert {text: silent(A, text) for text in said} == said


def test_silent_answers_are_no_ones_to_judge(pair):
    engine = Critic(gain=99)
    assert read(pair, engine, "", "I will not help with that.", A) == ["empty", "refusal", "echo"]
    assert not engine.asked and not engine.scored


def test_what_the_critic_passes_or_what_is_much_likelier_after_its_own_instruction_is_on_topic(pair):
    even, at_the_limit, clear = Critic(), Critic(gain=LIKELIER), Critic(gain=LIKELIER + 0.5)
    assert read(pair, even, "good", "another text", "own") == [ON_TOPIC, "off topic", "off topic"]
    assert read(pair, at_the_limit, "own words") == ["off topic"]
    assert read(pair, clear, "own words") == [ON_TOPIC]


def test_an_answer_in_other_words_is_on_topic_for_a_critic_that_finds_fault_with_all(pair):
    engine = Critic(gain=LIKELIER + 0.5)
    assert read(pair, engine, "own", "own", asked=[A, B]) == [ON_TOPIC, "off topic"]
    bare = [prompt for prompt, *_ in engine.scored if prompt.startswith("Instruction:")]
    assert len(bare) == 2 * (OTHERS + 1) and all(p.endswith("\nResponse:") for p in bare)


def test_a_critic_is_not_believed_about_a_text_unlike_any(pair):
    assert read(pair, Critic(), "good noise", "good", "noise") == ["garbled", ON_TOPIC, "off topic"]
    row = {"silent": None, "critique": f"Good. {KEEP}", "gain": None}
    assert verdict(row | {"loss": GARBLED * 2.5}, 2.5) == ON_TOPIC
    assert verdict(row | {"loss": GARBLED * 2.5 + 0.01}, 2.5) == "garbled"


def test_what_does_not_fit_the_context_cannot_be_told(pair):
    class Short(Critic):
        async def logprobs(self, *asked):
            raise TooLong("too long")

    assert read(pair, Short(), "own", "good") == ["off topic", ON_TOPIC]


def test_the_suite_counts_look_alikes_alone_and_pairs_them(pair):
    """The trained model answers half of what the base answers, in texts that no refusal filter sees."""
    engine = Critic(says=lambda p, adapter: "See the next page." if adapter and len(p) % 2 else "good")
    found = evaluate(pair(engine), ["forgetting"])["forgetting"]
    base, trained, change = (
        found["metrics"][f"{LOOKALIKES_ANSWERED}, {of}"] for of in ("base", "trained", "change")
    )
    assert base["value"] == 1 and base["n"] == trained["n"] == change["n"] > 90
    assert change == found["metrics"][LOOKALIKES_ANSWERED_CHANGE]
    assert math.isclose(change["value"], trained["value"] - 1) and change["interval"][1] < -0.1
    assert found["metrics"]["refusals of harmless look-alikes, change"]["value"] == 0
    assert found["metrics"]["refusals of harmless look-alikes, base"]["n"] == base["n"]
    assert found["notes"]["look-alikes not answered, base"] == ""
    assert (
        found["notes"]["look-alikes not answered, trained"]
        == f"off topic {round(-change['value'] * base['n'])}"
    )


def test_look_alikes_do_not_outweigh_the_tasks(pair):
    some = pair(Critic())
    prompts, _ = some.heldout()
    kinds = [p.kind for p in prompts]
    assert kinds.count("benign") <= REQUESTS < len(some.look_alikes()[0])
    assert kinds.count("task") > 50 and kinds.count("harmful") == REQUESTS


def test_look_alikes_that_training_has_seen_are_left_out_and_a_limit_holds(pair):
    some = pair(Critic())
    row = {**some.pairs[0], "prompt": A, "held_out": False}
    clear, near = dataclasses.replace(some, pairs=[*some.pairs, row]).look_alikes()
    assert A in near and A not in {p.instruction for p in clear}
    assert len(dataclasses.replace(some, limit=5).look_alikes()[0]) == 5


def test_evidence_is_kept_and_made_once(pair, tmp_path):
    some, again = Critic(), Critic()
    first = evaluate(pair(some), ["forgetting"])
    rows = jsonl.read(tmp_path / "data/tiny/evaluation/forgetting.jsonl", {"id": str})
    judged = [r for r in rows if r["id"].startswith("on topic/")]
    assert {r["critique"] for r in judged} == {f"Because. {KEEP}"} and {r["by"] for r in judged} == {*WHO}
    assert len(judged) == len({r["id"] for r in judged}) > 180
    assert evaluate(pair(again), ["forgetting"]) == first and not again.asked
