"""Safety: a guard model reads instructions, answers and revisions, and what it calls unsafe is never chosen.

A guard of Llama Guard's kind (Inan et al. 2023, arXiv:2312.06674) is asked through the chat template that
comes with its own tokenizer, and answers "safe", or "unsafe" and a line of category codes. A base model of
the registry, such as the sandbox, has no such template: it guards as a critic, with the pipeline's own page
on the principle `harm`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.run import Run
from cai.generation.verdicts import read_verdict
from cai.models.device import this_device
from cai.models.engine import Engine, Sampling, TooLong, sampling
from cai.models.engines import engine_of
from cai.models.loader import check_access, check_local, load
from cai.models.registry import REGISTRY, ModelSpec, resolve
from cai.models.session import prompter_of
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import CHANGE, CHAT_TOKENS, END_OF_TEXT, KEEP

DEFAULT_ON_GPU, DEFAULT_ELSEWHERE = "meta-llama/Llama-Guard-3-8B", "sandbox"
VERDICT_TOKENS = 48  # "unsafe" and the codes of all categories
CRITIC_PRINCIPLE = "harm"
# What a critic is told about a text that answers nothing: an instruction by itself.
LONE_TEXT = "Say something."
TEXTS = ("instruction", "initial_answer", "revised_answer")


@dataclass(frozen=True)
class SafetyVerdict:
    """safe: False also where the guard's text could not be read (parsed False). categories: codes, such as
    S1. probability: that the text is unsafe, by the two verdicts' log-probabilities alone; None where the
    text was too long to be asked about. text: what the guard wrote."""

    safe: bool
    categories: tuple[str, ...]
    probability: float | None
    text: str
    parsed: bool = True


class Guard:
    """A guard behind an engine. Raises UserError for a model whose own template asks for no verdict."""

    def __init__(self, engine: Engine):
        self.engine = engine
        spec = engine.spec
        self.critic = spec.kind == "base"
        if self.critic:
            self._principle = load_constitution(ROOT / "constitution.yaml").by_id(CRITIC_PRINCIPLE)
            self._prompter = prompter_of(engine)
            self._safe, self._unsafe, self._lead = KEEP, CHANGE, " "
            critique = sampling(spec, "critique")
            self._sampling = Sampling(0.0, critique.max_tokens, critique.stop)
            return
        page = self.render("?", "?")
        if not {"safe", "unsafe"} <= set(re.findall(r"\w+", page)):
            raise _no_guard(spec)
        # Llama Guard 3 begins with an empty line, unless its prompt has ended with one.
        self._safe, self._unsafe, self._lead = "safe", "unsafe", "" if page.endswith("\n") else "\n\n"
        self._sampling = Sampling(0.0, VERDICT_TOKENS)

    @classmethod
    def open(cls, name: str, loaded: Engine | None = None, run: Run | None = None) -> Guard | None:
        """name: see guard_spec; None for "none". loaded: an engine that is there already, used (without its
        adapters) if it is of that model. run: whose step the loading is."""
        spec = guard_spec(name)
        if spec is None:
            return None
        if loaded and loaded.spec.name == spec.name:
            return cls(loaded)
        with run.step("loading: guard", quiet=True) if run else contextlib.nullcontext():
            model = load(spec)
        if spec.kind == "instruct" and not model.tokenizer.chat_template:
            raise _no_guard(spec)
        return cls(engine_of(model))

    def render(self, instruction: str, response: str | None) -> str:
        """The guard's prompt about the response, or about the instruction where there is none.

        A model's text is data: a special token of the guard's in it is broken up, so that it cannot end its
        turn."""
        instruction = self._harmless(instruction)
        response = None if response is None else self._harmless(response)
        if self.critic:
            about = (LONE_TEXT, instruction) if response is None else (instruction, response)
            return self._prompter.critique(*about, self._principle)
        messages = [{"role": "user", "content": instruction}]
        if response is not None:
            messages.append({"role": "assistant", "content": response})
        # Unsloth may wrap the template's end into "if add_generation_prompt"; the template itself ignores the
        # flag.
        return self.engine.chat.render(messages)

    async def classify(self, instruction: str, response: str | None = None) -> SafetyVerdict:
        """Greedy, so the same for the same texts."""
        prompt = self.render(instruction, response)
        said = await self.engine.complete(prompt, self._sampling, 0)
        safe, codes, parsed = self._read(said.text)
        probability = None
        if said.finish_reason != "too_long":
            head = prompt + self._before_verdict(said.text)
            words = (self._lead + self._safe, self._lead + self._unsafe)
            try:
                scores = await asyncio.gather(*(self.engine.logprobs(head, word) for word in words))
            except TooLong:
                return SafetyVerdict(safe, codes, None, said.text, parsed)
            # exp(unsafe) / (exp(safe) + exp(unsafe)), without overflow
            difference = max(-700.0, min(700.0, scores[0].total - scores[1].total))
            probability = round(1 / (1 + math.exp(difference)), 6)
        return SafetyVerdict(safe, codes, probability, said.text, parsed)

    async def inspect(self, record: dict[str, Any]) -> None:
        """Puts verdicts into the record under "guard". An unsafe text that training would choose, the
        revision or, where there is none, the answer, which may become an anchor, rejects the record:
        "unsafe_chosen". An unsafe instruction or first answer is noted and no reason: declining the first and
        leaving the second is what is to be learnt."""
        names = [name for name in TEXTS if record[name].strip()]
        asked = (
            self.classify(record["instruction"], None if name == "instruction" else record[name])
            for name in names
        )
        record["guard"] = {"model": self.engine.spec.name, "revision": self.engine.revision}
        record["guard"] |= dict.fromkeys(TEXTS)
        for name, found in zip(names, await asyncio.gather(*asked), strict=True):
            record["guard"][name] = asdict(found) | {"categories": list(found.categories)}
        chosen = record["guard"]["revised_answer"] or record["guard"]["initial_answer"]
        if chosen and not chosen["safe"]:
            record["rejected_because"] = [*record["rejected_because"], "unsafe_chosen"]
            record["kept"] = False

    def _read(self, text: str) -> tuple[bool, tuple[str, ...], bool]:
        """(safe, codes, whether the text could be read)"""
        if self.critic:
            found = read_verdict(text)
            return found == KEEP, (), found is not None
        found = parse(text)
        return (*found, True) if found else (False, (), False)

    def _before_verdict(self, text: str) -> str:
        """What a critic writes before its verdict; a guard model begins with it."""
        if not self.critic:
            return ""
        reason = text.removesuffix(KEEP).removesuffix(CHANGE).strip()
        return f" {reason}" if reason else ""

    def _harmless(self, text: str) -> str:
        chat = self.engine.chat
        for token in chat.special_tokens if chat else (*CHAT_TOKENS, END_OF_TEXT):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _no_guard(spec: ModelSpec) -> UserError:
    return UserError(
        f"--guard {spec.name}: its chat template asks for no verdict of 'safe' or 'unsafe', "
        f"so it is no guard; use {DEFAULT_ON_GPU}, "
        "or a base model of the registry (sandbox), which guards as a critic"
    )


def guard_spec(name: str, device: str | None = None) -> ModelSpec | None:
    """The guard that --guard means on a device (this one): of the registry, a directory or a hub id; "auto":
    Llama Guard 3 on a CUDA GPU, the sandbox elsewhere; None for "none"."""
    if name == "none":
        return None
    if name == "auto":
        name = DEFAULT_ELSEWHERE if (device or this_device()) == "cpu" else DEFAULT_ON_GPU
    return resolve(name, instruct=name not in REGISTRY, flag="--guard")


def check_guard(name: str) -> None:
    """Raises UserError for a guard that cannot be loaded here, as far as that is seen before any loading."""
    if spec := guard_spec(name):
        check_local(spec, spec.bits)
        try:
            check_access(spec, spec.bits)
        except UserError as error:
            raise UserError(f"--guard {name}: {error}, or guard with --guard sandbox") from None


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


def may_be_chosen(record: dict[str, Any], name: str) -> bool:
    """Whether a text of a record ("initial_answer", "revised_answer") may be trained towards, as far as a
    guard said."""
    found = (record.get("guard") or {}).get(name)
    return found is None or found["safe"]
