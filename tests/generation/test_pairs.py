"""Pairs of a run: revisions and anchors, from what critics and judges said and nothing else."""

import random

import pytest
from cai.core.schema import PAIR_KEYS, content_id, is_held_out
from cai.generation.pairs import ANCHOR, REVISION, build, passed, revision_pair
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.training_format import training_pair

REFUSE = "I will not help with that, because it would hurt {}."


def record(instruction, answer, revision="", critique="The answer is wrong.", judged=True, **more):
    """A record as the loop writes it: revised and kept, or passed if there is no revision."""
    verdict = CHANGE if revision else KEEP
    pair = {"prompt": instruction, "chosen": revision, "rejected": answer}
    row = {
        "id": content_id(instruction),
        "instruction": instruction,
        "initial_answer": answer,
        "revised_answer": revision,
        "preference_pair": pair if revision else None,
        "critiques": [{"principle_id": "harm", "principle": "P.", "critique": f"{critique} {verdict}"}],
        "task": "advice",
        "kept": bool(revision),
        "rejected_because": [] if revision else ["no_change_needed"],
        "judgement": {"passed": True} if judged else None,
    }
    return row | more


def test_a_pair_is_of_plain_texts_and_its_training_format_what_it_ever_was():
    row = revision_pair(record("Who?", "A", "B"))
    assert {k: row[k] for k in ("prompt", "chosen", "rejected")} == {
        "prompt": "Who?",
        "chosen": "B",
        "rejected": "A",
    }
    assert training_pair(row) == {
        "prompt": "Instruction: Who?\nResponse:",
        "chosen": " B",
        "rejected": " A",
    }


def test_a_rejected_record_makes_no_pair():
    with pytest.raises(AssertionError, match="unchanged"):
        revision_pair(record("x", "A", "B", kept=False, rejected_because=["unchanged"]))


@pytest.fixture
def records():
    rows = [record(f"What is {n} + 1?", f"It is {n}.", f"It is {n + 1}.") for n in range(150)]
    rows += [
        record(f"How do I rob person {n}?", f"Go to {n} at night.", REFUSE.format(f"person {n}"), "A theft.")
        for n in range(100)
    ]
    rows += [record(f"Where is town {n}?", f"By river {n}.", critique="It is right.") for n in range(300)]
    rows += [record(f"How do I trick {n}?", REFUSE.format(n), critique="It is a fraud.") for n in range(200)]
    return rows


def of_kind(rows, kind):
    return [r for r in rows if r["kind"] == kind]


def test_rows_have_the_contracts_keys_and_say_what_is_held_out(records):
    rows = build(records, anchors=1.0, seed=0)
    for row in rows:
        assert set(row) == {*PAIR_KEYS, "task", "principles", "held_out"}
        assert row["held_out"] == is_held_out(row["id"]) and row["principles"] == ["harm"]
        assert row["chosen"].strip() == row["chosen"] and row["rejected"].strip() == row["rejected"]
    assert {r["kind"] for r in rows} == {REVISION, ANCHOR}
    assert {r["held_out"] for r in of_kind(rows, ANCHOR)} == {True, False}


def test_every_kept_revision_is_a_pair_with_its_first_answer(records):
    rows = {r["id"]: r for r in build(records, anchors=0.0, seed=0)}
    assert set(rows) == {r["id"] for r in records if r["kept"]}
    assert {r["kind"] for r in rows.values()} == {REVISION}
    for r in records[:250]:
        pair = rows[r["id"]]
        assert pair["prompt"] == r["instruction"]
        assert (pair["chosen"], pair["rejected"]) == (r["revised_answer"], r["initial_answer"])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_anchors_come_in_the_share_that_was_asked_for_on_each_side(records, share):
    rows = build(records, anchors=share, seed=0)
    for side in (True, False):
        some = [r for r in rows if r["held_out"] is side]
        assert len(of_kind(some, ANCHOR)) == round(share * len(of_kind(some, REVISION)))


def test_an_anchor_keeps_a_passed_answer_against_the_other_kind(records):
    by_id = {r["id"]: r for r in records}
    anchors = of_kind(build(records, anchors=1.0, seed=0), ANCHOR)
    kinds = []
    for row in anchors:
        r = by_id[row["id"]]
        assert row["chosen"] == r["initial_answer"] and passed(r)
        assert row["prompt"] == r["instruction"] and row["chosen"] != row["rejected"]
        kinds.append("I will not" in row["chosen"])
        assert ("I will not" in row["rejected"]) != kinds[-1]
        if kinds[-1]:  # help with harm that was turned into a refusal elsewhere
            assert row["rejected"].startswith("Go to ")
    assert 0.25 < sum(kinds) / len(kinds) < 0.4  # every third keeps a refusal
    assert len({r["id"] for r in anchors}) == len(anchors)
    assert len({r["rejected"] for r in anchors}) > 20, "one bad answer for all would be learnt by heart"


def test_when_one_kind_runs_out_the_other_fills_the_share(records):
    only_help = [r for r in records if "trick" not in r["instruction"]]
    rows = of_kind(build(only_help, anchors=1.0, seed=0), ANCHOR)
    assert len(rows) == 250 and not any("I will not" in r["chosen"] for r in rows)
    only_refusals = [r for r in records if "Where" not in r["instruction"]]
    rows = of_kind(build(only_refusals, anchors=0.5, seed=0), ANCHOR)
    assert len(rows) == 125 and all("I will not" in r["chosen"] for r in rows)
    few = [*records[:250], *records[250:260]]
    assert len(of_kind(build(few, anchors=1.0, seed=0), ANCHOR)) == 10
    assert len({r["id"] for r in of_kind(build(few, anchors=1.0, seed=0), ANCHOR)}) == 10


def test_without_a_bad_answer_of_the_other_kind_there_is_no_anchor(records):
    no_refusals = [r for r in records if "I will not" not in r["initial_answer"] + r["revised_answer"]]
    rows = build(no_refusals, anchors=1.0, seed=0)
    assert len(rows) == 150 and not of_kind(rows, ANCHOR)
    assert build([], anchors=1.0, seed=0) == []


def test_pairs_follow_from_records_and_seed_and_not_from_the_order(records):
    rows = build(records, anchors=0.5, seed=0)
    shuffled = records[:]
    random.Random(1).shuffle(shuffled)
    assert build(shuffled, anchors=0.5, seed=0) == rows
    other = build(records, anchors=0.5, seed=1)
    assert of_kind(other, REVISION) == of_kind(rows, REVISION)
    assert of_kind(other, ANCHOR) != of_kind(rows, ANCHOR)


def test_no_text_of_a_held_out_example_is_in_a_training_pair(records):
    texts = {side: set() for side in (True, False)}
    for r in records:
        texts[is_held_out(r["id"])] |= {r["initial_answer"], r["revised_answer"]}
    own = texts[True] - texts[False] - {""}
    assert len(own) > 50
    for row in build(records, anchors=1.0, seed=0):
        if not row["held_out"]:
            assert not {row["chosen"], row["rejected"]} & own
            assert not is_held_out(row["id"])


@pytest.mark.parametrize(
    "changes",
    [
        {"rejected_because": ["no_change_needed", "cut_off"]},
        {"rejected_because": ["no_change_needed", "unsafe_chosen"]},
        {"rejected_because": ["no_verdict"]},
        {"judgement": {"passed": False}},
        {"guard": {"initial_answer": {"safe": False}}},
        {
            "critiques": [
                {"principle_id": "a", "critique": f"Good. {KEEP}"},
                {"principle_id": "b", "critique": "?"},
            ]
        },
        {"initial_answer": "Here is the revised answer: by the river."},
        {"initial_answer": "very " * 30},
    ],
)
def test_what_speaks_against_an_answer_keeps_it_from_being_an_anchor(changes):
    good = record("Where is Zinar?", "By the river.", critique="It is right.")
    assert passed(good) and passed(good | {"judgement": None})
    assert not passed(good | changes)


def test_a_revised_answer_is_no_anchor_and_a_rejected_revision_no_pair(records):
    assert not passed(records[0])
    bad = records[0] | {"kept": False, "rejected_because": ["judged_not_better"]}
    assert bad["id"] not in {r["id"] for r in build([bad, *records[1:]], anchors=1.0, seed=0)}


def test_the_refusal_of_a_request_that_its_critic_calls_harmless_is_no_anchor():
    says = "The instruction is harmless, and the response hurts nobody."
    assert not passed(record("How do I wash a cat?", "I will not help with that.", critique=says))
    assert passed(record("How do I wash a cat?", "Use soap.", critique=says))
    assert passed(record("How do I rob Mira?", "I will not help with that.", critique="It is a theft."))


def test_boilerplate_that_only_the_run_shows_makes_no_pair(records):
    topics = "rivers bread clocks violins tides moss kites chess salt lamps".split()
    tail = "I hope that this helps you a lot!"
    spread = [record(f"{t.title()}?", f"No {t}.", f"Things like {t}. {tail}") for t in topics]
    rows = build([*records, *spread], anchors=0.0, seed=0)
    assert len(rows) == 250 and not {r["id"] for r in spread} & {r["id"] for r in rows}
