"""Balance: which task types still need instructions, how many lists each gets, and when a task or a topic is
full."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from cai.generation.dedup import words

TOPIC_SHARE = 0.1  # of a task's instructions may have a word in common
TOPIC_FREE = 20  # ... and so many may in any case
TOPIC_LETTERS = 5  # shorter words are rarely topics


class Balance:
    """The state of a growing set of `want` instructions. All of it follows from what each wave kept, so that
    it can be rebuilt from the rows of an interrupted run."""

    PATIENCE = 3  # waves in a row with next to nothing new, after which a task counts as exhausted ...
    LISTS = 12  # ... if they had this many lists of the task
    YIELD = 0.1  # instructions a list: less is next to nothing

    def __init__(self, want: int, tasks: Sequence[str], framing: Iterable[str]):
        """framing: texts whose words make no topic."""
        self.want, self.tasks = want, list(tasks)
        self.kept: Counter[str] = Counter()
        self._framing = {w for text in framing for w in words(text)}
        self._topics: dict[str, Counter[str]] = {t: Counter() for t in tasks}
        self._fruitless: Counter[str] = Counter()  # waves in a row, up to the last
        self._fruitless_lists: Counter[str] = Counter()
        self._before: Counter[str] = Counter()  # kept when the wave began

    def caps(self) -> dict[str, int]:
        """How many instructions each task may have: even shares that add up to what is wanted, of what
        exhausted tasks leave over too."""
        left = [t for t in self.tasks if not self._exhausted(t)]
        out = self.kept.total() - sum(self.kept[t] for t in left)
        share, more = divmod(self.want - out, len(left)) if left else (0, 0)
        return {t: share + (i < more) for i, t in enumerate(left)}

    def open_tasks(self) -> list[str]:
        """Tasks that are neither full nor exhausted."""
        return [t for t, cap in self.caps().items() if self.kept[t] < cap]

    def allot(self, most: int, items: int) -> list[str]:
        """The tasks of the next wave's lists: one list for each open task at least, more for those that lack
        more; `most` in all, or as many as fill what is missing if each list gives `items`."""
        missing = {t: cap - self.kept[t] for t, cap in self.caps().items() if self.kept[t] < cap}
        open_tasks = list(missing)
        count = min(most, math.ceil((self.want - self.kept.total()) / items))
        given = Counter(open_tasks)
        for _ in range(count - len(open_tasks)):
            given[max(open_tasks, key=lambda t: missing[t] / (1 + given[t]))] += 1
        return [t for t in open_tasks for _ in range(given[t])]

    def against(self, text: str, task: str) -> str | None:
        """Why a text of a task does not fit in any more; None if it does."""
        cap = self.caps().get(task, 0)
        if self.kept[task] >= cap:
            return "task_full"
        limit = max(TOPIC_FREE, TOPIC_SHARE * cap)
        return "topic_full" if any(self._topics[task][w] >= limit for w in self._topic(text)) else None

    def take(self, text: str, task: str) -> None:
        self.kept[task] += 1
        self._topics.setdefault(task, Counter()).update(self._topic(text))

    def close_wave(self, lists: Sequence[str]) -> None:
        """A wave with these tasks' lists is over: those that gave next to nothing lose patience, the others
        gain it back."""
        for task, count in Counter(lists).items():
            new = self.kept[task] - self._before[task]
            if new < self.YIELD * count:
                self._fruitless[task] += 1
                self._fruitless_lists[task] += count
            else:
                self._fruitless[task] = self._fruitless_lists[task] = 0
        self._before = self.kept.copy()

    def _exhausted(self, task: str) -> bool:
        return self._fruitless[task] >= self.PATIENCE and self._fruitless_lists[task] >= self.LISTS

    def _topic(self, text: str) -> set[str]:
        return {w for w in words(text) if len(w) >= TOPIC_LETTERS and w not in self._framing}
