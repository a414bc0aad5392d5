import pytest
from cai.core.errors import BudgetReached
from cai.core.run import Run
from cai.costs.budget import Budget


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
