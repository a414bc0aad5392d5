"""What every milestone script begins with: choose the model, open the run, load, and bind engine, prompts and
principles."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.run import Run
from cai.generation.loop import Loop
from cai.models.device import hourly_rate
from cai.models.loader import load
from cai.models.local_engine import LocalEngine
from cai.models.model import Model
from cai.models.registry import ModelSpec, choose
from cai.prompts.constitution import Constitution
from cai.prompts.constitution import load as load_constitution
from cai.prompts.templates import Prompter, exemplar_texts, fingerprint, hash_texts

# The registry's values that the rows depend on: a rerun with others would mix two experiments.
SPEC_SETTINGS = (
    "kind",
    "shots",
    "requests",
    "list_shots",
    "seeds",
    "near_duplicate",
    "max_seq_length",
    "instruction_tokens",
    "answer_tokens",
    "critique_tokens",
    "lora_r",
    "lora_alpha",
    "learning_rate",
    "beta",
    "batch_size",
    "gradient_accumulation",
)


@dataclass
class Pipeline:
    """An open run with its loaded model. Close the run (`with pipeline.run:`) when done."""

    run: Run
    spec: ModelSpec
    constitution: Constitution
    model: Model
    loop: Loop


def open_pipeline(args: argparse.Namespace, *, principles: int = 1, **settings: Any) -> Pipeline:
    """Bad input is found before anything heavy is loaded; the first line printed says which model, and why.

    settings: the script's own flags that its rows depend on.
    """
    constitution = load_constitution(input_file(args.constitution, "--constitution"))
    if args.bits not in (None, 4, 8, 16):
        raise UserError(f"--bits {args.bits}: choose 4, 8 or 16")
    spec, why = choose(args.model, instruct=getattr(args, "instruct", False))
    bits = spec.bits if args.bits is None else args.bits
    flags = {"model": spec.name, "bits": bits, "seed": args.seed, "principles": principles}
    flags |= {"constitution": constitution.hash, **settings}
    prompts = {"prompts": fingerprint(), "exemplars": hash_texts(exemplar_texts())}
    registry = {k: getattr(spec, k) for k in SPEC_SETTINGS}
    run = Run.open(args.run, flags | prompts | registry, fresh=args.fresh)
    try:
        run.log(f"model: {spec.name} - {why}")
        run.hourly_rate = hourly_rate(args.hourly_rate)
        with run.step("loading"):
            model = load(spec, bits)
            run.record(model=spec.name, device=device_name(model))  # the ledger's row of this step names them
            run.log(f"       {model.describe()}, ${run.hourly_rate:.2f} an hour")
        run.pin(revision=model.revision)
        run.record(
            model=spec.name,
            device=device_name(model),
            dollars_per_hour=run.hourly_rate,
            adapter=None,
            sources={
                **{k: "flag" if is_given(k) else "default" for k in flags},
                **dict.fromkeys(prompts, "code"),
                **dict.fromkeys(registry, "registry"),
            },
        )
        run.log(f"run:   {run.name} in {display_path(run.data)}/")
        prompter = Prompter(spec.shots, spec.requests, spec.list_shots, chat_renderer(model))

        loop = Loop(LocalEngine(model), prompter, constitution, spec, args.seed, principles)
    except BaseException:
        run.__exit__()
        raise
    return Pipeline(run, spec, constitution, model, loop)


def is_given(flag: str) -> bool:
    """Whether a flag stands on the command line, rather than being its default."""
    name = "--" + flag.replace("_", "-")
    return any(a == name or a.startswith(f"{name}=") for a in sys.argv[1:])


def chat_renderer(model: Model):
    """An instruct model's own chat template, messages -> prompt text. None for a base model: it sees none."""
    if model.spec.kind == "base":
        return None
    if not model.tokenizer.chat_template:
        raise UserError(
            f"{model.spec.name} brings no chat template: it is a base model, run it without --instruct"
        )
    return lambda messages: model.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def input_file(path: str, flag: str) -> Path:
    """A committed input, found from the current directory or from the repository's."""
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{flag} {path}: there is no such file")


def device_name(model: Model) -> str:
    import torch

    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
