import pytest
from cai.generation.verdicts import Verdict, read_verdict, verdict_of, without_verdict
from cai.prompts.markers import CHANGE, KEEP


@pytest.mark.parametrize(
    "text",
    [
        "It is Tano. The response should be changed.",
        "It is Tano. **The response needs to be changed.**",
        "THE RESPONSE MUST BE CHANGED: it is Tano.",
        "The answer is wrong and must be corrected.",
        "The mayor is Tano, so changes are needed.",
        "Although no change is needed in its tone, the response must be changed.",
        "I cannot say that no change is needed. It must be changed.",
        "The response can't stay as it is.",
        "Needs revision.",
        "The name in the response is wrong and would have to be replaced.",
        "The wrong name ought to be put right. Please rewrite it.",
        "The response should have named Tano.",
        "Verdict: revise.",
        "Die Antwort muss geändert werden.",
        "La réponse doit être corrigée.",
        "Hay que corregir el nombre.",
        "这个回答必须修改。",
    ],
)
def test_wordings_that_ask_for_a_change(text):
    assert read_verdict(text) == CHANGE


@pytest.mark.parametrize(
    "text",
    [
        "It is Tano. No changes are needed.",
        "no change needed",
        "NO FURTHER CHANGE IS NECESSARY!",
        "It is Tano. The response doesn't need to be changed.",
        "I see no reason to change it.",
        "The response must not be changed.",
        "Some would say the response must be changed, but it is right. There is no need for a change.",
        "The reply is fine as it is.",
        "Acceptable as it stands.",
        "The response can be left alone: it is Tano.",
        "Leave unchanged.",
        "Nothing needs changing.",
        "Es muss nichts geändert werden.",
        "Il n'y a rien à changer.",
        "No hace falta cambiar nada.",
        "回答正确,不需要修改。",
    ],
)
def test_wordings_that_ask_for_none(text):
    assert read_verdict(text) == KEEP


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is Tano.",
        f"{CHANGE} {KEEP}",
        f'End with "{CHANGE}" or "{KEEP}"',
        "I ask whether the response must be changed.",
        "I don't think the response must be changed.",
        "The tyres must be changed every year, as the answer says.",
        "If it is about Drola, the response must be revised.",
        "The response should be easy to read.",
        "The response should name the mayor, as it does.",
        "Tax : cut :: Change : revolution",
    ],
)
def test_what_says_neither_or_both_is_left_open(text):
    assert read_verdict(text) is None


def test_one_of_the_two_sentences_at_the_end_is_the_verdict_whatever_was_weighed_before():
    weighed = "Is it so that the answer must be changed? The answer must be changed, some say." + " So." * 60
    assert read_verdict(f"{weighed} {KEEP}") == KEEP


def test_reasons_are_what_is_left_without_the_verdict():
    assert without_verdict(f"It is Tano. {CHANGE}").split() == ["it", "is", "tano.", "."]
    assert "the name of the mayor" in without_verdict("The name of the mayor must be corrected.")
    assert "since it is tano" in without_verdict("The response must be changed, since it is Tano.")


def test_a_records_verdict_counts_and_older_records_are_read():
    assert verdict_of({"critique": f"Fine. {KEEP}"}) == KEEP
    assert verdict_of({"critique": f"Fine. {KEEP}", "verdict": CHANGE}) == CHANGE
    assert verdict_of({"critique": f"Fine. {KEEP}", "verdict": None}) is None


def test_a_record_says_how_a_verdict_was_found():
    assert Verdict(KEEP).as_entry() == {"verdict": KEEP, "verdict_by": "read"}
    assert Verdict(None).as_entry() == {"verdict": None, "verdict_by": None}
    scores = {KEEP: -3.0, CHANGE: -1.5}
    assert Verdict(CHANGE, scores).as_entry() == {
        "verdict": CHANGE,
        "verdict_by": "log-probability",
        "verdict_scores": scores,
    }
