import pytest
from cai.core.errors import BudgetReached, UserError
from cai.core.run import Run
from cai.costs.budget import MOST_DOLLARS, Budget
from cai.costs.forecast import forecast
from cai.costs.units import local, milestone_units
from cai.models.registry import REGISTRY


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    return tmp_path


class Till:
    """What a run has cost, and a budget for it."""

    def __init__(self, dollars, per_example=0.0):
        self.spent = 0.0
        self.budget = Budget(dollars, lambda: self.spent, per_example)

    def finish(self, examples, cost):
        self.spent += cost
        self.budget.finished(examples)


def test_no_more_examples_are_begun_than_the_forecast_lets_fit():
    till = Till(1.0, per_example=0.1)
    assert list(till.budget.affordable(range(64))) == list(range(10))
    with pytest.raises(BudgetReached, match=r"11 examples would cost about \$1\.10.*larger --budget"):
        till.budget.stop_if_reached()


def test_those_in_flight_count_until_they_are_finished_and_then_at_what_they_cost():
    till = Till(1.0, per_example=0.1)
    todo = till.budget.affordable(range(64))
    assert len(list(todo)) == 10
    till.finish(10, 0.2)  # cheaper than expected: 2 cents each, 2.2 with a tenth more
    assert len(list(todo)) == int(0.8 / 0.022) == 36
    till.finish(36, 0.72)
    assert till.spent <= 1.0
    more = list(todo)
    assert len(more) == int(0.08 / 0.022)
    till.finish(len(more), 0.06)
    assert list(todo) == [] and till.spent <= 1.0
    with pytest.raises(BudgetReached):
        till.budget.stop_if_reached()


def test_an_item_that_did_not_fit_is_not_lost():
    till = Till(0.25, per_example=0.1)
    todo = till.budget.affordable(range(5))
    begun = list(todo)
    while till.budget._running:
        till.finish(len(begun[-1:]), 0.01)
        begun += todo
    assert begun == [0, 1, 2, 3, 4]
    till.budget.stop_if_reached()


def test_without_a_budget_nothing_stops():
    till = Till(None, per_example=9.0)
    till.spent = 1e9
    assert len(list(till.budget.affordable(range(64)))) == 64
    till.budget.stop_if_reached()
    till.budget.step("training", 1e9)


def test_other_steps_are_judged_by_their_own_size():
    till = Till(2.0)
    till.spent = 1.5
    till.budget.step("training", 0.5)
    with pytest.raises(BudgetReached, match="training would cost about"):
        till.budget.step("training", 0.51)


def test_what_another_step_cost_is_not_taken_for_an_examples():
    till = Till(2.0, per_example=0.01)
    list(till.budget.affordable(range(10)))
    till.finish(10, 0.1)
    till.spent += 1.5  # a training
    todo = till.budget.affordable(range(100))
    assert len(list(todo)) == int(0.4 / 0.011)


def test_a_budget_of_a_run_goes_on_from_what_the_run_has_cost():
    with Run.open("a", {}) as run:
        assert Budget.of(1.0, run).spent() == 0.0
        run.record(totals={"seconds": 0, "prompt_tokens": 0, "completion_tokens": 0, "dollars": 0.9})
        assert len(list(Budget.of(1.0, run, per_example=0.01).affordable(range(64)))) == 10


# ---- the steps of a run ----

BIG = REGISTRY["Qwen/Qwen2.5-32B"]


def ahead(examples=100, rate=1.74, **more):
    units = milestone_units(examples, **({"principles": 1, "steps": 100} | more))
    return forecast(BIG, local(4, units), examples=examples, hourly_rate=rate, ledger=[], device="Test A100")


def opened(budget, rate=1.74, name="a"):
    run = Run.open(name, {})
    run.hourly_rate = rate
    budget.watch(run)
    return run


def spend(run, dollars):
    run.record(totals={"seconds": 0, "prompt_tokens": 0, "completion_tokens": 0, "dollars": dollars})


@pytest.mark.parametrize(
    ("step", "dollars"),
    [
        ("loading", 180 / 3600 * 1.74),
        ("loading: guard", 180 / 3600 * 1.74),
        ("training", 15 / 3600 * 1.74),  # a step of it
        ("evaluation: answers", (1_520_000 / 1500 + 180_000 / 300) / 3600 * 1.74 / 10),  # a batch of it
    ],
)
def test_each_step_of_a_run_asks_before_it_begins(step, dollars):
    with opened(Budget.ahead(1.0, ahead())) as run:
        spend(run, 1.0 - dollars - 1e-6)
        with run.step(step):
            pass
        spend(run, 1.0 - dollars + 1e-6)
        with (
            pytest.raises(BudgetReached, match=f"^{step} would cost about .*larger --budget"),
            run.step(step),
        ):
            pytest.fail("it was begun")


def test_a_batch_is_expected_to_cost_what_the_dearest_has():
    with opened(Budget(1.0)) as run:
        run.budget.end_step("evaluation: answers", 0.2)
        run.budget.end_step("evaluation: answers", 0.1)
        spend(run, 0.77)
        with run.step("evaluation: answers"):
            pass
        spend(run, 0.79)
        with pytest.raises(BudgetReached, match="evaluation: answers would cost about .0.22"):
            run.step("evaluation: answers").__enter__()


def test_the_step_that_is_under_way_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cai.core.run.time.perf_counter", lambda: now[0])
    with opened(Budget(1.0), rate=3600.0) as run, run.step("instructions", quiet=True):
        waves = run.budget.pieces("instructions")
        now[0] = 0.3
        assert run.under_way == 0.3 and waves.another()
        now[0] = 0.65
        assert not waves.another()  # 0.65, and the dearest wave was 0.35
        with pytest.raises(BudgetReached, match="one more piece of instructions would cost about .0.39"):
            run.budget.stop_if_reached()
    assert run.under_way == 0.0


def test_what_ends_a_training_is_kept_from_the_budget(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cai.core.run.time.perf_counter", lambda: now[0])
    with opened(Budget(1.0), rate=3600.0) as run, run.step("training", quiet=True):
        steps = run.budget.pieces("training")
        now[0] = 0.3
        closing = steps.begin()
        now[0] = 0.5
        assert closing == pytest.approx(0.3) and steps.dearest == 0.0
        assert not steps.another(closing=closing)  # 0.5 + 1.1 * (0.2 + 0.3) is above 1
        assert steps.another(closing=0.0)


def test_at_no_price_an_hour_a_budget_says_that_it_can_do_nothing(capsys):
    with opened(Budget(5.0), rate=0.0) as run:
        run.budget.watch(run)
    said = capsys.readouterr().out
    assert said == "--budget 5 does nothing at $0.00 an hour: give --hourly-rate, what this machine costs\n"
    with opened(Budget(None), rate=0.0), opened(Budget(5.0), name="b"):
        pass
    assert capsys.readouterr().out == ""


def test_a_forecast_above_the_specifications_whole_budget_asks_for_a_budget():
    dear, just = ahead(40_000), ahead(5000)
    assert just.dollars < MOST_DOLLARS < dear.dollars
    with pytest.raises(
        UserError, match=rf"the forecast is \${dear.dollars:,.2f}, above the \$150 .* --budget"
    ):
        Budget.ahead(None, dear)
    assert Budget.ahead(20.0, dear).dollars == 20.0  # less than the forecast: it stops before
    assert Budget.ahead(None, just).dollars is None
    Budget.ahead(None, ahead(40_000, rate=0.0))
