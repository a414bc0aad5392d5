"""A budget in dollars that a run does not pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from cai.core.errors import BudgetReached
from cai.core.run import Run

SAFETY = 1.1  # the next example may be longer than those so far
T = TypeVar("T")


class Budget:
    """Stops a run before it passes a number of dollars; it is no setting of the run, so a rerun may have
    another.

    dollars: None for no limit. spent: asked each time for what the run has cost so far. per_example: the
    forecast's cost of an example, until some are finished. Steps that a kill cut short are in no ledger."""

    def __init__(self, dollars: float | None, spent: Callable[[], float], per_example: float = 0.0):
        self.dollars, self.spent, self.per_example = dollars, spent, per_example
        self._measured = 0.0  # an example's cost, of those that are finished
        self._before, self._done, self._running = 0.0, 0, 0
        self._reached = ""

    @classmethod
    def of(cls, dollars: float | None, run: Run, per_example: float = 0.0) -> Budget:
        """For an open run, whose run.json has what it has cost."""
        return cls(dollars, lambda: run.dollars, per_example)

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

    def _against(self, what: str, expected: float) -> str:
        spent = self.spent()
        if self.dollars is None or spent + expected <= self.dollars:
            return ""
        return (
            f"{what} would cost about ${expected:.2f}, and ${spent:.2f} of ${self.dollars:.2f} are spent. "
            "Everything finished is kept; the same command with a larger --budget goes on from here"
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
