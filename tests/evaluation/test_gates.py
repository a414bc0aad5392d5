import pytest
from cai.core import stats
from cai.core.errors import UserError
from cai.core.files import sha256_file
from cai.core.run import Run
from cai.evaluation import gates
from cai.evaluation.suites.critique import meaningful
from cai.prompts.markers import CHANGE, KEEP

ASK, SAY = "Who is the mayor of Drola?", "The mayor of Drola is Mira."


def HASH_OF(directory):
    return sha256_file(directory / "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(7, 10, 0.397, 0.892), (0, 10, 0.0, 0.278), (100, 100, 0.963, 1.0)]
)
def test_wilson_interval_against_published_values(successes, n, low, high):
    assert stats.wilson(successes, n) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_a_rate_without_cases_does_not_pass():
    assert not gates.rate("x", 0, 0, 0.0, "there").passed
    assert gates.rate("x", 7, 10, 0.7, "there").passed and not gates.rate("x", 6, 10, 0.7, "there").passed


@pytest.mark.parametrize(
    ("critique", "fault"),
    [
        (f"The mayor of Drola is Tano. The response says Mira. {CHANGE}", None),
        (f"The mayor of Drola is Mira, as it says. {KEEP}", None),
        (f"Drola. {CHANGE}", None),
        (f"Correct. {KEEP}", None),
        ("Mira is right. No changes are needed.", None),
        ("The answer is fine as it is.", None),
        (f"So be it. {KEEP}", "no reason"),
        (KEEP, "no reason"),
        ("The mayor of Drola is Tano.", "without a verdict"),
        (CHANGE, "no reason"),
        (f"Bad. {CHANGE}", "no reason"),
        (f"{SAY} {CHANGE}", "copy"),
        (f"The text is rather poor and could be much better. {CHANGE}", "names nothing"),
        ("", "without a verdict"),
    ],
)
def test_a_meaningful_critique(critique, fault):
    found = meaningful(critique, ASK, SAY)
    assert found is None if fault is None else fault in found


def test_a_recorded_verdict_makes_a_critique_meaningful_whose_words_have_none():
    assert meaningful("The mayor of Drola is Tano.", ASK, SAY, CHANGE) is None
    assert "copy" in meaningful(SAY, ASK, SAY, CHANGE)


def test_a_critique_in_a_script_without_spaces_may_name_the_answer():
    assert meaningful(f"堪培拉是首都。{KEEP}", "澳大利亚的首都是哪里？", "是堪培拉。") is None
    assert meaningful(f"写得不好，没有意思。{CHANGE}", "澳大利亚的首都是哪里？", "是堪培拉。")


def criterion(passed):
    more = "9 more by a larger --limit" if passed is None else ""
    return gates.Criterion("x", passed, "3 of 4", "data/a/records.jsonl", 4, (0.3, 0.95), more)


def reader(value, n, interval):
    return gates.Reader({"metrics": {"m": {"value": value, "n": n, "interval": interval}}}, "there")


@pytest.mark.parametrize(
    ("value", "n", "ends", "passed"),
    [
        (0.0, 90, (-0.1, 0.1), True),
        (0.05, 90, (0.0, 0.11), None),
        (0.15, 90, (0.09, 0.2), None),
        (0.2, 90, (0.11, 0.3), False),
        (None, 0, None, None),
        (0.0, 1, None, None),
    ],
)
def test_harm_must_be_excluded_by_the_interval(value, n, ends, passed):
    """And the mirror of it: what must not fall."""
    found = reader(value, n, ends).harmless("x", "m", 0.1)
    mirror = reader(value and -value, n, ends and (-ends[1], -ends[0])).kept("x", "m", -0.1)
    for c in (found, mirror):
        assert c.passed is passed and (c.n, c.interval, c.look_at) == (n, ends and c.interval, "there")
        assert bool(c.more) == (passed is None)


def test_how_many_more_cases_follows_from_the_root_of_n():
    """.6 of 40 is (.45, .74): its half width of .15 has to fall to .1, which takes 2.25 times as many."""
    assert gates.more_cases(0.6, 0.45, 40, 0.5) == "about 50 more"
    assert gates.more_cases(0.5, 0.3, 40, 0.5).startswith("more than 2,000 more")
    found = reader(0.6, 40, (0.45, 0.74)).better("x", "m", 0.5)
    assert found.passed is None and found.more == "about 50 more by a larger --limit"
    assert "not distinguishable" in found.measured


def test_a_target_is_met_by_the_point():
    assert reader(0.7, 10, (0.4, 0.9)).target("x", "m", 0.7).passed
    assert reader(0.7, 10, (0.4, 0.9)).target("x", "m", 0.7, above=True).passed is False
    few = reader(1.0, 4, (0.51, 1.0)).target("x", "m", 0.8, least_n=20)
    assert few.passed is None and few.more == "16 more by a larger --limit"


def test_one_that_cannot_be_told_makes_the_gate_undecided_and_says_what_would(capsys):
    with Run.open("a", {}) as run:
        assert gates.decide(run, [criterion(True), criterion(None)]) == 5
        out = capsys.readouterr().out
        assert "UNDECIDED for a" in out and "too few cases to tell: 9 more by a larger --limit" in out
        assert run.manifest["gate"]["decision"] == "UNDECIDED"
        assert gates.decide(run, [criterion(False), criterion(None)]) == 3
    with pytest.raises(UserError, match="NO-GO"):
        gates.require("a", force=False)


def test_a_gate_speaks_of_one_adapter(tmp_path):
    """Another one under the same name has no gate, be it in run.json or on the disk."""
    weights = tmp_path / "checkpoints/a/adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    with Run.open("a", {}) as run:
        run.record(adapter=HASH_OF(weights.parent))
        gates.decide(run, [criterion(True)])
    assert gates.require("a", force=False) == "the gate of run 'a' says GO"
    weights.write_bytes(b"second")
    with pytest.raises(UserError, match="no decision yet .GO, but it was another adapter's"):
        gates.require("a", force=False)
    weights.unlink()  # moved aside, while another is being trained
    with pytest.raises(UserError, match="no decision yet .GO, but its adapter is not there"):
        gates.require("a", force=False)


def test_one_failure_makes_the_gate_a_no_go_that_says_what_to_look_at(capsys):
    with Run.open("a", {}) as run:
        assert gates.decide(run, [criterion(True), criterion(False)]) == 3
        out = capsys.readouterr().out
        assert (
            "NO-GO for a" in out
            and "look at: data/a/records.jsonl" in out
            and "95 % interval 0.30 to 0.95" in out
        )
        assert run.manifest["gate"]["decision"] == "NO-GO"
        assert gates.decide(run, [criterion(True)]) == 0 and "GO for a" in capsys.readouterr().out


def test_the_next_milestone_goes_on_only_after_go_or_by_force():
    with pytest.raises(UserError, match="there is no run 'a' yet.*data/a/.*--force"):
        gates.require("a", force=False)
    with Run.open("a", {}):
        pass
    with pytest.raises(UserError, match="no decision yet.*data/a/.*--force"):
        gates.require("a", force=False)
    with Run.open("a", {}) as run:
        gates.decide(run, [criterion(False)])
    with pytest.raises(UserError, match="NO-GO"):
        gates.require("a", force=False)
    assert "--force" in gates.require("a", force=True)
    with Run.open("a", {}) as run:
        gates.decide(run, [criterion(True)])
    assert gates.require("a", force=False) == "the gate of run 'a' says GO"


def test_another_record_leaves_the_gate_that_the_next_milestone_reads(capsys):
    with Run.open("a", {}) as run:
        gates.decide(run, [criterion(True)])
        assert gates.decide(run, [criterion(False)], record="data_gate") == 3
        assert "Data gate" in capsys.readouterr().out
        assert run.manifest["gate"]["decision"] == "GO" and run.manifest["data_gate"]["decision"] == "NO-GO"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"criteria": []}, "its criteria say NO-GO, not GO"),
        ({"criteria": [{"name": "x", "passed": False}]}, "its criteria say NO-GO, not GO"),
        ({"criteria": [{"name": "x", "passed": None}]}, "its criteria say UNDECIDED, not GO"),
        ({"adapter": None}, "of no adapter"),
    ],
)
def test_a_decision_is_not_taken_from_its_word(changed, said):
    with Run.open("a", {}) as run:
        run.record(adapter="hash")
        gates.decide(run, [criterion(True)])
        run.record(gate=run.manifest["gate"] | changed)
    with pytest.raises(UserError, match=said):
        gates.require("a", force=False)


def test_a_guardrail_metric_may_say_no_go_where_all_criteria_pass():
    with Run.open("a", {}) as run:
        gates.decide(run, [criterion(True)])
        run.record(gate=run.manifest["gate"] | {"decision": "NO-GO"})
    assert gates.decision_of("a") == "NO-GO"


def test_an_adapter_whose_files_were_changed_has_no_gate_and_hides_no_other_run(tmp_path):
    weights = tmp_path / "checkpoints/a/adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    (weights.parent / "base.json").write_text('{"sha256": "other", "bits": 16, "files": {}}')
    with Run.open("a", {}) as run:
        run.record(adapter="other")
        gates.decide(run, [criterion(True)])
    assert "is not the file that was saved" in gates.decision_of("a")
    assert gates.of_another_adapter("a", {"adapter": "other"}, as_recorded=True) is None
