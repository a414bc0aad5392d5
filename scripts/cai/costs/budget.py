"""A budget in dollars that a run does not pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from cai.core.errors import BudgetReached, UserError
from cai.core.run import Run
from cai.costs.forecast import Forecast

SAFETY = 1.1  # the next example may be longer than those so far
MOST_DOLLARS = 150.0  # that a command may be forecast to cost without a --budget: the specification's whole
PIECES = {"evaluation": 10}  # into how many steps what a forecast counts as one is divided, at least
T = TypeVar("T")


class Budget:
    """Stops a run before it passes a number of dollars; it is no setting of the run, so a rerun may have
    another.

    dollars: None for no limit. spent: asked each time for what the finished steps have cost so far.
    per_example: the forecast's cost of an example, until some are finished. rates: step -> the forecast's
    dollars of a unit. Steps that a kill cut short are in no ledger."""

    def __init__(
        self,
        dollars: float | None,
        spent: Callable[[], float] | None = None,
        per_example: float = 0.0,
        rates: Mapping[str, float] | None = None,
    ):
        self.dollars, self.spent, self.per_example, self.rates = dollars, spent, per_example, rates or {}
        self._run: Run | None = None
        self._said = False  # that it can do nothing
        self._dearest: dict[str, float] = {}  # step -> dollars of the dearest piece so far
        self._measured = 0.0  # an example's cost, of those that are finished
        self._before, self._done, self._running = 0.0, 0, 0
        self._reached = ""

    @classmethod
    def of(cls, dollars: float | None, run: Run, per_example: float = 0.0) -> Budget:
        """For an open run, whose run.json has what it has cost."""
        budget = cls(dollars, per_example=per_example)
        budget.watch(run)
        return budget

    @classmethod
    def ahead(cls, dollars: float | None, forecast: Forecast) -> Budget:
        """For a run that is still to be opened. Raises UserError for a forecast that nobody would pay by
        mistake."""
        refuse_dear(dollars, forecast.dollars)
        return cls(dollars, per_example=forecast.dollars_per_example, rates=forecast.dollars_a_unit)

    def watch(self, run: Run) -> None:
        """From now on the run's steps ask before they begin. Its hourly rate is known."""
        self._run, run.budget = run, self
        self.spent = self.spent or (lambda: run.dollars)
        if self.dollars is not None and not run.hourly_rate and not self._said:
            self._said = True
            run.log(
                f"--budget {self.dollars:g} does nothing at $0.00 an hour: "
                "give --hourly-rate, what this machine costs"
            )

    def begin_step(self, name: str) -> None:
        """Raises BudgetReached where the next step, or the next piece of one, might pass the budget."""
        kind = name.split(":")[0]
        expected = SAFETY * self._dearest.get(name, 0.0) or self.rates.get(kind, 0.0) / PIECES.get(kind, 1)
        self.step(name, expected)

    def end_step(self, name: str, dollars: float) -> None:
        if name.split(":")[0] in PIECES:
            self._dearest[name] = max(self._dearest.get(name, 0.0), dollars)

    def pieces(self, what: str) -> Pieces:
        """Of the step that has just begun, such as the steps of a training."""
        return Pieces(self, what)

    def affordable(self, items: Iterable[T]) -> Affordable[T]:
        """The items that may be begun: each with those in flight must fit what is left. What does not fit
        now may fit later, when those in flight have turned out cheaper."""
        self._before, self._done, self._running = self.spent(), 0, 0
        return Affordable(self, items)

    def finished(self, examples: int) -> None:
        self._done += examples
        self._running -= examples
        self._measured = (self.spent() - self._before) / self._done

    def begin(self) -> bool:
        """Whether one more example may be begun; counts it if so."""
        each = SAFETY * self._measured or self.per_example
        self._reached = self._against(f"{self._running + 1} examples", each * (self._running + 1))
        self._running += not self._reached
        return not self._reached

    def stop_if_reached(self) -> None:
        """Raises BudgetReached if an example could not be begun."""
        if self._reached:
            raise BudgetReached(self._reached)

    def step(self, what: str, expected: float) -> None:
        """Before anything else that costs, such as training. Raises BudgetReached if it might pass the
        budget."""
        self._reached = self._against(what, expected)
        self.stop_if_reached()

    def _against(self, what: str, expected: float, spent: float | None = None) -> str:
        if self.dollars is None:
            return ""
        spent = self.spent() if spent is None else spent
        if spent + expected <= self.dollars:
            return ""
        return (
            f"{what} would cost about ${expected:.2f}, and ${spent:.2f} of ${self.dollars:.2f} are spent. "
            "Everything finished is kept; the same command with a larger --budget goes on from here"
        )


class Pieces:
    """The pieces of a long step, each expected to cost what the dearest one before it has."""

    def __init__(self, budget: Budget, what: str):
        self.budget, self.what = budget, what
        self.before = budget.spent()  # while a step is under way nothing else is entered
        self.last, self.dearest = self._spent(), 0.0

    def another(self, *, closing: float = 0.0) -> bool:
        """Whether one more fits, and what has to come after it. closing: dollars of that."""
        now = self._spent()
        self.dearest, self.last = max(self.dearest, now - self.last), now
        what, expected = f"one more piece of {self.what}", SAFETY * (self.dearest + closing)
        self.budget._reached = self.budget._against(what, expected, now)
        return not self.budget._reached

    def begin(self) -> float:
        """Dollars of what came before the first piece, which begins now."""
        now = self._spent()
        before, self.last = now - self.last, now
        return before

    def _spent(self) -> float:
        return self.before + (self.budget._run.under_way if self.budget._run else 0.0)


def refuse_dear(budget: float | None, forecast: float) -> None:
    """Raises UserError for a forecast above MOST_DOLLARS without an explicit budget."""
    if budget is None and forecast > MOST_DOLLARS:
        raise UserError(
            f"the forecast is ${forecast:,.2f}, above the ${MOST_DOLLARS:.0f} that a command may cost: "
            "give --budget DOLLARS, before which it stops, or ask for less (--forecast prints the steps)"
        )


class Affordable(Generic[T]):
    """Ends when nothing can be begun now, and can go on after that."""

    def __init__(self, budget: Budget, items: Iterable[T]):
        self.budget, self.items, self.next = budget, iter(items), []

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self.next = self.next or [next(self.items)]
        if not self.budget.begin():
            raise StopIteration
        return self.next.pop()
