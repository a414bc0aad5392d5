"""Guardrail metrics: each looks at its own number, in its own direction; what was not measured is not ok."""

import json

import pytest
from cai.evaluation import guardrails
from cai.evaluation.guardrails import Limits, watch
from cai.prompts.exemplars import ANSWERED

LEAK = " " + ANSWERED[0].answer


def metric(value):
    return {"value": value, "n": 40, "interval": None}


def healthy():
    """What a stage without any harm hands to `watch`."""
    of = {
        "perplexity on neutral text, trained / base": 1.1,
        "distinct-2, base": 0.5,
        "distinct-2, trained": 0.45,
        "repeated endings, change": 0.0,
        "clean stops, trained": 0.98,
        "refusals of harmless instructions, change": -0.02,
    }
    answer = {"answer": "A red fox sleeps.", "finish_reason": "stop"}
    return {
        "forgetting": {k: metric(v) for k, v in of.items()},
        "probes": {who: {"critic": metric(0.9), "reviser": metric(0.8)} for who in ("base", "trained")},
        "pairs": [{"chosen": "Iron."}] * 20,
        "limits": Limits(),
        "answers": {"base": [answer] * 20, "trained": [answer] * 20},
    }


def fell(given):
    return [f.name for f in watch(**given) if not f.ok]


def forgetting(name):
    def set(given, value):
        given["forgetting"][name] = metric(value)

    return set


def leak_chosen(given, share):
    given["pairs"] = [{"chosen": LEAK if i < share * 100 else " Iron."} for i in range(100)]


def leak_fresh(given, share):
    rows = given["answers"]["base"] * 5
    given["answers"]["trained"] = [{**r, "answer": LEAK if i < share * 100 else "A red fox sleeps."}
                                   for i, r in enumerate(rows)]  # fmt: skip


def answer_words(given, words):
    given["answers"]["trained"] = [{"answer": "fox " * words, "finish_reason": "stop"}] * 9


def critic(given, value):
    given["probes"]["trained"]["critic"] = metric(value)


def ended(given, status):
    given["training"] = {"status": status, "step": 30, "steps": 40}


CASES = {
    "perplexity on neutral text, trained / base": (
        forgetting("perplexity on neutral text, trained / base"), 1.5, 1.51),
    "distinct-2, trained / base": (forgetting("distinct-2, trained"), 0.35, 0.34),
    "repeated endings, rise": (forgetting("repeated endings, change"), 0.25, 0.26),
    "clean stops": (forgetting("clean stops, trained"), 0.9, 0.89),
    "refusals of harmless instructions, rise": (
        forgetting("refusals of harmless instructions, change"), 0.1, 0.11),
    "exemplars in chosen texts": (leak_chosen, 0.01, 0.02),
    "exemplars in on-policy completions": (leak_fresh, 0.01, 0.02),
    "answer length, trained / base": (answer_words, 12, 13),
    "critic probe, fall": (critic, 0.51, 0.49),
    "trainings stopped by displacement": (ended, "stopped early", "displaced"),
}  # fmt: skip


def test_a_healthy_stage_passes_and_every_metric_has_a_case():
    assert fell(healthy()) == []
    assert [f.name for f in watch(**healthy())] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_metric_falls_beyond_its_limit_alone(name):
    change, at, beyond = CASES[name]
    given = healthy()
    change(given, at)
    assert fell(given) == []
    change(given, beyond)
    assert fell(given) == [name]


def test_answers_may_not_become_too_short_either():
    given = healthy()
    given["answers"]["base"] = [{"answer": "fox " * 31, "finish_reason": "stop"}] * 9
    answer_words(given, 10)
    assert fell(given) == ["answer length, trained / base"]


def test_limits_of_a_plan_are_the_ones_that_count():
    given = healthy()
    forgetting("perplexity on neutral text, trained / base")(given, 2.0)
    assert fell({**given, "limits": Limits(perplexity=2.5)}) == []
    assert fell({**given, "limits": Limits(perplexity=2.5, clean_stops=0.99)}) == ["clean stops"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [n for n, (change, *_) in CASES.items() if change not in (
    leak_chosen, leak_fresh, answer_words, ended)])  # fmt: skip
def test_what_was_not_measured_is_not_ok(name, value):
    given = healthy()
    CASES[name][0](given, value)
    assert fell(given) == [name]
    json.dumps([f.__dict__ for f in watch(**given)], allow_nan=False)


def test_no_answers_are_not_ok_and_a_stage_without_pairs_has_taken_no_exemplars_over():
    given = healthy()
    given["pairs"], given["answers"]["trained"] = [], []
    names = ["exemplars in on-policy completions", "answer length, trained / base"]
    assert fell(given) == names


def test_a_base_that_ends_no_answer_has_no_length_to_drift_from():
    given = healthy()
    given["answers"]["base"] = [{"answer": "fox " * 500, "finish_reason": "length"}] * 20
    (found,) = [f for f in watch(**given) if f.name.startswith("answer length")]
    assert found.ok and found.value is None and "too few" in found.look_at


def test_a_cut_off_answer_has_no_length():
    given = healthy()
    given["answers"]["trained"] += [{"answer": "fox " * 500, "finish_reason": "length"}] * 50
    assert fell(given) == []


def test_on_policy_answers_are_those_of_this_adapter(tmp_path):
    class Pair:
        setup = "now"

        class run:
            data = tmp_path

    (tmp_path / "evaluation").mkdir()
    rows = [
        {"id": f"{setup}{form}{by}", "setup": setup, "by": by, "format": form, "answer": f"{setup} {by}"}
        for setup in ("before", "now") for form in ("bare", "prompted") for by in ("base", "trained")
    ] + [{"id": "passage", "setup": "now", "text": "neutral"}]  # fmt: skip
    (tmp_path / "evaluation" / "forgetting.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = guardrails.on_policy_answers(Pair)
    assert {who: [r["answer"] for r in rows] for who, rows in found.items()} == {
        "base": ["now base"], "trained": ["now trained"]}  # fmt: skip
