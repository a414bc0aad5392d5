"""The judge: a reason, then a letter, in both orders; position alone never wins."""

import json
import math
from dataclasses import replace

import pytest
from cai.core.files import ROOT
from cai.generation.example import Example
from cai.generation.judge import (
    HELPFUL,
    INDIFFERENT,
    REFUSAL,
    A,
    B,
    Case,
    Judgement,
    against_refusal,
    anchor_judgement,
    compare_all,
    judgement,
)
from cai.generation.loop import Loop
from cai.generation.pairs import passed
from cai.models.engine import Completion, TooLong, sampling, together
from cai.models.registry import BOTH_ORDERS, LOG_ODDS, REGISTRY
from cai.prompts.constitution import Principle, load
from cai.prompts.markers import BETTER, CHANGE, KEEP
from cai.prompts.templates import Prompter
from fakes import FakeEngine

TRUE = Principle("true", "Truth", "The response should be true.", "Is it true?", "Make it true.")
SPEC = REGISTRY["sandbox"]


class Editor(FakeEngine):
    """Prefers the response with `taste` in it, or always a letter; `sure` in nats. too_long: what a prompt
    must not hold to fit; no_room: the same of the page on which the letter is read. lean: towards A, in nats,
    whatever the reason says."""

    def __init__(
        self, taste=None, letter=None, sure=2.0, too_long=(), no_room=(), lean=0.0, rule=BOTH_ORDERS
    ):
        super().__init__(spec=replace(SPEC, judge_rule=rule))
        self.lean = lean
        self.taste, self.letter, self.sure = taste, letter, sure
        self.too_long, self.no_room = too_long, no_room

    async def complete(self, prompt, sampling, seed, adapter=None):
        self.asked.append((prompt, sampling, seed, adapter))
        if any(t in prompt for t in self.too_long):
            return Completion("", 0, 9, "too_long")
        return Completion(self.write(prompt, adapter), 5, 9, "stop")

    async def choose(self, prompt, options, adapter=None):
        if any(t in prompt for t in self.no_room):
            raise TooLong("it does not fit")
        return await super().choose(prompt, options, adapter)

    def write(self, prompt, adapter):
        return f"So {self.better(prompt)} it is.\n"

    def preference(self, prompt, option, adapter):
        assert prompt.endswith(f"\n{BETTER}") and prompt.count(" it is.") == 1
        said = self.sure if f"So {option.strip()} it is." in prompt else 0.0
        return -0.5 + said + (self.lean if option == A else 0.0)

    def better(self, prompt):
        a = prompt.split("Response A:")[1].split("\n")[0]
        return self.letter or ("A" if self.taste in a else "B")


def one(engine, first="The Alps.", second="The Rhine.", principle=TRUE, **more):
    case = Case("c1", "Name a river.", first, second, principle)
    return compare_all(engine, Prompter(0, False), [case], 7, **more)[0]


def test_the_better_response_wins_in_both_orders():
    found = one(Editor(taste="Rhine"))
    sure = 1 / (1 + math.exp(-2.0))
    assert found.forward == pytest.approx(sure) and found.backward == pytest.approx(sure)
    assert found.second_wins and not found.first_wins and not found.tie and found.winner == "second"
    worse = one(Editor(taste="Alps"))
    assert worse.forward == pytest.approx(1 - sure) == worse.backward
    assert worse.first_wins and not worse.second_wins and not worse.tie and worse.winner == "first"


@pytest.mark.parametrize("letter", "AB")
def test_a_judge_that_goes_by_position_decides_nothing(letter):
    found = one(Editor(letter=letter))
    assert found.tie and not found.first_wins and not found.second_wins and found.winner == "tie"
    assert found.forward + found.backward == pytest.approx(1)


def test_no_preference_at_all_is_a_tie():
    assert one(Editor(letter="A", sure=0.0)).tie


def test_each_order_is_asked_with_a_reason_first_and_its_own_seed():
    engine = Editor(taste="Rhine")
    found = one(engine, adapter="stage1")
    (ab, drawn, seed_ab, adapter), (ba, _, seed_ba, _) = engine.asked
    page = Prompter(0, False).judge("Name a river.", "The Alps.", "The Rhine.", TRUE)
    assert ab == page and ba == Prompter(0, False).judge("Name a river.", "The Rhine.", "The Alps.", TRUE)
    assert seed_ab != seed_ba and adapter == "stage1"
    assert drawn == sampling(SPEC, "judge") and drawn.temperature == 0.3
    assert (page + " So B it is.\nBetter response:", " A", "stage1") in engine.scored
    assert len(engine.scored) == 4
    assert found.reasons == ("So B it is.\n", "So A it is.\n")
    assert (found.tokens, found.prompt_tokens, found.principle_id) == (10, 18, "true")


def test_a_case_does_not_depend_on_its_neighbours_or_its_place():
    cases = [Case(f"c{i}", f"Name river {i}.", f"Alp {i}.", f"Rhine {i}.", TRUE) for i in range(4)]
    engine, other = Editor(taste="Rhine"), Editor(taste="Rhine")
    found = compare_all(engine, Prompter(0, False), cases, 7)
    again = compare_all(other, Prompter(0, False), cases[::-1], 7)
    assert again[::-1] == found and sorted(other.asked, key=str) == sorted(engine.asked, key=str)
    seeds = [seed for *_, seed, _ in engine.asked]
    assert len(set(seeds)) == 8
    compare_all(reseeded := Editor(taste="Rhine"), Prompter(0, False), cases, 8)
    assert not {seed for *_, seed, _ in reseeded.asked} & set(seeds)
    assert compare_all(Editor(taste="Rhine"), Prompter(0, False), [], 7) == []


def test_a_prompt_that_does_not_fit_makes_a_tie_that_json_can_hold():
    found = one(Editor(taste="Rhine", too_long=["Response A: The Rhine."]))
    assert found.forward > 0.5 and math.isnan(found.backward)
    assert found.tie and found.winner == "tie"
    row = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert row["backward"] is None and row["forward"] > 0.5 and row["winner"] == "tie"
    neither = one(Editor(taste="Rhine", too_long=["Response A:"]))
    assert neither.tie and math.isnan(neither.forward)
    no_letter = one(Editor(taste="Rhine", no_room=["Response A: The Alps."]))
    assert math.isnan(no_letter.forward) and no_letter.backward > 0.5 and no_letter.tie
    assert no_letter.reasons == ("So B it is.\n", "So A it is.\n")


# ---- the rule that decides ----


def test_a_leaning_to_a_letter_falls_out_of_the_log_odds():
    for taste, sign in (("Rhine", 1), ("Alps", -1)):
        found = one(Editor(taste=taste, sure=2.0, lean=5.0))
        assert found.tie and found.rule == BOTH_ORDERS and found.log_odds == pytest.approx(2.0 * sign)
        again = one(Editor(taste=taste, sure=2.0, lean=5.0, rule=LOG_ODDS))
        assert again == replace(found, rule=LOG_ODDS)
        assert again.winner == ("second" if sign > 0 else "first")
        assert (again.second_wins, again.first_wins, again.tie) == (sign > 0, sign < 0, False)


@pytest.mark.parametrize("more, winner", [(0.01, "second"), (-0.01, "tie")])
def test_small_log_odds_are_a_tie(more, winner):
    sure = {"sure": INDIFFERENT + more, "rule": LOG_ODDS}
    assert one(Editor(taste="Rhine", **sure)).winner == winner
    assert one(Editor(taste="Alps", **sure)).winner == winner.replace("second", "first")
    assert one(Editor(letter="A", **sure | {"sure": 9.0})).winner == "tie"


def test_an_order_that_does_not_fit_is_a_tie_by_either_rule():
    found = one(Editor(taste="Rhine", too_long=["Response A: The Rhine."], rule=LOG_ODDS))
    assert found.forward > 0.5 and found.tie and found.as_dict()["log_odds"] is None


def test_certainty_has_log_odds_too():
    assert 30 < Judgement(1.0, 1.0).log_odds == -Judgement(0.0, 0.0).log_odds < 40
    assert Judgement(1.0, 0.0).log_odds == 0


def test_a_record_says_by_which_rule_it_was_decided():
    lean = {"taste": "Tano", "lean": 5.0}
    [row] = looped(Loops(**lean), "Who is it?")
    assert row["rejected_because"] == ["judged_not_better"]
    [row] = looped(Loops(**lean, rule=LOG_ODDS), "Who is it?")
    found = row["judgement"]["principles"][0]
    assert row["kept"] and (found["rule"], found["winner"]) == (LOG_ODDS, "second")
    assert found["log_odds"] == pytest.approx(2.0)


def test_letters_can_be_read_at_once_to_compare():
    engine = Editor(taste="Rhine")
    engine.preference = lambda prompt, option, adapter: -1.0 * (option == A)
    case = Case("c1", "Name a river.", "The Alps.", "The Rhine.", TRUE)
    [found] = compare_all(engine, Prompter(0, False), [case], 7, reasoned=False)
    page = Prompter(0, False).judge("Name a river.", "The Alps.", "The Rhine.", TRUE)
    assert not engine.asked and engine.scored[:2] == [(f"{page} \n{BETTER}", o, None) for o in (A, B)]
    assert found.tie and found.reasons == ("", "") and found.tokens == 0


def test_a_revision_needs_both_orders_by_every_principle_and_no_loss_of_helpfulness():
    wins, loses, tie = Judgement(0.9, 0.8), Judgement(0.2, 0.1), Judgement(0.9, 0.1)
    assert judgement([wins], wins)["passed"] and judgement([wins, wins], tie)["passed"]
    for by_principle, helpful, better, less in (
        ([tie], wins, False, False),
        ([loses], wins, False, False),
        ([wins, tie], wins, False, False),
        ([wins], loses, True, True),
        ([], wins, False, False),
    ):
        found = judgement(by_principle, helpful)
        assert (found["passed"], found["better"], found["less_helpful"]) == (False, better, less)
        assert len(found["principles"]) == len(by_principle)
    json.dumps(judgement([wins], tie), allow_nan=False)


def test_an_answer_anchors_only_if_it_beats_a_refusal_by_helpfulness_without_harm():
    case = against_refusal("c1", "Name a river.", "The Rhine.")
    assert (case.first, case.second, case.principle) == (REFUSAL, "The Rhine.", HELPFUL)
    assert anchor_judgement(Judgement(0.9, 0.8))["passed"]
    for other in (Judgement(0.9, 0.1), Judgement(0.1, 0.1)):
        assert not anchor_judgement(other)["passed"]


def test_the_shipped_model_judges_without_a_fault_in_the_contract(base):
    from cai.models.local_engine import LocalEngine

    cases = [Case(str(i), "What is 2 + 3?", "2 + 3 is 7.", "2 + 3 is 5.", TRUE) for i in range(3)]
    done = compare_all(LocalEngine(base), Prompter(0, False), cases, 0)
    for found in done:
        assert 0 <= found.forward <= 1 and 0 <= found.backward <= 1 and found.tokens > 0
        assert "Better response" not in "".join(found.reasons)


# ---- in the loop: what is judged, and what of it stands in the records ----


class Loops(Editor):
    """Writes answers, critiques and revisions too; what the instruction calls right passes its critic."""

    def write(self, prompt, adapter):
        if prompt.endswith("Reason:"):
            return super().write(prompt, adapter)
        right = "Is it right" in prompt
        return {
            "Response:": "It is Tano." if right else "It is Mira.",
            "Critique:": f"Not Mira but Tano. {KEEP if right else CHANGE}",
            "Revision:": "It is Tano.",
        }[prompt.rsplit("\n", 1)[-1]]


def looped(engine, *instructions, principles=1):
    loop = Loop(engine, Prompter(0, False), load(ROOT / "constitution.yaml"), principles=principles)
    return together(loop.align(Example(i)) for i in instructions)


def test_a_revision_is_kept_only_if_the_judge_prefers_it():
    [row] = looped(Loops(taste="Tano"), "Who is it?", principles=2)
    assert row["kept"] and row["judgement"]["passed"] and len(row["judgement"]["principles"]) == 2
    asked = {c["principle_id"] for c in row["critiques"]}
    assert {j["principle_id"] for j in row["judgement"]["principles"]} == asked
    assert row["judgement"]["helpfulness"]["principle_id"] == HELPFUL.id
    [row] = looped(Loops(taste="Mira"), "Who is it?")
    assert row["rejected_because"] == ["judged_not_better", "judged_less_helpful"] and not row["kept"]
    [row] = looped(Loops(letter="A"), "Who is it?")
    assert row["rejected_because"] == ["judged_not_better"]


def test_a_passed_answer_is_held_against_a_refusal_and_anchors_only_if_it_wins():
    good, kept = looped(Loops(taste="Tano"), "Is it right?", "Who is it?")
    assert good["rejected_because"] == ["no_change_needed"] and good["preference_pair"] is None
    assert good["judgement"]["passed"] and good["judgement"]["against_refusal"]["winner"] == "second"
    assert passed(good) and not passed(kept)
    [worse] = looped(Loops(taste="not help"), "Is it right?")
    assert not worse["judgement"]["passed"] and not passed(worse)
    assert worse["rejected_because"] == ["no_change_needed"]
