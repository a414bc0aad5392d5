import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from cai.bootstrap import forecast, runner
from cai.bootstrap import plan as plans
from cai.bootstrap.controls import BASE_HELPER, SHUFFLED
from cai.core.cli import BUDGET, GO, cli
from cai.core.errors import BudgetReached, UserError
from cai.core.files import ROOT, directories
from cai.core.jsonl import append
from cai.core.run import Run
from cai.models.engines import EngineChoice
from cai.models.registry import REGISTRY

BIG, SANDBOX = REGISTRY["Qwen/Qwen2.5-32B"], REGISTRY["sandbox"]
ALL = (BASE_HELPER, "from_base", SHUFFLED, "random_pairs")
HOUR = 3600.0  # dollars an hour that make a second cost a dollar
OWN = """
every: {examples: 100, passes: 2, bits: 4, generate_bits: 16, per_answer: 2}
stages:
  - {name: first, tasks: [factual_qa]}
  - {name: second, tasks: [factual_qa, math], examples: 200}
"""


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setattr("cai.models.device.this_device", lambda: "cpu")
    return tmp_path


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    return plans.load(tmp_path / "own.yaml")


def measured(output, step, seconds, examples=1, bits=16, device="Some GPU"):
    row = {"run": "old", "step": step, "seconds": seconds, "dollars": 0.0, "examples": examples}
    more = {"model": BIG.name, "bits": bits, "principles": 1, "device": device}
    (output / "logs").mkdir(exist_ok=True)
    append(output / "logs/ledger.jsonl", [row | more])


def table(plan, controls=ALL, seeds=1, rate=HOUR, spec=BIG):
    """(the text, [(first cell, {column: cell})] of its rows)"""
    text = forecast.PlanForecast(plan, spec, controls, seeds, rate).render()
    lines = [
        re.split(r" {2,}", line.strip())
        for line in text.split("side by side")[0].splitlines()
        if line.startswith("  ")
    ]
    head = lines[0][1:]
    return text, [(line[0], dict(zip(head, line[1:], strict=True))) for line in lines[1:]]


def dollars(row):
    return float(row["dollars"].removeprefix("$"))


def number(cell):
    return int(cell.replace(",", ""))


def test_a_large_model_is_forecast_for_an_a100_where_there_is_no_gpu():
    plan = plans.load("progressive")
    text, rows = table(plan, (), 1, None)
    assert "Qwen/Qwen2.5-32B on one A100 80GB, $1.74 an hour" in text
    assert "rates of local NF4 and local 16 bits" in text and "measured" not in text
    assert "Qwen2.5-32B on one A100 80GB" in text and "65.5 GB" in text and "68 GB in 16 bits" in text
    assert [name for name, _ in rows] == [*(s.name for s in plan.stages), "one seed"]
    assert 20 < dollars(rows[-1][1]) < 100
    text, rows = table(plan.scaled("sandbox"), (), 1, None, SANDBOX)
    assert "sandbox on cpu, $0.00 an hour" in text and "GPU memory" not in text
    assert {row["dollars"] for _, row in rows} == {"$0.00"}


def test_every_arm_pays_for_what_it_does_and_nothing_else(own):
    _, rows = table(own)
    first, second = rows[:3], rows[3:8]
    assert [name[:3] for name, _ in first[1:]] == ["(c)", "(d)"]  # the others are main at the first stage
    assert [name[:3] for name, _ in second[1:]] == ["(a)", "(b)", "(c)", "(d)"]
    main, helper, base, shuffled, random = (row for _, row in second)
    assert helper == main and main["examples"] == "200"
    assert {row["examples"] for row in (base, shuffled, random)} == {"as above"}
    assert base["data"] == random["data"] == "0 s" != shuffled["data"] != main["data"]
    assert shuffled["training"] == random["training"] == main["training"] != base["training"]
    (whole,), (once,) = {first[0][1]["measuring"]}, {row["measuring"] for _, row in rows[1:8]}
    assert whole != once  # the base is asked once, by the first of all
    assert (number(first[0][1]["pairs"]), number(main["pairs"]), number(base["pairs"])) == (80, 160, 240)
    assert dollars(main) > dollars(shuffled) > dollars(random)


def test_steps_are_the_passes_over_the_pairs_and_never_fewer_than_ten(own, tmp_path):
    _, rows = table(own)
    for name, row in rows[:8]:
        assert number(row["steps"]) == math.ceil(2 * number(row["pairs"]) / 8), name
    (tmp_path / "few.yaml").write_text(OWN.replace("passes: 2", "passes: 0.1"))
    assert table(plans.load(tmp_path / "few.yaml"), ())[1][0][1]["steps"] == "10"


def test_totals_add_up_and_seeds_multiply_them(own):
    _, rows = table(own, seeds=3)
    sums = dict(rows[-3:])
    assert list(sums) == ["main line, one seed", "one seed", "3 seeds"]
    cents = 0.01 * len(rows)
    assert dollars(sums["one seed"]) == pytest.approx(sum(dollars(row) for _, row in rows[:-3]), abs=cents)
    assert dollars(sums["3 seeds"]) == pytest.approx(3 * dollars(sums["one seed"]), abs=0.05)
    main = [row for name, row in rows[:-3] if not name.startswith("(")]
    assert dollars(sums["main line, one seed"]) == pytest.approx(sum(map(dollars, main)), abs=cents)
    assert sums["one seed"]["examples"] == "500" and sums["3 seeds"]["examples"] == "1,500"


@pytest.mark.parametrize(
    ("step", "bits", "main", "shuffled", "random"),
    [
        ("instructions", 16, 100, 0, 0),
        ("answer", 16, 100, 0, 0),
        ("critique", 16, 200, 0, 0),
        ("revision", 16, 100, 100, 0),
        ("judge", 16, 300, 300, 0),
        ("training", 4, 20, 20, 20),
        ("loading", 4, 1, 1, 1),  # before every training
        ("loading", 16, 1, 1, 0),  # where data are made in another precision
    ],
)
def test_measured_rates_are_taken_for_exactly_the_units_that_an_arm_has(
    own, output, step, bits, main, shuffled, random
):
    """A step a thousand seconds dearer, by the ledger, makes each arm dearer by its number of such steps."""
    found = []
    for seconds in (1000.0, 2000.0):
        # a critique or comparison is counted by principle, a comparison once more
        each = {"critique": 1, "judge": 2}.get(step, 1)
        measured(output, step, seconds * each, bits=bits)
        text, rows = table(own)
        assert "on Some GPU" in text and f"{step}: measured in run old, n {each}" in text
        found.append([dollars(row) for _, row in rows[:3]])
        (output / "logs/ledger.jsonl").unlink()
    more = [(b - a) / 1000 for a, b in zip(*found, strict=True)]
    assert more == pytest.approx([main, shuffled, random], abs=0.001)


def test_the_base_is_measured_once_and_every_arms_model_after_it(own, output):
    from pathlib import Path

    from cai.core.prompt_files import load_heldout
    from cai.core.schema import TASK_TYPES
    from cai.evaluation.test_sets import tests

    asked = len(tests(BIG, TASK_TYPES, own.tests)) + len(load_heldout(Path(BIG.heldout)))
    found = []
    for seconds in (1.0, 2.0):
        measured(output, "answer", seconds, bits=4)  # the bits of training and measuring
        found.append([dollars(row) for _, row in table(own)[1][:3]])
        (output / "logs/ledger.jsonl").unlink()
    assert [b - a for a, b in zip(*found, strict=True)] == pytest.approx([2 * asked, asked, asked], abs=0.05)


def test_the_yield_of_an_earlier_run_of_the_stage_is_taken(own):
    with Run.open("own/second", {}) as run:
        run.record(model=BIG.name, result={"examples": 50, "training_pairs": 10})
    text, rows = table(own, ())
    assert [row["pairs"] for _, row in rows[:2]] == ["80", "40"]
    assert "first 0.80: assumed; second 0.20: measured in run own/second, n 50" in text
    with Run.open("own/first", {}) as run:  # of another model
        run.record(model="sandbox", result={"examples": 50, "training_pairs": 50})
    assert table(own, ())[1][0][1]["pairs"] == "80"


def test_the_plan_that_the_page_shows_loads_in_ten_lines(tmp_path):
    page = (ROOT / "specs/progressive.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(shown.splitlines()) <= 10
    (tmp_path / "sums.yaml").write_text(shown)
    plan = plans.load(tmp_path / "sums.yaml")
    assert [s.name for s in plan.stages] == ["sums", "rest"] and len(plan.stages[1].tasks) == 10
    assert "forecast for the plan sums" in table(plan)[0]


@pytest.mark.parametrize("name", plans.names())
def test_the_script_prints_it_and_loads_no_model(name, output):
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import bootstrap\n"
        f"sys.argv = ['bootstrap.py', '--plan', {name!r}, '--forecast', '--model', {BIG.name!r}]\n"
        "status = bootstrap.main()\n"
        "assert status == 0 and not {'torch', 'transformers', 'unsloth'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"forecast for the plan {name}" in done.stdout and "one seed" in done.stdout
    assert [p.name for p in output.iterdir()] == []  # it leaves nothing behind


# ---- the engine ----


def by_vllm(plan, bits=8, **more):
    ahead = forecast.PlanForecast(plan, BIG, (SHUFFLED,), 2, HOUR, **more)
    return ahead, replace(ahead, choice=EngineChoice("vllm", bits, "as if"))


def test_a_plan_by_a_server_trains_here_and_generates_and_measures_there(own):
    here, there = by_vllm(own)
    lines = {(x.step, x.engine, x.bits): x.units for x in there.total.lines}
    of_us = {(x.step, x.engine): x.units for x in here.total.lines}
    trainings = lines["loading", "local", 4]
    assert trainings == 8 and lines["loading", "vllm", 8] == 1 + trainings  # the first start, one after each
    assert lines["training", "local", 4] == of_us["training", "local"]
    for step in ("answer", "critique", "revision", "judge", "instructions"):
        assert lines[step, "vllm", 8] == sum(x.units for x in here.total.lines if x.step == step)
        assert (step, "local", 4) not in lines and (step, "local", 16) not in lines
    assert there.total.seconds < here.total.seconds


def test_the_rows_of_a_plan_by_a_server_and_what_is_paid_once_add_up(own):
    _, there = by_vllm(own)
    text = there.render()
    rows = [line for line in text.split("side by side")[0].splitlines() if line.startswith("  ")]
    sums = {line.split("  ")[1]: float(line.rpartition("$")[2]) for line in rows[1:]}
    once = float(re.search(r"^once, before all of it: .*\$([0-9.]+)$", text, re.MULTILINE)[1])
    assert sums["2 seeds"] + once == pytest.approx(there.total.dollars, abs=0.05)
    assert 2 * sums["one seed"] == pytest.approx(sums["2 seeds"], abs=0.05)
    assert "engine: as if" in text and "vLLM FP8 (chosen)" in text and "vLLM's environment" in text
    assert "once, before" not in replace(there, choice=EngineChoice()).render()


def test_the_budget_of_a_plan_goes_by_the_engine_that_does_each_step(own):
    here, there = (ahead.total.dollars_a_unit for ahead in by_vllm(own))
    assert there["training"] == here["training"] and there["judge"] < here["judge"] / 3


def test_an_engine_is_chosen_for_the_whole_plan(own, monkeypatch):
    ahead, _ = by_vllm(own)
    elsewhere = ahead.cheaper("auto", None, anywhere=True)  # an A100 that is not here
    assert (elsewhere.engine, elsewhere.bits) == ("vllm", 8) and "would take" in elsewhere.why
    assert ahead.cheaper("auto", None, anywhere=False).is_local  # there is no GPU here
    assert ahead.cheaper("vllm", 16, anywhere=True).bits == 16


# ---- the script before and after its stages ----


@pytest.fixture
def main(own, output, monkeypatch):
    """bootstrap.py's main with a plan of its own and further flags; it stops where the stages would begin."""
    import bootstrap

    def follow(self, seed, controls, *, force):
        raise StopIteration

    def call(*args, plan=output / "own.yaml"):
        flags = ("--model", "sandbox", "--hourly-rate", 0, "--plan", plan, *args)
        monkeypatch.setattr(sys, "argv", ["bootstrap.py", *map(str, flags)])
        return bootstrap.main()

    monkeypatch.setattr(runner.Runner, "follow", follow)
    return call


def begun(name):
    """An earlier run with something in it; the two files."""
    data, checkpoints, _ = directories(name)
    for place in (data, checkpoints):
        place.mkdir(parents=True)
        (place / "old.txt").write_text("old")
    return data / "old.txt", checkpoints / "old.txt"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--run", "prompts"], "holds committed inputs"),
        (["--run", "../own"], "use letters, digits"),
        (["--constitution", "none.yaml"], "none.yaml"),
        (["--plan", "{unfit}"], "stage first: principles: there is no principle 'acuracy'"),
    ],
)
def test_fresh_moves_nothing_before_all_is_checked(main, output, args, says):
    unfit = output / "unfit.yaml"
    unfit.write_text(OWN.replace("per_answer: 2", "principles: [acuracy]"))
    files = [f for name in ("prompts", "own", "unfit") for f in begun(name)]
    with pytest.raises(UserError, match=says):
        main("--fresh", *(a.format(unfit=unfit) for a in args))
    assert all(f.exists() for f in files)


def test_fresh_takes_nothing_from_a_process_at_work(main):
    files = begun("own")
    with Run.open("own", {}), pytest.raises(UserError, match="in use by another process"):
        main("--fresh")
    assert all(f.exists() for f in files)


def test_fresh_moves_data_and_checkpoints_of_the_plan(main):
    files = begun("own")
    with pytest.raises(StopIteration):
        main("--fresh")
    for f in files:
        assert not f.exists() and (f.parent.with_name("own~1") / "old.txt").exists()
    settings = json.loads((directories("own")[0] / "run.json").read_text())["settings"]
    assert settings["plan"] == "own" and settings.keys() == {"plan", "model", "constitution"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--run", "../own"], "--run '../own': use letters, digits"),
        (["--constitution", "none.yaml"], "none.yaml"),
        (["--seeds", "0", "4294967296"], "--seeds 0 4294967296: different numbers from 0 on are needed"),
        (["--set", "heldout=README.md"], "README.md, line 1: not JSON"),
    ],
)
def test_a_forecast_checks_what_the_run_would(main, output, args, says):
    there = sorted(output.iterdir())
    for also in ([], ["--forecast"]):
        with pytest.raises(UserError, match=says):
            main(*args, *also)
    assert sorted(output.iterdir()) == there


def test_a_dear_plan_asks_for_a_budget(main, output):
    dear = ("--model", BIG.name, "--hourly-rate", 10, "--controls", "all", "--seeds", 0, 1, 2)
    plan = plans.load("progressive")
    found = forecast.PlanForecast(plan, BIG, ALL, 3, 10).total.dollars
    rows = dict(table(plan, seeds=3, rate=10)[1])
    assert found == pytest.approx(dollars(rows["3 seeds"]), abs=0.01) and found > 150
    with pytest.raises(
        UserError, match=rf"the forecast is \${found:,.2f}, above the \$150 .* --budget DOLLARS"
    ):
        main(*dear, plan="progressive")
    assert [p.name for p in output.iterdir()] == ["own.yaml"]
    assert main(*dear, "--forecast", plan="progressive") == GO
    with pytest.raises(StopIteration):  # less than the forecast: it stops before
        main(*dear, "--budget", 20, plan="progressive")


def test_two_plans_cannot_share_a_run(main, output):
    (output / "other.yaml").write_text(OWN)
    with pytest.raises(StopIteration):
        main("--run", "one")
    append(directories("one")[0] / "base.jsonl", [{"id": "a row of the first plan"}])
    with pytest.raises(UserError, match="'one' exists with other settings: plan was 'own', now 'other'"):
        main("--run", "one", plan=output / "other.yaml")


def test_a_reached_budget_is_reported_before_it_ends_the_run(main, output, monkeypatch, capsys):
    reached = BudgetReached("the next 8 examples would cost about $2.00, and $1.00 of $2.00 are spent")

    def follow(self, seed, controls, *, force):
        if seed == 0:
            self._stop("seed 0, stage first: success")
        else:
            raise reached

    monkeypatch.setattr(runner.Runner, "follow", follow)
    with pytest.raises(SystemExit) as ended:
        cli(lambda: main("--seeds", 0, 1, 2))
    data, said = directories("own")[0], capsys.readouterr()
    assert ended.value.code == BUDGET and f"budget: {reached}" in said.err
    results = json.loads((data / "results.json").read_text())
    assert results["stopped"] == f"seed 0, stage first: success; budget: {reached}"
    assert not results["finished"]
    assert "the next 8 examples would cost" in (data / "report.md").read_text()
    assert "report.html" in said.out and (data / "report.html").exists()
    monkeypatch.setattr(runner.Runner, "follow", lambda *args, **more: None)
    assert main("--seeds", 1) == GO  # a larger budget: nothing of the stop is left
