"""Endings: how often a model's answers stop cleanly in the bare training format. DPO can only sharpen an end
that it sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cai.core.schema import content_id, row_seed
from cai.core.stats import wilson
from cai.generation.loop import ANSWER_TEMPERATURE, Loop
from cai.models.engine import Completion, Sampling
from cai.prompts.training_format import training_prompt

MARKERS = ["\nInstruction:", "\nResponse:"]


def endings(loop: Loop, instructions: Sequence[str]) -> tuple[dict, list[Completion]]:
    """How answers to the instructions end: counts of "end token", "next marker" (it went on with an
    instruction of its own) and "cut off" (it never stopped), their n, and the 95 % Wilson interval of the end
    token's rate."""
    base = loop.spec.kind == "base"
    prompts = [training_prompt(i) if base else loop.prompter.answer(i) for i in instructions]
    seeds = [row_seed(loop.seed, content_id(i), "endings") for i in instructions]
    sampling = Sampling(ANSWER_TEMPERATURE, loop.spec.answer_tokens, MARKERS)
    done = loop.engine.complete(prompts, sampling, seeds, loop.writers.answerer)
    kinds = Counter(how(c.finish_reason, c.ended_by) for c in done)
    counts = {k: kinds[k] for k in ("end token", "next marker", "cut off")}
    low, high = wilson(counts["end token"], len(done))
    return {"n": len(done), **counts, "interval": [round(low, 3), round(high, 3)]}, done


def how(finish_reason: str, ended_by: str | None) -> str:
    """How one answer ended."""
    return "cut off" if finish_reason != "stop" else "end token" if ended_by == "<eos>" else "next marker"
