"""Near duplicates: instructions that say almost what another says, and those that are near an evaluation
prompt.

Two measures. ROUGE-L's F (Lin 2004) compares word sequences: 2 L / (m + n), where L is the length of the
longest common subsequence of m and n words; self-instruct drops what reaches 0.7 (Wang et al. 2023). Jaccard
compares word sets: |x & y| / |x | y|. Both are exact here, and both go through the same index, which passes
by almost all pairs. An instruction is near to an evaluation prompt, too, if one of the two stands in the
other.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from cai.core.errors import UserError

ROUGE_L = 0.7  # from here on a text is a near duplicate
JACCARD = Fraction(8, 10)  # from here on an instruction is too near to an evaluation prompt

# J = o / (n + m - o) >= j is the same as 2 o / (n + m) >= 2 j / (1 + j): a Dice coefficient.
DICE = 2 * JACCARD / (1 + JACCARD)

# A prompt of fewer words stands in a text by chance, and a text of fewer words in a prompt.
AROUND, WITHIN = 3, 4
REASON = "evaluation_prompt"

# Words, and signs of arithmetic (7 + 2 is not 7 - 2); in scripts without spaces, single characters.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[+*/=<>%^]+|(?<!\w)-+(?=\s*\w)"
)

SENTENCE_END = re.compile(r"[。？！：；\n]|[.?!:;](?=[\"'\u201d\u2019)\]]*(?:\s|$))")
SURROGATES = range(0xD800, 0xE000)  # code points that are no characters


def words(text: str) -> list[str]:
    """The lower-cased words of a text; a text without any is its own only word."""
    return WORD.findall(text.lower()) or [" ".join(text.split())]


class Index:
    """Bags (sets with repeats) that could reach a Dice coefficient 2 |x & y| / (|x| + |y|) >= `dice` with a
    given one.

    No bag that reaches it is missed. With c = dice, |x| = n, |y| = m, o = |x & y|, let 2 o >= c (n + m).
    (1) o <= n, so c m <= (2 - c) n, and the same with n and m exchanged: the sizes differ at most by the
        factor (2 - c) / c. Put into 2 o >= c (n + m), the smallest such m gives o >= a(n) := ceil(c n / (2 -
        c)), and likewise o >= a(m).
    (2) Sort the members of all bags by one total order, and call the first n - a(n) + 1 of x its prefix. If
        the prefixes of x and y had nothing in common, take the one whose last member comes earlier, say x's:
        then none of its prefix is in y at all (it is not in y's prefix, and what else y has comes no earlier
        than the last of y's prefix). So at most n - (n - a(n) + 1) = a(n) - 1 members of x are in y, against
        (1).
    Hence it is enough to index prefixes and to look prefixes up. Any fixed order will do; one with rare
    members first makes short lists. Here a member that was first seen later comes earlier: common words are
    seen soon, and the order never has to be rebuilt.
    """

    def __init__(self, dice: Fraction):
        self.c, self.d = dice.as_integer_ratio()  # whole numbers: exact, and faster than fractions
        self.numbers: dict[Any, int] = {}  # member -> when it was first seen
        self.sizes: list[int] = []
        self._lists: dict[int, list[int]] = {}

    def number(self, members: Iterable[Any]) -> list[int]:
        """The members' numbers; new ones get the next."""
        numbers = self.numbers
        return [numbers.setdefault(m, len(numbers)) for m in members]

    def add(self, numbers: Iterable[int]) -> None:
        """Adds a bag; its place is the count of bags before it."""
        prefix, size = self._prefix(numbers)
        for member in set(prefix):
            self._lists.setdefault(member, []).append(len(self.sizes))
        self.sizes.append(size)

    def candidates(self, numbers: Iterable[int]) -> list[int]:
        """The places of all bags that could reach the coefficient, in order."""
        prefix, size = self._prefix(numbers)
        found: set[int] = set()
        for member in set(prefix):
            found.update(self._lists.get(member, ()))
        sizes, high = self.sizes, (2 * self.d - self.c) * size // self.c
        low = self._least(size)
        return sorted(i for i in found if low <= sizes[i] <= high)

    def _least(self, size: int) -> int:
        """a(n) = ceil(c n / (2 - c)): the least overlap of a set of this size, and the least size of the
        other."""
        return -(-self.c * size // (2 * self.d - self.c))

    def _prefix(self, numbers: Iterable[int]) -> tuple[list[int], int]:
        order = sorted(numbers, reverse=True)
        size = len(order)
        return order[: size - self._least(size) + 1], size


class Deduper:
    """The texts kept so far; `add` takes a text in unless it is near one of them.

    A common subsequence is not longer than what two texts share as bags of words, so ROUGE-L F >= t needs a
    Dice coefficient >= t of the bags. ROUGE-L's F is the normalised Indel similarity of rapidfuzz, which
    compares strings fastest: so each word becomes one character.
    """

    def __init__(self, threshold: float = ROUGE_L, texts: Iterable[str] = ()):
        if not 0 < threshold <= 1:
            raise UserError(
                f"the threshold for near duplicates is {threshold}: must be above 0 and at most 1"
            )
        self.threshold = Fraction(str(threshold)).as_integer_ratio()
        self.texts: list[str] = []
        self._index = Index(Fraction(*self.threshold))
        self._coded: list[str] = []
        for text in texts:
            self.keep(text)

    def __len__(self) -> int:
        return len(self.texts)

    def near(self, text: str) -> str | None:
        """The first kept text that the text is near to, None if there is none."""
        return self._near(*self._code(text))

    def add(self, text: str) -> str | None:
        """Keeps the text and gives back None; if it is near one that is kept, gives back the first such."""
        coded, numbers = self._code(text)
        found = self._near(coded, numbers)
        if found is None:
            self._keep(text, coded, numbers)
        return found

    def keep(self, text: str) -> None:
        """Takes a text in, whatever it is near to."""
        self._keep(text, *self._code(text))

    def _keep(self, text: str, coded: str, numbers: list[int]) -> None:
        self._index.add(numbers)
        self._coded.append(coded)
        self.texts.append(text)

    def _near(self, coded: str, numbers: list[int]) -> str | None:
        from rapidfuzz.distance import Indel

        distance, (t, whole) = Indel.distance, self.threshold
        for i in self._index.candidates(numbers):
            other = self._coded[i]
            # F >= t / whole, in whole numbers, since F = (m + n - distance) / (m + n)
            most = (whole - t) * (len(coded) + len(other)) // whole
            if distance(coded, other, score_cutoff=most) <= most:
                return self.texts[i]
        return None

    def _code(self, text: str) -> tuple[str, list[int]]:
        """The text with a character for each word, and the numbers of its words."""
        numbers = self._index.number(words(text))
        return "".join(map(character, numbers)), numbers


def character(number: int) -> str:
    code = number if number < SURROGATES.start else number + len(SURROGATES)
    if code > 0x10FFFF:
        raise UserError(f"more than {number} different words: screen fewer texts at a time")
    return chr(code)


class EvaluationPrompts:
    """Prompts that a model is measured on, and that must therefore stay out of training data.

    A text is near to a prompt if the Jaccard coefficient of their words reaches 0.8, or if one stands in the
    other, word for word and up to the end of a sentence: "Answer this: What is 9 times 8?" is near to "What
    is 9 times 8?", and the other way round; "Name a red fruit that is sour." is another instruction than
    "Name a red fruit."."""

    def __init__(self, prompts: Iterable[str]):
        self.prompts = list(prompts)
        self._index, self._sets = Index(DICE), []
        self._whole: dict[tuple[str, ...], int] = {}  # a prompt -> its place, the first of equal ones
        self._lengths: dict[tuple[str, ...], set[int]] = {}  # first words -> lengths of prompts that begin so
        self._runs: set[tuple[str, ...]] = set()
        lines = []
        for i, prompt in enumerate(self.prompts):
            self._sets.append(set(self._index.number(words(prompt))))
            self._index.add(self._sets[-1])
            said = sentences(prompt)
            lines.append(f" {' '.join(said)} ")
            self._runs.update(_runs(said, WITHIN))
            if len(said) > AROUND:  # with the end of its sentence
                self._whole.setdefault(tuple(said), i)
                self._lengths.setdefault(tuple(said[:AROUND]), set()).add(len(said))
        self._text = "\n".join(lines)
        self._ends = list(itertools.accumulate(len(line) + 1 for line in lines))

    def near(self, text: str) -> str | None:
        """The first prompt that the text equals or is near to, None if there is none."""
        said = sentences(text)
        found = [i for i in (self._alike(text), self._within(said), self._around(said)) if i is not None]
        return self.prompts[min(found)] if found else None

    def _alike(self, text: str) -> int | None:
        """The first prompt of almost the same words."""
        # Words that no prompt has need no numbers of their own, but they count as members.
        known = self._index.numbers
        unknown: dict[str, int] = {}
        numbers = {
            known[w] if w in known else unknown.setdefault(w, len(known) + len(unknown)) for w in words(text)
        }
        for i in self._index.candidates(numbers):
            other = self._sets[i]
            if 2 * len(numbers & other) >= DICE * (len(numbers) + len(other)):
                return i
        return None

    def _within(self, said: list[str]) -> int | None:
        """The first prompt that the text stands in."""
        if len(said) <= WITHIN or not self._runs.issuperset(_runs(said, WITHIN)):  # so it is with almost all
            return None
        place = self._text.find(f" {' '.join(said)} ")
        return None if place < 0 else bisect.bisect_right(self._ends, place)

    def _around(self, said: list[str]) -> int | None:
        """The first prompt that stands in the text."""
        found = [
            self._whole.get(tuple(said[start : start + length]))
            for start, run in enumerate(_runs(said, AROUND))
            for length in self._lengths.get(run, ())
        ]
        return min((i for i in found if i is not None), default=None)


def sentences(text: str) -> list[str]:
    """The lower-cased words of a text, with "." after each of its sentences."""
    found = [WORD.findall(part) for part in SENTENCE_END.split(text.lower())]
    return [word for part in found if part for word in (*part, ".")]


def _runs(said: list[str], length: int) -> list[tuple[str, ...]]:
    """All that stands in a row of this length."""
    return [tuple(said[i : i + length]) for i in range(len(said) - length + 1)]
