import argparse
import itertools
import json
import subprocess
import sys

import generate_full
import pytest
from cai.core.cli import BUDGET
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.jsonl import append
from cai.core.ledger import read_ledger
from cai.core.run import Run
from cai.costs import forecast as forecasts
from cai.costs.forecast import accuracy, forecast
from cai.costs.rates import rates
from cai.costs.units import SERVER, Weights, add_units, local, milestone_units
from cai.models.engines import ELSEWHERE
from cai.models.registry import REGISTRY

BIG, SANDBOX = REGISTRY["Qwen/Qwen2.5-32B"], REGISTRY["sandbox"]
GPU = "Test A100"
NF4 = Weights("local", 4)


def row(step, seconds, examples=None, run="mvp", model=BIG.name, bits=4, principles=1, device=GPU, **more):
    return {
        "time": "2026-01-02T00:00:00+0000", "run": run, "step": step, "seconds": seconds, "dollars": 0.0,
        "examples": examples, "prompt_tokens": 0, "completion_tokens": 0,
        "model": model, "bits": bits, "principles": principles, "device": device, **more,
    }  # fmt: skip


def plan(examples=100, ledger=(), *, spec=BIG, device=GPU, guard=None, **more):
    units = milestone_units(examples, guard=guard is not None, **({"principles": 1, "steps": 100} | more))
    known = {"ledger": ledger, "device": device, "hourly_rate": 1.74}
    return forecast(spec, local(4, units), examples=examples, guard=guard, **known)


def steps(f):
    return {line.step: line for line in f.lines}


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    return tmp_path


def test_without_measurements_every_rate_is_marked_as_assumed():
    f = plan()
    assert {line.source for line in f.lines} == {"assumed"}
    shown = f.render()
    assert shown.count("assumed") >= len(f.lines) and "Qwen2.5-32B on one A100 80GB" in shown
    assert 1.0 < f.dollars < 4.0 and f.dollars == pytest.approx(f.seconds / 3600 * 1.74)
    assert steps(f)["training"].seconds == 1500 and steps(f)["loading"].seconds == 180


def test_measured_rates_are_those_of_the_latest_run_and_scale_with_the_examples():
    ledger = [
        row("answer", 999.0, 10, run="old"),
        row("answer", 20.0, 40, prompt_tokens=4000, completion_tokens=800),
        row("answer", 40.0, 80, prompt_tokens=8000, completion_tokens=1600),
    ]
    answer = steps(plan(5000, ledger))["answer"]
    assert (answer.seconds, answer.prompt_tokens, answer.completion_tokens) == (2500, 500_000, 100_000)
    assert answer.source == "measured in run mvp, n 120"
    assert steps(plan(5000, ledger))["critique"].source == "assumed"


@pytest.mark.parametrize(
    "other", [{"model": "sandbox"}, {"bits": 16}, {"device": "cpu"}, {"examples": None}, {"engine": "vllm"}]
)
def test_rates_of_another_model_engine_precision_or_machine_do_not_count(other):
    ledger = [row("answer", 20.0, **({"examples": 40} | other))]
    assert rates(ledger, BIG, NF4, GPU)["answer"].source == "assumed"


def test_rates_of_somebody_elses_servers_hold_whatever_this_machine_is():
    ledger = [row("answer", 20.0, 40, engine="server", bits=16, device=ELSEWHERE)]
    for here in ("cpu", GPU):
        assert rates(ledger, BIG, Weights(SERVER, 16), here)["answer"].seconds == 0.5
        assert not rates(ledger, BIG, Weights("local", 16), here)["answer"].measured


def test_servers_elsewhere_are_no_machine_that_a_forecast_is_for(monkeypatch):
    monkeypatch.setattr(forecasts.machine, "this_device", lambda: "cpu")
    served = row("answer", 20.0, 40, engine="server", bits=16, device=ELSEWHERE)
    assert forecasts.device_of(BIG, [served]) == forecasts.A100.name
    assert forecasts.device_of(BIG, [row("answer", 20.0, 40), served]) == GPU


def test_principles_multiply_critiques_and_comparisons():
    ledger = [row("critique", 20.0, 10, principles=2), row("judge", 30.0, 10, principles=2)]
    found = rates(ledger, BIG, NF4, GPU)
    assert found["critique"].seconds == 1.0 and found["judge"].seconds == 1.0
    one, four = (steps(plan(10, ledger, principles=n)) for n in (1, 4))
    assert (one["critique"].units, four["critique"].units) == (10, 40)
    assert (one["judge"].seconds, four["judge"].seconds) == (20.0, 50.0)
    assert one["answer"].units == four["answer"].units == 10


def test_an_evaluation_is_all_its_rows_since_the_model_was_loaded():
    ledger = [
        row("loading", 100.0), row("evaluation: answers", 500.0), row("evaluation: judge", 1.0),
        row("loading", 80.0), row("evaluation: answers", 50.0), row("evaluation: judge", 10.0),
    ]  # fmt: skip
    found = rates(ledger, BIG, NF4, GPU)
    assert found["evaluation"].seconds == 60.0 and found["loading"].seconds == 90.0


def test_steps_that_a_run_leaves_out_cost_nothing():
    f = plan(judge=False, generated=False, steps=0)
    assert set(steps(f)) == {"loading", "answer", "critique", "revision", "evaluation"}
    assert "checkpoint" not in f.disk
    guarded = steps(plan(guard=REGISTRY["meta-llama/Llama-Guard-3-8B"]))["guard"]
    assert 0 < guarded.seconds < 100 * 1.3 and "for its size" in guarded.source


def test_other_sizes_are_scaled_and_unknown_ones_are_said_to_be():
    small = steps(plan(spec=REGISTRY["Qwen/Qwen2.5-7B"]))["training"]
    assert small.seconds == pytest.approx(1500 * 7.62 / 32.76) and "times 0.233" in small.source
    from cai.models.registry import resolve

    assert "as if it were as large" in steps(plan(spec=resolve("some/model")))["training"].source


def test_work_in_two_precisions_is_one_forecast_at_the_rates_of_each():
    ledger = [row("loading", 10.0, bits=4), row("loading", 30.0, bits=8), row("answer", 20.0, 10, bits=8)]
    data, training = local(8, {"loading": 1, "answer": 50}), local(4, {"loading": 2, "training": 10})
    f = forecast(BIG, add_units([data, training]), examples=50, hourly_rate=3600.0, ledger=ledger, device=GPU)
    assert f.seconds_of(data) == 130.0 and f.seconds_of(local(4, {"loading": 2})) == 20.0
    assert f.seconds == f.dollars == pytest.approx(f.seconds_of(data) + f.seconds_of(training))
    assert {(x.step, x.bits): x.units for x in f.lines} == {
        ("loading", 8): 1, ("answer", 8): 50, ("loading", 4): 2, ("training", 4): 10,
    }  # fmt: skip
    assert f.disk["weights"][0] == pytest.approx((32.76 * 2 + 32.76 * 0.6) * 1e9)  # of two repositories
    stored = json.loads(json.dumps(f.as_dict()))
    assert "rates" not in stored and stored["totals"]["seconds"] == pytest.approx(f.seconds)
    assert {line["bits"] for line in stored["lines"]} == {4, 8}
    assert add_units([data, data, training])[Weights("local", 8)] == {"loading": 2, "answer": 100}
    assert data[Weights("local", 8)]["answer"] == 50


def test_disk_is_measured_where_an_earlier_run_lies(output):
    assert plan().disk["examples"] == (1_200_000, "assumed")
    (output / "data/mvp").mkdir(parents=True)
    (output / "data/mvp/records.jsonl").write_text("x" * 99 + "\n" + "x" * 99 + "\n")
    (output / "data/mvp/report.html").write_text("x" * 200)
    (output / "checkpoints/mvp").mkdir(parents=True)
    (output / "checkpoints/mvp/adapter_model.safetensors").write_text("x" * 7)
    disk = plan(5000, [row("loading", 1.0)]).disk
    assert disk["examples"] == (5000 * 200, "measured in run mvp, n 2")
    assert disk["checkpoint"] == (7, "measured in run mvp")
    assert plan().memory_gb[0] < 80 and "none" in plan(device="cpu").render().splitlines()[-1]


def test_the_ledger_that_runs_write_is_the_one_that_is_read(monkeypatch):
    assert read_ledger() == []
    ticks = itertools.count(0, 2.5)
    monkeypatch.setattr("cai.core.run.time.perf_counter", lambda: next(ticks))
    with Run.open("mvp", {"bits": 16, "principles": 2}) as run:
        run.record(model="sandbox", device="cpu")
        run.hourly_rate = 3600.0
        with run.step("answer") as step:
            step.examples = 8
        assert [r["engine"] for r in read_ledger()] == ["local"]
        found = rates(read_ledger(), SANDBOX, Weights("local", 16), "cpu")
        assert found["answer"].source == "measured in run mvp, n 8"
        units = local(16, milestone_units(8, principles=2, steps=1))
        f = forecast(SANDBOX, units, examples=8, hourly_rate=3600.0, device="cpu")
        run.record(forecast=f.as_dict())
        stored = json.loads((run.data / "run.json").read_text())["forecast"]
        factors, table = accuracy(stored, "mvp", read_ledger())
        assert factors["answer"] == 1.0 and f.dollars_of("answer") == 2.5
        assert "forecast against what run mvp took" in table and "critique" in table
        run.record(engine="vllm", bits=8)  # from now on a server works for the run
        with run.step("answer") as step:
            step.examples = 8
        assert rates(read_ledger(), SANDBOX, Weights("vllm", 8), "cpu")["answer"].measured
        assert rates(read_ledger(), SANDBOX, Weights("local", 16), "cpu")["answer"].seconds == 0.3125
        assert not rates(read_ledger(), SANDBOX, Weights("local", 8), "cpu")["answer"].measured


def test_rows_from_before_there_were_engines_are_the_local_ones():
    ledger = [row("answer", 20.0, 10)]
    assert "engine" not in ledger[0] and rates(ledger, BIG, NF4, GPU)["answer"].seconds == 2.0
    assert not rates(ledger, BIG, Weights("vllm", 4), GPU)["answer"].measured


def test_accuracy_says_how_far_off_each_step_was_and_leaves_older_runs_out(output):
    stored = plan(ledger=[row("answer", 100.0, 100)]).as_dict()
    with Run.open("mvp", {}) as run:
        run.record(started="2026-01-02T00:00:00+0000")
    ledger = [
        row("answer", 9999.0, 100, time="2026-01-01T00:00:00+0000"),
        row("answer", 150.0, 50), row("answer", 150.0, 50), row("evaluation: judge", 2100.0),
        row("evaluation: answers", 900.0), row("endings", 5.0), row("answer", 77.0, run="other"),
    ]  # fmt: skip
    factors, table = accuracy(stored, "mvp", ledger)
    assert factors["answer"] == 3.0 and "training" not in factors
    expected = {line["step"]: line["seconds"] for line in stored["lines"]}
    assert factors["evaluation"] == pytest.approx(3000 / expected["evaluation"])
    assert factors["all"] == pytest.approx(3305 / (expected["answer"] + expected["evaluation"]))
    assert any(line.split()[0] == "endings" for line in table.splitlines())


ENGINE = {"engine": "local", "engine_bits": None, "deterministic": False, "fresh": False}


def full(**flags):
    given = {"model": "sandbox", "bits": None, "limit": 5000, "principles": 1, "source": None}
    given |= {"pairs": None, "no_judge": False, "hourly_rate": None, "guard": "auto", "set": []}
    given |= ENGINE | {"run": "full"}
    return generate_full.forecast(argparse.Namespace(**given | flags), "mvp")


def test_the_steps_of_m3_follow_from_the_yield_of_m2(output):
    ahead, how = full()
    assert steps(ahead)["training"].units == 1000 and "0.80 an example (assumed)" in how
    with Run.open("mvp", {}) as run:
        counts = {"pairs": {"count": 50, "held_out": 10}, "counts": {"records": 100}}
        run.record(model="sandbox", **counts)
        ahead, how = full()
        assert steps(ahead)["training"].units == 500  # 2 passes over 0.4 * 5000 pairs, 8 at a time
        assert "2,000 pairs, 0.40 an example (measured in run mvp, n 100)" in how
        run.record(model="other/model")
    assert "assumed" in full()[1]


def test_the_guard_is_part_of_the_forecast_of_m3():
    assert steps(full()[0])["guard"].units == 5000
    assert "guard" not in steps(full(guard="none")[0])
    with pytest.raises(UserError, match="nonsense"):
        full(guard="nonsense")


def test_after_m2_the_forecast_is_that_of_m3s_defaults_at_m2s_rates(output):
    (output / "logs").mkdir()
    measured = row("answer", 10.0, 100, model="sandbox", bits=16, device="cpu")
    append(output / "logs/ledger.jsonl", [measured])
    flags = {"model": "sandbox", "bits": None, "limit": 100, "principles": 2, "source": "x.csv"}
    flags |= {"no_judge": True, "hourly_rate": None, "set": [], "run": "mvp", "steps": 120} | ENGINE
    said = generate_full.next_milestone(argparse.Namespace(**flags))
    assert "forecast for 5000 examples" in said and "judge" in said and "instructions" in said
    assert "8 min" in next(x for x in said.splitlines() if "measured in run mvp" in x)  # 500 s


def test_a_script_that_reaches_its_budget_has_a_status_of_its_own():
    code = (
        "import sys; sys.path.insert(0, 'scripts'); from cai.core.cli import cli\n"
        "from cai.core.errors import BudgetReached\n"
        "def main(): raise BudgetReached('enough')\ncli(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (BUDGET, "budget: enough\n") and BUDGET == 4


def test_a_damaged_ledger_names_its_line(output):
    (output / "logs").mkdir()
    append(output / "logs/ledger.jsonl", [row("answer", 1.0), {"run": "x"}])
    with pytest.raises(UserError, match="line 2.*'step' is missing"):
        read_ledger()
