"""A budget in dollars that a run does not pass."""

from __future__ import annotations

import math
from collections.abc import Callable

from cai.core.errors import BudgetReached, UserError

SAFETY = 1.1  # the next wave may be longer than any so far


def check_budget(dollars: float | None) -> None:
    """Raises UserError for a --budget that is none."""
    if dollars is not None and not (math.isfinite(dollars) and dollars > 0):
        raise UserError(f"--budget {dollars}: give dollars above 0, or leave the flag out")


class Budget:
    """Stops a run before it passes a number of dollars; it is no setting of the run, so a rerun may have
    another.

    dollars: None for no limit. spent: asked each time for what the run has cost so far. per_example: the
    forecast's cost of an example, until a wave has been measured. Steps that a kill cut short are in no
    ledger."""

    def __init__(self, dollars: float | None, spent: Callable[[], float], per_example: float = 0.0):
        check_budget(dollars)
        self.dollars, self.spent, self.per_example = dollars, spent, per_example
        self._wave: tuple[int, float] | None = None  # of the wave let through: examples, spent before it
        self._measured = 0.0

    @classmethod
    def of(cls, dollars: float | None, run, per_example: float = 0.0) -> Budget:
        """For an open run, whose run.json has what it has cost."""
        return cls(dollars, lambda: run.manifest.get("totals", {}).get("dollars", 0.0), per_example)

    def check(self, examples: int) -> None:
        """Before a wave of examples. Raises BudgetReached if it might pass the budget: the dearest wave so
        far, and a tenth more, is what it is expected to cost."""
        if self._wave and self._wave[0]:
            self._measured = max(self._measured, (self.spent() - self._wave[1]) / self._wave[0])
        each = self._measured * SAFETY or self.per_example
        self.step(f"the next {examples} examples", each * examples)
        self._wave = (examples, self.spent())

    def step(self, what: str, expected: float) -> None:
        """Before anything else that costs, such as training. Raises BudgetReached if it might pass the
        budget."""
        spent, self._wave = self.spent(), None
        if self.dollars is not None and spent + expected > self.dollars:
            raise BudgetReached(
                f"{what} would cost about ${expected:.2f}, and ${spent:.2f} of ${self.dollars:.2f} are spent"
                ". Everything finished is kept; the same command with a larger --budget goes on from here"
            )
