"""One line that says how far a run is: examples, passed, tokens a second, time left, dollars so far and
expected. An example has passed where nothing in it speaks against it; whether it is kept shows only at the
end, when the run as a whole has been filtered for boilerplate.

On a terminal tqdm rewrites the line in place. Anywhere else, and in logs/<run>.log, a line is written every
few seconds, so that a log of hours stays short enough to be read."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from cai.core.run import Run
from cai.core.terminal import Terminal
from cai.core.text import format_duration, printable

LOG_SECONDS = 30


class Progress:
    """wanted: examples in all; done, passed: those of them that an earlier process has finished.

    Speed and time left are those of this process; dollars so far are the whole run's, as run.json counts
    them, and those expected are what the run will have cost when the last example is done. out, clock: for
    tests."""

    def __init__(
        self,
        wanted: int,
        run: Run,
        *,
        done: int = 0,
        passed: int = 0,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        from tqdm import tqdm

        self.run, self.wanted, self.done, self.passed = run, wanted, done, passed
        self.out, self.clock = out or sys.stdout, clock
        self.live = self.out.isatty()
        self.start = self.logged = clock()
        self.made = self.tokens = 0
        self.before = run.dollars
        self.logged_at = -1 if not done else done  # nothing to say again about what was there
        self.bar = tqdm(
            total=wanted,
            initial=done,
            desc=printable(self.line(), self.out.encoding),
            bar_format="{desc} {bar}",
            file=Terminal(self.out),
            ncols=80,
            nrows=24,  # on a terminal that does not know its height tqdm would show nothing
            disable=not self.live or done >= wanted,
        )

    def advance(self, records: Sequence[dict[str, Any]]) -> None:
        """Counts finished records."""
        self.done += len(records)
        self.made += len(records)
        self.passed += sum(r["kept"] for r in records)
        self.tokens += sum(r["tokens"]["completion"] for r in records)
        self.bar.ncols = shutil.get_terminal_size().columns - 1
        self.bar.set_description_str(printable(self.line(), self.out.encoding), refresh=False)
        self.bar.update(len(records))
        if self.clock() - self.logged >= LOG_SECONDS:
            self._log()

    def line(self) -> str:
        seconds, left = max(self.clock() - self.start, 1e-9), self.wanted - self.done
        share = f" ({self.done / self.wanted:.0%})" if self.wanted else ""
        parts = [f"{self.done}/{self.wanted} examples{share}"]
        if self.done:
            parts.append(f"{self.passed} passed ({self.passed / self.done:.0%})")
        if self.made:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
            time_left = f"{format_duration(seconds / self.made * left)} left"
            parts.append(time_left if left else format_duration(seconds))
        spent = self.run.dollars
        if self.run.hourly_rate:
            each = (spent - self.before) / self.made if self.made else None
            expected = f", ${spent + each * left:.2f} expected" if each is not None else ""
            parts.append(f"${spent:.2f} so far{expected}")
        return " · ".join(parts)

    def close(self) -> None:
        """Leaves the last state on a line of its own."""
        self.bar.close()
        if self.made and self.logged_at != self.done:
            self._log()

    def _log(self) -> None:
        self.logged, self.logged_at = self.clock(), self.done
        text = "      " + self.line()
        if not self.live:
            print(text, file=Terminal(self.out), flush=True)
        self.run.log_only(text)
