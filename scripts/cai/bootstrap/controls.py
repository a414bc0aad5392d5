"""The arms of a plan: the main line, and for each control one entry.

Flags, forecast, stages, comparisons, report and plots read these entries, so a control is added here alone.
An arm makes its data with what a stage's run offers (stage.StageRun): examples of its own, the main line's
answers revised anew, or the main line's pairs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from cai.core.schema import row_seed

MAIN, BASE_HELPER, SHUFFLED = "main", "base_helper", "shuffled_critiques"
EVERYTHING = ("instructions", "answer", "critique", "revision", "judge")  # the steps that make an example
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """title: as the report has it. differs: from main, for --help. data: a StageRun -> (records, pairs), on
    the disk. steps: those that it pays for; without them records and pairs are main's. mark, light, dark: how
    it is drawn. worth: what main minus this control is the worth of. claim: what would falsify the hypothesis
    if it came out so. needs_predecessor: without one it would be main again. base_helps: the base plays every
    part. from_base: trained from the base, on the pairs of all stages so far."""

    name: str
    title: str
    data: Callable[[Any], tuple[Rows, Rows]]
    steps: tuple[str, ...]
    mark: str
    light: str
    dark: str
    differs: str = ""
    worth: str = ""
    claim: str = ""
    needs_predecessor: bool = False
    base_helps: bool = False
    from_base: bool = False

    @property
    def own_examples(self) -> bool:
        return "answer" in self.steps

    @property
    def letter(self) -> str:
        """(a), (b), ..."""
        return self.title.split()[0]

    def units(self, examples: int, per_answer: int) -> dict[str, int]:
        """What making its data takes, by step."""
        each = {"critique": examples * per_answer, "judge": examples * (per_answer + 1)}
        return {step: each.get(step, examples) for step in self.steps}


# ---- how their data are made ----


def _generated(stage: Any) -> tuple[Rows, Rows]:
    return stage.paired(stage.generated())


def _within_budget(stage: Any) -> tuple[Rows, Rows]:
    done, main = stage.generated(), stage.main_data()[0]
    used = within_budget(done, main, stage.context.seed)
    if len(used) < len(done):
        stage.run.log(
            f"main's budget is used up after {len(used)} of {len(done)} examples: the rest is left out"
        )
    return stage.paired(used)


def _all_so_far(stage: Any) -> tuple[Rows, Rows]:
    done, pairs = stage.main_data()
    return done, stage.keep(list({p["id"] + p["kind"]: p for p in stage.earlier_pairs() + pairs}.values()))


def _shuffled(stage: Any) -> tuple[Rows, Rows]:
    return stage.paired(stage.revised(lambda some: critics_of_others(some, stage.context.seed)))


def _tossed(stage: Any) -> tuple[Rows, Rows]:
    done, pairs = stage.main_data()
    return done, stage.keep(flipped(pairs, stage.context.seed))


def within_budget(done: Rows, main: Rows, seed: int) -> Rows:
    """No more examples than main has, nor more tokens. Which ones go is decided by each one's own seed: they
    stand task by task, and from the end whole tasks would go."""
    order = sorted(done, key=lambda r: row_seed(seed, r["id"], "budget"))
    n = min(bisect_right(list(accumulate(map(tokens, order))), sum(map(tokens, main))), len(main))
    used = {r["id"] for r in order[:n]}
    return [r for r in done if r["id"] in used]


def tokens(record: Mapping[str, Any]) -> int:
    """Read and written for an example: answer, critiques, revision, and the judge's reasons."""
    found = record.get("judgement") or {}
    others = [found[k] for k in ("helpfulness", "against_refusal") if k in found]
    judged = sum(j["prompt_tokens"] + j["tokens"] for j in (*found.get("principles", ()), *others))
    return sum(record["tokens"].values()) + judged


def critics_of_others(changed: Rows, seed: int) -> dict[str, dict[str, Any]]:
    """id -> the record whose critiques that answer gets: each record's once, and nobody its own where there
    are two. changed: the records whose critic asked for a change."""
    order = sorted(changed, key=lambda r: row_seed(seed, r["id"], "shuffle"))
    return {r["id"]: order[(i + 1) % len(order)] for i, r in enumerate(order)}


def flipped(pairs: Sequence[dict[str, Any]], seed: int) -> Rows:
    """Chosen and rejected by the toss of a coin, of each pair's own seed. Held-out pairs stay as they are:
    early stopping would watch noise."""

    def toss(pair: dict[str, Any]) -> dict[str, Any]:
        if pair["held_out"] or row_seed(seed, pair["id"], "random pair") % 2:
            return pair
        return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}

    return [toss(pair) for pair in pairs]


# ---- the registry ----

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(MAIN, "predecessor helps", _generated, EVERYTHING, mark="o", light="#1f5fbf", dark="#85b4ff"),
        Arm(
            BASE_HELPER,
            "(a) base helps instead",
            _within_budget,
            EVERYTHING,
            mark="D",
            light="#c4570c",
            dark="#ffab6b",
            differs="the base model helps instead of the predecessor",
            worth="the predecessor's help",
            claim="The base model as helper does as well as the predecessor.",
            needs_predecessor=True,
            base_helps=True,
        ),
        Arm(
            "from_base",
            "(b) trained from the base on all data",
            _all_so_far,
            (),
            mark="s",
            light="#14693a",
            dark="#74d39c",
            differs="trained from the base on all data so far",
            worth="going on from the last adapter",
            needs_predecessor=True,
            from_base=True,
        ),
        Arm(
            SHUFFLED,
            "(c) critiques shuffled",
            _shuffled,
            ("revision", "judge"),
            mark="^",
            light="#8a2f97",
            dark="#dd9be6",
            differs="each answer is revised in view of another answer's critiques",
            worth="a critique of the answer itself",
            claim="Critiques of other examples teach as well as critiques of the answer itself.",
        ),
        Arm(
            "random_pairs",
            "(d) pairs at random",
            _tossed,
            (),
            mark="v",
            light="#6b7078",
            dark="#a9b0b9",
            differs="chosen and rejected by the toss of a coin",
            worth="telling chosen from rejected",
            claim="Chosen and rejected paired at random train as well as real pairs.",
        ),
    )
}


CONTROLS: dict[str, Arm] = {name: arm for name, arm in ARMS.items() if name != MAIN}


def letters(chosen: Callable[[Arm], bool]) -> str:
    """The letters of some controls: "(a), (b) and (c)"."""
    *first, last = (arm.letter for arm in CONTROLS.values() if chosen(arm))
    return f"{', '.join(first)} and {last}" if first else last
