"""The stop rate: how often a model's answers end by themselves in the bare training format. DPO can only
sharpen an end that it sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cai.core.schema import content_id, row_seed
from cai.core.stats import wilson
from cai.models.engine import EOS, Completion, Engine, complete_all, sampling
from cai.prompts.markers import INSTRUCTION, RESPONSE
from cai.prompts.templates import Prompter
from cai.prompts.training_format import training_prompt

NEXT_MARKERS = (f"\n{INSTRUCTION}", f"\n{RESPONSE}")
STOPPED = "end token"


def stop_rate(
    engine: Engine, prompter: Prompter, instructions: Sequence[str], seed: int, adapter: str | None = None
) -> tuple[dict[str, Any], list[Completion]]:
    """How answers to the instructions end: counts of "end token", "next marker" (it went on with an
    instruction of its own) and "cut off" (it never stopped), their n, and the 95 % Wilson interval of the end
    token's rate."""
    render = training_prompt if engine.spec.kind == "base" else prompter.answer
    seeds = [row_seed(seed, content_id(i), "endings") for i in instructions]
    drawn = replace(sampling(engine.spec, "answer"), stop=NEXT_MARKERS)
    done = complete_all(engine, [render(i) for i in instructions], drawn, seeds, adapter)
    kinds = Counter(ending(c.finish_reason, c.ended_by) for c in done)
    counts = {k: kinds[k] for k in (STOPPED, "next marker", "cut off")}
    low, high = wilson(counts[STOPPED], len(done))
    return {"n": len(done), **counts, "interval": [round(low, 3), round(high, 3)]}, done


def ending(finish_reason: str, ended_by: str | None) -> str:
    """How one answer ended."""
    return "cut off" if finish_reason != "stop" else STOPPED if ended_by == EOS else "next marker"
