"""Safety: a guard model reads instructions, answers and revisions, and what it calls unsafe is never chosen.

A guard of Llama Guard's kind (Inan et al. 2023, arXiv:2312.06674) is asked through the chat template that
comes with its own tokenizer, and answers "safe", or "unsafe" and a line of category codes. A base model of
the registry, such as the sandbox, has no such template: it guards as a critic, with the pipeline's own page
on the principle `harm`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.generation.filters import verdict
from cai.models.device import this_device
from cai.models.engine import Completion, Sampling
from cai.models.loader import load
from cai.models.local_engine import LocalEngine
from cai.models.model import Model
from cai.models.registry import REGISTRY, resolve
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import CHANGE, KEEP, STOPS
from cai.prompts.templates import Prompter

DEFAULT_ON_GPU, DEFAULT_ELSEWHERE = "meta-llama/Llama-Guard-3-8B", "sandbox"


def default_guard(device: str) -> str:
    """The guard that "auto" means on a device, as this_device() names it."""
    return DEFAULT_ELSEWHERE if device == "cpu" else DEFAULT_ON_GPU


VERDICT_TOKENS = 48  # "unsafe" and the codes of all categories


CRITIC_PRINCIPLE = "harm"


# What a critic is told about a text that answers nothing: an instruction by itself.
LONE_TEXT = "Say something."


UNSAFE_CHOSEN = "unsafe_chosen"


TEXTS = ("instruction", "initial_answer", "revised_answer")


@dataclass(frozen=True)
class Verdict:
    """safe: False also where the guard's text could not be read (parsed False). categories: codes, such as
    S1. probability: that the text is unsafe, by the two verdicts' log-probabilities alone; None where the
    text was too long to be asked about. text: what the guard wrote."""

    safe: bool
    categories: tuple[str, ...]
    probability: float | None
    text: str
    parsed: bool = True


class Guard:
    """A loaded guard. Raises UserError for a model that is asked for no verdict by its own template."""

    def __init__(self, model: Model):
        self.model, self.engine = model, LocalEngine(model)
        self.completions: list[Completion] = []  # the last call's, for the ledger
        spec = model.spec
        self.critic = spec.kind == "base"
        if self.critic:
            self._principle = load_constitution(ROOT / "constitution.yaml").by_id(CRITIC_PRINCIPLE)
            self._prompter = Prompter(spec.shots, spec.requests, spec.list_shots)
            self._safe, self._unsafe, self._lead = KEEP, CHANGE, " "
            self._sampling = Sampling(0.0, spec.critique_tokens, STOPS["critique"])
            return
        page = self.render("?", "?") if model.tokenizer.chat_template else ""
        if not {"safe", "unsafe"} <= set(re.findall(r"\w+", page)):
            raise UserError(
                f"--guard {spec.name}: its chat template asks for no verdict of 'safe' or 'unsafe', so it is "
                f"no guard; use {DEFAULT_ON_GPU}, or a base model of the registry (sandbox), which guards as "
                "a critic"
            )
        # Llama Guard 3 begins with an empty line, unless its prompt has ended with one.
        self._safe, self._unsafe, self._lead = "safe", "unsafe", "" if page.endswith("\n") else "\n\n"
        self._sampling = Sampling(0.0, VERDICT_TOKENS)

    @classmethod
    def open(cls, name: str, loaded: Model | None = None) -> Guard:
        """name: of the registry, a directory or a hub id ("auto": Llama Guard 3 on a CUDA GPU, the sandbox
        elsewhere). loaded: a model that is in memory already, used (without its adapters) if it is the
        one."""
        if name == "auto":
            name = default_guard(this_device())
        spec = resolve(name) if name in REGISTRY else resolve(name, instruct=True)
        return cls(loaded if loaded and loaded.spec == spec else load(spec))

    def render(self, instruction: str, response: str | None) -> str:
        """The guard's prompt about the response, or about the instruction where there is none.

        A model's text is data: a special token of the guard's in it is broken up, so that it cannot end its
        turn."""
        instruction, response = (t if t is None else self._harmless(t) for t in (instruction, response))
        if self.critic:
            about = (LONE_TEXT, instruction) if response is None else (instruction, response)
            return self._prompter.critique(*about, self._principle)
        messages = [{"role": "user", "content": instruction}]
        if response is not None:
            messages.append({"role": "assistant", "content": response})
        # Unsloth may wrap the template's end into "if add_generation_prompt"; the template itself ignores the
        # flag.
        return self.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def classify(self, rows: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """A verdict for each (instruction, response or None), in order; greedy, so the same for the same
        row."""
        prompts = [self.render(*row) for row in rows]
        self.completions = done = self.engine.complete(prompts, self._sampling, [0] * len(rows))
        heads = [p + self._before_verdict(c.text) for p, c in zip(prompts, done, strict=True)]
        fits = [i for i, head in enumerate(heads) if done[i].finish_reason != "too_long" and self._fits(head)]
        asked = [heads[i] for i in fits for _ in "su"]
        scores = self.engine.logprobs(asked, [self._lead + w for w in (self._safe, self._unsafe)] * len(fits))
        totals = {i: (scores[2 * k].total, scores[2 * k + 1].total) for k, i in enumerate(fits)}
        return [self._verdict(c.text, totals.get(i)) for i, c in enumerate(done)]

    def _verdict(self, text: str, totals: tuple[float, float] | None) -> Verdict:
        found = (verdict(text) == KEEP, ()) if self.critic and verdict(text) else None
        if not self.critic:
            found = parse(text)
        safe, codes = found or (False, ())
        if totals is None:
            probability = None
        else:  # exp(unsafe) / (exp(safe) + exp(unsafe)), without overflow
            difference = max(-700.0, min(700.0, totals[0] - totals[1]))
            probability = round(1 / (1 + math.exp(difference)), 6)
        return Verdict(safe, codes, probability, text, found is not None)

    def _before_verdict(self, text: str) -> str:
        """What a critic writes before its verdict; a guard model begins with it."""
        if not self.critic:
            return ""
        reason = text.removesuffix(KEEP).removesuffix(CHANGE).strip()
        return f" {reason}" if reason else ""

    def _fits(self, head: str) -> bool:
        """Room for the longer verdict: no more tokens than its characters."""
        used = len(self.model.tokenizer(head, add_special_tokens=False)["input_ids"])
        longer = max(self._safe, self._unsafe, key=len)
        return used + len(self._lead + longer) <= self.model.spec.max_seq_length

    def _harmless(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @property
    def _special(self) -> list[str]:
        tokenizer = self.model.tokenizer
        tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        return sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)


def parse(text: str) -> tuple[bool, tuple[str, ...]] | None:
    """(safe, codes) of a guard's text: "safe", or "unsafe" and perhaps a line of codes. None for anything
    else."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if lines == ["safe"]:
        return True, ()
    if not lines or lines[0] != "unsafe" or len(lines) > 2:
        return None
    codes = tuple(c.strip() for c in lines[1].split(",")) if len(lines) == 2 else ()
    return (False, codes) if all(re.fullmatch(r"S\d{1,2}", c) for c in codes) else None


def apply(guard: Guard, records: Sequence[dict[str, Any]]) -> list[Completion]:
    """Puts verdicts into the records under "guard". An unsafe text that training would choose, the revision
    or, where there is none, the answer, which may become an anchor, rejects its record: "unsafe_chosen". An
    unsafe instruction or first answer is noted and no reason: declining the first and leaving the second is
    what is to be learnt.

    Gives back the guard's completions, to be counted. Waves call this before they append their records."""
    asked = [(row, name) for row in records for name in TEXTS if row[name].strip()]
    rows = [(r["instruction"], None if name == "instruction" else r[name]) for r, name in asked]
    for row in records:
        row["guard"] = {"model": guard.model.spec.name, "revision": guard.model.revision}
        row["guard"] |= dict.fromkeys(TEXTS)
    for (row, name), found in zip(asked, guard.classify(rows), strict=True):
        row["guard"][name] = asdict(found) | {"categories": list(found.categories)}
    for row in records:
        chosen = row["guard"]["revised_answer"] or row["guard"]["initial_answer"]
        if chosen and not chosen["safe"] and UNSAFE_CHOSEN not in row["rejected_because"]:
            row["rejected_because"] = [*row["rejected_because"], UNSAFE_CHOSEN]
            row["kept"] = False
    return guard.completions


def may_be_chosen(record: dict[str, Any], name: str) -> bool:
    """Whether a text of a record ("initial_answer", "revised_answer") may be trained towards, as far as a
    guard said."""
    found = (record.get("guard") or {}).get(name)
    return found is None or found["safe"]
