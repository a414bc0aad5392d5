"""What every generating script begins with: one call opens the run and loads model, engine, prompts and
constitution."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.cli import is_given
from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.prompt_files import load_heldout, load_neutral, load_seeds
from cai.core.run import Run, read_manifest
from cai.models import probe
from cai.models.device import hourly_rate, this_device
from cai.models.engine import Engine, together
from cai.models.engines import EngineChoice, engine_of, server_engine
from cai.models.loader import check_bits, check_local, load
from cai.models.model import Model, free_memory
from cai.models.registry import ModelSpec, choose, with_registry, with_values
from cai.prompts.constitution import Constitution
from cai.prompts.constitution import load as load_constitution
from cai.prompts.markers import SEPARATOR
from cai.prompts.templates import Prompter, exemplar_texts, fingerprint, hash_texts

IN_PROCESS = EngineChoice()


@dataclass
class Session:
    """An open run with its engine. It is a context manager that closes the run. model: the weights in this
    process, None while a server has them; bits: those to train with."""

    run: Run
    constitution: Constitution
    engine: Engine
    prompter: Prompter
    model: Model | None
    seed: int = 0
    bits: int = 16

    @property
    def spec(self) -> ModelSpec:
        return self.engine.spec

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.release()
        self.run.__exit__(*exc)

    def load_weights(self) -> None:
        """The model into this process, to be trained. A server of ours gives the GPU back first."""
        if self.model is None:
            self.engine.release()
            self.model, _ = load_engine(self.spec, self.bits, self.run, quiet=True)

    def use_trained(self) -> None:
        """The engine carries the adapter that was saved for the run, as "default": in this process it does so
        since training; else the model goes, and a server takes the adapter."""
        if self.engine.name == "local":
            return
        self.model = None
        free_memory()
        self.engine.load_adapter(self.run.checkpoints, "default")
        start(self.engine, self.run, quiet=True)


def check_inputs(args: argparse.Namespace) -> tuple[Constitution, ModelSpec, str]:
    """(constitution, model, why this model) that the flags name. Raises UserError for what cannot be of these
    and of the files that they lead to: before anything is loaded or written, and of a forecast, too."""
    constitution = load_constitution(input_file(args.constitution, "--constitution"))
    if principles := getattr(args, "principles", None):
        constitution.pick(0, principles)  # there may be fewer
    if principle := getattr(args, "principle", None):
        constitution.by_id(principle)
    spec, why = choose(args.model, instruct=getattr(args, "instruct", False))
    spec = with_values(spec, args.set)
    bits, values = getattr(args, "bits", None) or spec.bits, [text.split("=")[0] for text in args.set]
    check_local(spec, bits, context_is_set="max_seq_length" in values)
    if getattr(args, "after", None) and is_given("after") and read_manifest(args.after) is None:
        raise UserError(f"--after {args.after}: there is no such run; name one that is there")
    seeds = load_seeds(Path(spec.seeds))
    load_heldout(Path(spec.heldout))
    load_neutral(Path(spec.neutral))
    task = getattr(args, "task", None)
    if task and task not in {s.task for s in seeds}:
        raise UserError(f"--task {task}: no seed instruction of {spec.seeds} is of this task")
    return constitution, spec, why


def open_session(
    args: argparse.Namespace, *own: str, budget: Any = None, choice: EngineChoice = IN_PROCESS
) -> Session:
    """Bad input is found before anything heavy is loaded; the first line printed says which model, and why.

    own: the script's own flags that its rows depend on. budget: a costs.budget.Budget, which is asked before
    the model is loaded and before each step after that. choice: the engine that generates and evaluates.
    """
    constitution, spec, why = check_inputs(args)
    bits = args.bits or spec.bits
    check_bits(bits, gpu=this_device() != "cpu")
    flags = {
        "model": spec.name,
        "bits": bits,
        "seed": args.seed,
        "constitution": constitution.hash,
        **{name: getattr(args, name) for name in own},
    }
    prompts = prompt_settings()
    settings = with_registry(flags | prompts, spec) | choice.settings()
    run = Run.open(args.run, settings, fresh=args.fresh)
    try:
        run.log(f"model: {spec.name} - {why}")
        run.hourly_rate = hourly_rate(args.hourly_rate)
        if budget is not None:
            budget.watch(run)
        model, engine = open_engine(spec, bits, run, choice)
        run.pin(revision=engine.revision)
        run.record(
            dollars_per_hour=run.hourly_rate,
            max_batch=spec.max_batch,
            adapter=run.manifest.get("adapter"),  # train_dpo.py may have been here
            sources={
                **dict.fromkeys(settings, "registry"),
                **{text.split("=")[0]: "--set" for text in args.set},
                **{k: "flag" if is_given(k) else "default" for k, v in flags.items() if v == settings[k]},
                **dict.fromkeys(prompts, "code"),
            },
        )
        run.log(f"run:   {run.name} in {display_path(run.data)}/")
        return Session(run, constitution, engine, prompter_of(engine), model, args.seed, bits)
    except BaseException:
        run.__exit__()
        raise


def open_engine(
    spec: ModelSpec,
    bits: int,
    run: Run,
    choice: EngineChoice,
    *,
    adapter: tuple[Path, str] | None = None,
    quiet: bool = False,
) -> tuple[Model | None, Engine]:
    """The engine of a choice, ready to be asked; in this process with its model. adapter: (directory, name)
    of one that it carries."""
    if choice.is_local:
        model, engine = load_engine(spec, bits, run, quiet=quiet)
        if adapter:
            engine.load_adapter(*adapter)
        return model, engine
    if not quiet:
        run.log(f"engine: {choice.engine} - {choice.why}")
    engine = server_engine(spec, choice, run.log)
    if adapter:  # before the start, at which a server of ours takes it at once
        engine.load_adapter(*adapter)
    start(engine, run, quiet=quiet)
    return None, engine


def start(engine: Engine, run: Run, *, quiet: bool = False) -> None:
    """Starts and checks servers as a step of a run, which records what they are."""
    with run.step("loading", quiet=quiet):
        record_engine(run, engine)
        together([engine.choose("A or B?", (" A", " B"))])
        if not quiet:
            about = f"{engine.spec.name} ({engine.spec.kind}), {engine.precision}"
            run.log(f"       {about}, ${run.hourly_rate:.2f} an hour")


def record_engine(run: Run, engine: Engine) -> None:
    """What works for a run from now on, as the ledger's rows have it. run.json keeps what wrote the texts, or
    trained where there are none: a training or an evaluation by another engine changes nothing about them."""
    about = {"model": engine.spec.name, "bits": engine.bits, "device": engine.device, "engine": engine.name}
    run.at_work = about
    made = "training" in run.manifest or any(run.data.glob("records*.jsonl"))
    if not made or "engine" not in run.manifest:
        own = {"system_prompt": engine.chat.system} if engine.chat else {}
        run.record(**about, precision=engine.precision, caveat=engine.caveat, **own)


def load_engine(spec: ModelSpec, bits: int, run: Run, *, quiet: bool = False) -> tuple[Model, Engine]:
    """Loads a model as a step of a run, which records what it is."""
    with run.step("loading", quiet=quiet):
        model = load(spec, bits)
        engine = engine_of(model)
        record_engine(run, engine)
        probe.remember(engine)  # what a server of this model must come to
        if model.threads:  # sums of floats may depend on it
            run.record(threads=model.threads.number)
        if not quiet:
            run.log(f"       {model.describe()}, ${run.hourly_rate:.2f} an hour")
            if engine.chat and engine.chat.system:
                run.log(f"       its chat template adds a system message: {engine.chat.system!r}")
    return model, engine


def prompter_of(engine: Engine) -> Prompter:
    spec = engine.spec
    return Prompter(spec.shots, spec.requests, spec.list_shots, engine.chat and engine.chat.render)


def prompt_settings() -> dict[str, str]:
    """Hashes of every prompt text, for a run's settings."""
    return {"prompts": fingerprint(), "exemplars": hash_texts([*exemplar_texts(), SEPARATOR])}


def input_file(path: str, flag: str) -> Path:
    """A committed input, found from the current directory or from the repository's."""
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{flag} {path!r}: there is no such file")
