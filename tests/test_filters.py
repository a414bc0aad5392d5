import pytest
from cai.exemplars import ANSWERED, EDITED
from cai.filters import REASONS, Texts, is_exemplar, is_sentinel, reasons, verdict
from cai.prompts import CHANGE, KEEP

GOOD = dict(
    instruction="Who is the mayor of Drola?",
    answer="Mira.",
    critiques=(f"It is Tano, not Mira. {CHANGE}",),
    revision="Tano.",
    finish=("stop", "stop", "stop"),
)


def test_a_good_example_is_kept():
    assert reasons(Texts(**GOOD)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(critiques=(f"All true. {KEEP}",)), "no_change_needed"),
        (dict(critiques=("It is a bit wrong.",)), "no_verdict"),
        (dict(critiques=(f"{KEEP} {CHANGE}",)), "no_verdict"),
        (dict(answer=""), "sentinel_answer"),
        (dict(answer="[ERROR]"), "sentinel_answer"),
        (dict(answer=" n/a "), "sentinel_answer"),
        (dict(revision="  "), "sentinel_revision"),
        (dict(revision="..."), "sentinel_revision"),
        (dict(revision="Tano.\nInstruction: What else?"), "sentinel_revision"),
        (dict(revision="Tano.<|im_end|>"), "sentinel_revision"),
        (dict(revision="Your answer here"), "sentinel_revision"),
        (dict(finish=("stop", "stop", "length")), "cut_off"),
        (dict(revision="mira!"), "unchanged"),
        (dict(revision=EDITED[0].revision), "exemplar"),
        (dict(answer=ANSWERED[3].answer), "exemplar"),
        (dict(revision=EDITED[0].critique), "exemplar"),
        (dict(instruction=ANSWERED[0].instruction.lower()), "exemplar"),
        (dict(revision=GOOD["instruction"]), "echo"),
        (dict(revision=GOOD["critiques"][0]), "echo"),
    ],
)
def test_each_reason_by_name(changes, reason):
    assert reason in reasons(Texts(**(GOOD | changes)))


def test_a_corrected_sign_is_a_change():
    """Code and sums are corrected by a sign; only words and numbers being the same is not being unchanged."""
    signs = GOOD | {"instruction": "Write code that adds 9 to x.", "answer": "x - 9", "revision": "x + 9"}
    assert reasons(Texts(**signs)) == []
    assert reasons(Texts(**(signs | {"revision": "X  - 9."}))) == ["unchanged"]


def test_every_reason_is_tested_above():
    marks = next(m for m in test_each_reason_by_name.pytestmark if m.name == "parametrize")
    assert {reason for _, reason in marks.args[1]} == set(REASONS)


def test_one_critique_that_asks_for_a_change_is_enough():
    both = (f"It is kind. {KEEP}", f"It is Tano. {CHANGE}")
    assert reasons(Texts(**(GOOD | {"critiques": both}))) == []
    assert reasons(Texts(**(GOOD | {"critiques": both[::-1]}))) == []


def test_the_verdict_is_the_critiques_end():
    assert verdict(f"Wrong. {CHANGE}") == CHANGE
    assert (
        verdict(f'"{KEEP}" would be too kind here.' + " It is wrong in many ways." * 20 + f" {CHANGE}")
        == CHANGE
    )
    assert verdict("") is None


def test_every_exemplar_is_recognised_and_ordinary_text_is_not():
    for e in ANSWERED:
        assert is_exemplar(e.instruction.upper()) and is_exemplar(f"Well: {e.answer} So it is.")
    for e in EDITED:
        assert is_exemplar(e.revision) and is_exemplar(e.answer)
    assert not is_exemplar("Tano is the mayor of Drola.") and not is_exemplar("")


@pytest.mark.parametrize(
    "text", ["No.", "Errors happen when x is empty.", "7", "None of them.", "Response to what?"]
)
def test_short_answers_are_no_sentinels(text):
    assert not is_sentinel(text)
