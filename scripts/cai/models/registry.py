"""The registry: what each model needs. Per-model differences sit here, in rows, not in ifs.

Every value but a model's identity can be changed for a run by --set name=value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cai.core.cli import MOST, MOST_BETA, MOST_LEARNING_RATE, MOST_LORA_R
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.models.device import this_device
from cai.models.pins import pinned_commit
from cai.prompts.exemplars import ANSWERED, EDITED, JUDGED

# By which rule a judge decides that was asked in both orders (generation/judge.py): only if both agree, or by
# the log-odds of both together.
JUDGE_RULES = BOTH_ORDERS, LOG_ODDS = "both orders", "log-odds"


@dataclass(frozen=True)
class ModelSpec:
    """One row of the registry. Lengths in tokens, lr per step, parameters in billions.

    repo: a hub id, or a directory relative to the repository. revision: its commit. repo_4bit: weights
    already in NF4, taken when 4 bits are asked for. gated: the hub wants its terms accepted. kind: "base"
    (continues text; never sees a chat token) or "instruct" (its own chat template). sandbox: it speaks of the
    invented world, in which all is known.
    """

    name: str
    repo: str
    revision: str | None = None
    kind: str = "base"
    sandbox: bool = False
    parameters: float = 0.0
    bits: int = 16
    repo_4bit: str | None = None
    revision_4bit: str | None = None
    gated: bool = False
    shots: int = 4  # exemplars before an answer, a critique, a revision
    requests: bool = True  # write the constitution's critique and revision requests out
    list_shots: int = 8  # seed instructions in a list to continue
    seeds: str = "data/prompts/seeds.jsonl"
    skill_seeds: str = "data/prompts/seeds_skills.jsonl"  # of the six-stage plan's skills
    near_duplicate: float = 0.7  # ROUGE-L from which a generated instruction repeats another
    heldout: str = "data/prompts/heldout.jsonl"  # instructions to evaluate on
    neutral: str = "data/prompts/neutral.jsonl"  # passages to measure perplexity on
    max_seq_length: int = 4096
    instruction_tokens: int = 160
    answer_tokens: int = 500  # of a revision, too
    critique_tokens: int = 300  # of a judge's reason, too
    instruction_temperature: float = 0.7
    answer_temperature: float = 0.7
    critique_temperature: float = 0.3
    revision_temperature: float = 0.3
    judge_temperature: float = 0.3
    judge_rule: str = BOTH_ORDERS
    lora_r: int = 32
    lora_alpha: int = 64
    learning_rate: float = 5e-6
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    passes: float = 2.0  # over the pairs, where no number of steps is given
    beta: float = 0.1
    loss: str = "dpo"  # of training.losses.LOSSES
    batch_size: int = 4  # pairs trained on at once, where GPU memory allows it (training/memory.py)
    gradient_accumulation: int = 2  # times that a step's worth: 8 pairs
    max_batch: int = 64  # rows generated at once, where the memory allows it

    def source(self, bits: int) -> tuple[str, str | None]:
        """(repository or directory, revision) that is loaded for a precision: the one named here, else the
        pinned one (models/pins.json), else None."""
        four = bits == 4 and self.repo_4bit
        repo, revision = (self.repo_4bit, self.revision_4bit) if four else (self.repo, self.revision)
        return repo, revision or pinned_commit(repo)

    def download_gb(self, bits: int) -> float:
        """What loading has to fetch: NF4 with 16-bit embeddings is about 0.6 bytes a parameter, everything
        else 2."""
        return self.parameters * (0.6 if bits == 4 and self.repo_4bit else 2.0)

    def memory_gb(self, bits: int) -> float:
        """GPU memory that the weights take, and 2 GB for the CUDA context and buffers."""
        return self.parameters * {4: 0.6, 8: 1.1, 16: 2.0}[bits] + 2.0


def _qwen(name: str, revision: str, parameters: float, **more: Any) -> ModelSpec:
    kind = "instruct" if name.endswith("-Instruct") else "base"
    return ModelSpec(name, name, revision, kind, parameters=parameters, **more)


REGISTRY: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        # Lengths and training values of the sandbox fit a model of four million parameters and sentences of
        # ten words.
        ModelSpec(
            "sandbox",
            "models/sandbox",
            sandbox=True,
            parameters=0.004,
            shots=0,
            requests=False,
            list_shots=3,
            seeds="data/prompts/seeds_sandbox.jsonl",
            skill_seeds="data/prompts/seeds_sandbox_skills.jsonl",
            near_duplicate=1.0,  # in short sentences about few things another name is another question
            heldout="data/prompts/heldout_sandbox.jsonl",
            neutral="data/prompts/neutral_sandbox.jsonl",
            max_seq_length=1024,
            instruction_tokens=90,
            answer_tokens=48,
            critique_tokens=80,
            lora_alpha=32,
            learning_rate=5e-4,
            loss="dpo+nll",  # plain DPO moves it less (specs/LOG.md)
            beta=0.3,
            batch_size=8,
            gradient_accumulation=1,
            max_batch=128,
        ),
        # No commit of the ready 4-bit weights has been checked yet: the first download pins it.
        _qwen(
            "Qwen/Qwen2.5-32B",
            "1818d35814b8319459f4bd55ed1ac8709630f003",
            32.76,
            bits=4,
            repo_4bit="unsloth/Qwen2.5-32B-bnb-4bit",
        ),
        _qwen("Qwen/Qwen2.5-14B", "97e1e76335b7017d8f67c08a19d103c0504298c9", 14.77),
        _qwen("Qwen/Qwen2.5-7B", "d149729398750b98c0af14eb82c78cfe92750796", 7.62),
        _qwen("Qwen/Qwen2.5-3B", "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b", 3.09),
        _qwen("Qwen/Qwen2.5-1.5B", "8faed761d45a263340a0528343f099c05c9a4323", 1.54),
        _qwen("Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987", 0.49),
        _qwen("Qwen/Qwen2.5-32B-Instruct", "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd", 32.76, bits=4),
        _qwen("Qwen/Qwen2.5-14B-Instruct", "cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8", 14.77),
        _qwen("Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28", 7.62),
        _qwen("Qwen/Qwen2.5-3B-Instruct", "aa8e72537993ba99e69dfaafa59ed015b17504d1", 3.09),
        _qwen("Qwen/Qwen2.5-1.5B-Instruct", "989aa7980e4cf806f80c7fef2b1adb7bc71aa306", 1.54),
        _qwen("Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf67be50417f59c2c2f167def9a775", 0.49),
        _qwen("Qwen/Qwen2-7B-Instruct", "f2826a00ceef68f0f2b946d945ecc0477ce4450c", 7.62),
        _qwen("Qwen/Qwen2-1.5B-Instruct", "ba1cf1846d7df0a0591d6c00649f57e798519da8", 1.54),
        _qwen("Qwen/Qwen2-0.5B-Instruct", "c540970f9e29518b1d8f06ab8b24cba66ad77b6d", 0.49),
        # A guard, not a writer (generation/guard.py).
        ModelSpec(
            "meta-llama/Llama-Guard-3-8B",
            "meta-llama/Llama-Guard-3-8B",
            "7327bd9f6efbbe6101dc6cc4736302b3cbb6e425",
            kind="instruct",
            gated=True,
            parameters=8.03,
            max_seq_length=8192,
        ),
    )
}

DEFAULT_ON_GPU, DEFAULT_ELSEWHERE = "Qwen/Qwen2.5-32B", "sandbox"


def resolve(name: str, *, instruct: bool = False, flag: str = "--model") -> ModelSpec:
    """The registry's row for a name; for a directory or any hub id (org/name or org/name@commit) one made on
    the spot.

    instruct: use the chat template of a model that the registry does not know (its own rows know their kind).
    Raises UserError for a name that is neither.
    """
    if name in REGISTRY:
        spec = REGISTRY[name]
        if instruct and spec.kind != "instruct":
            raise UserError(
                f"--instruct with {name}: this is a base model; a chat template would void the experiment"
            )
        return spec
    kind = "instruct" if instruct else "base"
    if name and is_directory(name):
        return ModelSpec(name, str(Path(name).resolve()), kind=kind)
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?", name)
    if hub and not name.startswith((".", "/")):
        return ModelSpec(name, hub[1], hub[2], kind=kind)
    raise UserError(
        f"{flag} {name[:200]!r} is neither in the registry nor a directory nor a hub id (organisation/name). "
        f"The registry holds: {', '.join(REGISTRY)}"
    )


def is_directory(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # too long for a path
        return False


SHOTS = min(map(len, (ANSWERED, EDITED, JUDGED)))  # at most

# What a model is, and what follows from --model and --bits: no value to set.
IDENTITY = ("name", "repo", "revision", "kind", "sandbox", "parameters", "bits")
IDENTITY += ("repo_4bit", "revision_4bit", "gated")
FILES = ("seeds", "skill_seeds", "heldout", "neutral")
SETTABLE = tuple(f.name for f in fields(ModelSpec) if f.name not in (*IDENTITY, "loss"))  # there is --loss
AT_MOST = {"lora_r": MOST_LORA_R, "learning_rate": MOST_LEARNING_RATE, "beta": MOST_BETA, "passes": 1000}
NO_SETTING = (*IDENTITY, "max_batch", "skill_seeds")  # how fast rows come; what a plan has in its inputs


def row_settings(spec: ModelSpec) -> dict[str, Any]:
    """The values that rows depend on: a rerun with others would mix two experiments."""
    return {"kind": spec.kind} | {
        f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in NO_SETTING
    }


def with_registry(given: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """A run's settings: what was given, and the registry's values for everything else. A flag that was left
    out, such as --loss, means the registry's."""
    row = row_settings(spec)
    return row | {key: value for key, value in given.items() if value is not None or key not in row}


def with_values(spec: ModelSpec, given: Sequence[str]) -> ModelSpec:
    """The row with values of --set, each written name=value. Raises UserError: an unknown name, a value of
    another type, a number that cannot be."""
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in SETTABLE:
            raise UserError(
                f"--set {text[:200]!r}: write name=value, with one of these names: {', '.join(SETTABLE)}"
            )
        if name in values:
            raise UserError(f"--set {text!r}: {name} is set twice")
        values[name] = _value(name, value, type(getattr(spec, name)))
    changed = replace(spec, **values)
    longest = max(changed.instruction_tokens, changed.answer_tokens, changed.critique_tokens)
    if values and longest >= changed.max_seq_length:
        raise UserError(
            f"--set: a text of {longest} tokens leaves no room for its prompt "
            f"in a context of {changed.max_seq_length}; make the one shorter or the other longer"
        )
    return changed


def _value(name: str, text: str, kind: type) -> Any:
    try:
        value = (
            {"True": True, "true": True, "False": False, "false": False}[text] if kind is bool else kind(text)
        )
    except (ValueError, KeyError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UserError(f"--set {name}={text[:200]}: must be {words}") from None
    least = 0 if name == "shots" or name.endswith("temperature") or name == "warmup" else None
    if kind in (int, float) and not (value < math.inf and (value > 0 if least is None else value >= least)):
        raise UserError(f"--set {name}={text[:40]}: must be {'above 0' if least is None else 'at least 0'}")
    if kind in (int, float) and value > (most := AT_MOST.get(name, MOST)):
        raise UserError(f"--set {name}={text[:20]}: is too large, {most:g} is the most")
    if name == "shots" and value > SHOTS:
        raise UserError(f"--set {name}={text}: there are {SHOTS} exemplars")
    if name in ("warmup", "near_duplicate") and value > 1:
        raise UserError(f"--set {name}={text}: a share, at most 1")
    if name == "judge_rule" and value not in JUDGE_RULES:
        raise UserError(f"--set {name}={text[:40]}: choose one of {', '.join(map(repr, JUDGE_RULES))}")
    if name in FILES and not (ROOT / value).is_file():
        raise UserError(f"--set {name}={text}: there is no such file")
    return value


def choose(name: str, *, instruct: bool = False) -> tuple[ModelSpec, str]:
    """(spec, why) for a --model value; "auto" looks for a CUDA GPU."""
    if name != "auto":
        return resolve(name, instruct=instruct), "asked for by --model"
    device = this_device()
    if device != "cpu":
        return resolve(DEFAULT_ON_GPU, instruct=instruct), f"the default with a CUDA GPU ({device})"
    return resolve(DEFAULT_ELSEWHERE, instruct=instruct), "the default without a CUDA GPU"
