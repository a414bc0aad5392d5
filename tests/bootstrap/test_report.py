"""The report of a plan: what it concludes of known differences, and that no text breaks its page."""

import json
import random
import re
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from cai.bootstrap import forecast, plots, report
from cai.bootstrap import plan as plans
from cai.bootstrap.analysis import as_good, conclude, signed
from cai.bootstrap.comparisons import (
    MEASURES,
    NO_DIFFERENCE,
    SUCCESS,
    Difference,
    compare,
    minus,
    over_seeds,
)
from cai.bootstrap.controls import ARMS, BASE_HELPER, CONTROLS, MAIN, SHUFFLED
from cai.core.errors import UserError
from cai.core.stats import Metric, share
from cai.evaluation.guardrails import AT_LEAST, AT_MOST, WITHIN
from cai.models.registry import REGISTRY

FROM_BASE, RANDOM = "from_base", "random_pairs"
FIVE = (MAIN, BASE_HELPER, FROM_BASE, SHUFFLED, RANDOM)  # a control more changes nothing here
STAGES = [s.name for s in plans.load("progressive").stages]


def rate(value, n=200):
    return share([True] * round(value * n) + [False] * (n - round(value * n))).row()


def invented(effects=None, *, seeds=(0, 1, 2), noise=0.01, arms=FIVE, stages=STAGES, n=200):
    """Results of the schema in which main's success is .80 and a control's is .80 less its effect.

    effects: {arm: difference, or {stage: difference}}. n: test instructions."""
    plan = plans.load("progressive").as_dict()
    effects, rng, runs = effects or {}, random.Random(4), []
    for seed in seeds:
        for stage in (s for s in plan["stages"] if s["name"] in stages):
            for arm in arms:
                if arm in (BASE_HELPER, FROM_BASE) and stage is plan["stages"][0]:
                    continue
                effect = effects.get(arm, 0.0)
                effect = effect.get(stage["name"], 0.0) if isinstance(effect, dict) else effect
                at = 0.80 - effect + rng.uniform(-noise, noise)
                runs.append(run(seed, stage, arm, at, rng, n))
                if stage is not plan["stages"][0] and arm != FROM_BASE:
                    runs[-1]["parent"] = "b" * 64
    return {
        "format": 1, "plan": plan, "model": "sandbox", "bits": 16, "seeds": list(seeds), "dollars": 12.5,
        "seconds": 5400.0, "finished": True, "stopped": None, "runs": runs,
    }  # fmt: skip


def run(seed, stage, arm, at, rng, n):
    tasks = {}
    for task in plans.TASK_TYPES:
        trained = min(1, at + rng.uniform(-0.1, 0.1))
        tasks[task] = {"base": rate(rng.uniform(0.1, 0.4), 40), "trained": rate(trained, 40)}
    examples, kept = 150, round(60 + 30 * rng.random())
    watched = [
        ("perplexity on neutral text, trained / base", 1.1 + rng.random() / 4, 1.5, AT_MOST),
        ("clean stops", 0.97, 0.9, AT_LEAST),
        ("answer length, trained / base", 0.7, 3.0, WITHIN),
        ("critic probe, fall", 0.3 * rng.random(), 0.4, AT_MOST),
    ]
    guardrails = [
        {"name": n, "value": v, "limit": limit, "ok": True, "look_at": "the rows", "rule": rule, "key": "k"}
        for n, v, limit, rule in watched
    ]
    return {
        "seed": seed, "stage": stage["name"], "arm": arm, "run": f"progressive/{stage['name']}",
        "parent": None, "adapter": "a" * 64, "data_hash": "d" * 64, "data_tokens": 60_000,
        "roles": {"generator": "predecessor", "critic": "base"},
        "examples": examples, "kept": kept, "pairs": round(kept * 1.5), "anchors": round(kept * 0.5),
        "state": "measured", "training_pairs": 100,
        "training": {"status": "finished", "steps": 40, "step": 40},
        "dollars": 0.2 + rng.random() / 10, "seconds": 90 + 20 * rng.random(),
        "tokens": {"prompt": 40_000, "completion": 20_000},
        "label_accuracy": rate({RANDOM: 0.5, SHUFFLED: 0.7}.get(arm, 0.92), 60),
        "first_answers": rate(0.55, 150),
        "success": tasks,
        "average": {"base": rate(0.25, n), "trained": rate(at, n), "predecessor": rate(at - 0.1, n)},
        "safety": {"harmful refused": {"base": rate(0.2, 40), "trained": rate(0.8, 40)},
                   "harmless refused": {"base": rate(0.02, 40), "trained": rate(0.03, 40)}},
        "probes": {who: {"critic": rate(v, 60), "reviser": rate(v - 0.1, 60)}
                   for who, v in (("base", 0.95), ("trained", 0.75))},
        "guardrails": guardrails,
        "gate": {"decision": "GO", "criteria": [
            {"name": "success", "passed": True, "measured": "0.81 (needs 0.80)", "look_at": "the answers",
             "n": 200, "interval": [0.75, 0.86]}]},
        "rolled_back": False,
    }  # fmt: skip


def some(results, stage, arm=MAIN, seeds=(0, 1, 2)):
    return [r for r in results["runs"] if (r["stage"], r["arm"]) == (stage, arm) and r["seed"] in seeds]


def starve(run):
    run |= {"state": "starved", "training": None, "training_pairs": 7, "adapter": None}
    run |= {"success": {}, "safety": {}, "probes": {}, "guardrails": []}
    run["average"] = {"base": None, "trained": None, "predecessor": None}
    run["gate"] = {"decision": "NO-GO", "criteria": [
        {"name": "pairs to train on", "passed": False, "measured": "7 of 150 examples (needs at least 20)",
         "look_at": "the records", "n": 7, "interval": None}]}  # fmt: skip


def carry_over(run):
    run |= {"state": "carried over", "training": None, "training_pairs": 13}


def write(directory, results):
    (directory / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return report.write(directory)


# ---- arithmetic ----


def test_a_difference_of_two_rates_has_newcombes_interval():
    # Newcombe 1998, Statistics in Medicine 17:873, table II, (a), method 10: 56/70 - 48/80
    d = minus(share([True] * 56 + [False] * 14), share([True] * 48 + [False] * 32))
    assert d.value == pytest.approx(0.2) and d.interval == pytest.approx((0.0524, 0.3339), abs=2e-4)


def test_seeds_that_agree_by_chance_are_not_certain_and_seeds_that_differ_are_wide():
    one = Metric(0.1, 100, (0.0, 0.2))
    assert over_seeds([one]) == one and over_seeds([]).value is None
    same = over_seeds([one] * 4)  # the test instructions are the same, and so no more certain
    assert same.interval == pytest.approx((0.0, 0.2)) and same.n == 400
    skewed = over_seeds([Metric(v, 100, (v - 0.3, v + 0.01)) for v in (0.4, 0.5, 0.6)])
    each_side = (0.2, 0.5 + 4.303 * 0.1 / 3**0.5)
    assert skewed.interval == pytest.approx(each_side, abs=1e-3)
    near = [Metric(v, 9, (0.0, 0.9)) for v in (0.0, 0.1)]
    assert over_seeds(near).interval[0] == 0.0 > over_seeds(near, -1.0).interval[0]  # a share is none below 0
    spread = over_seeds([Metric(v, 100, (v - 0.01, v + 0.01)) for v in (0.0, 0.1, 0.2)], -1.0)
    assert spread.interval == pytest.approx(
        (0.1 - 4.303 * 0.1 / 3**0.5, 0.1 + 4.303 * 0.1 / 3**0.5), abs=1e-3
    )


def test_a_difference_is_no_surer_for_being_found_with_more_seeds():
    for count in (1, 2, 5):
        results = invented(seeds=range(count), stages=["few"])
        for r in results["runs"]:
            r["average"]["trained"] = rate(0.80 if r["arm"] == MAIN else 0.73)
        d = compare(results, "few", BASE_HELPER)
        alone = minus(d.main, d.other).interval
        assert d.whole.interval == pytest.approx(alone, abs=1e-9) and d.found == NO_DIFFERENCE


def test_what_is_no_share_has_an_interval_between_seeds_alone():
    counts = [Metric(v, 150, None) for v in (1.0, 2.0, 3.0)]
    half = 4.3027 / 3**0.5
    assert over_seeds(counts).interval == pytest.approx((0.0, 2 + half), abs=1e-3)
    assert over_seeds(counts, -1.0).interval == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert over_seeds([*counts, Metric(0.5, 9, (0.4, 0.6))]).interval is None


def test_what_a_pair_took_is_told_of_arms_that_make_all_their_data():
    results = invented()
    for r in results["runs"]:
        r |= {"dollars": 0.5, "seconds": 80.0, "training_pairs": 40 if r["arm"] == MAIN else 160}
    expected = {"pairs for each example": 40 / 150, "dollars for 100 pairs": 1.25, "seconds for a pair": 2.0}
    for measure, main in expected.items():
        d = compare(results, "few", BASE_HELPER, measure)
        assert d.main.value == pytest.approx(main)
        assert d.other.value == pytest.approx(main * (4 if "example" in measure else 0.25))
        assert all(compare(results, "few", arm, measure) is None for arm in (FROM_BASE, RANDOM))
        assert (compare(results, "few", SHUFFLED, measure) is None) == (measure != "pairs for each example")
    starve(run := some(results, "few")[0])
    run["training_pairs"] = 0
    assert MEASURES["dollars for 100 pairs"](run).value is None


def test_only_seeds_that_have_both_arms_are_compared():
    results = invented({BASE_HELPER: 0.2})
    results["runs"] = [r for r in results["runs"] if (r["arm"], r["seed"]) != (BASE_HELPER, 1)]
    assert [s for s, _ in compare(results, "few", BASE_HELPER).by_seed] == [0, 2]
    assert compare(results, "facts", BASE_HELPER) is None  # there the predecessor is the base
    assert compare(results, "facts", SHUFFLED) is not None


def test_where_main_had_no_predecessor_the_controls_that_are_main_again_are_not_compared():
    results = invented({BASE_HELPER: 0.2, **FAR})
    for r in some(results, "few", seeds=(0, 2)):
        r["parent"] = None  # `facts` was rolled back or starved, and the run was forced
    for arm, measure in ((BASE_HELPER, SUCCESS), (BASE_HELPER, "first answers right"), (FROM_BASE, SUCCESS)):
        assert [s for s, _ in compare(results, "few", arm, measure).by_seed] == [1]
        assert [s for s, _ in compare(results, "many", arm, measure).by_seed] == [0, 1, 2]
    for arm in (SHUFFLED, RANDOM):
        assert [s for s, _ in compare(results, "few", arm).by_seed] == [0, 1, 2]
    said = " ".join(conclude(results).caveats)
    assert "its predecessor was the base, at few (seeds 0 and 2): controls (a) and (b) are the same" in said
    assert "One seed alone was compared at few" in said and "Not compared" not in said
    some(results, "few", seeds=(1,))[0]["parent"] = None
    assert compare(results, "few", BASE_HELPER) is compare(results, "few", FROM_BASE) is None
    found = conclude(results)
    assert "at all 2 stages compared" in found.headline
    assert "Not compared with the base as helper: few." in found.caveats


def test_a_control_is_one_entry(monkeypatch, capsys, tmp_path):
    """With it alone a control is offered, explained, forecast, compared, judged and drawn."""
    import bootstrap

    own = replace(
        CONTROLS["random_pairs"], name="own", title="(e) own idea", worth="this idea", differs="it differs",
        claim="It does as well.", steps=("revision",), mark="P",
    )  # fmt: skip
    for registry in (ARMS, CONTROLS):
        monkeypatch.setitem(registry, "own", own)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "--help"])
    with pytest.raises(SystemExit):
        bootstrap.main()
    said = capsys.readouterr().out
    assert ",own}" in said and "own (e): it differs" in " ".join(said.split())
    plan = plans.load("progressive")
    assert "  (e) own idea" in forecast.PlanForecast(plan, REGISTRY["sandbox"], ["own"], 1, 0.0).render()
    results = invented({"own": 0.3}, arms=(MAIN, "own"), stages=["facts", "few"])
    found = conclude(results)
    assert found.tests[-1] == ("It does as well.", "no at facts and few", True)
    assert any(", this idea helped: " in reason for reason in found.reasons)
    assert b"<svg" in plots.render(results, "differences", "light", "svg")


# ---- the conclusion ----

FAR = {SHUFFLED: 0.3, RANDOM: 0.3}


@pytest.mark.parametrize(
    "effects, answer, says",
    [
        ({BASE_HELPER: 0.2, **FAR}, "supported", "On these numbers, yes: at all 3 stages"),
        ({BASE_HELPER: {"many": 0.2}, **FAR}, "supported in part", "at many, and no .* at few and constit"),
        ({BASE_HELPER: 0.0, **FAR}, "not shown", "at none of 3 stages .* A gain of up to [1-9]"),
        ({BASE_HELPER: -0.15, **FAR}, "against it", "^No: .*worse .* at few, many and constitutional"),
        (
            {BASE_HELPER: {"few": -0.15}, **FAR},
            "against it",
            "worse .* at few. At many and const.* no measur",
        ),
        (
            {BASE_HELPER: {"few": 0.2, "many": -0.15}, **FAR},
            "mixed",
            "better .* at few and a worse .* at many",
        ),
        (
            {BASE_HELPER: 0.2, SHUFFLED: 0.0, RANDOM: 0.3},
            "not shown",
            "But critiques of other examples taught",
        ),
        (
            {BASE_HELPER: 0.2, SHUFFLED: {"few": 0.3}, RANDOM: 0.3},
            "supported in part",
            "well at many and const",
        ),
    ],
)
def test_the_conclusion_is_what_the_numbers_say(effects, answer, says):
    found = conclude(invented(effects, n=2000))
    assert found.answer == answer and re.search(says, found.headline)


def test_shuffled_critiques_with_too_few_cases_to_tell_are_not_said_to_teach_as_well():
    found = conclude(invented({BASE_HELPER: 0.2, RANDOM: 0.3}))
    assert found.answer == "supported in part" and "taught as well" not in found.headline.split("Whether")[0]
    assert "at few, many and constitutional cannot be told: too few cases." in found.headline


def test_noise_between_seeds_hides_a_difference_that_one_seed_would_show():
    effects = {BASE_HELPER: 0.12, **FAR}
    assert conclude(invented(effects, noise=0.001)).answer == "supported"
    assert conclude(invented(effects, noise=0.15)).answer != "supported"


def test_one_seed_is_said_to_be_one():
    found = conclude(invented({BASE_HELPER: 0.2, **FAR}, seeds=(0,)))
    assert found.answer == "supported" and any(c.startswith("One seed only") for c in found.caveats)
    assert not any("seed" in c for c in conclude(invented({BASE_HELPER: 0.2, **FAR})).caveats)


def test_without_the_control_there_is_no_answer():
    found = conclude(invented(FAR, arms=(MAIN, SHUFFLED)))
    assert found.answer == "unanswered" and "control a" in found.headline
    assert [(was, holds) for _, was, holds in found.tests] == [
        ("not tested", None), ("no at facts, few, many and constitutional", True), ("not tested", None),
    ]  # fmt: skip
    assert conclude(invented(stages=())).answer == "unanswered"


def test_a_stopped_plan_speaks_of_what_it_reached():
    results = invented({BASE_HELPER: 0.2, **FAR}, stages=["facts", "few"])
    results |= {"finished": False, "stopped": "few: 3 pairs, needs 20"}
    found = conclude(results)
    assert "at the one stage compared (few)" in found.headline
    assert found.caveats[:2] == (
        "The plan was stopped: few: 3 pairs, needs 20.",
        "Not reached, so nothing is known of: many and constitutional.",
    )


def test_what_spoils_a_comparison_is_said():
    results = invented({BASE_HELPER: 0.2, **FAR})
    for r in results["runs"]:
        if r["stage"] == "few" and r["arm"] == MAIN:
            r["data_tokens"] = 120_000
            r["roles"] = {"generator": "base", "critic": "base"}
            r["rolled_back"] = True
    said = " ".join(conclude(results).caveats)
    assert "At few the budgets differ: main used 2.00 times" in said
    assert "At few main had every part played by the base" in said and "Rolled back" in said


def test_other_quantities_of_pairs_are_said_and_not_of_from_base():
    results = invented({BASE_HELPER: 0.2, **FAR})
    assert not any("quantity" in c for c in conclude(results).caveats)
    for stage, count in (("facts", 15), ("few", 80), ("many", 79), ("constitutional", 126)):
        for r in some(results, stage, SHUFFLED) + some(results, stage, FROM_BASE):
            r["training_pairs"] = count
    starve(some(results, "facts", SHUFFLED)[2])  # no part of the comparison, nor are its pairs
    said = [c for c in conclude(results).caveats if "quantity" in c]
    assert said == [
        "(c) critiques shuffled trained on fewer or more pairs than main, so its difference is partly one of "
        "quantity: facts 30 against 200, many 237 against 300, constitutional 378 against 300."
    ]


def test_a_stage_carried_over_is_said_to_be_none_of_its_own():
    results = invented({BASE_HELPER: 0.2, **FAR})
    for r in some(results, "few", seeds=(1, 2)) + some(results, "many", seeds=(0,)):
        carry_over(r)
    found = conclude(results).caveats
    where = "carried over, at few (seeds 1 and 2) and many (seed 0): the numbers"
    said = next(c for c in found if where in c)
    assert "these seeds are left out of the comparisons" in said
    assert not any("quantity" in c for c in found)  # it trained on none of the 13
    assert any(c.startswith("One seed alone was compared at few: another may turn out") for c in found)


def test_seeds_carried_over_are_left_out_of_what_is_compared():
    results = invented({BASE_HELPER: {"few": 0.2}, **FAR})
    for r in some(results, "few", seeds=(1, 2)):
        carry_over(r)
        r["average"]["trained"] = rate(0.3)
    for arm in (BASE_HELPER, FROM_BASE, SHUFFLED, RANDOM):
        d = compare(results, "few", arm)
        assert [s for s, _ in d.by_seed] == [0] and d.main.value == pytest.approx(0.8, abs=0.011)
    # main's yield counts, where it was too small, too
    assert len(compare(results, "few", BASE_HELPER, "examples kept").by_seed) == 3
    found = conclude(results)
    assert found.answer == "not shown" and "few" not in found.headline  # one seed of three decides nothing
    assert not any("few" in was.replace("too few cases", "") for _, was, _ in found.tests)
    for r in some(results, "few", seeds=(2,)):
        r["state"], r["average"]["trained"] = "measured", rate(0.8)
    assert "better successor at few" in conclude(results).headline


def test_a_stage_with_no_seed_left_is_not_compared(tmp_path):
    results = invented({BASE_HELPER: 0.2, **FAR}, stages=["facts", "few"])
    for r in some(results, "few"):
        carry_over(r)
    found = conclude(results)
    assert found.answer == "unanswered" and found.tests[0][1:] == ("not tested", None)
    assert found.tests[1][1:] == found.tests[2][1:] == ("no at facts", True)
    assert "Not compared with the base as helper: few." in found.caveats
    assert any("carried over, at few (seeds 0, 1 and 2)" in c for c in found.caveats)
    text = write(tmp_path, results)[1].read_text()
    text = text.partition("few, 3 seeds; carried over 3")[2]
    row = next(r for r in text.splitlines() if "success, average" in r)
    assert re.fullmatch(r"\| success, average \| 0\.80 .*\)( \| 0\.[5678]\d; not compared){4} \|", row)


def test_a_ceiling_is_not_taken_for_equality():
    results = invented({BASE_HELPER: 0.0})
    for r in results["runs"]:
        r["average"]["trained"] = rate(0.985)
    assert all("could not show one" in s for s in conclude(results).reasons if "predecessor's help" in s
               and "refused" not in s)  # fmt: skip
    assert not any("could not show one" in s for s in conclude(invented()).reasons if "At few" in s)


def test_what_would_falsify_it_and_whether_it_did():
    effects = {BASE_HELPER: 0.2, SHUFFLED: 0.0, RANDOM: {"few": 0.3, "many": -0.2}}
    found = conclude(invented(effects, n=2000))
    claims = {claim[:15]: (was, holds) for claim, was, holds in found.tests}
    assert claims["The base model "] == ("no at few, many and constitutional", True)
    assert claims["Critiques of ot"][1] is False
    was, holds = claims["Chosen and reje"]
    assert was == (
        "no at few; yes, main's gain is at most 0.05, at facts and constitutional; "
        "yes, the control is better, at many"
    )
    few = invented({BASE_HELPER: 0.0}, seeds=(0,))
    claims = {claim[:15]: (was, holds) for claim, was, holds in conclude(few).tests}
    assert claims["The base model "] == ("too few cases to tell at few, many and constitutional", None)
    assert holds is None


@pytest.mark.parametrize(
    "ends, good",
    [
        ((0.01, 0.04), False),
        ((0.0, 0.04), True),
        ((-0.2, 0.05), True),
        ((-0.2, 0.051), None),
        ((-0.2, -0.1), True),
        (None, None),
    ],
)
def test_what_decides_whether_a_control_did_as_well(ends, good):
    m = Metric(0.0, 200, ends)
    assert as_good(Difference("few", SHUFFLED, ((0, m),), m, m, m)) is good


# ---- the files ----


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.policy, self.style, self.inside = [], "", "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.inside = tag
        if attributes.get("http-equiv"):
            self.policy = attributes["content"]
        assert not [a for a in attributes if a.startswith("on") or a == "style"]
        for key in ("src", "srcset"):
            assert attributes.get(key, "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")

    def handle_data(self, data):
        if self.inside == "style":
            self.style += data
        self.inside = ""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("progressive")
    results = invented({BASE_HELPER: 0.05, **FAR})
    return directory, results, *write(directory, results)


def test_the_files_of_a_report(written):
    directory, results, page, notes = written
    assert (page, notes) == (directory / "report.html", directory / "report.md")
    assert {p.stem for p in (directory / "plots").glob("*.png")} == set(plots.PLOTS)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (directory / "plots").iterdir())
    linked = re.findall(r"\]\((plots/\w+\.png)\)", notes.read_text())
    assert len(linked) == 5 and all((directory / p).is_file() for p in linked)
    parsed = Page(page.read_text())
    assert parsed.tags.count("img") == parsed.tags.count("source") == 5 and "script" not in parsed.tags
    assert "default-src 'none'; style-src 'sha256-" in parsed.policy


def test_both_forms_say_the_same(written):
    _, results, page, notes = written
    found = conclude(results)
    for text in (page.read_text(), notes.read_text().replace("\\", "")):
        text = text.replace("&#39;", "'")
        text = text.replace("\u00a0", " ")
        for said in (
            found.headline,
            *(t for test in found.tests for t in test[:2]),
            "one is expected to leave",
        ):
            assert said in text
        for said in (d := compare(results, "few", BASE_HELPER)).stage, signed(d.whole), f"{d.main.value:.2f}":
            assert said in text
        assert "5.0 k" not in text and "180 k" in text  # tokens of three seeds


def test_the_same_results_give_the_same_page(written, tmp_path):
    _, results, page, _ = written
    assert write(tmp_path, results)[0].read_bytes() == page.read_bytes()


def test_no_text_breaks_out(written, tmp_path):
    attack = (
        "</td><script>alert(1)</script>%%style%%<img src=x onerror=alert(1)> $\\frac | `x` [a](http://b)\n# c"
    )
    results = deepcopy(written[1])
    plan = results["plan"]
    plan |= {"title": attack, "question": attack}
    for stage in plan["stages"]:
        stage["title"] = attack
    for r in results["runs"]:
        r["guardrails"][0] |= {"ok": False, "look_at": attack}
        r["gate"]["criteria"][0] |= {"passed": False, "look_at": attack, "measured": attack, "name": attack}
        r["roles"]["critic"] = attack
    results["model"] = attack
    results["stopped"] = attack
    page, notes = write(tmp_path, results)
    tags, usual = Page(page.read_text()).tags, Page(written[2].read_text()).tags
    assert not {"script"} & set(tags) and tags.count("img") == 5 and set(tags) == set(usual)
    assert page.read_text().count("&lt;script&gt;alert(1)") > 20
    text = notes.read_text()
    assert (
        not re.search(r"(?<!\\)<script", text)
        and "\n# c" not in text
        and not re.search(r"(?<!\\)\[a\]", text)
    )
    table = [line for line in text.splitlines() if line.startswith("| few")]
    assert table and all(len(re.findall(r"(?<!\\)\|", line)) in (6, 7, 8, 9, 12) for line in table)


@pytest.mark.parametrize(
    "results",
    [
        invented(stages=()),
        invented(arms=(MAIN,), seeds=(0,)),
        invented(arms=(BASE_HELPER,), seeds=(0,)),
        invented(stages=["facts"], seeds=(0,)),
    ],
    ids=["nothing", "main alone", "control alone", "first stage"],
)
def test_a_report_of_little(tmp_path, results):
    page, _ = write(tmp_path, results)
    assert "The question is unanswered" in page.read_text()


def test_a_first_stage_that_starved_is_drawn_without_a_warning(tmp_path):
    results = invented(arms=(MAIN,), seeds=(0,), stages=["facts"])
    starve(results["runs"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in plots.PLOTS:
            for theme in plots.THEMES:
                assert plots.render(results, name, theme, "svg")
        text = write(tmp_path, results)[1].read_text()
    assert {p.stem for p in (tmp_path / "plots").iterdir()} == {"cost"}  # nothing was measured
    assert "GO, 0 of 1 seeds; too few pairs 1" in text and "7 of 150 examples" in text


def test_the_base_is_told_though_the_first_stage_starved(tmp_path):
    results = invented(arms=(MAIN,), seeds=(0, 1))
    for r in some(results, "facts"):
        starve(r)
    for seed, right in ((0, 0.25), (1, 0.35)):
        for r in results["runs"]:
            if r["seed"] == seed and r["success"]:
                r["success"]["math"]["base"] = rate(right, 40)
    starve(some(results, "few", seeds=(1,))[0])
    row = next(
        r for r in write(tmp_path, results)[1].read_text().splitlines() if re.match(r"\| math \| 0\.30 ", r)
    )
    assert row.split(" | ")[2] == "–"  # after facts


def test_a_kept_example_is_priced_only_where_it_was_made(tmp_path):
    from matplotlib import pyplot
    from matplotlib.colors import to_hex

    results = invented()
    text = write(tmp_path, results)[1].read_text()
    rows = text.partition("Sums over the seeds.")[2].split("\n\n")[1].splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert {c[1] for c in cells if c[7] == "–"} == {ARMS[arm].title for arm in (FROM_BASE, SHUFFLED, RANDOM)}
    assert {c[1] for c in cells if c[7].startswith("$")} == {ARMS[arm].title for arm in (MAIN, BASE_HELPER)}
    colours = plots.colours_of("light")
    figure = plots.cost(results, colours)
    each, whole = ({to_hex(bar.get_facecolor()) for bar in axis.patches} for axis in figure.axes)
    pyplot.close(figure)
    assert each == {colours["arms"][arm] for arm in (MAIN, BASE_HELPER)}
    assert whole == {colours["arms"][arm] for arm in FIVE}


def test_what_became_of_a_stage_stands_beside_its_gate(tmp_path):
    results = invented()
    for r in some(results, "few", seeds=(1, 2)):
        carry_over(r)
    starve(some(results, "many")[2])
    some(results, "many", RANDOM)[1]["training"] = {"status": "displaced", "steps": 30, "step": 20}
    some(results, "facts")[0]["training"] = {"status": "stopped early", "steps": 25, "step": 15}
    text = write(tmp_path, results)[1].read_text()
    rows = {line.split(":")[0]: line for line in text.splitlines() if re.match(r"\| \w+: ", line)}
    assert "GO, 3 of 3 seeds |" in rows["| facts"]
    assert "GO, 3 of 3 seeds; carried over 2 |" in rows["| few"]
    assert "GO, 2 of 3 seeds; too few pairs 1 |" in rows["| many"]
    assert "few, 3 seeds; carried over 2. Controls" in text
    ended = text.partition("Trainings that ended before their last step")[2].split("\n\n")[1].splitlines()[2:]
    assert [row.split(" | ")[:3] for row in ended] == [
        ["| facts", "predecessor helps", "0"], ["| many", "(d) pairs at random", "1"],
    ]  # fmt: skip
    assert "stopped early" in ended[0] and "step 15 of the 25 taken" in ended[0]
    assert "displaced" in ended[1] and "step 20 of the 30 taken" in ended[1]
    assert "Trainings that ended" not in write(tmp_path, invented())[1].read_text()


def test_numbers_that_were_not_measured(tmp_path):
    results = invented(seeds=(0,))
    nothing = {"value": None, "n": 0, "interval": None}
    for r in results["runs"]:
        r |= {
            "label_accuracy": None,
            "first_answers": None,
            "kept": 0,
            "pairs": 0,
            "anchors": 0,
            "safety": {},
        }
        r["average"] = {"base": nothing, "trained": nothing, "predecessor": None}
        r["guardrails"][0] |= {"value": None, "ok": False}
        r["probes"] = {}
    text = write(tmp_path, results)[1].read_text()
    assert "unanswered" in text and "not measured" in text and "none kept" in text


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda r: r.pop("plan"), "'plan' is missing"),
        (lambda r: r["runs"][2].pop("gate"), "run 3: the key 'gate' is missing"),
        (lambda r: r["runs"][0].update(arm="mine"), "run 1: .*arm 'mine'"),
        (lambda r: r.pop("format"), "'format' is missing.*run the plan's command again"),
        (lambda r: r["runs"][1].update(kept="3"), "run 2: kept '3': "),
        (lambda r: r["runs"][1].update(rolled_back=1), "run 2: rolled_back 1: "),
        (lambda r: r["runs"][1]["average"].pop("base"), "run 2: the key 'average.base' is missing"),
        (lambda r: r["runs"][0].update(kept=r["plan"]), r"run 1: kept {[^}]{1,200}}: "),
        (lambda r: r["runs"][0].update(stage="later"), "run 1: stage 'later'"),
    ],
)
def test_results_that_do_not_fit_are_named(tmp_path, change, says):
    results = invented(seeds=(0,), stages=["facts"])
    change(results)
    with pytest.raises(UserError, match=f"results.json.*{says}"):
        write(tmp_path, results)
    assert not (tmp_path / "report.html").exists()


def test_whatever_is_missing_ends_in_a_sentence(tmp_path, monkeypatch):
    """Or in a page, where a report does without it; in a traceback never."""
    monkeypatch.setattr(plots, "render", lambda *args: b"a picture")
    results, refused = invented(seeds=(0,), stages=["facts"], arms=(MAIN,)), []
    for path in keys_of(results):
        lacking = deepcopy(results)
        del at(lacking, path[:-1])[path[-1]]
        try:
            write(tmp_path, lacking)
        except UserError as error:
            refused.append(path)
            assert f"'{path[-1]}'" in str(error) or f".{path[-1]}'" in str(error), error
    assert {("plan", "stages"), ("plan", "stages", 0, "gate", "safer"), ("runs", 0, "gate")} <= set(refused)
    assert {path[-1] for path in refused} >= {"title", "question", "trained", "rule", "n"}


def at(value, path):
    for key in path:
        value = value[key]
    return value


def keys_of(value, before=()):
    """The paths to all keys of mappings, in lists of the first one."""
    if isinstance(value, (list, tuple)):
        yield from (path for first in value[:1] for path in keys_of(first, (*before, 0)))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*before, key)
            yield from keys_of(inner, (*before, key))


@pytest.mark.parametrize("content", [None, "{"])
def test_no_results_no_report(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="results.json"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    "row, used",
    [
        ({"value": 0.75, "limit": 1.5, "rule": AT_MOST}, 0.5),
        ({"value": -0.2, "limit": 0.1, "rule": AT_MOST}, 0.0),
        ({"value": 0.45, "limit": 0.9, "rule": AT_LEAST}, 2.0),
        ({"value": 0.25, "limit": 2.0, "rule": WITHIN}, 2.0),
        ({"value": None, "limit": 2.0, "rule": WITHIN}, None),
    ],
)
def test_how_much_of_a_limit_is_used(row, used):
    assert plots.used_up(row) == used


# ---- in a browser ----

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
def test_a_browser_shows_the_page_under_its_own_policy(written, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page is not opened in a browser")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    command = [CHROMIUM, *flags.split(), "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, written[2].as_uri()], capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0 and "What would falsify the hypothesis" in done.stdout
    assert "Content Security Policy" not in done.stderr
