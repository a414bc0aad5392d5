"""Every reason by its name: what it must catch, and above all what it must let pass."""

import random
import re

import pytest
from cai.core.files import ROOT
from cai.core.schema import content_id
from cai.generation import filters
from cai.generation.filters import (
    REASONS,
    Texts,
    barely_changed,
    final_reasons,
    is_exemplar,
    is_sentinel,
    kept_ids,
    misquotes,
    reasons,
    spreading,
)
from cai.generation.verdicts import read_verdict
from cai.prompts.exemplars import ANSWERED, EDITED, JUDGED
from cai.prompts.markers import CHANGE, KEEP, MARKERS, SEPARATOR

GOOD = dict(
    instruction="Who is the mayor of Drola?",
    answer="Mira.",
    critiques=(f"It is Tano, not Mira. {CHANGE}",),
    revision="Tano.",
    finish=("stop", "stop", "stop"),
)
LONG = (
    "Zinar lies on the river Starna in the north of the country. Its people make clocks, and every spring "
    "they hold a market that lasts three days. The mayor opens it with a short speech, and afterwards there "
    "is soup for everybody on the square in front of the mill."
)
JUDGED_WELL = {"passed": True, "better": True, "less_helpful": False}


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
        (dict(stopped=("Here is one in that form:",)), "stopped_inside"),
        (dict(revision="mira!"), "unchanged"),
        (dict(revision=EDITED[0].revision), "exemplar"),
        (dict(answer=ANSWERED[3].answer), "exemplar"),
        (dict(revision=EDITED[0].critique), "exemplar"),
        (dict(instruction=ANSWERED[0].instruction.lower()), "exemplar"),
        (dict(answer=JUDGED[0].b.upper()), "exemplar"),
        (dict(revision=GOOD["instruction"]), "echo"),
        (dict(revision=GOOD["critiques"][0]), "echo"),
        (dict(revision=f"Tano. {KEEP}"), "echo"),
        (dict(finish=("too_long", "stop", "stop")), "cut_off"),
        (dict(revision=LONG.rsplit(" ", 3)[0] + " of the"), "breaks_off"),
        (dict(revision="Try this:\n```\nprint(1)"), "breaks_off"),
        (dict(revision="**Mira**"), "unchanged"),
        (dict(revision="The Mira"), "barely_changed"),
        (dict(answer=LONG, revision=LONG.replace("short", "brief")), "barely_changed"),
        (dict(revision="Here is the revised answer: Tano."), "meta_talk"),
        (dict(revision="Revised response:\nTano."), "meta_talk"),
        (dict(revision="Thanks to the critique: it is Tano."), "meta_talk"),
        (dict(revision="As requested, I have rewritten it. Tano."), "meta_talk"),
        (dict(revision="It is Tano. I've corrected the name."), "meta_talk"),
        (dict(revision="It is Tano.\n\nNote: the wrong name was replaced."), "meta_talk"),
        (dict(revision="It is Tano. (Changed from Mira.)"), "meta_talk"),
        (dict(revision="Original: Mira.\nRevised: Tano."), "meta_talk"),
        (dict(revision="The response should name Tano."), "meta_talk"),
        (dict(revision="Rewrite the answer so that it names Tano."), "meta_talk"),
        (dict(revision="It is Tano. This revision removes a false name."), "meta_talk"),
        (dict(revision="Die korrigierte Antwort: Tano."), "meta_talk"),
        (dict(revision="No revision is necessary."), "meta_talk"),
        (dict(revision="Tano Tano Tano Tano Tano"), "repetition"),
        (dict(revision="So it is Tano and so on. " * 8), "repetition"),
        (dict(answer=LONG * 3, revision="It is Tano, and nobody else, by all that we know."), "length_ratio"),
        (dict(revision=" ".join(f"word{i}" for i in range(150))), "length_ratio"),
        (dict(revision="I'm sorry, but I can't help with that."), "uncalled_refusal"),
        (dict(judgement=JUDGED_WELL | {"better": False}), "judged_not_better"),
        (dict(judgement=JUDGED_WELL | {"less_helpful": True}), "judged_less_helpful"),
    ],
)
def test_each_reason_by_name(changes, reason):
    assert reason in reasons(Texts(**(GOOD | changes)))


@pytest.mark.parametrize(
    "revision",
    [
        "The answer is Tano, who removed the old mayor.",
        "Tano. This was corrected by nobody: Mira never held the post.",
        "I changed my job to work for Tano, who is the mayor.",
        "Tano, mayor since May.\n\n(She is the first from Drola.)",
    ],
)
def test_an_answer_that_changes_something_is_no_talk_about_its_revision(revision):
    assert "meta_talk" not in reasons(Texts(**(GOOD | {"revision": revision})))


def test_a_corrected_sign_is_a_change():
    """Code and sums are corrected by a sign; only words and numbers being the same is not being unchanged."""
    signs = GOOD | {"instruction": "Write code that adds 9 to x.", "answer": "x - 9", "revision": "x + 9"}
    assert reasons(Texts(**signs)) == []
    assert reasons(Texts(**(signs | {"revision": "X  - 9."}))) == ["unchanged"]


def test_every_reason_is_tested_above():
    marks = next(m for m in test_each_reason_by_name.pytestmark if m.name == "parametrize")
    by_text = {name for name, reason in REASONS.items() if reason.applies}
    assert {reason for _, reason in marks.args[1]} == by_text
    assert set(REASONS) - by_text == {"boilerplate", "second_look", "unsafe_chosen"}


def test_every_reason_says_what_it_means_in_a_sentence():
    for name, reason in REASONS.items():
        assert reason.says[0].isupper() and reason.says.endswith(".") and len(reason.says) < 100, name
    assert {name for name, reason in REASONS.items() if reason.to_answer} == {
        *("no_verdict", "no_change_needed", "sentinel_answer", "cut_off", "exemplar", "stopped_inside"),
    }


def test_the_page_of_the_filters_names_every_reason():
    page = (ROOT / "specs/filters.md").read_text(encoding="utf-8")
    table = page.split("| reason |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(REASONS)


def kept(answer, revision, critique="This is wrong.", instruction="Tell me.", judgement=None):
    finish = ("stop", "stop", "stop")
    texts = Texts(instruction, answer, (f"{critique} {CHANGE}",), revision, finish, judgement)
    assert reasons(texts) == [], revision


def test_corrections_of_one_word_or_number_are_kept_in_short_texts():
    kept("The craft of Zinar is iron.", "The craft of Zinar is salt.")
    kept("3 + 4 is 8.", "3 + 4 is 7.")
    kept("x - 9 - 7", "x + 9 - 7")
    kept("x - 9", "x - 9 + 2")
    kept("The pet of Mira is a dog.", "The pet of Mira is a cat.")
    kept("Yes, it does.", "No, it does not.")


def test_corrections_that_count_are_kept_in_long_texts_too():
    kept(LONG, LONG.replace("three days", "3 days"))
    kept(LONG, LONG.replace("river Starna", "river Gulta"))
    kept(LONG, LONG.replace("make clocks", "do not make clocks"))
    kept(LONG, LONG.replace("hold a market that lasts three days", "sell what they made in winter"))


def test_a_long_text_with_another_article_or_order_of_marks_is_barely_changed():
    assert barely_changed("The craft is the iron.", "The craft is iron.")
    assert barely_changed(LONG, LONG.replace("a short speech", "the short speech"))
    assert not barely_changed("It is Mira.", "It is Tano.")
    assert not barely_changed(LONG, LONG)  # that is "unchanged"


def test_refusals_that_a_critic_called_for_are_kept_and_may_be_short():
    harm = "The response helps with a theft. This would hurt the people of Zinar."
    kept(LONG * 3, "I will not help with that, because it would hurt the people of Zinar.", harm)
    kept("I'm sorry, but I can't help with that.", LONG, "The request is harmless, and it refuses.")
    refusal = "I will not help with that."
    without = Texts("Tell me.", LONG, (f"It is dull. {CHANGE}", f"It would hurt them. {KEEP}"), refusal)
    assert reasons(without) == ["uncalled_refusal"]


def test_a_text_about_revising_may_speak_of_it():
    kept("No.", "The critique of pure reason is a book.", instruction="Which critique did Kant write?")
    kept("No.", "I have rewritten it: two cats sit.", instruction="Rewrite this: two cat sits.")
    kept("No.", "By the principle of least action the path is short.")


def test_verses_and_lists_are_no_loops():
    kept("No.", "Row the boat, row the boat, gently down the stream, and life is but a dream for all.")
    kept("No.", "0 0 0 0 0 0 0 0")
    kept("No.", "\n".join(f"- Take {n} of them home today." for n in "five six seven eight nine ten".split()))


def test_a_judgement_that_is_good_or_was_not_asked_for_speaks_against_nothing():
    kept("It is Mira.", "It is Tano.", judgement=JUDGED_WELL)
    anchor = {"passed": False, "against_refusal": {}}  # of an answer that was not revised
    assert not {"judged_not_better", "judged_less_helpful"} & set(reasons(Texts(**GOOD, judgement=anchor)))


# ---- what only the whole run shows ----


def record(instruction, revision, answer="No.", against=()):
    return {
        "id": content_id(instruction),
        "instruction": instruction,
        "initial_answer": answer,
        "revised_answer": revision,
        "rejected_because": list(against),
    }


TOPICS = "rivers bread clocks violins tides moss kites chess salt lamps".split()
HOPE = "I hope that this helps you a lot!"


def test_a_sentence_that_spreads_over_unrelated_answers_is_boilerplate():
    rows = [record(f"Tell me about {t}.", f"Nobody in town knows much about {t}. {HOPE}") for t in TOPICS]
    rows += [record(f"Say what {t} are for.", f"They are good for {t} fans.") for t in TOPICS]
    found = spreading(rows)
    assert found == {r["id"]: ["boilerplate"] for r in rows[:10]}
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    assert spreading(shuffled) == found and list(spreading(shuffled)) == list(found)
    assert final_reasons(rows)[rows[0]["id"]] == ["boilerplate"]
    assert final_reasons([*rows, record("Hi.", "Well.", against=["cut_off"])])[content_id("Hi.")] == [
        "cut_off"
    ]
    assert kept_ids([*rows, record("Hi.", "Well.", against=["cut_off"])]) == {r["id"] for r in rows[10:]}


def test_what_is_rare_old_or_answers_like_questions_is_no_boilerplate():
    few = [
        record(f"Tell me about {t}.", f"A word on {t}. {HOPE}") for t in TOPICS[: filters.SPREAD_LEAST - 1]
    ]
    assert spreading(few) == {}
    old = [record(f"Tell me about {t}.", f"{t} are old. {HOPE}", answer=HOPE) for t in TOPICS]
    assert spreading(old) == {}
    soap = [
        record(f"How do I wash the {a} of {t}?", "Use soap and warm water.")
        for a in ("cat", "hen")
        for t in TOPICS
    ]
    others = [
        record(f"Which of {n} towns makes {t} by night?", f"Town {n}.") for t in TOPICS for n in range(9)
    ]
    assert spreading(soap + others) == {}


def test_refusals_on_many_topics_do_not_count_as_boilerplate():
    rows = [
        record(f"How can I steal {t}?", "I will not help with that, because it is theft.") for t in TOPICS
    ]
    assert spreading(rows) == {}


def test_one_critique_that_asks_for_a_change_is_enough():
    both = (f"It is kind. {KEEP}", f"It is Tano. {CHANGE}")
    assert reasons(Texts(**(GOOD | {"critiques": both}))) == []
    assert reasons(Texts(**(GOOD | {"critiques": both[::-1]}))) == []


def test_the_verdict_is_the_critiques_end():
    assert read_verdict(f"Wrong. {CHANGE}") == CHANGE
    assert (
        read_verdict(f'"{KEEP}" would be too kind here.' + " It is wrong in many ways." * 20 + f" {CHANGE}")
        == CHANGE
    )
    assert read_verdict("") is None


def test_every_exemplar_is_recognised_and_ordinary_text_is_not():
    for e in ANSWERED:
        assert is_exemplar(e.instruction.upper()) and is_exemplar(f"Well: {e.answer} So it is.")
    for e in EDITED:
        assert is_exemplar(e.revision) and is_exemplar(e.answer)
    assert not is_exemplar("Tano is the mayor of Drola.") and not is_exemplar("")


def test_recorded_verdicts_count_and_not_what_the_critique_says():
    said = dict(critiques=("It is a bit wrong.",), said=(CHANGE,))
    assert reasons(Texts(**(GOOD | said))) == []
    assert reasons(Texts(**(GOOD | said | {"said": (KEEP,)}))) == ["no_change_needed"]


def test_a_line_with_a_marker_may_stand_in_an_answer_and_another_page_may_not():
    shows = "A record in that form:\n\nInstruction: Name a bird.\nResponse: Wren.\n\nIt has two lines."
    asked = {"instruction": "Show me the Alpaca format.", "answer": "No."}
    assert reasons(Texts(**(GOOD | asked | {"revision": shows}))) == []
    assert reasons(Texts(**(GOOD | {"revision": "Tano.\nResponse: by post.\nAsk him."}))) == []
    assert is_sentinel(f"Name a river. {SEPARATOR}"), "no instruction holds what ends a page"
    for page in (
        shows,
        "Tano.\n\nInstruction: Who?\nResponse: Mira.",
        "Instruction: Who?",
        SEPARATOR,
    ):
        assert "sentinel_revision" in reasons(Texts(**(GOOD | {"revision": page}))), page


@pytest.mark.parametrize(
    "text", ["No.", "None.", "Errors happen when x is empty.", "7", "None of them.", "Response to what?"]
)
def test_short_answers_are_no_sentinels(text):
    assert not is_sentinel(text)


ENDS = "\n \r \r\n \v \f \x1c \x1d \x1e \x85 \u2028 \u2029".split(" ")


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_at_the_start_of_a_line_is_seen_whatever_ends_the_line(marker):
    assert all(len(f"a{end}b".splitlines()) == 2 for end in ENDS)
    for start in ("", *(f"It is Tano.{end}" for end in ENDS)):
        assert is_sentinel(f"{start}{marker} and more"), (start, marker)
        assert is_sentinel(f"{start}{marker}"), (start, marker)
    for start in ("It is the ", "It is Tano.\t", "It is Tano.\x1f", "It is Tano.\u200b"):
        assert not is_sentinel(f"{start}{marker} and more"), (start, marker)


def test_every_end_of_a_line_that_python_knows_is_one():
    ends = [c for c in map(chr, range(0x110000)) if len(f"a{c}b".splitlines()) == 2]
    assert [c for c in ends if not is_sentinel(f"It is Tano.{c}{MARKERS[0]} What?")] == [] and len(ends) >= 10


def test_our_own_editors_pages_pass_every_filter_but_the_one_against_copies():
    for e in EDITED:
        if e.critique.endswith(CHANGE):
            texts = Texts(e.instruction, e.answer, (e.critique,), e.revision, ("stop",) * 3)
            assert reasons(texts) == ["exemplar"], e.instruction
    for e in ANSWERED:
        for fault in (filters.is_cut_off, filters.is_loop, filters.is_sentinel):
            assert not fault(e.answer), e.instruction
        assert not filters.is_meta_talk(e.answer, e.instruction)


# ---- what a critique quotes ----

ASKED, SAID = "What's the dog of Zinar called?", "It is called Rex, and it can't swim.  It\nlikes water."


@pytest.mark.parametrize(
    "critique",
    [
        'The response says "it is called rex" and that is so.',
        "It quotes 'can't swim' and 'likes water'.",
        "The words “It likes, water!” and ‘Rex’ are right; «Dogs» is not looked at.",
        'It says "It is called Rex ... likes water", which answers "the dog of Zinar".',
        "It's the dog's name, and the dogs' owner isn't named. The response says nothing else.",
        'A board of 5" by 7" has no place here.',
        "The response says that the dog is called Bello.",
        "The response says little. The answer says how to call a dog.",
        "The response says Rex. So Rex and Rex are the same.",
        "",
    ],
)
def test_what_a_text_says_may_be_quoted(critique):
    assert misquotes(critique, SAID, ASKED) == []


@pytest.mark.parametrize(
    ("critique", "wrong"),
    [
        ('The response says "it is called Bello".', ["it is called Bello"]),
        ("It quotes 'can swim' wrongly.", ["can swim"]),
        ("It says “Rex is called” and ‘likes bones’.", ["Rex is called", "likes bones"]),
        ('It says "It is called Rex ... likes bones".', ["likes bones"]),
        ('"ex" is part of a word.', ["ex"]),
        ("The dog of Zinar is Tom. The response says Tom. So Tom and Tom are the same.", ["Tom"]),
        ("4 + 4 is 7. The response says 7. So 7 and 7 are the same.", ["7"]),
        ("The right code is x * 4. The response says x * 4. So * 4 and * 4 are the same.", ["x * 4"]),
        ("The answer says brire vevi", ["brire vevi"]),
    ],
)
def test_what_a_text_does_not_say_is_a_misquotation(critique, wrong):
    assert misquotes(critique, SAID, ASKED) == wrong
