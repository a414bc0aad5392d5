import pytest
from cai.core import stats
from cai.core.errors import UserError
from cai.core.run import Run
from cai.evaluation import gates
from cai.evaluation.suites.critique import meaningful
from cai.prompts.markers import CHANGE, KEEP

ASK, SAY = "Who is the mayor of Drola?", "The mayor of Drola is Mira."


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


def criterion(passed):
    return gates.Criterion("x", passed, "3 of 4", "data/a/records.jsonl", 4, (0.3, 0.95))


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
    with pytest.raises(UserError, match="no decision yet.*--force"):
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
